"""Where rows come from and which of them count: one source per kind of data."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hydralign.config.base import Config
from hydralign.config.templates import split_template, template_columns
from hydralign.errors import ConfigError, did_you_mean

RESERVED_COLUMNS = frozenset({"prompts", "completions", "finished", "completion_tokens"})
"""What rewards are given by these names comes from the sampler, never from a column of the data."""


KNOWN_COLUMNS = {
    "prompts": ("prompt", "query", "text"),
    "demonstrations": ("prompt", "completion", "messages", "text"),
    "comparisons": ("prompt", "chosen", "rejected", "positive", "negative", "chosen_finished", "rejected_finished"),
    "labelled": ("text", "label"),
}
"""Our names for the columns that each kind of data is read from. Rewards get the other columns of prompts."""

_NEAR = 0.8


def require_read_columns(kind: str, columns: Iterable[str], *, others: bool) -> None:
    """Raise ConfigError for a name on our side of `columns` that nothing reads: the mapping would do nothing.

    With `others`, somebody may ask for any column, as rewards do for those of prompts; then only an empty name, or
    nearly one of ours, is refused.
    """
    known = KNOWN_COLUMNS[kind]
    for name in columns:
        if not name.strip():
            raise ConfigError(
                f"data.{kind}.columns has the empty name {name!r}: nothing reads a column of that name. Write our name "
                f"first: {{{known[0]}: your_name}}."
            )
        meant = _nearly(name, known)
        if name not in known and (meant or not others):
            advice = f"Did you mean {meant!r}?" if meant else did_you_mean(name, known)
            raise ConfigError(
                f"data.{kind}.columns.{name}: no column of {kind} is read by that name, so the mapping would do "
                f"nothing. {advice} Our name stands first, then yours."
            )


def _nearly(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is a slip of. One that holds a known name whole, such as prompt_id, is no slip."""
    plain = name.strip().lower()
    for one in known:
        if plain == one or (one not in plain and SequenceMatcher(None, plain, one).ratio() >= _NEAR):
            return one
    return None


Place = Annotated[str, Field(min_length=1)]
Places = Annotated[tuple[Place, ...], Field(min_length=1)]


class FilterConfig(Config):
    """Rows outside these bounds are left out, counted and reported. Bounds are inclusive; None is no bound.

    What is measured: of a prompt its text, or the whole text that it is cut from; of a demonstration prompt and
    completion together; of a comparison prompt and answer together, and both answers must fit. With a `template`, of
    prompts and demonstrations alike, the texts that fill it together, without its own words and without a completion:
    the same bounds then choose the same rows of both.
    """

    min_characters: int | None = Field(default=None, ge=0)
    """Shortest text in characters."""
    max_characters: int | None = Field(default=None, ge=1)
    """Longest text in characters."""
    min_tokens: int | None = Field(default=None, ge=0)
    """Shortest text in tokens."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest text in tokens."""
    empty: Literal["error", "skip"] = "error"
    """What a row with an empty text, prompt, completion or answer is: an error, or one more counted row left out."""


class CutConfig(Config):
    """Makes prompts of raw texts: the first n tokens of each, n drawn uniformly per text by seed.

    A demonstration's completion is what follows. A beginning-of-sequence token that the tokenizer puts first comes on
    top of the n.
    """

    min_tokens: int = Field(default=2, ge=1)
    """Fewest tokens, inclusive."""
    max_tokens: int = Field(default=8, ge=1)
    """Most tokens, inclusive."""

    @model_validator(mode="after")
    def _ordered(self) -> CutConfig:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"cut.min_tokens={self.min_tokens} is above cut.max_tokens={self.max_tokens}: no length lies "
                "between them. Swap the two."
            )
        return self


class HashSplit(Config):
    """Holds out rows by a hash of their prompt (of a cut one, of what is left): none stands on both sides.

    Common cut prompts, which would make the share a matter of chance, stay on the training side. Demonstrations that
    are cut out of texts go by the whole text; prompts that are cut out of the same texts do so with `of: text`, so that
    no text held out from one is learned by the other.
    """

    by: Literal["hash"] = "hash"
    """Tag of this kind of split."""
    percent: float = Field(default=5.0, gt=0, lt=100)
    """Expected share of rows that are held out."""
    of: Literal["prompt", "text"] = "prompt"
    """What is hashed of a cut prompt: what is left, or the whole text. Other rows have one text that decides."""


class LastSplit(Config):
    """Holds out the last rows of the source. A prompt that stands on both sides leaves the training side."""

    by: Literal["last_percent"] = "last_percent"
    """Tag of this kind of split."""
    percent: float = Field(default=5.0, gt=0, lt=100)
    """Share of rows that are held out."""


class SourceSplit(Config):
    """Held-out rows come from a source of their own; its prompts are taken out of the training side."""

    by: Literal["source"] = "source"
    """Tag of this kind of split."""
    source: Place | Places
    """File, folder of a data set, hub id, or a list of files."""
    split: str = "test"
    """Split of a hub data set."""


class NoSplit(Config):
    """Nothing is held out."""

    by: Literal["none"] = "none"
    """Tag of this kind of split."""


HeldOut = Annotated[HashSplit | LastSplit | SourceSplit | NoSplit, Field(discriminator="by")]


class PartConfig(Config):
    """Use only the rows whose text hashes into this range: recipes with disjoint ranges share no text.

    Prompts that are cut out of different texts may still be equal.
    """

    low: float = Field(default=0.0, ge=0, lt=100)
    """Lower end in percent, inclusive."""
    high: float = Field(default=100.0, gt=0, le=100)
    """Upper end in percent, exclusive."""

    @model_validator(mode="after")
    def _ordered(self) -> PartConfig:
        if self.low >= self.high:
            raise ValueError(f"part.low={self.low:g} is not below part.high={self.high:g}: no row is left. Swap them.")
        return self


