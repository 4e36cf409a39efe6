"""What a reward section reads: comparisons end as scored answers do, and every source is accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hydralign.config import Recipe
from hydralign.loops.reward import Pair
from hydralign.loops.reward_run import Loaded, load_parts
from hydralign.processes import ALONE
from hydralign.rewards import encode
from hydralign.testing import tiny_model, tiny_tokenizer

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


def loaded(folder: Path, rows: Sequence[Mapping[str, Any]], tokenizer: Any, **section: Any) -> Loaded:
    """The parts of a reward section on these rows and a tiny model."""
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(folder / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 40}}
    recipe = Recipe.model_validate(
        {"output": str(folder / "out"), "model": {"path": str(folder / "model")}, "reward": {"data": source, **section}}
    ).resolved()
    assert recipe.reward is not None
    assert not isinstance(recipe.reward, tuple)
    return load_parts(recipe, recipe.reward, ALONE)


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
        Pair(*(encode(parts.scorer.tokenizer, text, f"{side} \n", True).ids for side in ("chosen", "rejected")))
        for text in questions
    ]
    assert set(parts.train) | set(parts.held_out) == set(scored)
