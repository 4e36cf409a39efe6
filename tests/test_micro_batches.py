"""Out of memory is answered with fewer rows at a time: the same numbers, nothing twice, and everybody learns of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hydralign.config import PPOConfig
from hydralign.data import PromptStream
from hydralign.distributed import Distributed, launched_processes
from hydralign.errors import HydralignError, MemoryLimitError, NonFiniteError
from hydralign.evaluation.held_out import answer_held_out
from hydralign.methods.advantages import estimate
from hydralign.methods.policy_update import update
from hydralign.methods.ppo import PPOParts, train
from hydralign.methods.start_checks import check_start
from hydralign.micro_batches import MicroBatcher, is_out_of_memory
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.policy import Policy
from hydralign.rewards.combine import RewardTerm
from hydralign.rollout import collect
from hydralign.testing import LengthReward, tiny_policy, tiny_prompts
from hydralign.tracking import JsonLines, Trackers
from hydralign.training.optimizer import make_optimizer
from hydralign.types import Prompt, SamplingParams, TokenBatch
from tests.conftest import FORMS, shake

PLAN = SamplingParams(max_new_tokens=6, seed=2)
FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB"


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(FULL)


def cramp(policy: Any, most: int) -> Policy:
    """The policy on a device that holds `most` rows at once, and not one more."""

    def within(call: Callable[..., Any], given: Any, *more: Any, **named: Any) -> Any:
        if len(given) > most:
            raise out_of_memory()
        return call(given, *more, **named)

    for name in ("evaluate", "reference_logprobs", "start"):
        call = getattr(policy, name)
        setattr(policy, name, lambda *a, call=call, **named: within(call, *a, **named))
    return policy


def many(policy: Policy, count: int = 8) -> list[Prompt]:
    return tiny_prompts(policy.tokenizer, *("that and this thing of words"[:n] for n in range(3, 3 + count)))


def stops_early(policy: Any) -> Policy:
    """Answers of unequal lengths."""
    policy.stop_ids = tuple(range(0, 300, 8))
    return policy


# What is out of memory, and what is not.


def test_torch_says_that_the_cpu_is_out_of_memory_in_words_we_know() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (out_of_memory(), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (NonFiniteError("loss", "not a number, out of memory or not"), False),
        (MemoryLimitError("Out of memory with one row at a time"), False),
    ],
)
def test_errors_are_told_apart(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


# One process.


def holds(most: int, tried: list[int]) -> Callable[[int], int]:
    def stage(rows: int) -> int:
        tried.append(rows)
        if rows > most:
            raise out_of_memory()
        return rows * 10

    return stage


def test_rows_are_halved_until_they_fit_and_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    tried, changes = list[int](), list[int]()
    fits = MicroBatcher(16, on_change=changes.append)
    assert [fits.run(holds(5, tried)) for _ in range(3)] == [40, 40, 40]
    assert tried == [16, 8, 4, 4, 4]
    assert fits.rows == 4
    assert changes == [8, 4]
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "Out of memory: going on with 8 rows at a time instead of 16, which computes the same. "
        "micro_batch_size: 8 in the recipe starts there.",
        "Out of memory: going on with 4 rows at a time instead of 8, which computes the same. "
        "micro_batch_size: 4 in the recipe starts there.",
    ]


def test_halving_begins_at_the_rows_there_are() -> None:
    tried = list[int]()
    fits = MicroBatcher(1000)
    fits.run(lambda rows: holds(3, tried)(min(rows, 7)), total=7)
    assert tried == [7, 3]
    assert fits.rows == 3


@pytest.mark.parametrize("total", [None, 1])
def test_one_row_that_does_not_fit_is_an_error_that_says_so(total: int | None) -> None:
    tried = list[int]()
    fits = MicroBatcher(2 if total is None else 64)
    with pytest.raises(MemoryLimitError, match=r"one row at a time \(2.50 GiB more were wanted\).*LoRA.*bf16") as met:
        fits.run(holds(0, tried), total=total)
    assert tried == ([2, 1] if total is None else [64])
    assert isinstance(met.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), NonFiniteError("loss", "NaN"), KeyError("x")])
def test_other_errors_pass_untouched_after_undo(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    tried, undone = list[int](), list[bool]()
    fits = MicroBatcher(8)

    def stage(rows: int) -> None:
        tried.append(rows)
        raise error

    with pytest.raises(type(error)) as caught:
        fits.run(stage, undo=lambda: undone.append(True))
    assert caught.value is error
    assert (tried, undone, fits.rows) == ([8], [True], 8)
    assert capsys.readouterr().err == ""


def test_failed_attempt_is_undone_and_its_tensors_are_gone_before_the_next() -> None:
    events, alive = list[str](), list[weakref.ref[Tensor]]()

    def stage(rows: int) -> None:
        events.append(f"{rows} rows, {sum(tensor() is not None for tensor in alive)} old tensors")
        activations = torch.zeros(rows, 1000)
        alive.append(weakref.ref(activations))
        if rows > 1:
            raise out_of_memory()

    MicroBatcher(4).run(stage, undo=lambda: events.append("undone"))
    assert events == ["4 rows, 0 old tensors", "undone", "2 rows, 0 old tensors", "undone", "1 rows, 0 old tensors"]


# The stages.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_collecting_in_fewer_rows_gives_the_same_experience(precision: str, tokenizer: Any) -> None:
    def experience(most: int) -> Any:
        policy = stops_early(tiny_policy(precision=precision, tokenizer=tokenizer))
        shake(policy)
        decode = MicroBatcher(PLAN.decode_batch_size, name="decode_batch_size")
        micro = MicroBatcher(8)
        out = collect(
            cramp(policy, most), many(policy), LengthReward(3), PLAN, micro_batch_size=micro, decode_batch_size=decode
        )
        return out, (micro.rows, decode.rows)

    whole, sizes = experience(8)
    assert sizes == (8, 64)
    parts, sizes = experience(3)
    assert sizes == (2, 2)
    assert parts.rollout.completions == whole.rollout.completions
    assert torch.equal(lay_out(parts.rollout.rows), lay_out(whole.rollout.rows))
    tolerance = 1e-5 if precision == "fp32" else 0.05
    for name in ("old_logprobs_BR", "ref_logprobs_BR", "values_BR"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=tolerance, rtol=0)


def test_start_check_compares_bits_between_micro_batches_of_one_size(tokenizer: Any) -> None:
    policy: Any = tiny_policy(tokenizer=tokenizer)
    evaluate, reference, calls = policy.evaluate, policy.reference_logprobs, list[int]()

    def rounding(rows: TokenBatch) -> float:
        return 1e-6 * len(rows)  # as kernels do that choose their blocks by the shape of the batch

    def evaluate_rounded(rows: TokenBatch, **named: Any) -> Any:
        calls.append(len(rows))
        if len(rows) == 8 and len(calls) == 2:
            raise out_of_memory()
        told = evaluate(rows, **named)
        return told._replace(logprobs_BR=told.logprobs_BR + rounding(rows))

    policy.evaluate = evaluate_rounded
    policy.reference_logprobs = lambda rows: reference(rows) + rounding(rows)
    micro = MicroBatcher(8)
    experience = collect(policy, many(policy), LengthReward(3), PLAN, micro_batch_size=micro)
    measured = check_start(policy, experience, fresh=True, micro_batch_size=micro)
    assert calls == [8, 8, 4, 4, 4, 4]
    assert measured["sampler/logprob_drift_max"] < 1e-4


def test_held_out_answers_are_the_same(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for most in (64, 3):
        policy = tiny_policy(tokenizer=tokenizer)
        shake(policy)
        cramp(policy, most)
        terms = [RewardTerm("length", LengthReward(2))]
        answers.append(
            answer_held_out(policy, many(policy, 20), terms, replace(PLAN, decode_batch_size=8), samples=None)
        )
    assert [row["response"] for row in answers[1].samples] == [row["response"] for row in answers[0].samples]
    for name, values in answers[0].metrics.items():
        assert answers[1].metrics[name] == pytest.approx(values, abs=1e-4), name
    told = capsys.readouterr().err
    assert told.count("going on with 2 rows") == 2  # in the first chunk: to sample, and to read


@pytest.mark.parametrize("form", FORMS)
def test_ppo_run_goes_on_in_fewer_rows_to_the_same_weights(
    form: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PPOConfig.model_validate(
        {
            "steps": 3,
            "rewards": [{"type": "function", "function": "unused:unused"}],
            "sampling": {"max_new_tokens": 5},
            "batch": {"rows": 8, "epochs": 2, "minibatches": 2, "micro_batch_size": 4},
            "optimizer": {"type": "sgd", "learning_rate": 0.05},
        }
    )
    ends: list[tuple[dict[str, Tensor], list[dict[str, Any]]]] = []
    for most in (64, 2):
        folder = tmp_path / str(most)
        policy = cramp(tiny_policy(form=FORMS[form], tokenizer=tokenizer), most)
        record, prompts = JsonLines(folder), PromptStream(tuple(many(policy)))
        parts = PPOParts(policy, prompts, (RewardTerm("length", LengthReward(3)),), folder, Trackers(record))
        train(config, parts, seed=0)
        record.close()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ends.append(({name: p.detach().clone() for name, p in policy.trained().items()}, lines))
    for name, weight in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], weight, atol=1e-6, rtol=0)
    events = [line for line in ends[1][1] if "event" in line]
    assert events == [
        {"step": 0, "event": "out_of_memory", "decode_batch_size": 4},
        {"step": 0, "event": "out_of_memory", "decode_batch_size": 2},
        {"step": 0, "event": "out_of_memory", "micro_batch_size": 2},
    ]
    steps = [line for line in ends[1][1] if "event" not in line]
    assert [line["ppo/optimizer_steps"] for line in steps] == [4.0, 4.0, 4.0]
    assert capsys.readouterr().err.count("Out of memory") == 3


# Two processes. This module is also the program that torchrun starts.


def together(processes: Distributed) -> dict[str, Any]:
    """What one of two processes saw: without trouble, with its neighbour short of memory once, and with worse."""

    def attempt(evaluate: Callable[..., Any] | None = None, *, poisoned: bool = False) -> dict[str, Any]:
        policy: Any = stops_early(tiny_policy())
        prompts = many(policy)[processes.share(8)]
        experience = collect(policy, prompts, LengthReward(3), PLAN.at(0, first_row=4 * processes.rank))
        advantages = estimate(experience, processes=processes)
        if poisoned:
            advantages.advantages_BR[0, 0] = float("nan")
        plainly, calls = policy.evaluate, list[int]()

        def counted(rows: TokenBatch, **named: Any) -> Any:
            calls.append(len(rows))
            return evaluate(len(calls), plainly, rows) if evaluate else plainly(rows, **named)

        policy.evaluate = counted
        micro = MicroBatcher(2)
        optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.05)
        plan: dict[str, Any] = {"epochs": 2, "minibatches": 1, "micro_batch_size": micro, "processes": processes}
        seen: dict[str, Any] = {}
        try:
            seen["stats"] = update(policy, optimizer, experience, advantages, **plan)
        except (HydralignError, ValueError) as error:
            seen["error"] = [type(error).__name__, str(error)]
        seen["weights"] = torch.cat([p.detach().reshape(-1) for p in policy.trained().values()]).tolist()
        seen["gradients"] = sum(p.grad is not None for p in policy.trained().values())
        return {**seen, "calls": calls, "rows": micro.rows}

    def short_once(call: int, plainly: Callable[..., Any], rows: TokenBatch) -> Any:
        if processes.rank == 1 and call == 2:  # one micro-batch has left its gradient already
            raise out_of_memory()
        return plainly(rows)

    def short_always(call: int, plainly: Callable[..., Any], rows: TokenBatch) -> Any:
        if processes.rank == 1:
            raise out_of_memory()
        return plainly(rows)

    def broken(call: int, plainly: Callable[..., Any], rows: TokenBatch) -> Any:
        if processes.rank == 1:
            raise ValueError("a bug")
        return plainly(rows)

    return {
        "plain": attempt(),
        "short": attempt(short_once),
        "poisoned and short": attempt(short_once, poisoned=processes.rank == 0),
        "hopeless": attempt(short_always),
        "broken": attempt(broken),
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What each of two processes wrote down, and what both said."""
    folder = tmp_path_factory.mktemp("together")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    done = subprocess.run(
        [
            *launch,
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "127.0.0.1:0",
            "-m",
            "tests.test_micro_batches",
            str(folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], done.stderr


def test_process_that_runs_out_repeats_its_part_and_all_go_on_alike(seen: tuple[list[dict[str, Any]], str]) -> None:
    first, second = seen[0]
    assert second["short"]["calls"] == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]  # out at the second, then all again by ones
    assert first["short"]["calls"] == [2, 2, 1, 1, 1, 1]  # nothing repeated; by ones from the next step on
    for process in (first, second):
        assert process["short"]["rows"] == 1
        assert process["short"]["weights"] == pytest.approx(process["plain"]["weights"], abs=1e-6)
        assert process["short"]["stats"] == pytest.approx(process["plain"]["stats"], abs=1e-6)
        assert process["short"]["stats"]["ppo/optimizer_steps"] == 2
    assert first["short"]["weights"] == second["short"]["weights"]


def test_main_process_alone_says_it(seen: tuple[list[dict[str, Any]], str]) -> None:
    said = [line for line in seen[1].splitlines() if line.startswith("Out of memory: going on with 1 row at")]
    assert len(said) == 2  # the other ran out in three stages, of which one could not go on


def test_poison_and_lack_of_memory_at_once_leave_no_gradient_and_no_step(
    seen: tuple[list[dict[str, Any]], str],
) -> None:
    start = [process["hopeless"]["weights"] for process in seen[0]]
    for process, untrained in zip(seen[0], start, strict=True):
        assert process["poisoned and short"]["error"][0] == "NonFiniteError"
        assert process["poisoned and short"]["gradients"] == 0
        assert process["poisoned and short"]["weights"] == untrained


@pytest.mark.parametrize(
    ("trouble", "error", "text"),
    [("hopeless", "MemoryLimitError", "one row at a time"), ("broken", "ValueError", "a bug")],
)
def test_process_that_cannot_go_on_takes_the_other_with_it(
    trouble: str, error: str, text: str, seen: tuple[list[dict[str, Any]], str]
) -> None:
    first, second = (process[trouble] for process in seen[0])
    assert second["error"][0] == error
    assert text in second["error"][1]
    assert first["error"][0] == "HydralignError"
    assert "Another process failed" in first["error"][1]
    assert first["gradients"] == second["gradients"] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = launched_processes()
    (Path(sys.argv[1]) / f"{here.rank}.json").write_text(json.dumps(together(here)))
    here.barrier()
    torch.distributed.destroy_process_group()
