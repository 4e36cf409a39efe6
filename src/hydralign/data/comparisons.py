"""Rows to preferences.

The prompt stands in `prompt`, or at the beginning of both answers. Then it is what they share, cut back to the last
place where an assistant's turn begins (`\\n\\nAssistant:` and its like), else to the last word boundary: a space
goes with the answers, as byte-pair vocabularies want it, and a line break with the prompt. Answers that begin with
the same words lend them to the prompt in the second case; a `prompt` column avoids that.

Answers that both repeat the whole `prompt` are full texts: it is taken off them. Answers that are equal but for a
repeated prompt are left out, like those that a template writes alike. Beside chats, a `prompt` that is
text is the user's message, unless the chats begin with the same messages anyway.

`positive` and `negative` (LMFlow's names) are read as `chosen` and `rejected`; of two names for one answer, the one
that the recipe maps counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydralign.data.candidates import Candidate, LeftOut, Outcome, Parser
from hydralign.data.chat import Message, contents_of, is_chat, leaves_out, messages_of, render_answer, render_prompt
from hydralign.data.rows import EmptyTextError, Row, Table
from hydralign.errors import RowError
from hydralign.types import Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TURNS = (
    "\n\nAssistant:",
    "###Assistant:",
    "### Assistant:",
    "### Response:",
    "<|im_start|>assistant\n",
    "<|assistant|>",
)
_NAMES = (("chosen", "rejected"), ("positive", "negative"))
_ROLES = tuple(zip(*_NAMES, strict=True))


def comparison_parser(table: Table, tokenizer: PreTrainedTokenizerBase | None) -> Parser[Preference]:
    """How this table's rows become preferences. Raises DataError when its columns do not allow it."""
    names = next((pair for pair in _NAMES if table.has(*pair)), None)
    if table.mapped & {name for role in _ROLES for name in role}:
        named = [table.first(*role) for role in _ROLES]
        names = None if None in named else (str(named[0]), str(named[1]))
    if names is None:
        example = "rejected" if table.has("chosen") else "chosen"
        raise table.lacks("comparisons", "`chosen` and `rejected` (and `prompt`, where they leave it out) are", example)
    fields = (*names, "prompt") if table.has("prompt") else names

    def parse(row: Row) -> Outcome[Preference]:
        if row.value(names[0]) == row.value(names[1]):
            return LeftOut("with equal answers")
        candidate = (_from_chats if is_chat(row.value(names[0])) else _from_texts)(row, fields, tokenizer)
        record = candidate.record  # its answers may be equal as a template writes them
        if record.chosen.removeprefix(record.prompt) == record.rejected.removeprefix(record.prompt):
            return LeftOut("with equal answers")
        return candidate

    return parse


def shared_beginning(chosen: str, rejected: str) -> str:
    """The implicit prompt of two full texts; empty when they share no whole word at their beginning."""
    common = chosen[: _shared(chosen, rejected)]
    ends = [common.rfind(turn) + len(turn) for turn in _TURNS if turn in common]
    if ends:
        return common[: max(ends)]
    rests = (chosen[len(common) :], rejected[len(common) :])
    if all(rest[:1].isspace() for rest in rests):
        return common
    boundary = max((place for place, letter in enumerate(common) if letter.isspace()), default=-1)
    if boundary < 0:
        return ""
    return common[: boundary + 1] if common[boundary] == "\n" else common[:boundary].rstrip(" ")


def _from_texts(row: Row, fields: tuple[str, ...], _: PreTrainedTokenizerBase | None) -> Candidate[Preference]:
    chosen, rejected = row.text(fields[0]), row.text(fields[1])
    prompt = row.text("prompt") if len(fields) == 3 else shared_beginning(chosen, rejected)
    if not prompt.strip():
        raise _without_prompt(row, fields[0])
    if chosen.startswith(prompt) and rejected.startswith(prompt):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    answers = row.checked_text(fields[0], chosen), row.checked_text(fields[1], rejected)
    return Candidate(Preference(prompt, *answers, row.without(*fields)))


def _from_chats(row: Row, fields: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None) -> Candidate[Preference]:
    chosen, rejected = messages_of(row, fields[0]), messages_of(row, fields[1])
    context = _context(row, fields, chosen, rejected)
    if not context:
        raise _without_prompt(row, fields[0])
    if all(answer[: len(context)] == context for answer in (chosen, rejected)):
        chosen, rejected = chosen[len(context) :], rejected[len(context) :]
    record = Preference(
        render_prompt(row, fields[-1], context, tokenizer),
        render_answer(row, fields[0], context, chosen, tokenizer),
        render_answer(row, fields[1], context, rejected, tokenizer),
        row.without(*fields),
    )
    shortened = leaves_out(chosen[-1:], record.chosen) or leaves_out(rejected[-1:], record.rejected)
    return Candidate(record, shortened, contents_of(context, chosen, rejected))


def _context(row: Row, fields: tuple[str, ...], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    if len(fields) == 3 and is_chat(row.value("prompt")):
        return messages_of(row, "prompt")
    shared = chosen[: _shared(chosen, rejected)]
    if shared or len(fields) == 2:
        return shared
    return [{"role": "user", "content": row.text("prompt")}]


def _shared(left: Sequence[object], right: Sequence[object]) -> int:
    """How many leading items are the same."""
    unequal = (place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])
    return next(unequal, min(len(left), len(right)))


def _without_prompt(row: Row, name: str) -> RowError:
    problem = (
        "begins otherwise than the other answer, and there is no `prompt`: nobody knows what both answer. "
        "Add a `prompt` column, or set filter.empty: skip to leave out such rows and count them"
    )
    return row.error(name, problem, EmptyTextError)
