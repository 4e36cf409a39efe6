"""Metrics and samples of a run: JSON lines in the run folder always, other trackers as mirrors.

    metrics.jsonl   {"step": 12, "objective/kl": 2.4, ...}   or   {"step": 12, "event": "skipped_update", ...}
    samples.jsonl   {"step": 12, "table": "samples", "query": ..., "response": ..., ...}

NaN and infinity become null, so that every line is valid JSON. The local files are the record: when they cannot be
written the run stops. A mirror that fails is reported once and switched off; training goes on. Nothing is sent
anywhere unless the user asks for it: wandb runs in WANDB_MODE or else offline, trackio and tensorboard write files.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from hydralign.errors import ConfigError, RunFolderError, did_you_mean
from hydralign.files import append, write_bytes, writing

logger = logging.getLogger("hydralign")


class Tracker(Protocol):
    """Where the numbers of a run go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of one step."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with equal keys, such as queries with their responses and rewards."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Something that happened once, such as a skipped update."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines:
    """metrics.jsonl and samples.jsonl in `folder`, every line whole. Raises StorageError when the disk is full."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.metrics_path, self.samples_path = folder / "metrics.jsonl", folder / "samples.jsonl"
        with writing(self.metrics_path):
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line that the disk has no room for must not wait and fail once more at the end.
            self._metrics = self.metrics_path.open("ab", buffering=0)
            self._samples = self.samples_path.open("ab", buffering=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line; a number keeps its kind, whole numbers stay whole."""
        append(self._metrics, _line({"step": step, **metrics}), self.metrics_path)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends one line per row to samples.jsonl."""
        lines = [_line({"step": step, "table": name, **row}) for row in rows]
        append(self._samples, b"".join(lines), self.samples_path)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        append(self._metrics, _line({"step": step, "event": name, **details}), self.metrics_path)

    def close(self) -> None:
        """Closes both files."""
        self._metrics.close()
        self._samples.close()

    def position(self) -> int:
        """Length of metrics.jsonl in bytes, to be kept in a checkpoint. Raises StorageError when the file is gone."""
        with writing(self.metrics_path):
            return self.metrics_path.stat().st_size

    def cut_back(self, offset: int) -> None:
        """Removes what was written after `position()` was `offset`, and the samples of later steps with it.

        Raises RunFolderError when metrics.jsonl is shorter than that, has no line end there, or holds other lines.
        """
        written = self.metrics_path.read_bytes()[:offset]
        steps = [_step(line) for line in written.splitlines()]
        if len(written) < offset or (written and not written.endswith(b"\n")) or None in steps:
            raise RunFolderError(
                f"{self.metrics_path} has no line that ends at byte {offset}, where the checkpoint left it: the file "
                "was changed since, so its metrics would not fit the run. Restore it, or start in another folder."
            )
        last = max((step for step in steps if step is not None), default=-1)
        samples = self.samples_path.read_bytes()
        lines = [line for line in samples.splitlines(keepends=True) if line.endswith(b"\n")]
        # A crash can leave half a line at the end, or zeros, which count as later.
        whole = b"".join(line for line in lines if (step := _step(line)) is not None and step <= last)
        os.truncate(self.metrics_path, offset)
        if whole != samples:
            self._samples.close()
            write_bytes(self.samples_path, whole)
            self._samples = self.samples_path.open("ab", buffering=0)


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(as_json(row), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # lone surrogates, valid JSON this way


def _step(line: bytes) -> int | None:
    """The step of a line of ours; None for anything else."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


