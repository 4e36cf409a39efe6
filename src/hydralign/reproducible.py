"""Asks the maths library for products that do not depend on where their operands lie in memory.

MKL, which torch multiplies with on x86 CPUs, picks a kernel by the alignment of its operands on some of them (measured
on AMD Zen 3: products of one or two rows, and of few rows with two threads). Equal weights at two addresses then differ
in the last bits, and so do a resumed run and an uninterrupted one. `MKL_CBWR=AUTO,STRICT` keeps to one kernel. The
library reads it once, so it must stand in the environment before torch is loaded; `hydralign/__init__.py` sees to that.
Other libraries ignore it. Whether it worked is measured in `training/checkpoints.py`; nothing heavy is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

VARIABLE = "MKL_CBWR"
WANTED = "AUTO,STRICT"

_told = ""


def request_reproducible_products(
    environment: MutableMapping[str, str] = os.environ, *, torch_loaded: bool | None = None
) -> str:
    """Set MKL_CBWR=AUTO,STRICT unless the user has set it or torch is loaded already; returns what is true then."""
    loaded = "torch" in sys.modules if torch_loaded is None else torch_loaded
    own = environment.get(VARIABLE)
    if own is not None:
        return f"{VARIABLE}={own}" + (", set too late if after torch was loaded" if loaded else "")
    if loaded:
        return f"{VARIABLE} not set: torch was loaded before hydralign"
    environment[VARIABLE] = WANTED
    return f"{VARIABLE}={WANTED}"


def products_setting() -> str:
    """What was true when hydralign was imported. What is put into the environment later has no effect."""
    return _told


_told = request_reproducible_products()
