"""Chats to text through the tokenizer's own template. hydralign has no templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from hydralign.data.rows import Row
from hydralign.errors import TokenizerError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]


def is_chat(value: object) -> bool:
    """Whether a field holds messages rather than text."""
    return isinstance(value, (list, tuple))


def messages_of(row: Row, name: str) -> list[Message]:
    """The field's messages, each with text in `role` and `content`; keys that are null are left out.

    Raises RowError for anything else, EmptyTextError for an empty list.
    """
    value = row.value(name)
    if not is_chat(value):
        raise row.error(name, f"is {type(value).__name__} {shortened(value)}: a list of messages is needed")
    if not value:
        raise row.empty(name)
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            problem = f"has message {shortened(message)}: each needs a role and a content. Write it as an object"
            raise row.error(name, problem)
        row.checked_text(name, message["role"])
        row.checked_text(name, message["content"], may_be_empty=True)
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def contents_of(*chats: Sequence[Message]) -> tuple[str, ...]:
    """What the authors of these messages wrote."""
    return tuple(message["content"] for chat in chats for message in chat)


def render_prompt(row: Row, name: str, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The messages as text that ends where the assistant's answer begins; no messages give no text."""
    return _rendered(row, name, messages, tokenizer, answer_follows=True) if messages else ""


def render_answer(
    row: Row,
    name: str,
    context: Sequence[Message],
    answer: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    """What the template writes for `answer` after the rendered prompt of `context`: with it, the whole chat.

    Raises RowError when the last message is not the assistant's, EmptyTextError when it is blank, TokenizerError
    when the template writes the context otherwise once an answer follows, or leaves the assistant's text out.
    """
    if not answer or answer[-1]["role"] != "assistant":
        last = f"ends with a message by {answer[-1]['role']!r}" if answer else "has no answer"
        raise row.error(name, f"{last}: the assistant's is what is learned. End the chat with it")
    row.checked_text(name, answer[-1]["content"])
    prompt = render_prompt(row, name, context, tokenizer)
    whole = _rendered(row, name, [*context, *answer], tokenizer, answer_follows=False)
    if not whole.startswith(prompt):
        raise TokenizerError(
            f"the chat template writes a prompt otherwise once an answer follows ({row.source}, row {row.number}): "
            "prompt and completion cannot be told apart. Use a template without this, or rows with text in "
            "`prompt` and `completion`."
        )
    written = whole[len(prompt) :]
    if leaves_out(answer, written):
        probe = [*answer[:-1], {**answer[-1], "content": f"{answer[-1]['content']} x"}]
        if _rendered(row, name, [*context, *probe], tokenizer, answer_follows=False) == whole:
            raise TokenizerError(
                f"the chat template of {_name(tokenizer)} leaves out the assistant's text ({row.source}, row "
                f"{row.number}, field {name!r}): there would be nothing to learn. Use a template that writes "
                "message.content of the assistant, or rows of text."
            )
    return written


def leaves_out(answer: Sequence[Message], written: str) -> bool:
    """Whether the template did not write all of the assistant's text as it stands; white space around it aside."""
    return any(message["content"].strip() not in written for message in answer if message["role"] == "assistant")


def _name(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """How the tokenizer is called, for messages."""
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _rendered(
    row: Row,
    name: str,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    answer_follows: bool,
) -> str:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            f"the tokenizer has no chat template, and {row.source}, row {row.number}, field {name!r} holds a chat: it "
            "cannot be written as text. Use a chat model's tokenizer, or rows of text."
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows)
    except Exception as error:
        if type(error) is TemplateError:  # the template's own raise_exception, about the chat
            problem = f"cannot be written by the chat template of {_name(tokenizer)}, which says: {error}"
            raise row.error(name, f"{problem}. Repair the chat") from error
        line = getattr(error, "lineno", None)
        place = f" at its line {line}" if line else ""
        raise TokenizerError(
            f"the chat template of {_name(tokenizer)} failed{place} with {type(error).__name__}: {error} (at "
            f"{row.source}, row {row.number}, field {name!r}): no chat can be written with it. Repair chat_template in "
            "its tokenizer_config.json or chat_template.jinja, or use another model's tokenizer; if only this row "
            "fails, it lacks what the template asks for."
        ) from error
    return str(text)
