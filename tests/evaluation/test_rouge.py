"""ROUGE against human answers: hand-counted overlaps, the best of several references, and gaps that do not count."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from hydralign.errors import ConfigError, DataError
from hydralign.evaluation.rouge import describe_rouge, reference_texts, require_reference_columns, rouge
from hydralign.types import Prompt

CAT = "The cat sat on the mat."


@pytest.mark.parametrize(
    ("answer", "references", "one", "two", "longest"),
    [
        (CAT, [CAT], 1, 1, 1),
        ("the cat lay on a mat", [CAT], 4 / 6, 1 / 5, 4 / 6),  # the·cat; the cat on mat
        ("on the mat the cat sat", [CAT], 1, 4 / 5, 3 / 6),  # all words, 4 of 5 pairs, three of them in order
        ("a b", ["a b c d"], 2 / 3, 1 / 2, 2 / 3),  # precision 1; recall 2/4, 1/3, 2/4
        ("a b", ["a b c d", "b a"], 1, 1 / 2, 2 / 3),  # the best of both, each metric by itself
        ("CATS, running", ["cat runs"], 1, 1, 1),  # stems, case and marks
        ("a\nb", ["b\na"], 1, 0, 1 / 2),  # lines are no sentences of their own: rougeLsum would be 1
        ("dogs", [CAT], 0, 0, 0),
        ("", [CAT], 0, 0, 0),
    ],
)
def test_overlap_is_counted_as_by_hand(
    answer: str, references: list[str], one: float, two: float, longest: float
) -> None:
    scores = rouge([answer], [references])
    assert list(scores) == ["rouge-1", "rouge-2", "rouge-l"]
    assert [values[0] for values in scores.values()] == pytest.approx([one, two, longest])


def test_answer_without_a_reference_has_no_number() -> None:
    scores = rouge(["a", "a"], [[], ["a b"]])
    assert all(math.isnan(values[0]) for values in scores.values())
    assert scores["rouge-1"][1] == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="1 answers and references for 2"):
        rouge(["a"], [["a"], ["a"]])


def prompts(*columns: dict[str, Any]) -> list[Prompt]:
    return [Prompt(f"p{n}", (1,), one) for n, one in enumerate(columns)]


def test_references_are_what_the_columns_hold_without_gaps() -> None:
    rows = prompts({"a": "x", "b": "y"}, {"a": " ", "b": None}, {"b": "…"}, {"b": "z"})
    assert reference_texts(rows, ["a", "b"]) == (("x", "y"), (), (), ("z",))
    assert reference_texts(rows, []) == ()
    said = describe_rouge(["a", "b"], reference_texts(rows, ["a", "b"]))
    assert said.startswith("F measure against the best of columns a, b; 2 of 4 prompts have none and do not count;")
    assert "column a;" in describe_rouge(["a"], [("x",)] * 2)


def test_references_that_cannot_be_compared_with_are_refused() -> None:
    rows = prompts({"a": "x"}, {"a": "y"})
    with pytest.raises(ConfigError, match="names column 'summary'.*Columns here: a"):
        reference_texts(rows, ["a", "summary"])
    with pytest.raises(ConfigError, match="names column 'a'.*Columns here: none"):
        require_reference_columns(["a"], [])
    require_reference_columns(["a"], None)  # not known yet
    with pytest.raises(DataError, match=r"of 2 held-out prompts 1 have words .* in a:"):
        reference_texts(prompts({"a": "x"}, {"a": "été"[:0]}), ["a"])
    with pytest.raises(DataError, match=r"column 'a' holds list \['x'\] beside the prompt 'p1'"):
        reference_texts(prompts({"a": "x"}, {"a": ["x"]}), ["a"])


def test_the_library_is_loaded_only_when_it_is_used() -> None:
    code = (
        "import sys, hydralign.evaluation.report\nassert 'rouge_score' not in sys.modules\n"
        "from hydralign.evaluation.rouge import rouge\nassert rouge(['a'], [['a']])['rouge-l'] == [1.0]"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
