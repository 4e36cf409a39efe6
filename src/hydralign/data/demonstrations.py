"""Rows to demonstrations and labelled texts.

A demonstration is `prompt` + `completion` (text, or chats), a chat in `messages` (the last turn is the completion),
or `text` (all of it is). When a source has several of these, this order decides; where the recipe's `columns` map one,
only forms with a mapped column count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydralign.data.chat import contents_of, is_chat, leaves_out, messages_of, render_answer, render_prompt
from hydralign.data.drafts import Draft, Drafter
from hydralign.data.rows import Row, Table, shortened
from hydralign.types import Demonstration, LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def demonstration_drafter(table: Table, tokenizer: PreTrainedTokenizerBase | None) -> Drafter[Demonstration]:
    """How this table's rows become demonstrations. Raises DataError when its columns do not allow it."""

    def from_pair(row: Row) -> Draft[Demonstration]:
        shortened, written = False, None
        if is_chat(row.value("prompt")):
            context, answer = messages_of(row, "prompt"), messages_of(row, "completion")
            prompt = render_prompt(row, "prompt", context, tokenizer)
            completion = render_answer(row, "completion", context, answer, tokenizer)
            shortened, written = leaves_out(answer, completion), contents_of(context, answer)
        else:
            prompt, completion = row.text("prompt", may_be_empty=True), row.text("completion")
        others = row.without("prompt", "completion")
        record = Demonstration(prompt, completion, others)
        return Draft(record, prompt or completion, (prompt + completion,), shortened, written)

    def from_messages(row: Row) -> Draft[Demonstration]:
        messages = messages_of(row, "messages")
        prompt = render_prompt(row, "messages", messages[:-1], tokenizer)
        completion = render_answer(row, "messages", messages[:-1], messages[-1:], tokenizer)
        record = Demonstration(prompt, completion, row.without("messages"))
        shortened = leaves_out(messages[-1:], completion)
        return Draft(record, prompt or completion, (prompt + completion,), shortened, contents_of(messages))

    def from_text(row: Row) -> Draft[Demonstration]:
        text = row.text("text")
        return Draft(Demonstration("", text, row.without("text")), text, (text,))

    forms = [({"prompt", "completion"}, from_pair), ({"messages"}, from_messages), ({"text"}, from_text)]
    named = table.mapped & {name for names, _ in forms for name in names}
    for names, drafter in sorted(forms, key=lambda form: -len(form[0] & named)):
        if table.has(*names) and (names & named or not named):
            return drafter
    needed = "`text`, or `prompt` and `completion`, or `messages` are"
    raise table.lacks("demonstrations", needed, "completion" if table.has("prompt") else "text")


def labelled_drafter(table: Table) -> Drafter[LabelledText]:
    """How this table's rows become labelled texts. Raises DataError when its columns do not allow it."""
    if not table.has("text", "label"):
        example = "label" if table.has("text") else "text"
        raise table.lacks("labelled texts", "`text` and `label` are", example)
    return _labelled


def _labelled(row: Row) -> Draft[LabelledText]:
    text, label = row.text("text"), row.value("label")
    if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
        problem = f"is {type(label).__name__} {shortened(label)}: a label is a name or a whole number"
        raise row.error("label", problem)
    return Draft(LabelledText(text, str(label), row.without("text", "label")), text, (text,))
