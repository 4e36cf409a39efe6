"""Whether the Hugging Face hub answers, asked before something is loaded from it, once in ten minutes.

Libraries retry each file of a model for more than a minute when there is no network. Here one request with a time
limit decides: when the hub does not answer, what is in its cache is used, and what is not is a named error at once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hydralign.errors import DataError, ModelError, describe_error, shortened
from hydralign.progress import say

Kind = Literal["model", "dataset"]

SECONDS_TO_ANSWER = 10.0
SECONDS_ANSWER_HOLDS = 600.0
"""So long nobody is asked again: a model, its tokenizer and the rewards beside it are loaded one after the other."""

_answers: dict[str, tuple[float, str | None]] = {}
"""Endpoint: when it was asked last, and why it did not answer (None if it did)."""


def describe_search(path: str | os.PathLike[str]) -> str:
    """Where a path was looked for, in brackets, when it lies nowhere and is therefore taken for a hub id; else ""."""
    folder = Path(os.path.expanduser(path))
    return "" if os.path.exists(folder) else f" (no {folder.absolute()} here, so it was taken for a hub id)"


@contextmanager
def hub_access(name: str | os.PathLike[str], kind: Kind) -> Iterator[None]:
    """Load `name` inside: from the hub, or from its cache alone when the hub does not answer.

    Does nothing for a local path, or where the user has set HF_HUB_OFFLINE. Raises ModelError or DataError when the
    hub does not answer and its cache has nothing of this name.
    """
    from huggingface_hub import constants

    name = str(name)
    reason = None
    if not os.path.exists(os.path.expanduser(name)) and not constants.is_offline_mode():
        reason = _unreachable(name, kind)
    if reason is None:
        yield
        return
    if not _cached(name, kind):
        error = ModelError if kind == "model" else DataError
        raise error(
            f"{kind} {name!r} could not be loaded{describe_search(name)}: {constants.ENDPOINT} does not answer "
            f"({reason}), and its cache {constants.HF_HUB_CACHE} has no copy. Check the name and the connection, or "
            "name a local copy."
        )
    say(f"{constants.ENDPOINT} does not answer ({reason}): {kind} {name} is read from the cache.")
    with _offline():
        yield


def _unreachable(name: str, kind: Kind) -> str | None:
    """Why the hub does not answer, in short; None when it does, even if only to refuse. Kept for a while."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    asked, reason = _answers.get(constants.ENDPOINT, (-math.inf, None))
    if time.monotonic() - asked > SECONDS_ANSWER_HOLDS:
        reason = _ask(name, kind)
        _answers[constants.ENDPOINT] = (time.monotonic(), reason)
    return reason


def _ask(name: str, kind: Kind) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=SECONDS_TO_ANSWER)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        return f"HTTP status {status}" if status >= 500 else None
    except Exception as error:  # the HTTP library's own, and whatever a proxy's settings bring about
        return shortened(describe_error(error), 200, show=str)
    return None


def _cached(name: str, kind: Kind) -> bool:
    """Whether the hub's cache, or that of prepared data sets, may hold something of this name."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    if folder.is_dir() and any(folder.iterdir()):
        return True
    if kind == "model":
        return False
    import datasets

    prepared = Path(datasets.config.HF_DATASETS_CACHE)
    wanted = name.replace("/", "___").lower()
    # `datasets` writes names in camel case with underscores.
    return prepared.is_dir() and any(
        f.name.lower().replace("_", "") == wanted.replace("_", "") for f in prepared.iterdir()
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Both libraries as if HF_HUB_OFFLINE were set."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