class RunMirror:
    """A run of wandb or of trackio, which answers to the same calls."""

    def __init__(self, module: ModuleType, run: Any) -> None:
        self._module, self._run = module, run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Scalars."""
        self._run.log(dict(metrics), step=step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of the library's own."""
        columns, data = _columns(rows)
        self._run.log({name: self._module.Table(columns=columns, data=data)}, step=step)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """A 1 at this step under `event/<name>`; the details stay in the local file."""
        self._run.log({f"event/{name}": 1}, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def start_wandb(folder: Path, run_name: str, config: Mapping[str, Any]) -> RunMirror:
    """A wandb run under `folder`/wandb; offline unless WANDB_MODE says otherwise."""
    wandb = _module("wandb", extra="wandb")
    run = wandb.init(
        project="hydralign",
        name=run_name,
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        config=dict(config),
        settings=wandb.Settings(console="off", silent=True),
    )
    return RunMirror(wandb, run)


def start_trackio(folder: Path, run_name: str, config: Mapping[str, Any]) -> RunMirror:
    """A trackio run in TRACKIO_DIR, which becomes `folder`/trackio unless it is set. No dashboard is started.

    trackio reads TRACKIO_DIR when it is first imported; imported before, it keeps the place that it had.
    """
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    trackio = _module("trackio", extra="trackio")
    run = trackio.init(
        project="hydralign",
        name=run_name,
        config=dict(config),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return RunMirror(trackio, run)


class TensorBoardMirror:
    """Event files in `folder`/tensorboard."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        module = _module("torch.utils.tensorboard", extra="tensorboard")
        self._writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"))
        self._writer.add_text("config", f"```json\n{json.dumps(as_json(config), indent=2)}\n```", 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table in Markdown under Text."""
        columns, data = _columns(rows)
        lines = [columns, ["---"] * len(columns), *data]
        self._writer.add_text(name, "\n".join(f"|{'|'.join(map(_cell, line))}|" for line in lines), step)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """A line of JSON under Text."""
        self._writer.add_text(f"event/{name}", f"`{json.dumps(as_json(details))}`", step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()


MIRRORS: Mapping[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "wandb": start_wandb,
    "trackio": start_trackio,
    "tensorboard": TensorBoardMirror,
}


class Trackers:
    """The local files first, then every mirror. A mirror that raises is reported once and left out from then on.

    Without `local` there is no record: so it is on all processes but the main one.
    """

    def __init__(self, local: JsonLines | None = None, mirrors: Mapping[str, Tracker] | None = None) -> None:
        self.local = local
        self.mirrors = dict(mirrors or {})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of one step, everywhere."""
        self._everywhere(lambda tracker: tracker.log(step, metrics))

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows, everywhere."""
        self._everywhere(lambda tracker: tracker.table(step, name, rows))

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """An event, everywhere."""
        self._everywhere(lambda tracker: tracker.event(step, name, details))

    def close(self) -> None:
        """Closes everything."""
        self._everywhere(lambda tracker: tracker.close())

    def position(self) -> int:
        """See `JsonLines.position`; 0 where there is no record."""
        return self.local.position() if self.local else 0

    def cut_back(self, offset: int) -> None:
        """See `JsonLines.cut_back`; what a mirror has received stays there."""
        if self.local:
            self.local.cut_back(offset)

    def _everywhere(self, act: Callable[[Tracker], None]) -> None:
        if self.local:
            act(self.local)
        for name, mirror in list(self.mirrors.items()):
            try:
                act(mirror)
            except Exception as error:
                del self.mirrors[name]
                _report_lost(name, error)


def open_trackers(folder: str | Path, names: Iterable[str], run_name: str, config: Mapping[str, Any]) -> Trackers:
    """The local files in `folder` and the named mirrors (wandb, trackio, tensorboard).

    Raises ConfigError for an unknown name or a missing package; a mirror that cannot start is reported and left out.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mirrors: dict[str, Tracker] = {}
    for name in names:
        if name not in MIRRORS:
            raise ConfigError(f"there is no tracker {name!r}: nothing would be mirrored. {did_you_mean(name, MIRRORS)}")
        try:
            mirrors[name] = MIRRORS[name](folder, run_name, config)
        except ConfigError:
            raise
        except Exception as error:
            _report_lost(name, error)
    return Trackers(JsonLines(folder), mirrors)


def require_trackers(names: Iterable[str]) -> None:
    """Raise ConfigError for a mirror whose package is not installed, without importing it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracker {name!r} needs a package that is not installed: it would record nothing. "
                f"Run: pip install 'hydralign[{name}]'"
            )


def _report_lost(name: str, error: Exception) -> None:
    logger.warning(
        "tracker %s failed (%s: %s): it gets nothing more. Training goes on; metrics.jsonl has everything.",
        name,
        type(error).__name__,
        error,
    )


def _module(name: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"tracker {extra!r} needs a package that cannot be imported ({error}): it would record nothing. "
            f"Run: pip install 'hydralign[{extra}]'"
        ) from error


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names in order of first sight, and the cells row by row; None where a row lacks the column."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[as_json(row.get(column)) for column in columns] for row in rows]


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def as_json(value: Any, *, strict: bool = False) -> Any:
    """`value` as JSON has it: tensors and numpy numbers as Python's, NaN and infinity as None, the rest as text.
    `strict` leaves the rest for `json` to refuse.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): as_json(item, strict=strict) for key, item in value.items()}
        case list() | tuple():
            return [as_json(item, strict=strict) for item in value]
        case _:
            return value if strict else str(value)
