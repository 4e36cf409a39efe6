"""Sums of rewards: hand-worked totals, and a clear refusal of everything that is no reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hydralign.errors import NonFiniteError, RewardError
from hydralign.rewards import LengthReward, RewardTerm, TokenShareReward, require_applied, score_rollout, unique_names
from hydralign.types import Scores

PROMPTS = ["first prompt", "second prompt"]
COMPLETIONS = ["one two", "three"]
TOKENS = [["one", " two"], ["three"]]


def gives(value: Any) -> Callable[..., Any]:
    return lambda **columns: value


def score(*terms: RewardTerm, columns: dict[str, list[Any]] | None = None) -> Scores:
    return score_rollout(terms, PROMPTS, COMPLETIONS, columns or {}, [True, False], TOKENS)


def test_scores_are_the_weighted_sum_with_terms_apart_and_unweighted() -> None:
    got = score(RewardTerm("a", gives([1, 2]), weight=2.0), RewardTerm("b", gives([0.5, None]), weight=-1.0))
    assert got.scores_B.tolist() == [1.5, 4.0]
    assert got.scores_B.dtype == torch.float32
    assert got.terms == {"a": [1.0, 2.0], "b": [0.5, None]}
    assert got.token_scores is None


def test_scores_accept_numbers_of_numpy_and_torch_and_truth_values() -> None:
    for value in (
        np.array([1.0, 0.0]),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16, requires_grad=True),
        [np.float32(1), torch.tensor(0)],
        (True, False),
        [np.bool_(True), np.int64(0)],
    ):
        assert score(RewardTerm("a", gives(value))).scores_B.tolist() == [1.0, 0.0]


def test_token_scores_add_over_terms_beside_scores_per_answer() -> None:
    got = score(
        RewardTerm("tokens", gives([[1.0, 2.0], None]), weight=0.5),
        RewardTerm("more", gives([torch.tensor([10.0, 20.0]), [3.0]])),
        RewardTerm("answer", gives([7.0, 8.0])),
    )
    assert got.scores_B.tolist() == [7.0, 8.0]
    assert got.token_scores == ((10.5, 21.0), (3.0,))
    assert got.terms == {"tokens": [3.0, None], "more": [30.0, 3.0], "answer": [7.0, 8.0]}


def test_token_scores_are_none_for_rows_that_nobody_spoke_about_per_token() -> None:
    got = score(RewardTerm("mixed", gives([[1.0, 2.0], 5.0])))
    assert got.scores_B.tolist() == [0.0, 5.0]
    assert got.token_scores == ((1.0, 2.0), None)


def test_columns_reach_the_reward_with_finished_and_tokens_among_them() -> None:
    seen: dict[str, Any] = {}

    def spy(**columns: Any) -> list[float]:
        seen.update(columns)
        return [0.0, 0.0]

    score(RewardTerm("spy", spy), columns={"summary": ["s", "t"]})
    assert seen == {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "summary": ["s", "t"],
        "finished": [True, False],
        "completion_tokens": TOKENS,
    }


def test_minus_reference_subtracts_the_references_own_score() -> None:
    # Word counts 2 and 1 against target 3: -1 and -2. References have 3 and 1 words: 0 and -2.
    got = score(
        RewardTerm("length", LengthReward(3), weight=10.0, minus_reference="summary"),
        columns={"summary": ["a b c", "a"]},
    )
    assert got.terms == {"length": [-1.0, 0.0]}
    assert got.scores_B.tolist() == [-10.0, 0.0]


def test_minus_reference_scores_references_as_finished_answers() -> None:
    calls: list[Any] = []

    def spy(completions: list[str], finished: list[bool], **columns: Any) -> list[float | None]:
        calls.append((completions, finished, sorted(columns)))
        return [1.0, None] if len(calls) == 1 else [0.25, 0.0]

    got = score(RewardTerm("spy", spy, minus_reference="summary"), columns={"summary": ["s", "t"]})
    assert calls[0] == (COMPLETIONS, [True, False], ["completion_tokens", "prompts", "summary"])
    assert calls[1] == (["s", "t"], [True, True], ["prompts", "summary"])
    assert got.terms == {"spy": [0.75, None]}


def test_minus_reference_refuses_missing_columns_empty_rows_and_scores_per_token() -> None:
    term = RewardTerm("length", LengthReward(3), minus_reference="summary")
    with pytest.raises(
        RewardError, match=r"'length' wants column 'summary'.*Columns here: completion_tokens, finished"
    ):
        score(term)
    with pytest.raises(RewardError, match="column 'summary' holds None in row 1"):
        score(term, columns={"summary": ["s", None]})
    with pytest.raises(RewardError, match="speaks per token and has minus_reference"):
        score(RewardTerm("t", gives([[1.0, 2.0], [3.0]]), minus_reference="summary"), columns={"summary": ["s", "t"]})
    with pytest.raises(RewardError, match="'share' requires 'completion_tokens'"):
        score(RewardTerm("share", TokenShareReward("x"), minus_reference="summary"), columns={"summary": ["s", "t"]})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([1.0], "'bad' returned 1 entries for 2 rows"),
        ([1.0, 2.0, 3.0], "returned 3 entries for 2 rows"),
        (1.0, "of type float: a list with one entry per row is needed. Return a list of 2 numbers"),
        (None, "returned None of type NoneType"),
        ("12", "of type str"),
        ({0: 1.0, 1: 2.0}, "of type dict"),
        ([1.0, "2"], "'2' of type str for row 1: that is no number"),
        ([1.0, {"score": 2}], "of type dict for row 1"),
        ([1j, 1.0], "of type complex for row 0"),
        ([[1.0], [1.0, 1.0]], "1 numbers for row 0, whose completion has 2 tokens"),
        ([[[1.0], [2.0]], None], "of type list for row 0"),
        (np.ones((2, 3)), "3 numbers for row 0, whose completion has 2 tokens"),
        ([[1.0, None], None], "of type NoneType for row 0"),
        (torch.ones(2).to_sparse(), "'bad' returned a torch.sparse_coo tensor on cpu, whose numbers cannot be read"),
        (torch.ones(2, device="meta"), "'bad' returned a torch.strided tensor on meta, whose numbers cannot be read"),
        ([1.0, torch.ones(1, device="meta")], "tensor on meta, whose numbers cannot be read"),
    ],
)
def test_scores_refuse_what_is_no_reward(value: Any, problem: str) -> None:
    with pytest.raises(RewardError, match=problem):
        score(RewardTerm("bad", gives(value)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400])
def test_scores_that_are_not_finite_name_term_row_and_prompt(value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"'bad' gave .* for row 1, whose prompt begins 'second prompt'") as caught:
        score(RewardTerm("bad", gives([0.0, value])))
    assert caught.value.where == "reward/bad"
    with pytest.raises(NonFiniteError, match="row 0, whose prompt begins 'first prompt'"):
        score(RewardTerm("bad", gives([[0.0, value], None])))


def test_scores_show_sixty_characters_of_a_long_prompt() -> None:
    with pytest.raises(NonFiniteError) as caught:
        score_rollout([RewardTerm("r", gives([float("nan")]))], ["x" * 100], [""], {}, [True], [[]])
    assert repr("x" * 60) in str(caught.value)
    assert "x" * 61 not in str(caught.value)


def test_scores_refuse_columns_of_another_length_and_terms_without_own_names() -> None:
    with pytest.raises(RewardError, match="column 'summary' has 1 entries for 2 prompts"):
        score(RewardTerm("a", gives([0, 0])), columns={"summary": ["s"]})
    with pytest.raises(RewardError, match="reward terms are 'a', 'a'"):
        score(RewardTerm("a", gives([0, 0])), RewardTerm("a", gives([0, 0])))
    with pytest.raises(RewardError, match="reward terms are none"):
        score()


def test_reference_answers_that_are_cut_are_counted_among_the_texts_that_were_read() -> None:
    class Short:
        truncated = 0

        def __call__(self, completions: list[str]) -> list[float]:
            self.truncated += sum(len(text) > 20 for text in completions)
            return [0.0] * len(completions)

    columns = {"summary": ["long " * 5, "short"]}
    assert score(RewardTerm("plain", Short()), columns=columns).cut == {"plain": (0, 2)}
    assert score(RewardTerm("minus", Short(), minus_reference="summary"), columns=columns).cut == {"minus": (1, 4)}


def test_an_empty_completion_takes_an_empty_list_of_token_scores() -> None:
    got = score_rollout([RewardTerm("t", gives([[]]))], ["p"], [""], {}, [True], [[]])
    assert got.token_scores == ((),)
    assert got.terms == {"t": [0.0]}


def test_unique_names_number_what_repeats() -> None:
    assert unique_names(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]


def test_token_share_reward_counts_stripped_tokens() -> None:
    got = score(RewardTerm("share", TokenShareReward("two")))
    assert got.scores_B.tolist() == [0.5, 0.0]
    assert TokenShareReward("x")(["p"], [""], [[]]) == [0.0]


def test_reward_that_applies_to_no_row_at_all_is_refused_by_name() -> None:
    assert score(RewardTerm("rare", gives([None, None]))).terms == {"rare": [None, None]}
    require_applied({"length": 3, "rare": 1}, rows=3)
    with pytest.raises(RewardError, match="reward 'rare' returned None for all 3 rows"):
        require_applied({"length": 3, "rare": 0}, rows=3)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([[1.0], [4.0]]),
        torch.tensor([[1.0], [4.0]], dtype=torch.bfloat16, requires_grad=True),
        np.array([[1.0], [4.0]]),
        [[1.0], [4.0]],
        [np.array([1.0]), torch.tensor([4.0])],
        [[torch.tensor(1.0)], (np.float64(4.0),)],
        [[1.0], 4.0],
    ],
    ids=lambda value: type(value).__name__,
)
def test_column_of_scores_is_one_score_per_row(value: Any) -> None:
    got = score(RewardTerm("head", gives(value), weight=2.0))
    assert got.scores_B.tolist() == [2.0, 8.0]
    assert got.terms == {"head": [1.0, 4.0]}
    assert got.token_scores is None
    minus = RewardTerm("head", gives(value), minus_reference="summary")
    assert score(minus, columns={"summary": ["a", "b"]}).scores_B.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (torch.ones(1, 2), r"1 entries for 2 rows.*shape \[2\] or \[2, 1\]"),
        (torch.ones(2, 1, 1), r"\[1.0\] of type list for row 0: that is no number"),
        (torch.ones(2, 2, 1), r"2 numbers for row 1|\[1.0\] of type list for row 0"),
        (torch.ones(2, 3), "3 numbers for row 0, whose completion has 2 tokens.*one number per row"),
        (torch.tensor(1.0), "of type float: a list with one entry per row"),
        ([[1.0], [1.0, 2.0]], "1 numbers for row 0, whose completion has 2 tokens"),
        ([[], [1.0]], "0 numbers for row 0"),
    ],
)
def test_other_shapes_are_refused_by_name(value: Any, problem: str) -> None:
    with pytest.raises(RewardError, match=problem):
        score(RewardTerm("odd", gives(value)))
