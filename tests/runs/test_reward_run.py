"""What a reward section reads: comparisons end as scored answers do, and every source is accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config import Recipe
from hydralign.config.model import LoraForm
from hydralign.config.reward import Labels
from hydralign.distributed import SINGLE_PROCESS
from hydralign.errors import ModelError
from hydralign.methods.reward import Labelled, Pair, outputs_of
from hydralign.models.forms.build import load_supervised_policy
from hydralign.rewards import encode
from hydralign.runs.reward import LoadedReward, calibrated, load_reward
from hydralign.testing import tiny_model, tiny_tokenizer

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


def loaded(folder: Path, rows: Sequence[Mapping[str, Any]], tokenizer: Any, **section: Any) -> LoadedReward:
    """The parts of a reward section on these rows and a tiny model."""
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(folder / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 40}}
    recipe = Recipe.model_validate(
        {"output": str(folder / "out"), "model": {"path": str(folder / "model")}, "reward": {"data": source} | section}
    ).resolved()
    assert recipe.reward is not None
    assert not isinstance(recipe.reward, tuple)
    return load_reward(recipe, recipe.reward, SINGLE_PROCESS)


@pytest.mark.parametrize("end", ["<eos>", "<eos>\n", "<pad>\n<eos>", ""])
def test_answers_of_chats_are_learned_as_they_are_scored(end: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS.replace("END", end.replace("\n", "{{ '\n' }}")) + PROMPT
    rows = [
        {"prompt": [{"role": "user", "content": f"q{n}"}]}
        | {side: [{"role": "assistant", "content": side + " \n"}] for side in ("chosen", "rejected")}
        for n in range(12)
    ]
    parts = loaded(tmp_path, rows, tokenizer)
    questions = [f"<user>q{n}{end}<assistant>" for n in range(12)]
    scored = [
        Pair(*(encode(parts.classifier.tokenizer, text, f"{side} \n", True).ids for side in ("chosen", "rejected")))
        for text in questions
    ]
    assert set(parts.train) | set(parts.held_out) == set(scored)


LABELLED = [{"text": f"{'this' if n % 2 else 'that'} {'thing ' * n}", "label": str(n % 2)} for n in range(12)]


def test_rows_to_test_on_are_accounted_for(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"q{n}", "chosen": " this", "rejected": " that" if n else " this"} for n in range(12)]
    source = {"source": str(tmp_path / "rows.jsonl"), "limit": 5}
    told = loaded(tmp_path, rows, tokenizer, test=source).report.splitlines()
    assert told[0].endswith("rows.jsonl: 12 rows read, 7 to train on, 4 held out.")
    assert told[2].endswith("rows.jsonl: 12 rows read, 5 to test on.")
    assert told[3] == "Left out: 7 beyond the limit of 5 usable rows."
    told = loaded(tmp_path, LABELLED, tokenizer, task={"type": "labels"}, test=source).report.splitlines()
    assert told[1].endswith("rows.jsonl: 12 rows read, 5 to test on.")


@pytest.mark.parametrize("start", [{}, {"new": {"layers": 1, "width": 16, "heads": 2, "vocabulary": 300}}])
def test_rows_to_test_on_may_be_chosen_by_tokens(start: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
    source = {"source": str(tmp_path / "rows.jsonl"), "filter": {"max_tokens": 12}}
    section = {"task": {"type": "labels"}, "test": source} | ({"model": start} if start else {})
    parts = loaded(tmp_path, LABELLED, tokenizer, **section)
    lengths = [len(parts.classifier.tokenizer(row["text"]).input_ids) for row in LABELLED]
    assert 2 < len(parts.tests[0].rows) == sum(length <= 12 for length in lengths) < 12


def test_model_without_a_tokenizer_is_named_before_its_tokens_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    source = {"source": str(tmp_path / "rows.jsonl"), "filter": {"max_tokens": 12}}
    section = {"task": {"type": "labels"}, "data": source, "model": {"path": str(tmp_path / "other")}}
    with pytest.raises(ModelError, match="other' does not exist"):
        loaded(tmp_path, LABELLED, tokenizer, **section)
    tiny_model(tokenizer).save_pretrained(tmp_path / "other")
    (tmp_path / "other/config.json").write_text('{"model_type": "made_up"}')
    with pytest.raises(ModelError, match="The tokenizer of .*other' could not be loaded"):
        loaded(tmp_path, LABELLED, tokenizer, **section)


@pytest.mark.parametrize(
    ("wrong", "told"), [(0, "0.05, the lowest that is tried"), (12, "20, the highest that is tried"), (1, "")]
)
def test_temperature_at_the_end_of_its_search_is_told(
    wrong: int, told: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    section: dict[str, Any] = {"task": {"type": "labels"}, "evaluation": {"rows": 12}}
    parts = loaded(tmp_path, LABELLED, tokenizer, **section)
    with torch.no_grad():
        parts.classifier.model.score.weight.mul_(30)
    texts: list[Any] = [*parts.train, *parts.held_out]
    choices = outputs_of(parts.classifier, [text.ids for text in texts], 4).argmax(-1).tolist()
    rows = [Labelled(text.ids, c ^ (n < wrong)) for n, (text, c) in enumerate(zip(texts, choices, strict=True))]
    calibrated(replace(parts, held_out=rows), Labels(type="labels"), 4, 0, SINGLE_PROCESS)
    said = capsys.readouterr().err
    assert told in said
    assert ("that is tried" in said) is bool(told)


def test_tokens_are_counted_for_an_adapter_without_a_tokenizer_as_for_its_base(tmp_path: Path, tokenizer: Any) -> None:
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    load_supervised_policy(str(tmp_path / "model"), form=LoraForm(rank=2)).save(tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("token*"):
        file.unlink()
    source: dict[str, Any] = {"source": str(tmp_path / "rows.jsonl"), "filter": {"max_tokens": 20}}
    source["held_out"] = {"by": "last_percent", "percent": 50}
    section = {"task": {"type": "labels"}, "data": source, "model": {"path": str(tmp_path / "adapter")}}
    parts = loaded(tmp_path, LABELLED, tokenizer, **section)
    kept = sum(len(tokenizer(row["text"]).input_ids) <= 20 for row in LABELLED)
    assert 2 < len(parts.train) + len(parts.held_out) == kept < 12


NEW: dict[str, Any] = {"new": {"layers": 1, "width": 16, "heads": 2, "vocabulary": 300}}


def test_special_tokens_are_counted_by_a_tokenizer_that_the_section_trains(tmp_path: Path, tokenizer: Any) -> None:
    pairs = [{"prompt": f"q<eos>{n}", "chosen": " this", "rejected": " that"} for n in range(12)]
    texts = [{**row, "text": f"<eos>{row['text']}"} for row in LABELLED]
    for rows, task in ((pairs, "comparisons"), (texts, "labels")):
        told = loaded(tmp_path, rows, tokenizer, task={"type": task}, model=NEW).report
        assert "read as the real tokens: '<eos>' in 12 rows." in told


def test_pairs_that_the_model_reads_as_equal_are_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"q{n}", "chosen": " this", "rejected": " that"} for n in range(12)]
    rows[0] |= {"chosen": " this", "rejected": " this<eos>"}
    parts = loaded(tmp_path, rows, tokenizer)
    assert len(parts.train) + len(parts.held_out) == 11
    assert "Of them 1 have answers that are equal as the model reads them: left out." in parts.report


def test_rows_to_test_on_that_stand_among_the_training_rows_are_told(tmp_path: Path, tokenizer: Any) -> None:
    test = {"source": str(tmp_path / "rows.jsonl")}
    told = loaded(tmp_path, LABELLED, tokenizer, task={"type": "labels"}, test=test).report
    assert "Of the rows to test on, 7 have the text of a training row" in told
    rows = [{"prompt": f"q{n}", "chosen": " this", "rejected": " that"} for n in range(12)]
    assert "7 have the prompt of a training row" in loaded(tmp_path, rows, tokenizer, test=test).report
    assert "training row:" not in loaded(tmp_path, rows, tokenizer).report
