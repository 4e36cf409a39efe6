"""The base of every config: frozen, strict, and derived from nothing at run time.

Import-light on purpose (pydantic only): `hydralign --help` and a wrong recipe must answer before torch loads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hydralign.config.problems import config_error

Beta = Annotated[float, Field(ge=0, lt=1)]
"""One of AdamW's moment decays: at 1 the moment would keep its start for good, and its correction divides by 0."""


OLD_NAMES = {"micro_rows": "micro_batch_size", "decode_rows": "decode_batch_size"}
"""Settings that once had another name, which still loads: old name to new."""


class Config(BaseModel):
    """A frozen group of settings. Unknown keys are refused; the printed form loads again.

    Made in Python it takes `os.PathLike` wherever it takes text, and raises ConfigError for settings that cannot work.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            listed = config_error(type(self), error)
            raise type(listed)(f"{type(self).__name__}: {listed}") from error

    # pydantic calls an `__init__` of one's own for groups inside groups too, unless it is marked as its own: there,
    # errors must stay pydantic's, so that all of a recipe's are listed together with their keys.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _by_new_names(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping) or not OLD_NAMES.keys() & settings.keys():
            return settings
        renamed = dict(settings)
        for old, new in OLD_NAMES.items():
            if old not in renamed or new not in cls.model_fields:
                continue
            if new in renamed:
                raise ValueError(f"{old} and {new} are one setting, under its old and its new name. Leave {old} out.")
            renamed[new] = renamed.pop(old)
        return renamed

    @model_validator(mode="before")
    @classmethod
    def _paths_as_text(cls, settings: Any) -> Any:
        return (
            {name: _as_text(value) for name, value in settings.items()} if isinstance(settings, Mapping) else settings
        )


def _as_text(value: Any) -> Any:
    """A path, or the paths in a list, as text; anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return type(value)(map(_as_text, value)) if type(value) in (list, tuple) else value
