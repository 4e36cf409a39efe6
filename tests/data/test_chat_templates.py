"""Chat templates that are broken, or that leave out what the assistant said: named, refused or counted."""

from __future__ import annotations

from typing import Any

import pytest

from hydralign.config.data import PromptSourceConfig, SourceConfig
from hydralign.data import load_comparisons, load_demonstrations, load_prompts
from hydralign.errors import RowError, TokenizerError
from tests.data.conftest import TEMPLATE, byte_level_tokenizer

ALL: dict[str, Any] = {"source": "unused", "held_out": {"by": "none"}}
CONFIG = SourceConfig.model_validate(ALL)
ASKED = {"role": "user", "content": "the film?"}
CHAT = [ASKED, {"role": "assistant", "content": "a good film"}]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }", "failed at its line 1 with TemplateSyntaxError"),
        ("{{ nothing.here.at.all }}", "failed with UndefinedError: 'nothing' is undefined"),
        ("{{ messages[0].content + 1 }}", "failed with TypeError"),
        ("{{ messages | no_such_filter }}", "TemplateAssertionError|TemplateRuntimeError"),
        ("{{ 1 // 0 }}", "failed with ZeroDivisionError"),
    ],
)
def test_broken_template_is_named_with_its_error(template: str, problem: str) -> None:
    tokenizer = byte_level_tokenizer(template=template)
    tokenizer.name_or_path = "some/model"
    with pytest.raises(TokenizerError, match=rf"the chat template of 'some/model' .*{problem}.*Repair chat_template"):
        load_prompts(PromptSourceConfig.model_validate(ALL), tokenizer, seed=0, rows=[{"prompt": [ASKED]}])


def test_chat_that_the_template_refuses_is_named() -> None:
    tokenizer = byte_level_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RowError, match=r"row 1, field 'prompt': .*roles must alternate\. Repair the chat"):
        load_prompts(PromptSourceConfig.model_validate(ALL), tokenizer, seed=0, rows=[{"prompt": [ASKED]}])


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.replace("{{ message.content }}", "{% if message.role == 'user' %}{{ message.content }}{% endif %}"),
        "{% for message in messages %}<{{ message.role }}></s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    ],
)
def test_template_that_drops_the_assistants_text_is_refused(template: str) -> None:
    tokenizer = byte_level_tokenizer(template=template)
    with pytest.raises(TokenizerError, match=r"leaves out the assistant's text \(rows in memory, row 1, field"):
        load_demonstrations(CONFIG, tokenizer, rows=[{"messages": CHAT}])


def test_answers_that_a_template_shortens_are_counted() -> None:
    shortens = TEMPLATE.replace("message.content", "message.content.split('</think>')[-1] | trim")
    tokenizer = byte_level_tokenizer(template=shortens)
    thinks = {"role": "assistant", "content": "<think>long</think> a bad film "}
    rows: list[dict[str, Any]] = [{"messages": CHAT}, {"messages": [ASKED, thinks]}]
    loaded = load_demonstrations(CONFIG, tokenizer, rows=rows)
    assert [row.completion for row in loaded.train] == ["a good film</s>", "a bad film</s>"]
    assert loaded.report.shortened == 1
    assert "Of 1 rows the chat template leaves out part of the assistant's text" in loaded.report.describe()
    pairs = [{"prompt": [ASKED], "chosen": [thinks], "rejected": CHAT[1:]}]
    assert load_comparisons(CONFIG, tokenizer, rows=pairs).report.shortened == 1
    answers = [{"prompt": [ASKED], "completion": [thinks]}]
    assert load_demonstrations(CONFIG, tokenizer, rows=answers).report.shortened == 1
    assert "leaves out" not in load_demonstrations(CONFIG, tokenizer, rows=rows[:1]).report.describe()
