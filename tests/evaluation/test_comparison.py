"""Comparisons: metrics with verdicts, facts without, shares, and gaps that leave both sides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hydralign.errors import ConfigError
from hydralign.evaluation.comparison import Share, compare_answers, comparison_record, fact_sentence
from hydralign.evaluation.held_out import Answers

N = 40


def answers(shift: float, texts: bool = False) -> Answers:
    """Scores 0 … 39 and some facts, all moved by `shift`."""
    metrics = {
        "score": [float(i) + shift for i in range(N)],
        "judge/other": [math.nan if i % 4 == 0 else -shift * (1 + i % 3) for i in range(N)],
        "kl": [shift * (1 + i % 2) for i in range(N)],
        "tokens": [5.0] * N,
        "finished": [1.0] * N,
    }
    words = ["one two three four", "one one one one"] if shift else ["one two three four", "five six seven eight"]
    samples = [{"query": "q", "response": words[i % 2], "score": 0.0} for i in range(N)] if texts else []
    return Answers(metrics, samples)


def test_metrics_have_verdicts_and_facts_have_none() -> None:
    comparison = compare_answers(answers(0), answers(2))
    assert [(d.metric, d.verdict) for d in comparison.metrics] == [("score", "better"), ("judge/other", "worse")]
    record = comparison_record(comparison)
    assert record["metrics"]["score"]["difference"] == {"mean": 2.0, "ci_low": 2.0, "ci_high": 2.0}
    assert [record["metrics"][name]["primary"] for name in record["metrics"]] == [True, False]
    assert record["facts"].keys() == {"kl", "tokens", "finished"}
    assert "verdict" not in record["facts"]["kl"]
    assert record["facts"]["kl"]["sentence"].endswith("changed.")
    told = [fact_sentence(fact) for fact in comparison.facts]
    assert not any("better" in sentence or "worse" in sentence for sentence in told)
    assert "no change distinguishable from chance" in told[1]


def test_gaps_leave_both_sides_of_their_metric_only() -> None:
    comparison = compare_answers(answers(0), answers(2))
    assert [d.n for d in comparison.metrics] == [N, 30]
    after = answers(2)
    after.metrics["judge/other"][1] = math.nan
    assert compare_answers(answers(0), after).metrics[1].n == 29


def test_share_counts_values_strictly_above_its_bound() -> None:
    comparison = compare_answers(answers(0), answers(2), shares=[Share("high", "score", 37.0)])
    share = comparison.metrics[-1]
    assert (share.metric, share.before_mean, share.after_mean) == ("high", 2 / N, 4 / N)


def test_share_of_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'score'"):
        compare_answers(answers(0), answers(1), shares=[Share("high", "scores", 0.0)])


@pytest.mark.parametrize("name", ["score", "judge/other", "kl", "tokens", "finished", "distinct-2", "high"])
def test_share_under_a_name_that_is_taken_is_refused(name: str) -> None:
    shares = [Share("high", "score", 37.0), Share(name, "score", 0.0)]
    with pytest.raises(ConfigError, match=f"a second metric or fact called {name!r}: .* another name"):
        compare_answers(answers(0), answers(1), shares=shares)


def test_share_may_be_taken_of_another_one() -> None:
    shares = [Share("high", "score", 37.0), Share("any", "high", 0.0)]
    assert [d.metric for d in compare_answers(answers(0), answers(1), shares=shares).metrics[-2:]] == ["high", "any"]


def test_distinct_2_is_compared_over_equal_token_counts() -> None:
    comparison = compare_answers(answers(0, texts=True), answers(2, texts=True))
    assert [fact.metric for fact in comparison.facts] == ["kl", "tokens", "finished", "distinct-2"]
    record = comparison_record(comparison)["facts"]["distinct-2"]
    # 6 different pairs of 120 before; 3 of the first text and one of the second after.
    assert record["all_answers"] == pytest.approx({"before": 6 / 120, "after": 4 / 120, "ratio": 4 / 6})
    assert record["difference"]["ci_high"] < 0


def test_distinct_2_is_left_out_where_some_texts_were_not_kept() -> None:
    after = answers(2, texts=True)
    comparison = compare_answers(answers(0), replace(after, samples=after.samples[:3]))
    assert "distinct-2" not in [fact.metric for fact in comparison.facts]


def test_variety_counts_blocks_and_not_prompts() -> None:
    texts = [f"w{n} x{n} y{n} z{n}" for n in range(40)]
    changed = ["a a a a a", *texts[1:]]
    sides = [
        Answers({"score": [0.0] * 40}, [{"query": "q", "response": text, "score": 0.0} for text in side])
        for side in (texts, changed)
    ]
    comparison = compare_answers(*sides)
    assert [(fact.metric, fact.n, fact.changed) for fact in comparison.facts] == [("distinct-2", 5, 1)]
    record = comparison_record(comparison)
    assert "n = 5 is too small for any verdict: 6 blocks must change" in record["facts"]["distinct-2"]["sentence"]
    assert (record["facts"]["distinct-2"]["unit"], record["metrics"]["score"]["unit"]) == ("blocks", "prompts")
