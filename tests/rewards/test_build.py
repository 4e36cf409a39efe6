"""Configs become terms with names, weights and loaded parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hydralign.config import rewards as config
from hydralign.errors import ModelError, RewardError
from hydralign.rewards import ClassifierReward, RewardModel, build_terms, score_rollout


def test_build_terms_makes_every_kind_and_names_it(
    bert_folder: Callable[..., Path], gpt2_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def brevity(completions):\n    return [-len(c) for c in completions]\n")
    brevity = f"{tmp_path / 'mine.py'}:brevity"
    classifier = config.ClassifierRewardConfig(
        type="classifier", path=str(bert_folder(["bad", "Good"])), label="good", output="probability", batch_size=3
    )
    terms = build_terms(
        [
            config.FunctionRewardConfig(type="function", function=brevity, weight=0.5),
            config.FunctionRewardConfig(type="function", function=brevity, minus_reference="summary"),
            classifier,
            config.ModelRewardConfig(type="model", path=str(gpt2_folder("helpful")), batch_size=5),
            config.ModelRewardConfig(type="model", path=str(gpt2_folder("helpful")), name="mine"),
        ],
        "cpu",
    )
    assert [term.name for term in terms] == ["brevity", "brevity_2", "Good", "helpful", "mine"]
    assert [term.weight for term in terms] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert terms[1].minus_reference == "summary"
    assert isinstance(terms[2].reward, ClassifierReward)
    assert (terms[2].reward.output, terms[2].reward.text, terms[2].reward.batch_size.rows) == (
        "probability",
        "prompt+completion",
        3,
    )
    assert isinstance(terms[3].reward, RewardModel)
    assert terms[3].reward.batch_size.rows == 5
    scores = score_rollout(terms, ["the film was"], [" good"], {"summary": ["four"]}, [True], [["good"]])
    assert scores.terms["brevity"] == [-5.0]
    assert scores.terms["brevity_2"] == [-1.0]
    assert scores.terms["helpful"] == scores.terms["mine"]


def test_build_terms_hands_on_what_is_wrong_with_a_part(gpt2_folder: Callable[..., Path]) -> None:
    with pytest.raises(RewardError, match="has no 'fsumm'"):
        build_terms([config.FunctionRewardConfig(type="function", function="math:fsumm")], "cpu")
    with pytest.raises(ModelError, match="2 outputs"):
        build_terms([config.ModelRewardConfig(type="model", path=str(gpt2_folder(num_labels=2)))], "cpu")
