"""Rows to demonstrations, labelled texts and preferences, and what is said about rows that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hydralign.config.data import FilterConfig, NoSplit, SourceConfig
from hydralign.data import load_comparisons, load_demonstrations, load_labelled
from hydralign.data.comparisons import shared_beginning
from hydralign.errors import DataError, RowError, TokenizerError
from hydralign.types import Demonstration, LabelledText, Preference

ALL = SourceConfig(source="unused", held_out=NoSplit(by="none"))
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]
RENDERED = "<user>hi</s><assistant>yes?</s><user>2+2</s><assistant>"


def demonstrations(*rows: dict[str, Any], tokenizer: Any = None, **config: Any) -> tuple[Demonstration, ...]:
    return load_demonstrations(ALL.model_copy(update=config), tokenizer, rows=rows).train


def preferences(*rows: dict[str, Any], tokenizer: Any = None, **config: Any) -> tuple[Preference, ...]:
    return load_comparisons(ALL.model_copy(update=config), tokenizer, rows=rows).train


def says(*others: str, start: str, end: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": start},
        *({"role": "user", "content": o} for o in others),
        CHAT[1] | {"content": end},
    ]


def test_demonstration_is_all_completion_when_made_of_a_text() -> None:
    assert demonstrations({"text": "ab", "n": 1}) == (Demonstration("", "ab", {"n": 1}),)


def test_demonstration_keeps_prompt_and_completion_apart_when_given_both() -> None:
    rows = {"prompt": "a", "completion": " b", "n": 1}, {"prompt": "", "completion": "c", "n": 2}
    assert demonstrations(*rows) == (Demonstration("a", " b", {"n": 1}), Demonstration("", "c", {"n": 2}))


def test_demonstration_learns_the_last_assistant_turn_when_made_of_a_chat(chat_tokenizer: Any) -> None:
    expected = Demonstration(RENDERED, "4</s>", {"n": 1})
    assert demonstrations({"messages": CHAT, "n": 1}, tokenizer=chat_tokenizer) == (expected,)
    pair = {"prompt": CHAT[:3], "completion": CHAT[3:], "n": 1}
    assert demonstrations(pair, tokenizer=chat_tokenizer) == (expected,)


def test_demonstration_prefers_the_form_that_columns_name() -> None:
    row = {"prompt": "a", "completion": "b", "dialogue": "d"}
    assert demonstrations(row)[0].completion == "b"
    assert demonstrations(row, columns={"text": "dialogue"})[0].completion == "d"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (CHAT[:3], r"field 'messages': ends with a message by 'user'"),
        ([CHAT[0], {"role": "assistant", "content": " "}], r"field 'messages': is empty"),
        ([CHAT[0], {"role": "assistant"}], r"field 'messages': has message .* needs a role and a content"),
        ([CHAT[0], {"role": "assistant", "content": 4}], r"field 'messages': is int 4: text is needed"),
        ([], r"field 'messages': is empty"),
        ("hello", r"field 'messages': is str 'hello': a list of messages"),
    ],
)
def test_chat_that_cannot_be_learned_from_is_named(chat_tokenizer: Any, messages: object, problem: str) -> None:
    with pytest.raises(RowError, match=rf"rows in memory, row 2, {problem}"):
        demonstrations({"messages": CHAT}, {"messages": messages}, tokenizer=chat_tokenizer)


def test_chat_names_what_is_wrong_with_the_template(tokenizer: Any, chat_tokenizer: Any) -> None:
    for without in (tokenizer, None):
        with pytest.raises(TokenizerError, match="no chat template"):
            demonstrations({"messages": CHAT}, tokenizer=without)
    for template, kind, problem in (
        ("{{ raise_exception('roles must alternate') }}", RowError, r"row 1, field 'messages': .*roles must alternate"),
        ("{{ messages | length }}", TokenizerError, r"writes a prompt otherwise"),
    ):
        other = chat_tokenizer.__class__(tokenizer_object=chat_tokenizer.backend_tokenizer)
        other.chat_template = template
        with pytest.raises(kind, match=problem):
            demonstrations({"messages": CHAT}, tokenizer=other)


def test_labelled_text_spells_whole_numbers_and_keeps_names() -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": 1, "n": 7}, {"text": "b", "label": "good"}]
    expected = (LabelledText("a", "1", {"n": 7}), LabelledText("b", "good", {}))
    assert load_labelled(ALL, rows=rows).train == expected


@pytest.mark.parametrize("label", [0.5, True, " ", ["a"]])
def test_labelled_text_refuses_labels_that_name_nothing(label: Any) -> None:
    with pytest.raises(RowError, match=r"row 1, field 'label': is .* a label is a name or a whole number"):
        load_labelled(ALL, rows=[{"text": "a", "label": label}])


def test_preference_takes_an_explicit_prompt_and_lmflow_names() -> None:
    expected = (Preference("p", " a", " b", {"n": 1}),)
    assert preferences({"prompt": "p", "chosen": " a", "rejected": " b", "n": 1}) == expected
    assert preferences({"prompt": "p", "positive": " a", "negative": " b", "n": 1}) == expected
    assert preferences({"prompt": "p", "chosen": "p a", "rejected": "p b", "n": 1}) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("\n\nHuman: hi\n\nAssistant: I can", "\n\nHuman: hi\n\nAssistant: I cannot", "\n\nHuman: hi\n\nAssistant:"),
        ("H: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "H: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e",
         "H: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"),
        ("###Human: a###Assistant: so b", "###Human: a###Assistant: so c", "###Human: a###Assistant:"),
        ("H\n\nAssistant: a ### Response: b", "H\n\nAssistant: a ### Response: c", "H\n\nAssistant: a ### Response:"),
        ("it was good", "it was great", "it was"),
        ("it was good", "it wasn't", "it"),
        ("it was\nfine", "it was\nfun", "it was\n"),
        ("the cat", "the cat sat", "the"),
        ("the cat sat", "the cat\tran", "the cat"),
        ("cats", "cars", ""),
        ("yes", "no", ""),
    ],
)  # fmt: skip
def test_shared_beginning_ends_at_a_turn_or_a_word(chosen: str, rejected: str, prompt: str) -> None:
    assert shared_beginning(chosen, rejected) == shared_beginning(rejected, chosen) == prompt


def test_preference_splits_off_the_shared_beginning_when_there_is_no_prompt() -> None:
    row = {"chosen": "\n\nHuman: x\n\nAssistant: Sure.", "rejected": "\n\nHuman: x\n\nAssistant: Sorry."}
    assert preferences(row) == (Preference("\n\nHuman: x\n\nAssistant:", " Sure.", " Sorry.", {}),)


def test_preference_of_chats_has_one_form_however_the_prompt_is_given(chat_tokenizer: Any) -> None:
    good, bad = says(start="hi", end="good"), says(start="hi", end="bad")
    expected = (Preference("<user>hi</s><assistant>", "good</s>", "bad</s>", {}),)
    for row in (
        {"chosen": good, "rejected": bad},
        {"prompt": good[:1], "chosen": good[1:], "rejected": bad[1:]},
        {"prompt": good[:1], "chosen": good, "rejected": bad},
        {"prompt": "hi", "chosen": good, "rejected": bad},
        {"prompt": "hi", "chosen": good[1:], "rejected": bad[1:]},
    ):
        assert preferences(row, tokenizer=chat_tokenizer) == expected


def test_preference_leaves_out_equal_answers_and_counts_them() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": b} for b in ("b", "a", "c")]
    report = load_comparisons(ALL, rows=rows).report
    assert (report.train, report.dropped) == (2, {"with equal answers": 1})


def test_preference_whose_answers_are_equal_as_they_are_read_is_left_out(chat_tokenizer: Any) -> None:
    full = {"prompt": "p q", "chosen": "p q yes", "rejected": "p q no"}
    text = {"prompt": "p q", "chosen": "yes sir", "rejected": "p qyes sir"}
    assert load_comparisons(ALL, rows=[full, text]).report.dropped == {"with equal answers": 1}
    chat = {"chosen": says(start="hi", end="good"), "rejected": says(start="hi", end="good")}
    chat["rejected"][1]["note"] = "which the template does not write"
    rows = [{"chosen": says(start="hi", end="good"), "rejected": says(start="hi", end="bad")}, chat]
    assert load_comparisons(ALL, chat_tokenizer, rows=rows).report.dropped == {"with equal answers": 1}


@pytest.mark.parametrize(
    ("load", "row", "field"),
    [
        (load_demonstrations, {"prompt": "a", "completion": " \n"}, "completion"),
        (load_demonstrations, {"text": ""}, "text"),
        (load_labelled, {"text": "", "label": "a"}, "text"),
        (load_comparisons, {"prompt": "p", "chosen": "", "rejected": "b"}, "chosen"),
        (load_comparisons, {"prompt": "p", "chosen": "a", "rejected": " "}, "rejected"),
        (load_comparisons, {"prompt": "", "chosen": "a", "rejected": "b"}, "prompt"),
        (load_comparisons, {"chosen": "x\n\nAssistant:", "rejected": "x\n\nAssistant: a"}, "chosen"),
        (load_comparisons, {"chosen": "no", "rejected": "beginning"}, "chosen"),
    ],
)
def test_empty_text_is_an_error_or_a_counted_row(load: Callable[..., Any], row: dict[str, str], field: str) -> None:
    full = {"text": "t", "prompt": "p", "completion": "c", "chosen": "p a", "rejected": "p b", "label": "l"}
    rows = [{name: full[name] for name in row}, row]
    with pytest.raises(RowError, match=rf"^rows in memory, row 2, field '{field}': .* \(rows count from 1\)\.$"):
        load(ALL, rows=rows)
    skipping = ALL.model_copy(update={"filter": FilterConfig(empty="skip")})
    report = load(skipping, rows=rows).report
    assert (report.train, report.dropped) == (1, {f"with an empty {field}": 1})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"prompt": "a"}', "'reply': is missing"),
        ('{"prompt": "a", "reply": null}', "'reply': is null"),
        ('{"prompt": "a", "reply": 3}', "'reply': is int 3: text is needed"),
        ('{"prompt": 3, "reply": "b"}', "'prompt': is int 3: text is needed"),
        ('{"prompt": "a", "reply": "\\ud800"}', "'reply': holds half a surrogate pair"),
    ],
)
def test_row_error_names_file_line_and_the_files_own_field(write: Callable[..., str], row: str, problem: str) -> None:
    source = write("rows.jsonl", '{"prompt": "a", "reply": "b"}\n\n' + row + "\n")
    config = SourceConfig(source=source, columns={"completion": "reply"})
    with pytest.raises(RowError) as caught:
        load_demonstrations(config)
    assert str(caught.value).startswith(f"{source}, row 3, field {problem}")
    assert str(caught.value).endswith("(row numbers are line numbers, from 1).")
    assert (caught.value.source, caught.value.row) == (source, 3)


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (
            load_demonstrations,
            {"dialogue": "a"},
            r"no columns for demonstrations: .* columns are dialogue\. .*text: your",
        ),
        (
            load_demonstrations,
            {"prompt": "a", "reply": "b"},
            r"columns are prompt, reply\. .*\{completion: your_name\}",
        ),
        (load_comparisons, {"prompt": "a", "chosen": "b"}, r"no columns for comparisons: .*\{rejected: your_name\}"),
        (load_labelled, {"text": "a", "class": "b"}, r"no columns for labelled texts: .*\{label: your_name\}"),
    ],
)
def test_columns_that_make_no_record_are_listed(load: Callable[..., Any], row: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(ALL, rows=[row])
