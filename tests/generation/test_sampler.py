"""The sampler: whose tokens these are, when rows end, and that nothing but the key decides."""

from __future__ import annotations

import math
import re
import sys
import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hydralign.errors import ConfigError, DataError, NonFiniteError
from hydralign.generation import sample
from hydralign.generation.sampler import draw, truncate
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.heads.token import TokenHead
from hydralign.models.policy import Policy
from hydralign.rollout import collect
from hydralign.testing import ScriptedSampler, tiny_policy, tiny_prompts
from hydralign.types import Prompt, SamplingParams
from tests.conftest import values_of
from tests.tokenizers_of_every_kind import llama_tokenizer

PLAN = SamplingParams(max_new_tokens=10, seed=4, temperature=0.8, min_new_tokens=1)


@pytest.fixture
def many(tokenizer: Any) -> list[Prompt]:
    return tiny_prompts(tokenizer, *("that and this thing of words"[:n] for n in range(1, 25)))


def favour_stopping(policy: Any, share: float = 0.2) -> None:
    """Let a share of all tokens end an answer, so that rows end at different times."""
    policy.stop_ids = tuple(range(int(300 * share)))


def test_batching_changes_no_token(policy: Policy, many: list[Prompt]) -> None:
    favour_stopping(policy)
    whole = sample(policy, many, PLAN)
    assert len(set(whole.rows.response_lengths_B.tolist())) > 3
    small = sample(policy, many, replace(PLAN, decode_batch_size=5))
    assert torch.equal(lay_out(small.rows), lay_out(whole.rows))
    torch.testing.assert_close(small.old_logprobs_BR, whole.old_logprobs_BR, atol=1e-5, rtol=0)
    part = sample(policy, many[7:12], replace(PLAN, first_row=7))
    assert part.completions == whole.completions[7:12]


def test_sampler_logprobs_and_values_are_those_of_the_forward_pass(policy: Policy, many: list[Prompt]) -> None:
    favour_stopping(policy)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(0.01)
    rollout = sample(policy, many, PLAN)
    with torch.no_grad():
        evaluation = policy.evaluate(rollout.rows)
    gap = (evaluation.logprobs_BR - rollout.old_logprobs_BR)[rollout.rows.mask_BR].abs()
    assert gap.mean() <= 1e-4
    assert gap.max() <= 1e-3
    assert (rollout.values_BR is not None) == policy.samples_values
    if policy.samples_values:
        torch.testing.assert_close(values_of(evaluation), values_of(rollout), atol=1e-4, rtol=0)
    assert values_of(evaluation).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bf16_drift_between_decoding_and_forward_pass_is_small(family: str, many: list[Prompt], tokenizer: Any) -> None:
    policy = tiny_policy(family=family, precision="bf16", tokenizer=tokenizer)
    rollout = sample(policy, many, PLAN)
    with torch.no_grad():
        gap = (policy.evaluate(rollout.rows).logprobs_BR - rollout.old_logprobs_BR)[rollout.rows.mask_BR].abs()
    assert 0 < gap.mean() <= 3e-2
    assert gap.max() <= 0.5


def test_rows_end_at_the_stop_token_and_say_so(policy: Policy, many: list[Prompt]) -> None:
    favour_stopping(policy)
    rollout = sample(policy, many, PLAN)
    stops, rows = set(policy.stop_ids), rollout.rows
    for row in range(len(rows)):
        answer = rows.response_BR[row, : int(rows.response_lengths_B[row])].tolist()
        assert not stops & set(answer[:-1])
        assert bool(rollout.finished_B[row]) == (answer[-1] in stops)
        assert len(answer) == PLAN.max_new_tokens or answer[-1] in stops
    assert 0 < int(rollout.finished_B.sum()) < len(rows)
    assert all("<eos>" not in text for text in rollout.completions)


def test_stop_token_is_impossible_below_the_minimum_length(policy: Policy, many: list[Prompt]) -> None:
    favour_stopping(policy, share=0.95)
    rollout = sample(policy, many, replace(PLAN, min_new_tokens=4))
    lengths = rollout.rows.response_lengths_B
    assert lengths.min() == 5
    assert lengths.double().mean() < 6
    with torch.no_grad():
        gap = policy.evaluate(rollout.rows).logprobs_BR - rollout.old_logprobs_BR
    assert gap.abs().max() < 1e-3


