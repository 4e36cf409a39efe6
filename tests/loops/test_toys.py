"""PPO on small worlds reaches what is known to be best, and KL goes where the controller is told to take it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.evaluation.comparison import compare_answers
from hydralign.models import make_policy
from hydralign.types import Prompt
from tests.loops.toys import answered, random_graph, small_model, taught, teach_to_walk, word_tokenizer

WORDS = [f"w{i}" for i in range(14)]
GPT2_LINEAR = ("c_attn", "c_proj", "c_fc")
EIGHT_TOKENS = {"min_new_tokens": 8, "max_new_tokens": 8}
FORMS: list[tuple[str, Form, float, int]] = [
    ("gpt2", FullForm(), 3e-3, 40),
    ("llama", FullForm(), 3e-3, 40),
    ("gpt2", LoraForm(rank=8, targets=GPT2_LINEAR), 5e-3, 110),
    ("llama", LoraForm(rank=8), 2e-2, 50),
    ("gpt2", HydraForm(unfrozen_layers=1), 3e-3, 40),
    ("llama", HydraForm(unfrozen_layers=1, value="branch"), 3e-3, 40),
]


def share(completion_tokens: Sequence[Sequence[str]]) -> list[float]:
    """How much of an answer is the favourite token; the best policy says nothing else and gets 1."""
    return [row.count("w3") / len(row) for row in completion_tokens]


def share_per_token(completion_tokens: Sequence[Sequence[str]]) -> list[list[float]]:
    return [[float(token == "w3") / len(row) for token in row] for row in completion_tokens]


def word_prompts(tokenizer: Any) -> list[Prompt]:
    return [Prompt(word, tuple(tokenizer(word).input_ids)) for word in WORDS]


@pytest.mark.parametrize(("family", "form", "rate", "steps"), FORMS, ids=lambda x: getattr(x, "type", None))
def test_favourite_token_is_learnt_to_95_percent_of_the_optimum(
    family: str, form: Form, rate: float, steps: int, tmp_path: Path
) -> None:
    tokenizer = word_tokenizer(WORDS)
    layers = 2 if isinstance(form, HydraForm) else 1
    policy = make_policy(small_model(tokenizer, family=family, layers=layers), tokenizer, form=form)
    settings = {
        "steps": steps,
        "sampling": EIGHT_TOKENS,
        "batch": {"rows": 128, "minibatches": 2, "micro_rows": 128},
        "optimizer": {"learning_rate": rate, "warmup_steps": 2},
        "kl": {"coefficient": 0.0},
    }
    metrics = taught(policy, word_prompts(tokenizer), share, tmp_path, **settings)
    assert metrics[0]["ppo/mean_scores"] < 0.15
    after = answered(policy, word_prompts(tokenizer) * 8, share, **settings)
    assert statistics.fmean(after.metrics["score"]) >= 0.95


def test_rewards_per_token_teach_faster_than_their_sum_at_the_end(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS)
    settings = {
        "steps": 12,
        "sampling": EIGHT_TOKENS,
        "batch": {"rows": 128, "minibatches": 2, "micro_rows": 128},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "decay": "constant"},
        "kl": {"coefficient": 0.0},
        "advantages": {"gamma": 0.5},
    }
    scores = {}
    for name, reward in (("dense", share_per_token), ("sum", share)):
        policy = make_policy(small_model(tokenizer), tokenizer)
        (tmp_path / name).mkdir()
        metrics = taught(policy, word_prompts(tokenizer), reward, tmp_path / name, **settings)
        scores[name] = [row["ppo/mean_scores"] for row in metrics]
    assert scores["dense"][0] == pytest.approx(scores["sum"][0], abs=1e-6)
    assert scores["dense"][-1] > 0.8
    assert scores["dense"][-1] > scores["sum"][-1]


@pytest.mark.parametrize("target", [1.0, 3.0])
def test_kl_follows_the_target_of_the_adaptive_controller(target: float, tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS)
    policy = make_policy(small_model(tokenizer), tokenizer)
    settings = {
        "steps": 90,
        "sampling": EIGHT_TOKENS,
        "batch": {"rows": 128, "minibatches": 2, "micro_rows": 128},
        "optimizer": {"learning_rate": 1e-3, "decay": "constant"},
        "kl": {"coefficient": 0.1, "controller": {"type": "adaptive", "target": target, "horizon": 400}},
    }
    metrics = taught(policy, word_prompts(tokenizer), share, tmp_path, **settings)
    last = [row["objective/kl"] for row in metrics[60:]]
    assert statistics.fmean(last) == pytest.approx(target, rel=0.25)
    assert len({row["objective/kl_coef"] for row in metrics}) == 90


WALK_SETTINGS = {
    "sampling": {"max_new_tokens": 10},
    "batch": {"rows": 160, "epochs": 4, "minibatches": 2, "micro_rows": 160},
    "optimizer": {"learning_rate": 5e-4, "warmup_steps": 2},
    "loss": {"entropy_coefficient": 0.01},  # without it a start node can settle on a way that is not the shortest
    "kl": {"coefficient": 0.0},
}


def test_random_walker_learns_the_shortest_ways(tmp_path: Path) -> None:
    walks = random_graph()
    tokenizer = word_tokenizer(walks.names)
    model = small_model(tokenizer, layers=2, width=64)
    teach_to_walk(model, tokenizer, walks, steps=150)
    policy = make_policy(model, tokenizer)
    starts = [Prompt(name, tuple(tokenizer(name).input_ids)) for name in walks.names[1:]]
    before = answered(policy, starts * 10, walks.optimality, **WALK_SETTINGS)
    taught(policy, starts, walks.optimality, tmp_path, steps=60, **WALK_SETTINGS)
    after = answered(policy, starts * 10, walks.optimality, **WALK_SETTINGS)
    difference = compare_answers(before, after).metrics[0]
    assert difference.before_mean < 0.5
    assert difference.verdict == "better"
    assert difference.after_mean >= 0.95
