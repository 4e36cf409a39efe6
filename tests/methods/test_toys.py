"""PPO on small worlds reaches what is known to be best, and KL goes where the controller is told to take it.

Settings leave a margin: by the slow tests at the end, five seeds reach every bar, not one chosen seed. Of families and
forms three cases stand: all weights trained beside a frozen copy (gpt2), adapters whose reference is the model without
them (gpt2), and branches on a trunk, one of them for values (llama). Each kind of reference, both ways to place the
values and both families occur once; that families agree in every form is `tests/models/test_policies.py`'s to show.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.evaluation.comparison import compare_answers
from hydralign.models import make_policy
from hydralign.models.policy import Policy
from hydralign.progress import say
from hydralign.types import Prompt
from tests.methods.toys import (
    answered,
    random_graph,
    random_speaker,
    small_model,
    taught,
    teach_to_walk,
    word_tokenizer,
)

WORDS = [f"w{i}" for i in range(14)]
GPT2_LINEAR = ("c_attn", "c_proj", "c_fc")
FORMS: dict[str, tuple[str, Form, float]] = {
    "gpt2-full": ("gpt2", FullForm(), 2e-3),
    "gpt2-lora": ("gpt2", LoraForm(rank=8, targets=GPT2_LINEAR), 5e-3),
    "llama-hydra": ("llama", HydraForm(unfrozen_layers=1, value="branch"), 2e-3),
}
FIVE_SEEDS = pytest.mark.parametrize("seed", range(5))


def answers_of(length: int) -> dict[str, int]:
    return {"min_new_tokens": length, "max_new_tokens": length, "decode_batch_size": 128}


def share(completion_tokens: Sequence[Sequence[str]]) -> list[float]:
    """How much of an answer is the favourite token; the best policy says nothing else and gets 1."""
    return [row.count("w3") / len(row) for row in completion_tokens]


def share_per_token(completion_tokens: Sequence[Sequence[str]]) -> list[list[float]]:
    return [[float(token == "w3") / len(row) for token in row] for row in completion_tokens]


def word_prompts(tokenizer: Any) -> list[Prompt]:
    return [Prompt(word, tuple(tokenizer(word).input_ids)) for word in WORDS]


def learn_favourite(family: str, form: Form, rate: float, folder: Path, seed: int = 0) -> tuple[float, float, float]:
    """Mean score of the first iteration, then mean score and KL of fresh answers after training."""
    tokenizer = word_tokenizer(WORDS)
    layers = 2 if isinstance(form, HydraForm) else 1
    model = random_speaker(tokenizer, family=family, layers=layers, width=64, seed=seed)
    policy = make_policy(model, tokenizer, form=form, seed=seed)
    settings: dict[str, Any] = {
        "steps": 16,
        "sampling": answers_of(4),
        "batch": {"rows": 128, "minibatches": 1, "micro_batch_size": 128},
        "optimizer": {"learning_rate": rate, "warmup_steps": 2},
        "loss": {"entropy_coefficient": 0.01},
        "kl": {"coefficient": 0.0},
    }
    metrics = taught(policy, word_prompts(tokenizer), share, folder, seed=seed, **settings)
    after = answered(policy, word_prompts(tokenizer) * 8, share, **settings)
    score, kl = (statistics.fmean(after.metrics[name]) for name in ("score", "kl"))
    return metrics[0]["ppo/mean_scores"], score, kl


@pytest.mark.parametrize("case", FORMS)
def test_favourite_token_is_learnt_to_95_percent_of_the_optimum(case: str, tmp_path: Path) -> None:
    first, score, _ = learn_favourite(*FORMS[case], tmp_path)
    assert first < 0.15
    assert score >= 0.95


def learn_without_critic(kind: str, folder: Path, seed: int = 0) -> tuple[float, Policy]:
    """Mean score of fresh answers after training with several answers to each prompt, and the policy."""
    tokenizer = word_tokenizer(WORDS)
    policy = make_policy(random_speaker(tokenizer, width=64, seed=seed), tokenizer, critic=False, seed=seed)
    settings: dict[str, Any] = {
        "steps": 16,
        "sampling": answers_of(4),
        "batch": {"rows": 128, "samples_per_prompt": 8, "minibatches": 1, "micro_batch_size": 128},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2},
        "loss": {"entropy_coefficient": 0.01},
        "kl": {"coefficient": 0.0},
        "advantages": {"type": kind},
    }
    taught(policy, word_prompts(tokenizer), share, folder, seed=seed, **settings)
    after = answered(policy, word_prompts(tokenizer) * 8, share, **settings)
    return statistics.fmean(after.metrics["score"]), policy


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_favourite_token_is_learnt_without_a_critic(kind: str, tmp_path: Path) -> None:
    score, policy = learn_without_critic(kind, tmp_path)
    assert score >= 0.95
    assert not [name for name in policy.trained() if "value" in name]
    policy.save(tmp_path / "model")
    assert not list((tmp_path / "model").glob("value_*"))


def learn_densely(folder: Path, seed: int = 0) -> dict[str, list[float]]:
    """Mean scores by iteration with a reward per token, and with their sum at the end."""
    tokenizer = word_tokenizer(WORDS)
    settings = {
        "steps": 8,
        "sampling": answers_of(8),
        "batch": {"rows": 128, "minibatches": 1, "micro_batch_size": 128},
        "optimizer": {"learning_rate": 4e-3, "warmup_steps": 2, "decay": "constant"},
        "kl": {"coefficient": 0.0},
        "advantages": {"gamma": 0.5},
    }
    scores = {}
    for name, reward in (("dense", share_per_token), ("sum", share)):
        policy = make_policy(random_speaker(tokenizer, seed=seed), tokenizer, seed=seed)
        (folder / name).mkdir()
        metrics = taught(policy, word_prompts(tokenizer), reward, folder / name, seed=seed, **settings)
        scores[name] = [row["ppo/mean_scores"] for row in metrics]
    return scores


def test_rewards_per_token_teach_faster_than_their_sum_at_the_end(tmp_path: Path) -> None:
    scores = learn_densely(tmp_path)
    assert scores["dense"][0] == pytest.approx(scores["sum"][0], abs=1e-6)
    assert scores["dense"][-1] > 0.8
    assert scores["dense"][-1] > scores["sum"][-1]


def follow_target(target: float, folder: Path, seed: int = 0) -> list[dict[str, float]]:
    """Metrics of 60 iterations under the adaptive controller."""
    tokenizer = word_tokenizer(WORDS)
    policy = make_policy(random_speaker(tokenizer, seed=seed), tokenizer, seed=seed)
    settings = {
        "steps": 60,
        "sampling": answers_of(4),
        "batch": {"rows": 64, "minibatches": 1, "micro_batch_size": 64},
        "optimizer": {"learning_rate": 2e-3, "decay": "constant"},
        "kl": {"coefficient": 0.1, "controller": {"type": "adaptive", "target": target, "horizon": 400}},
    }
    return taught(policy, word_prompts(tokenizer), share, folder, seed=seed, **settings)


def late_kl(metrics: Sequence[dict[str, float]]) -> float:
    return statistics.fmean(row["objective/kl"] for row in metrics[20:])


@pytest.mark.parametrize("target", [1.0, 3.0])
def test_kl_follows_the_target_of_the_adaptive_controller(target: float, tmp_path: Path) -> None:
    metrics = follow_target(target, tmp_path)
    assert late_kl(metrics) == pytest.approx(target, rel=0.25)
    assert len({row["objective/kl_coef"] for row in metrics}) == 60


WALK_SETTINGS = {
    "sampling": {"max_new_tokens": 10, "decode_batch_size": 128},
    "batch": {"rows": 110, "epochs": 4, "minibatches": 1, "micro_batch_size": 110},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
    "loss": {"entropy_coefficient": 0.01},  # without it a start node can settle on a way that is not the shortest
    "kl": {"coefficient": 0.0},
}


def learn_to_walk(folder: Path, seed: int = 0) -> Any:
    """The paired difference of how short the walks are, before and after."""
    walks = random_graph(12, chance=0.2)
    tokenizer = word_tokenizer(walks.names)
    model = small_model(tokenizer, width=64, seed=seed)
    teach_to_walk(model, tokenizer, walks, steps=100, seed=seed)
    policy = make_policy(model, tokenizer, seed=seed)
    starts = [Prompt(name, tuple(tokenizer(name).input_ids)) for name in walks.names[1:]]
    before = answered(policy, starts * 10, walks.optimality, **WALK_SETTINGS)
    taught(policy, starts, walks.optimality, folder, seed=seed, steps=25, **WALK_SETTINGS)
    after = answered(policy, starts * 10, walks.optimality, **WALK_SETTINGS)
    return compare_answers(before, after)


def test_random_walker_learns_the_shortest_ways(tmp_path: Path) -> None:
    difference = learn_to_walk(tmp_path).metrics[0]
    assert difference.before_mean < 0.5
    assert difference.verdict == "better"
    assert difference.after_mean >= 0.95


# The margin: the same for five seeds of weights, sampling and data. `pytest -m slow -rP` prints the numbers.


@pytest.mark.slow
@FIVE_SEEDS
@pytest.mark.parametrize("case", FORMS)
def test_favourite_token_is_learnt_for_every_seed(case: str, seed: int, tmp_path: Path) -> None:
    first, score, kl = learn_favourite(*FORMS[case], tmp_path, seed)
    say(f"{case} seed {seed}: {first:.3f} → {score:.3f}, KL {kl:.1f}")
    assert score >= 0.95


@pytest.mark.slow
@FIVE_SEEDS
def test_rewards_per_token_teach_faster_for_every_seed(seed: int, tmp_path: Path) -> None:
    scores = learn_densely(tmp_path, seed)
    say(f"per token seed {seed}: {scores['dense'][-1]:.3f}, their sum {scores['sum'][-1]:.3f}")
    assert scores["dense"][-1] > 0.8
    assert scores["dense"][-1] > scores["sum"][-1]


@pytest.mark.slow
@FIVE_SEEDS
@pytest.mark.parametrize("target", [1.0, 3.0])
def test_kl_follows_the_target_for_every_seed(target: float, seed: int, tmp_path: Path) -> None:
    kl = late_kl(follow_target(target, tmp_path, seed))
    say(f"target {target} seed {seed}: KL {kl:.2f}")
    assert kl == pytest.approx(target, rel=0.25)


@pytest.mark.slow
@FIVE_SEEDS
def test_shortest_ways_are_learnt_for_every_seed(seed: int, tmp_path: Path) -> None:
    comparison = learn_to_walk(tmp_path, seed)
    difference, kl = comparison.metrics[0], next(fact for fact in comparison.facts if fact.metric == "kl")
    say(f"walks seed {seed}: {difference.before_mean:.3f} → {difference.after_mean:.3f}, KL {kl.after_mean:.1f}")
    assert difference.before_mean < 0.5
    assert difference.after_mean >= 0.95
