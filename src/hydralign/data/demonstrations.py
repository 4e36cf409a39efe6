"""Rows to demonstrations and labelled texts.

A demonstration is `prompt` + `completion` (text, or chats), a chat in `messages` (the last turn is the completion),
or `text` (all of it is, until it is cut). A template of columns makes the prompt to a `completion`. When a source has
several of these, this order decides; where the recipe's `columns` map one, only forms with a mapped column count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydralign.data.candidates import Candidate, Parser
from hydralign.data.chat import Message, contents_of, is_chat, leaves_out, messages_of, render_answer, render_prompt
from hydralign.data.rows import Row, Table
from hydralign.data.templates import prompt_renderer
from hydralign.errors import shortened
from hydralign.types import Demonstration, LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def demonstration_parser(
    table: Table, tokenizer: PreTrainedTokenizerBase | None, *, from_text: bool = False, template: str | None = None
) -> Parser[Demonstration]:
    """How this table's rows become demonstrations. Raises DataError when its columns do not allow it.

    `from_text` reads `text` alone, `template` makes the prompts to a `completion`.
    """
    if template is not None:
        return _template_parser(table, template)
    if not from_text:
        return _usual_parser(table, tokenizer)
    if not table.has("text"):
        raise table.lacks("demonstrations that are cut", "`text` is", "text")
    return _from_text


def _from_text(row: Row) -> Candidate[Demonstration]:
    return Candidate(Demonstration("", row.text("text"), row.without("text")))


def _usual_parser(table: Table, tokenizer: PreTrainedTokenizerBase | None) -> Parser[Demonstration]:
    def from_pair(row: Row) -> Candidate[Demonstration]:
        if is_chat(row.value("prompt")):
            context, answer = messages_of(row, "prompt"), messages_of(row, "completion")
            return from_chat(row, ("prompt", "completion"), context, answer)
        prompt, completion = row.text("prompt", may_be_empty=True), row.text("completion")
        return Candidate(Demonstration(prompt, completion, row.without("prompt", "completion")))

    def from_messages(row: Row) -> Candidate[Demonstration]:
        messages = messages_of(row, "messages")
        return from_chat(row, ("messages", "messages"), messages[:-1], messages[-1:])

    def from_chat(
        row: Row, fields: tuple[str, str], context: Sequence[Message], answer: Sequence[Message]
    ) -> Candidate[Demonstration]:
        prompt = render_prompt(row, fields[0], context, tokenizer)
        completion = render_answer(row, fields[1], context, answer, tokenizer)
        record = Demonstration(prompt, completion, row.without(*fields))
        return Candidate(record, leaves_out(answer, completion), contents_of(context, answer))

    forms = [({"prompt", "completion"}, from_pair), ({"messages"}, from_messages), ({"text"}, _from_text)]
    named = table.mapped & {name for names, _ in forms for name in names}
    for names, parser in sorted(forms, key=lambda form: -len(form[0] & named)):
        if table.has(*names) and (names & named or not named):
            return parser
    needed = "`text`, or `prompt` and `completion`, or `messages` are"
    raise table.lacks("demonstrations", needed, "completion" if table.has("prompt") else "text")


def _template_parser(table: Table, template: str) -> Parser[Demonstration]:
    render = prompt_renderer(table, template)
    if not table.has("completion"):
        raise table.lacks("demonstrations with a template", "`completion` is", "completion")

    def parse(row: Row) -> Candidate[Demonstration]:
        made, completion = render(row), row.text("completion")
        record = Demonstration(made.text, completion, row.without("completion"))
        written = (*made.filled, completion)
        return Candidate(record, written=written, measured=made.measured, key=made.measured)

    return parse


def labelled_parser(table: Table) -> Parser[LabelledText]:
    """How this table's rows become labelled texts. Raises DataError when its columns do not allow it."""
    if not table.has("text", "label"):
        example = "label" if table.has("text") else "text"
        raise table.lacks("labelled texts", "`text` and `label` are", example)
    return _labelled


def _labelled(row: Row) -> Candidate[LabelledText]:
    text, label = row.text("text"), row.value("label")
    if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
        problem = f"is {type(label).__name__} {shortened(label)}: a label is a name or a whole number"
        raise row.error("label", problem)
    return Candidate(LabelledText(text, str(label), row.without("text", "label")))
