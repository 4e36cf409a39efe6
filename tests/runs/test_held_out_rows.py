"""Before and after are of the same held-out rows, chosen whatever the order of the file; other rows are named."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydralign.config import Recipe
from hydralign.config.sft import SFTConfig
from hydralign.data import DataSet, choose_rows
from hydralign.data.report import DataReport
from hydralign.distributed import SINGLE_PROCESS
from hydralign.errors import DataError
from hydralign.evaluation.comparison import compare_answers
from hydralign.evaluation.held_out import Answers
from hydralign.methods.sft import LONGEST_ROW, max_tokens_of
from hydralign.runs import reward as reward_run
from hydralign.runs import sft as sft_run
from hydralign.runs.held_out_prompts import choose_prompts, load_or_measure_answers
from hydralign.runs.section import load_or_measure_numbers
from hydralign.testing import tiny_model
from hydralign.types import Prompt


def section(folder: Path, rows: Sequence[Mapping[str, Any]], tokenizer: Any, name: str, **settings: Any) -> Any:
    """The parts of a section on a tiny model and these rows, whose last 80 are held out."""
    if not (folder / "model").exists():
        tiny_model(tokenizer).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(folder / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 80}}
    body = {"data": source, "evaluation": {"rows": 20}} | settings
    recipe = Recipe.model_validate(
        {"output": str(folder / "out"), "model": {"path": str(folder / "model")}, name: body}
    ).resolved()
    load: Any = {"sft": sft_run.load_sft, "reward": reward_run.load_reward}[name]
    return load(recipe, getattr(recipe, name), SINGLE_PROCESS)


def words(n: int) -> str:
    return " ".join(["this", "that"][n >> bit & 1] for bit in range(7))


@pytest.mark.parametrize(
    ("name", "row", "settings"),
    [
        ("sft", lambda n, label: {"text": words(n)}, {}),
        ("reward", lambda n, label: {"text": words(n), "label": label}, {"task": {"type": "labels"}}),
        ("reward", lambda n, label: {"prompt": words(n), "chosen": " a", "rejected": " b"}, {}),
    ],
)
def test_held_out_rows_that_are_measured_are_a_fair_sample_in_any_order(
    name: str, row: Any, settings: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    learned = [row(n, "ab"[n % 2]) for n in range(100, 120)]
    sorted_rows = [row(n, "ab"[n >= 40]) for n in range(80)]
    there = section(tmp_path, [*learned, *sorted_rows], tokenizer, name, **settings)
    back = section(tmp_path, [*learned, *sorted_rows[::-1]], tokenizer, name, **settings)
    assert len(there.held_out) == 20
    assert there.measured == back.measured
    assert list(map(repr, there.held_out)) == list(map(repr, back.held_out))
    if "task" in settings:
        assert 4 < sum(text.label for text in there.held_out) < 16


def test_ppo_and_compare_answer_a_fair_sample_and_the_larger_one_holds_the_smaller() -> None:
    held_out = tuple(Prompt(f"p {n}", (n,), {"label": n >= 100}) for n in range(200))
    data = DataSet((), held_out, DataReport("rows", 200, 0, 200, {}))
    few, many = (choose_prompts(data, count, at_least=2) for count in (40, 100))
    assert many[:40] == few
    assert 8 < sum(prompt.columns["label"] for prompt in few) < 32
    with pytest.raises(DataError, match=r"2 prompts are held out, at least 3 .*\n.*9 rows read.*\nLeft out: 7 empty\."):
        choose_prompts(DataSet((), held_out[:2], DataReport("r", 9, 0, 2, {"empty": 7})), 5, at_least=3)


@pytest.mark.parametrize("old", [{"values": [1.0, 2.0]}, {"rows": "others", "values": [1.0, 2.0]}])
def test_measurement_of_other_rows_is_made_again_and_said(
    old: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(old))
    assert load_or_measure_numbers(path, "mine", lambda: [3.0], SINGLE_PROCESS) == [3.0]
    assert "before.json is about other held-out rows" in capsys.readouterr().err
    assert load_or_measure_numbers(path, "mine", lambda: [4.0], SINGLE_PROCESS) == [3.0]
    assert capsys.readouterr().err == ""


def test_answers_to_other_prompts_are_made_again_and_never_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "before.json"
    Answers({"score": [1.0]}).save(path)
    mine = Answers({"score": [2.0]}, [], "mine")
    assert load_or_measure_answers(path, "mine", lambda: mine, SINGLE_PROCESS) == mine == Answers.load(path)
    assert "measured again" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot be paired"):
        compare_answers(Answers({"score": [1.0] * 9}, [], "mine"), Answers({"score": [1.0] * 9}, [], "others"))


def test_error_about_too_few_sequences_lists_where_the_rows_went(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "that and this " * 9 + str(n), "completion": "good"} for n in range(32)]
    with pytest.raises(DataError) as caught:
        section(tmp_path, rows, tokenizer, "sft", max_tokens=8)
    told = str(caught.value)
    assert told.startswith("0 sequences to train on and 0 held out")
    assert "rows.jsonl: 32 rows read, 6 to train on, 26 held out." in told
    assert "6 longer than 8 tokens, cut at the end, 6 without a token to learn, left out, " in told
    assert choose_rows([]) == ()


def test_longest_row_is_told_and_is_the_context_up_to_its_limit(tmp_path: Path, tokenizer: Any) -> None:
    parts = section(tmp_path, [{"text": words(n)} for n in range(100)], tokenizer, "sft")
    assert max_tokens_of(SFTConfig(), parts.policy) == parts.policy.context == 64
    long = SimpleNamespace(context=4096)
    assert max_tokens_of(SFTConfig(), long) == LONGEST_ROW == 1024  # type: ignore[arg-type]
    assert max_tokens_of(SFTConfig(max_tokens=4000), long) == 4000  # type: ignore[arg-type]
    assert "no more than 1,024" in inspect.getsource(SFTConfig)
