"""The processes of a replicated run: who is who, sums over all, fair shares.

No module wrapper is used: decoding and branch replays bypass `forward` hooks, so gradients are summed by hand, in
one all-reduce per optimizer step. accelerate finds rank, device and backend; torchrun and `accelerate launch` both
work, and a plain process is a run of one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed
from torch import Tensor

from hydralign.errors import ConfigError, HydralignError, NonFiniteError, describe_error
from hydralign.streams import lasting

Result = TypeVar("Result")


@dataclass(frozen=True)
class Distributed:
    """This process's place among `count` equal ones."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over all processes (a new tensor; `x` itself when alone)."""
        if self.count == 1:
            return x
        total = x.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process: the same answer on all of them."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def raise_together(self, stage: Callable[[], Result]) -> Result:
        """The stage's result on every process, or an error on every process when one of them failed.

        The stage must not communicate itself: others would wait for the failed one. The failed process raises its
        own error; the others raise NonFiniteError if somebody met NaN or infinity and nothing worse happened.
        """
        if self.count == 1:
            return stage()
        error: Exception | None = None
        result: Result | None = None
        try:
            result = stage()
        except Exception as met:
            error = met
        failed = [isinstance(error, NonFiniteError), error is not None and not isinstance(error, NonFiniteError)]
        non_finite, worse = self.sum(torch.tensor(failed, dtype=torch.float32, device=self.device)).tolist()
        if error is not None and (not worse or not isinstance(error, NonFiniteError)):
            raise error
        if worse:
            raise HydralignError("Another process failed, so this one cannot go on. See what that one printed.")
        if non_finite:
            raise NonFiniteError("another process", "Another process met NaN or infinity. See what it printed.")
        return cast(Result, result)

    def share(self, rows: int) -> slice:
        """This process's contiguous part of `rows` rows; parts differ by at most one row."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def gather(self, local_N: Tensor, total: int) -> Tensor:
        """All processes' shares of a vector of `total` numbers, joined in order."""
        if self.count == 1:
            return local_N
        whole = torch.zeros(total, dtype=local_N.dtype, device=local_N.device)
        whole[self.share(total)] = local_N
        return self.sum(whole)

    def gather_strings(self, local: Sequence[str]) -> list[str]:
        """All processes' texts, in the order of the processes. Texts hold no NUL character."""
        if self.count == 1:
            return list(local)
        own = torch.frombuffer(bytearray("".join(f"{text}\0" for text in local).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(own)
        ends = self.sum(sizes).cumsum(0).tolist()
        whole = torch.zeros(ends[-1], dtype=torch.uint8, device=self.device)
        whole[ends[self.rank] - len(own) : ends[self.rank]] = own.to(self.device)
        return bytes(self.sum(whole).cpu().tolist()).decode().split("\0")[:-1]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over processes, in one message. A missing gradient counts as zero."""
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def barrier(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def require_shares(self, rows: int, what: str) -> None:
        """Raise ConfigError unless `rows` divide evenly among the processes."""
        if rows % self.count:
            raise ConfigError(
                f"{what}={rows} is not a multiple of {self.count} processes: some would hold more rows than others "
                f"and wait. Choose {what} as a multiple of {self.count}, or launch another number of processes."
            )


SINGLE_PROCESS = Distributed()


def launched_processes() -> Distributed:
    """The processes that a launcher started around us, or a run of one.

    Raises ConfigError when the launcher's environment variables contradict each other or reach nobody.
    """
    count = launched_count(os.environ)
    if count == 1:
        return Distributed(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from accelerate import PartialState

    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    with _announce_waiting(int(os.environ["RANK"]), count, place):
        try:
            state = PartialState(cpu=not torch.cuda.is_available())
        except Exception as error:
            raise ConfigError(
                f"the {count} processes could not meet at {place} ({describe_error(error)}): each would train "
                f"alone. Start all of them at once, with torchrun or accelerate launch. {_ALONE}"
            ) from error
    return Distributed(rank=state.process_index, count=state.num_processes, device=state.device)


SECONDS_BEFORE_ANNOUNCING = 5.0
_ALONE = "For a run of one process: unset WORLD_SIZE."


def launched_count(environment: Mapping[str, str]) -> int:
    """How many processes a launcher says it started; 1 without one.

    Raises ConfigError when a variable that they need to meet is missing, empty, no number or out of range.
    """
    if "WORLD_SIZE" not in environment:
        return 1
    count = _number(environment, "WORLD_SIZE", range(1, 1 << 31))
    if count > 1:
        _number(environment, "RANK", range(count))
        _number(environment, "LOCAL_RANK", range(count))
        _number(environment, "MASTER_PORT", range(1, 1 << 16))
        if not environment.get("MASTER_ADDR", "").strip():
            raise _left_over("MASTER_ADDR", environment, "the address of the first process's machine", count)
    return count


def _number(environment: Mapping[str, str], name: str, allowed: range) -> int:
    text = environment.get(name, "").strip()
    if not (text.isdecimal() and len(text) < 20 and int(text) in allowed):
        wanted = f"a whole number from {allowed[0]} to {allowed[-1]}"
        raise _left_over(name, environment, wanted, environment["WORLD_SIZE"] if name != "WORLD_SIZE" else None)
    return int(text)


def _left_over(name: str, environment: Mapping[str, str], wanted: str, count: object) -> ConfigError:
    given = f"{name}={environment[name][:40]!r}" if name in environment else f"{name} is not set"
    beside = f" with WORLD_SIZE={count}" if count is not None else ""
    return ConfigError(
        f"environment variable {given}{beside}: launchers set it to {wanted}, and without that the processes of a run "
        f"cannot meet. Start several with torchrun or accelerate launch, which set all of them. {_ALONE}"
    )


def _announce(text: str) -> None:
    stream = lasting(sys.stderr)
    stream.write(f"{text}\n")
    stream.flush()


@contextmanager
def _announce_waiting(rank: int, count: int, place: str) -> Iterator[None]:
    """Say whom this process waits for, and where, when the block takes longer than a few seconds."""
    missing = f"process {2 - rank} of 2" if count == 2 else f"the other {count - 1} of {count} processes"
    text = f"Process {rank + 1} of {count} is waiting for {missing} at {place}. {_ALONE}"
    timer = threading.Timer(SECONDS_BEFORE_ANNOUNCING, _announce, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
