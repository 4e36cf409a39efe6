"""Print pip constraints that pin every requirement of a pyproject.toml, extras included, to its lower bound.

torch is left out: its lower bound has no build for every Python that is supported, so one version serves all runs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def lowest_versions(pyproject: str) -> list[str]:
    """`name==bound` of each `name>=bound`. Raises ValueError for a requirement that is neither that nor a bare name."""
    project = tomllib.loads(pyproject)["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pins = []
    for requirement in wanted:
        parts = re.fullmatch(r"(?P<name>[\w.-]+)(\[[\w,]+\])?(>=(?P<bound>[\w.]+))?", requirement)
        if parts is None:
            raise ValueError(f"{requirement!r} has no plain lower bound: write name>=version.")
        if parts["bound"] and parts["name"] != "torch":
            pins.append(f"{parts['name']}=={parts['bound']}")
    return pins


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest_versions(Path(sys.argv[1]).read_text(encoding="utf-8"))) + "\n")
