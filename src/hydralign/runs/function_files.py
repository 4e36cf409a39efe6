"""The source files behind a reward function: its own, and those of the user's that it imports, found without running.

Modules are looked for where Python would: in the folder of the reward file, in the working folder, then along
`sys.path`. What lies in the standard library, among installed packages or in this package is left out: versions say
about those. Imports by a name that is only known at run time are not seen.
"""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

_OURS = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}


def function_files(reference: str) -> dict[str, Path]:
    """Path relative to the function's own file: file, of that file and all that it imports; none if it is not there."""
    place = reference.rpartition(":")[0]
    roots = [Path.cwd(), *(Path(entry or ".").absolute() for entry in sys.path)]
    if place.endswith(".py"):
        start = Path(place).expanduser().resolve()
        roots.insert(0, start.parent)
        waiting = [start] if start.is_file() else []
    else:
        waiting = _find_module(roots, place.split("."))
        start = waiting[-1] if waiting else Path()
    found: dict[str, Path] = {}
    while waiting:
        file = waiting.pop()
        name = Path(os.path.relpath(file, start.parent)).as_posix()
        if name not in found:
            found[name] = file
            waiting += _imported_files(file, roots)
    return found


def _imported_files(file: Path, roots: Sequence[Path]) -> list[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [part for node in ast.walk(tree) for part in _files_of_import(node, file, roots)]


def _files_of_import(node: ast.AST, file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _find_module(roots, alias.name.split("."))
    elif isinstance(node, ast.ImportFrom):
        parts = node.module.split(".") if node.module else []
        for alias in node.names:
            if node.level:
                package = file.parents[min(node.level, len(file.parents)) - 1]
                own = package / "__init__.py"
                yield from [own] if own.is_file() else []
                yield from _module_files(package, [*parts, alias.name])
            else:
                yield from _find_module(roots, [*parts, alias.name])


def _find_module(roots: Sequence[Path], parts: Sequence[str]) -> list[Path]:
    """Files of a module under the first of these folders that has it; none where that is not the user's own code."""
    if parts[0] == _OURS or parts[0] in sys.builtin_module_names:
        return []
    for root in roots:
        if found := _module_files(root, parts):
            return [] if _is_library(root) else found
    return []


def _module_files(root: Path, parts: Sequence[str]) -> list[Path]:
    """Files of the module and of the packages around it, as far as they are under `root`, the module last."""
    found = []
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        found += [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()][:1]
    return found


def _is_library(root: Path) -> bool:
    own = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return root in own or not _INSTALLED.isdisjoint(root.parts)