def test_each_row_keeps_its_own_drawn_length(policy: Policy, many: list[Prompt]) -> None:
    plan = replace(PLAN, lengths=(2, 6), min_new_tokens=2)
    rollout = sample(policy, many, plan)
    lengths = rollout.rows.response_lengths_B[~rollout.finished_B]
    assert (int(lengths.min()), int(lengths.max())) == (2, 6)
    again = sample(policy, many, replace(plan, decode_batch_size=3))
    assert torch.equal(again.rows.response_lengths_B, rollout.rows.response_lengths_B)


def test_tokens_follow_the_distribution(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    prompt = tiny_prompts(tokenizer, "this")
    rollout = sample(policy, prompt * 4000, SamplingParams(max_new_tokens=1, seed=1, decode_batch_size=4000))
    with torch.no_grad():
        ids = torch.tensor([prompt[0].token_ids])
        expected = torch.softmax(policy.model(input_ids=ids).logits[0, -1], -1)
    counts = torch.bincount(rollout.rows.response_BR[:, 0], minlength=len(expected))
    spread = (4000 * expected * (1 - expected)).sqrt()
    likely = expected > 0.005
    assert int(likely.sum()) > 20
    assert ((counts - 4000 * expected).abs() / spread)[likely].max() < 4.5


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits_BV = torch.log(torch.tensor([[0.2, 0.3, 0.5]] * 5))
    uniforms_B = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.99], dtype=torch.float64)
    tokens_B, logprobs_B = draw(logits_BV, uniforms_B, SamplingParams(), (), 0)
    assert tokens_B.tolist() == [0, 0, 1, 1, 2]
    assert logprobs_B.exp().tolist() == pytest.approx([0.2, 0.2, 0.3, 0.3, 0.5])


def test_draw_never_takes_an_impossible_token() -> None:
    logits_BV = torch.log(torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]] * 3))
    uniforms_B = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens_B, _ = draw(logits_BV, uniforms_B, SamplingParams(), (), 0)
    assert tokens_B.tolist() == [1, 3, 3]


def test_truncation_keeps_the_likeliest_tokens() -> None:
    probabilities_BV = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    assert truncate(probabilities_BV, top_k=2, top_p=1.0).tolist() == [[0.0, 0.4, 0.0, 0.3]]
    assert truncate(probabilities_BV, top_k=0, top_p=0.65).tolist() == [[0.0, 0.4, 0.0, 0.3]]
    assert truncate(probabilities_BV, top_k=0, top_p=0.75).tolist() == [[0.0, 0.4, 0.2, 0.3]]


def test_prompt_and_answer_that_exceed_the_context_are_refused(policy: Policy, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"context holds 64.*filter\.max_tokens: \d+\.$"):
        sample(policy, tiny_prompts(tokenizer, "thing " * 30), PLAN)
    with pytest.raises(ConfigError, match=r"Shorten answers \(max_new_tokens, lengths\)\.$"):
        sample(policy, tiny_prompts(tokenizer, "thing"), replace(PLAN, max_new_tokens=64))


def test_prompt_without_tokens_is_refused(policy: Policy) -> None:
    with pytest.raises(DataError, match="Prompt 1 has no tokens"):
        sample(policy, [Prompt("a", (5,)), Prompt("", ())], PLAN)