class SourceConfig(Config):
    """One data set: where it lies, what its columns are called, which rows count, what is held out."""

    source: Place | Places
    """A file (.json, .jsonl, .csv, these with .gz, .parquet), a folder, several of them, or a hub id."""
    split: str = "train"
    """Split of a hub data set; files are one split."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name: theirs, for columns that are called otherwise (prompt: question)."""
    replace: dict[str, str] = Field(default_factory=dict)
    """Replacements in every text, made one after the other before anything else ("<br />": "\\n")."""
    where: dict[str, Annotated[tuple[str | int | bool, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Use only rows whose column has one of these values, compared as text (label_name: [neither, offensive])."""
    filter: FilterConfig = FilterConfig()
    """Bounds on length."""
    part: PartConfig = PartConfig()
    """A share of the rows, chosen by a hash of their text; not of a held-out source."""
    held_out: HeldOut = HashSplit()
    """How rows for evaluation are set apart."""
    limit: int | None = Field(default=None, ge=1)
    """Use so many rows only, after filtering and before any are held out; not of a held-out source.

    They are chosen by a hash of their content, so that a sorted file gives a fair sample.
    """


class WithPromptsConfig(SourceConfig):
    """What sources of prompts and of demonstrations share: how a row becomes a prompt, and how long it may be."""

    template: str | None = None
    """The prompt's text, in which {column} stands for a column of the row, by our name or its own; {{ is a brace.

    "Summarize the conversation.\n\n{dialogue}\n\nSummary:\n", for example. None takes the prompt as it stands.
    """
    cut: CutConfig | None = None
    """Cut prompts out of a `text` column."""
    max_prompt_tokens: int | None = Field(default=None, ge=4)
    """Longest prompt, special tokens included. None is what an encoder reads (the smaller of its positions and its
    tokenizer's model_max_length), and no bound for a decoder, which reads prompt and answer together.
    """
    too_long_prompt: Literal["error", "cut_start", "cut_end", "leave_out"] = "error"
    """What happens to longer prompts: an error, they lose their beginning or their end (not the special tokens around
    it, nor the words with which a template begins and ends), or their rows are left out. Counted and reported.
    """

    @model_validator(mode="before")
    @classmethod
    def _from_a_plain_source(cls, settings: Any) -> Any:
        return dict(settings) if isinstance(settings, SourceConfig) and not isinstance(settings, cls) else settings

    @model_validator(mode="after")
    def _one_way_to_a_prompt(self) -> WithPromptsConfig:
        if self.template is None:
            return self
        split_template(self.template)
        if self.cut is not None:
            raise ValueError(
                "template and cut are both set: a prompt is either rendered from columns or cut out of a text, and it "
                "is unclear which. Leave one out."
            )
        return self


class PromptSourceConfig(WithPromptsConfig):
    """Prompts: a `prompt` or `query` column, a `template` of columns, or the first tokens of a `text` column."""

    @model_validator(mode="after")
    def _usable_names(self) -> PromptSourceConfig:
        require_read_columns("prompts", self.columns, others=True)
        taken = sorted(RESERVED_COLUMNS & self.columns.keys())
        if taken:
            raise ValueError(
                f"columns.{taken[0]} gives a column a name under which rewards get what was sampled "
                f"({', '.join(sorted(RESERVED_COLUMNS))}): one of the two would be lost. Choose another name, such as "
                f"columns: {{data_{taken[0]}: {self.columns[taken[0]]}}}."
            )
        return self


class DemonstrationSourceConfig(WithPromptsConfig):
    """Demonstrations: `prompt` (or a `template` of columns) and `completion`; chat `messages`; or `text`, all of which
    is the completion, or with `cut` what follows its first tokens.
    """


def parts_by_other_texts(prompts: PromptSourceConfig, demonstrations: DemonstrationSourceConfig) -> bool:
    """Whether both are cut out of a file that they share and split by hash, one by what is cut, one by whole texts."""
    files = [{one.source} if isinstance(one.source, str) else {*one.source} for one in (prompts, demonstrations)]
    held_out = prompts.held_out
    by_cut = prompts.cut and isinstance(held_out, HashSplit) and held_out.of == "prompt"
    return bool(
        by_cut and demonstrations.cut and isinstance(demonstrations.held_out, HashSplit) and files[0] & files[1]
    )


class DataConfig(Config):
    """The data sets of a recipe by kind. A loop names the kind that it needs."""

    prompts: PromptSourceConfig | None = None
    """What PPO answers."""
    demonstrations: DemonstrationSourceConfig | None = None
    """Texts to imitate: `text`, or `prompt` + `completion`, or chat `messages`."""
    comparisons: SourceConfig | None = None
    """`prompt`, `chosen`, `rejected`; or `chosen` and `rejected` that begin with the same prompt."""
    labelled: SourceConfig | None = None
    """`text` and `label` (the name of the class)."""

    @model_validator(mode="after")
    def _read_names(self) -> DataConfig:
        for kind in ("demonstrations", "comparisons", "labelled"):
            source: SourceConfig | None = getattr(self, kind)
            template = source.template if isinstance(source, WithPromptsConfig) else None
            columns = set(source.columns if source else ()) - set(template_columns(template) if template else ())
            require_read_columns(kind, columns, others=False)
        return self
