"""The PPO loop: it learns, it goes on after a stop as if there had been none, poison is an event."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config import PPOConfig
from hydralign.config.ppo import LeaveOneOutConfig, SamplingConfig
from hydralign.data import PromptStream
from hydralign.errors import ConfigError, NonFiniteError, RewardError, RunFolderError, StartCheckError, StorageError
from hydralign.methods.ppo import PPOParts, train
from hydralign.models import make_policy
from hydralign.models.policy import BranchReference, Policy
from hydralign.progress import say
from hydralign.rewards.combine import RewardTerm
from hydralign.testing import tiny_model, tiny_policy, tiny_prompts, tiny_tokenizer
from hydralign.tracking import JsonLines, Trackers
from hydralign.training.checkpoints import checkpoints
from tests.conftest import FORMS, shake

CONFIG = PPOConfig.model_validate(
    {
        "steps": 6,
        "rewards": [{"type": "function", "function": "unused:unused"}],
        "sampling": {"max_new_tokens": 5},
        "batch": {"rows": 8, "epochs": 2, "minibatches": 2, "micro_batch_size": 3},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1},
        "shaping": {"scale": "running", "clip": 3.0},
        "kl": {"controller": {"type": "adaptive", "target": 0.05, "horizon": 20}},
        "saving": {"checkpoint_every": 2, "keep": 5, "samples_every": 2, "samples": 2},
    }
)


def count_t(completions: Sequence[str]) -> list[float]:
    return [float(text.count("t") + len(text) % 3) for text in completions]


OPENED: list[JsonLines] = []


@pytest.fixture(autouse=True)
def _closed_files() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def parts(folder: Path, tokenizer: Any, *, form: str = "full", reward: Any = count_t, **more: Any) -> PPOParts:
    folder.mkdir(exist_ok=True)
    policy = tiny_policy(form=FORMS[form], tokenizer=tokenizer)
    prompts = tiny_prompts(tokenizer, *("that and this thing of words"[:n] for n in range(1, 12)))
    record = JsonLines(folder)
    OPENED.append(record)
    stream = PromptStream(tuple(prompts), seed=3)
    return PPOParts(policy, stream, (RewardTerm("t", reward),), folder, Trackers(record), **more)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.trained().items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times, which are nobody's to repeat."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(form: str, tmp_path: Path, tokenizer: Any) -> None:
    whole = parts(tmp_path / "whole", tokenizer, form=form)
    train(CONFIG, whole, seed=5)

    class Stop(Exception):
        pass

    def stop_in_the_fifth(step: int, _: Policy) -> None:
        if step == 5:
            raise Stop

    first = parts(tmp_path / "parts", tokenizer, form=form, on_step=stop_in_the_fifth)
    with pytest.raises(Stop):
        train(CONFIG, first, seed=5)
    assert [c.name for c in checkpoints(tmp_path / "parts" / "checkpoints")] == ["step-2", "step-4"]
    assert len(lines(tmp_path / "parts")) == 5
    second = parts(tmp_path / "parts", tokenizer, form=form)
    assert train(CONFIG, second, seed=5).step == 6
    ends, starts = weights(second.policy), weights(parts(tmp_path / "x", tokenizer, form=form).policy)
    for name, weight in weights(whole.policy).items():
        assert torch.equal(ends[name], weight), name
    assert any(not torch.equal(starts[name], weight) for name, weight in ends.items())
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert (tmp_path / "parts/samples.jsonl").read_text() == (tmp_path / "whole/samples.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_the_finished_iteration(number: int, tmp_path: Path, tokenizer: Any) -> None:
    def interrupt(step: int, _: Policy) -> None:
        if step == 3:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, parts(tmp_path, tokenizer, on_step=interrupt), seed=5)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-3"
    assert train(CONFIG, parts(tmp_path, tokenizer), seed=5).step == 6
    assert [row["step"] for row in lines(tmp_path)] == list(range(6))


def fails_at(step: int) -> Any:
    calls = iter(range(1000))

    def reward(completions: Sequence[str]) -> list[float]:
        if next(calls) == step:
            raise ValueError("boom")
        return count_t(completions)

    return reward


def test_reward_that_raises_loses_no_finished_iteration(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(CONFIG, parts(tmp_path / "whole", tokenizer), seed=5)
    for step, kept in ((0, []), (3, ["step-2", "step-3"]), (1, ["step-2", "step-3", "step-4"])):
        with pytest.raises(RewardError, match="reward 't' raised ValueError: boom"):
            train(CONFIG, parts(tmp_path / "parts", tokenizer, reward=fails_at(step)), seed=5)
        assert [c.name for c in checkpoints(tmp_path / "parts" / "checkpoints")] == kept
    assert f"Steps done: 4, saved in {tmp_path / 'parts/checkpoints/step-4'}." in capsys.readouterr().err
    train(CONFIG, parts(tmp_path / "parts", tokenizer), seed=5)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_reward_that_raises_in_an_evaluation_loses_no_finished_iteration(tmp_path: Path, tokenizer: Any) -> None:
    def fail(step: int, _: Policy) -> None:
        if step == 3:
            raise RewardError("boom")

    with pytest.raises(RewardError, match="boom"):
        train(CONFIG, parts(tmp_path, tokenizer, on_step=fail), seed=5)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-3"


def test_failed_disk_gets_no_checkpoint(tmp_path: Path, tokenizer: Any) -> None:
    def fail(step: int, _: Policy) -> None:
        if step == 3:
            raise StorageError("full")

    with pytest.raises(StorageError, match="full"):
        train(CONFIG, parts(tmp_path, tokenizer, on_step=fail), seed=5)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-2"


def test_checkpoint_of_another_model_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    train(CONFIG, parts(tmp_path, tokenizer), seed=5)
    with pytest.raises(RunFolderError, match="other weights"):
        train(CONFIG, parts(tmp_path, tokenizer, form="lora"), seed=5)


def test_controller_and_moments_move_and_are_logged(tmp_path: Path, tokenizer: Any) -> None:
    run = train(CONFIG, parts(tmp_path, tokenizer), seed=5)
    coefficients = [row["objective/kl_coef"] for row in lines(tmp_path)]
    assert coefficients[0] == 0.05
    assert len(set(coefficients)) == 6
    assert run.state.moments.count == 48


def poisoned_at(*steps: int) -> Any:
    """A reward that is NaN in some iterations."""
    calls = iter(range(1000))

    def reward(completions: Sequence[str]) -> list[float]:
        return [float("nan")] * len(completions) if next(calls) in steps else count_t(completions)

    return reward


def test_poisoned_iteration_is_logged_skipped_and_survived(tmp_path: Path, tokenizer: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    run = parts(tmp_path, tokenizer, reward=poisoned_at(2), on_step=lambda _, policy: seen.append(weights(policy)))
    ended = train(CONFIG, run, seed=5)
    assert (ended.step, ended.bad_steps) == (6, 0)
    event = lines(tmp_path)[2]
    assert (event["step"], event["event"], event["where"]) == (2, "non_finite", "reward/t")
    assert len(seen) == 5


def test_run_stops_with_a_diagnosis_after_too_many_non_finite_iterations(tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer, reward=poisoned_at(1, 2, 3))
    before: list[dict[str, torch.Tensor]] = []
    run = replace(run, on_step=lambda _, policy: before.append(weights(policy)))
    with pytest.raises(NonFiniteError, match="3 steps in a row") as caught:
        train(CONFIG, run, seed=5)
    assert caught.value.where == "reward/t"
    assert [row["event"] for row in lines(tmp_path)[1:]] == ["non_finite"] * 3
    assert all(torch.equal(weight, before[-1][name]) for name, weight in weights(run.policy).items())


def test_poison_at_a_due_or_last_iteration_is_saved_all_the_same(tmp_path: Path, tokenizer: Any) -> None:
    train(CONFIG, parts(tmp_path, tokenizer, reward=poisoned_at(1, 5)), seed=5)
    assert [c.name for c in checkpoints(tmp_path / "checkpoints")] == ["step-2", "step-4", "step-6"]
    stored = json.loads((tmp_path / "checkpoints/step-6/state.json").read_text())
    assert (stored["step"], stored["bad_steps"]) == (6, 1)


def test_run_that_is_ruined_saves_the_last_good_weights(tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer, reward=poisoned_at(2, 3, 4))
    with pytest.raises(NonFiniteError, match="a checkpoint lies in"):
        train(CONFIG, run, seed=5)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-5"


def test_run_that_was_ruined_at_its_end_is_not_taken_for_a_finished_one(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        train(CONFIG, parts(tmp_path, tokenizer, reward=poisoned_at(3, 4, 5)), seed=5)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-6"
    with pytest.raises(NonFiniteError, match="ended with 3 non-finite steps in a row"):
        train(CONFIG, parts(tmp_path, tokenizer), seed=5)


def test_run_with_poison_only_at_its_end_is_finished(tmp_path: Path, tokenizer: Any) -> None:
    train(CONFIG, parts(tmp_path, tokenizer, reward=poisoned_at(5)), seed=5)
    assert train(CONFIG, parts(tmp_path, tokenizer), seed=5).bad_steps == 1


def test_poisoned_reference_is_named(tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer)
    assert isinstance(run.policy.reference, BranchReference)
    with torch.no_grad():
        run.policy.reference.branch.backbone.model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError) as caught:
        train(CONFIG, run, seed=5)
    assert caught.value.where == "reference/logprobs"


def test_check_is_made_up_for_when_the_first_iteration_was_poisoned(tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer, reward=poisoned_at(0))
    shake(run.policy)
    with pytest.raises(StartCheckError, match="KL would not start at 0"):
        train(CONFIG, run, seed=5)


def test_overflowing_weights_stop_the_run_in_the_sampler(tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer)
    with torch.no_grad():
        run.policy.model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="3 steps in a row") as caught:
        train(CONFIG, run, seed=5)
    assert caught.value.where == "sampler/logits/position 0"


def test_every_metric_has_its_name(tmp_path: Path, tokenizer: Any) -> None:
    train(CONFIG.model_copy(update={"steps": 1}), parts(tmp_path, tokenizer), seed=5)
    expected = (
        "objective/kl objective/kl_coef objective/entropy objective/logprobs objective/ref_logprobs "
        "ppo/mean_scores ppo/std_scores ppo/mean_non_score_reward ppo/learning_rate ppo/loss/policy "
        "ppo/loss/value ppo/loss/total ppo/policy/entropy ppo/policy/approxkl ppo/policy/policykl "
        "ppo/policy/clipfrac ppo/policy/advantages_mean ppo/policy/ratio ppo/policy/grad_norm "
        "ppo/returns/mean ppo/returns/var ppo/val/vpred ppo/val/error ppo/val/clipfrac ppo/val/mean "
        "ppo/val/var ppo/val/var_explained tokens/queries_len_mean tokens/responses_len_mean "
        "sampler/logprob_drift sampler/finished_share reward/t "
    )
    assert set(expected.split()) <= lines(tmp_path)[0].keys()


@pytest.mark.parametrize("form", FORMS)
def test_bf16_run_passes_its_checks_and_logs_the_drift(form: str, tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer, form=form)
    run = replace(run, policy=tiny_policy(form=FORMS[form], precision="bf16", tokenizer=tokenizer))
    config = CONFIG.model_copy(update={"sampling": SamplingConfig(max_new_tokens=24)})
    train(config, run, seed=5)
    first = lines(tmp_path)[0]
    assert first["objective/kl"] == 0.0
    assert 0 < first["sampler/logprob_drift"] <= 3e-2
    assert all(p.dtype == torch.float32 for p in run.policy.trained().values())


def finished_shares(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Metrics of a run that is paid for ending, with a tokenizer whose pad token is its end token."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token

    def ended(completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        return [float(end) for end in finished]

    config = PPOConfig.model_validate(
        CONFIG.model_dump()
        | {"steps": 25, "kl": {"coefficient": 0.0}, "loss": {"entropy_coefficient": 0.01}}
        | {"batch": {"rows": 64, "minibatches": 1, "micro_batch_size": 64}}
        | {"optimizer": {"learning_rate": 3e-3, "decay": "constant"}, "shaping": {}}
    )
    run = parts(folder, tokenizer, reward=ended)
    train(config, replace(run, policy=tiny_policy(tokenizer=tokenizer, seed=seed)), seed=seed)
    return lines(folder)


def test_answers_learn_to_end_when_pad_is_the_end_token(tmp_path: Path) -> None:
    shares = [row["sampler/finished_share"] for row in finished_shares(tmp_path, seed=0)]
    assert shares[0] < 0.2
    assert shares[-1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_answers_learn_to_end_for_every_seed(seed: int, tmp_path: Path) -> None:
    rows = finished_shares(tmp_path, seed)
    shares = [row["sampler/finished_share"] for row in rows]
    say(f"ends seed {seed}: {shares[0]:.3f} → {shares[-1]:.3f}, KL {rows[-1]['objective/kl']:.1f}")
    assert shares[-1] > 0.9


def test_critic_of_policy_and_settings_must_agree(tmp_path: Path, tokenizer: Any) -> None:
    run = parts(tmp_path, tokenizer)
    rloo = CONFIG.model_copy(update={"advantages": LeaveOneOutConfig()})
    with pytest.raises(ConfigError, match=r"type=rloo has no use for a critic.*critic=False"):
        train(rloo, run)
    bare = replace(run, policy=make_policy(tiny_model(tokenizer), tokenizer, critic=False))
    with pytest.raises(ConfigError, match=r"type=gae needs a critic.*critic=True"):
        train(CONFIG, bare)


def test_value_settings_without_a_critic_are_refused() -> None:
    settings = {**CONFIG.model_dump(), "advantages": {"type": "rloo"}, "batch": {"rows": 8, "samples_per_prompt": 4}}
    assert not PPOConfig.model_validate(settings).has_critic
    settings["loss"]["value_coefficient"] = 0.5
    with pytest.raises(ValueError, match=r"loss.value_coefficient.*no critic"):
        PPOConfig.model_validate(settings)
    with pytest.raises(ValueError, match="samples_per_prompt=1"):
        PPOConfig.model_validate({**CONFIG.model_dump(), "advantages": {"type": "grpo"}})