def test_nan_in_logits_is_an_event_that_names_the_position(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    weight = policy.model.transformer.wpe.weight
    prompt = tiny_prompts(tokenizer, "this and that")
    with torch.no_grad():
        weight[len(prompt[0].token_ids) + 2] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinity") as caught:
        sample(policy, prompt, SamplingParams(max_new_tokens=8, min_new_tokens=8))
    assert caught.value.where == "sampler/logits/position 3"


def test_temperature_so_low_that_logits_overflow_is_named(policy: Policy, prompts: list[Prompt]) -> None:
    with pytest.raises(NonFiniteError, match=r"dividing by temperature 1e-39 overflows. Raise sampling.temp") as caught:
        sample(policy, prompts, replace(PLAN, temperature=1e-39))
    assert caught.value.where == "sampler/logprobs/position 0"


def test_tokens_at_minus_infinity_are_never_drawn_and_no_event(
    policy: Policy, many: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped = TokenHead._shaped
    barred = torch.arange(300) % 3 > 0
    monkeypatch.setattr(TokenHead, "_shaped", lambda *of: shaped(*of).masked_fill(barred, -math.inf))
    rollout = sample(policy, many, PLAN)
    assert set((rollout.rows.response_BR[rollout.rows.mask_BR] % 3).tolist()) == {0}
    assert rollout.old_logprobs_BR.isfinite().all()


class Waits(TorchFunctionMode):
    """Counts what waits for a device: calls that hand numbers to Python, to the CPU or back, or make shapes of them."""

    NAMES = frozenset({
        "cpu", "item", "tolist", "numpy", "nonzero", "unique", "argwhere", "masked_select", "isin",
        "__bool__", "__int__", "__float__", "__index__",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        callers = [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._getframe(1))]
        theirs = any("transformers" in frame.f_code.co_filename for frame, _ in traceback.walk_stack(sys._getframe(1)))
        brings = func.__name__ == "tensor" and "device" in (kwargs or {})
        if (func.__name__ in self.NAMES or brings) and "_decode" in callers and not theirs:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_the_device_is_asked_once_per_token_and_a_few_times_per_batch(policy: Policy, many: list[Prompt]) -> None:
    favour_stopping(policy, share=0.1)
    found: list[list[str]] = []
    for new_tokens in (5, 25):
        with Waits() as waits:
            rollout = sample(policy, many, replace(PLAN, max_new_tokens=new_tokens, min_new_tokens=new_tokens - 2))
        assert rollout.rows.width == new_tokens
        assert 0 < int(rollout.finished_B.sum()) < len(many)
        found.append(waits.found)
    more = Counter(found[1])
    more.subtract(found[0])
    assert {name: count for name, count in more.items() if count} == {"tolist": 20}
    assert len(found[0]) < 25


def test_scripted_sampler_says_what_it_was_told(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    answers = (tuple(tokenizer("that").input_ids), (*tokenizer("thing").input_ids, tokenizer.eos_token_id))
    rollout = ScriptedSampler(answers)(policy, tiny_prompts(tokenizer), SamplingParams())
    assert rollout.completions == ("that", "thing", "that")
    assert rollout.finished_B.tolist() == [False, True, False]
    with torch.no_grad():
        assert torch.equal(rollout.old_logprobs_BR, policy.evaluate(rollout.rows).logprobs_BR)


@pytest.mark.parametrize("sampler", ["sampled", "scripted"])
def test_rewards_see_answers_with_the_space_that_a_decoder_takes_off_a_text(sampler: str) -> None:
    tokenizer = llama_tokenizer()
    policy = tiny_policy(family="llama", tokenizer=tokenizer)
    start, whole = "the capital of France", "the capital of France is Paris"
    prompt, ids = Prompt(start, tuple(tokenizer(start).input_ids)), tuple(tokenizer(whole).input_ids)
    seen: dict[str, Any] = {}

    def reward(completions: list[str], completion_tokens: list[list[str]]) -> list[float]:
        seen.update(texts=completions, tokens=completion_tokens)
        return [0.0] * len(completions)

    says = ScriptedSampler(((*ids[len(prompt.token_ids) :], tokenizer.eos_token_id),))
    plan = SamplingParams(max_new_tokens=6, seed=2)
    rollout = collect(policy, [prompt] * 4, reward, plan, sampler=says if sampler == "scripted" else sample).rollout
    for row, text in enumerate(rollout.completions):
        answer = rollout.rows.response_BR[row, : int(rollout.rows.response_lengths_B[row])].tolist()
        both = tokenizer.decode([*prompt.token_ids, *answer], skip_special_tokens=True)
        assert start + text == both
        assert len(seen["tokens"][row]) == len(answer)
        assert re.sub("<(s|/s|pad|unk)>", "", "".join(seen["tokens"][row])) == text
    assert seen["texts"] == list(rollout.completions)
    if sampler == "scripted":
        assert rollout.completions == (" is Paris",) * 4
