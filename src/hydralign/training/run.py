"""One training run in its folder: where it resumes, what it records, when it is saved, and how it ends.

A method's loop is the steps of its paper inside

    with run:
        for step in run:
            with run.attempt():
                ...
                run.log(metrics)

and everything else is here: NaN and infinity are events that skip a step, Ctrl-C ends the run between two steps,
checkpoints are written when due, memory that runs out is noted, errors come on all processes together.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import HydralignError, NonFiniteError, StorageError
from hydralign.micro_batches import MicroBatcher
from hydralign.progress import Progress, progress, say
from hydralign.tracking import Tracker, Trackers
from hydralign.training.checkpoints import checkpoints, resume, whole_number, write_checkpoint
from hydralign.training.interruption import interruptible

State = TypeVar("State")


@dataclass
class Run(Generic[State]):
    """A run of `steps` steps. Enter it, iterate over it, and put each step into `attempt`."""

    name: str
    """For the progress line."""
    steps: int
    trained: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    state: State
    """What the method keeps from step to step beside weights and optimizer: a dataclass of numbers."""
    folder: Path
    records: Trackers
    processes: Distributed = SINGLE_PROCESS
    checkpoint_every: int | None = None
    keep: int = 1
    """Checkpoints that are kept."""
    stop_after_bad_steps: int = 3
    step: int = 0
    """Steps done."""
    bad_steps: int = 0
    """Non-finite steps in a row."""
    _error: NonFiniteError | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    def resume(self, read_state: Callable[[Mapping[str, Any]], State]) -> Run[State]:
        """Go back to the newest whole checkpoint, if there is one, and cut the metrics file back to it; returns self.

        `read_state` makes the state of what a checkpoint's JSON holds and raises ValueError, KeyError or TypeError
        when that is damaged. Raises NonFiniteError when the run ended in non-finite steps: it has no steps left, and
        would pass for finished.
        """

        def read(about: Mapping[str, Any]) -> tuple[int, int, int, State]:
            numbers = about["step"], about["bad_steps"], about["metrics_position"]
            step, bad_steps, position = map(whole_number, numbers)
            return step, bad_steps, position, read_state(about)

        position = 0
        found = resume(self._checkpoints, self.trained, self.optimizer, read, main=self.processes.main)
        if found is not None:
            self.step, self.bad_steps, position, self.state = found
            if self._failed and self.step >= self.steps:
                raise NonFiniteError(
                    "checkpoint",
                    f"The run in {self.folder} ended with {self.bad_steps} non-finite steps in a row, so it has not "
                    "learned. Lower the learning rate or use precision fp32, delete that folder, and run again.",
                )
        self.records.cut_back(position)
        return self

    def __enter__(self) -> Run[State]:
        quiet = None if self.processes.main else io.StringIO()
        with ExitStack() as opened:
            self._interrupted = opened.enter_context(interruptible())
            bar = progress(self.name, self.steps, start=self.step, stream=quiet)
            self._bar: Progress = opened.enter_context(bar)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def __iter__(self) -> Iterator[int]:
        """The steps still to do. After each a checkpoint is written when due, or when something asks for the end.

        Raises NonFiniteError after `stop_after_bad_steps` non-finite steps in a row, KeyboardInterrupt if interrupted.
        """
        while self.step < self.steps:
            yield self.step
            stopping = self.processes.any(self._interrupted.is_set())
            every = self.checkpoint_every
            if stopping or self._failed or self.step == self.steps or (every and self.step % every == 0):
                self.save()
            if self._failed:
                raise self._diagnosis() from self._error
            if stopping:
                raise KeyboardInterrupt

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One step. A NonFiniteError in it, which comes on all processes, is an event, and the step counts as done."""
        try:
            yield
        except NonFiniteError as error:
            self.bad_steps, self._error = self.bad_steps + 1, error
            self.records.event(self.step, "non_finite", {"where": error.where, "message": str(error)})
            if self.processes.main:
                say(f"Step {self.step} skipped ({self.bad_steps} non-finite in a row): {error}")
        else:
            self.bad_steps = 0
        self.step += 1

    def log(self, metrics: Mapping[str, float], *, shown: Mapping[str, float]) -> None:
        """Metrics of the step at hand; `shown` stand in the progress line."""
        self.records.log(self.step, metrics)
        self._bar.update(self.step + 1, shown)

    def measure(self, held_out: Callable[[], Mapping[str, float]], *, every: int) -> None:
        """Log held-out metrics after the steps done, as `log_held_out` does."""
        log_held_out(self.records, self.step, held_out, every=every, steps=self.steps)

    def micro_batches(self, name: str, rows: int, hints: Sequence[str]) -> MicroBatcher:
        """How many rows go through a model at once, in the whole run: what once ran out of memory is not tried again.

        `name` is the recipe's word for it, by which an event tells of fewer.
        """

        def note(fewer: int) -> None:
            self.records.event(self.step, "out_of_memory", {name: fewer})

        return MicroBatcher(rows, name=name, speaks=self.processes.main, on_change=note, hints=hints)

    def save(self) -> None:
        """A checkpoint of the steps done, written by the main process; all wait for it."""
        if self.processes.main:
            self._write()
        self.processes.barrier()

    def _write(self) -> None:
        about = asdict(self.state) if self.state is not None else {}  # type: ignore[call-overload]
        about |= {"step": self.step, "bad_steps": self.bad_steps, "metrics_position": self.records.position()}
        write_checkpoint(self._checkpoints, self.step, about, self.trained, self.optimizer, keep=self.keep)

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """An error of hydralign in this block, which changes no weight and fails on all processes, is raised after a
        checkpoint of the steps done. Non-finite numbers are no failure, and a disk that failed once gets no checkpoint.
        """
        try:
            yield
        except NonFiniteError:
            raise
        except Exception as error:
            unsafe = not isinstance(error, HydralignError) or isinstance(error, StorageError)
            if not self.processes.any(unsafe) and self.step:
                self.processes.raise_together(partial(self._save_and_say))
            raise

    def _save_and_say(self) -> None:
        """Let the main process see to a checkpoint of the steps done and say where it is."""
        if not self.processes.main:
            return
        place = self._checkpoints / f"step-{self.step}"
        try:
            if place not in checkpoints(self._checkpoints):
                self._write()
        except StorageError as error:
            say(f"The {self.step} steps done could not be saved: {error}")
        else:
            say(
                f"Steps done: {self.step}, saved in {place}. Once the error below is mended, the same command resumes "
                "from there."
            )

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def _failed(self) -> bool:
        """Whether too many steps in a row were non-finite."""
        return self.bad_steps >= min(self.stop_after_bad_steps, self.steps)

    def _diagnosis(self) -> NonFiniteError:
        where = self._error.where if self._error else "unknown"
        return NonFiniteError(
            where,
            f"{self.bad_steps} steps in a row met NaN or infinity, the last at {where}: {self._error} The weights are "
            f"those of the last good optimizer step; a checkpoint lies in {self._checkpoints}.",
        )


def log_held_out(
    tracker: Tracker, step: int, held_out: Callable[[], Mapping[str, float]], *, every: int, steps: int
) -> None:
    """Log held-out metrics when `step` of `steps` steps are done, if they are due: `every` so many, never if that is 0,
    and not after the last, where the run measures them anyway. Non-finite ones are an event, and training goes on.
    """
    if not every or step % every or step == steps:
        return
    try:
        metrics = held_out()
    except NonFiniteError as error:
        tracker.event(step - 1, "non_finite", {"where": f"evaluation/{error.where}", "message": str(error)})
    else:
        tracker.log(step - 1, metrics)
