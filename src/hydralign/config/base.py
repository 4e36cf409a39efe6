"""The base of every config: frozen, strict, and derived from nothing at run time.

Import-light on purpose (pydantic only): `hydralign --help` and a wrong recipe must answer before torch loads.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Beta = Annotated[float, Field(ge=0, lt=1)]
"""One of AdamW's moment decays: at 1 the moment would never forget its start, and its correction divides by 0."""


class Config(BaseModel):
    """A frozen group of settings. Unknown keys are refused; the printed form loads again."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
