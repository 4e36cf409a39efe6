"""A recipe's sft section from beginning to end: load, measure, train, measure again, save, tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydralign.config import Recipe
from hydralign.config.data import SourceConfig
from hydralign.config.model import ModelConfig
from hydralign.config.sft import SFTConfig
from hydralign.data import DataSet, choose_rows, fingerprint, load_demonstrations
from hydralign.data.packing import TokenSequence, sequences
from hydralign.data.special_tokens import recount_special_tokens
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError, DataError
from hydralign.evaluation.statistics import Difference, compare_paired
from hydralign.methods.packing_check import require_apart
from hydralign.methods.sft import SFTParts, held_out_losses, max_tokens_of, train
from hydralign.models import make_model, train_tokenizer
from hydralign.models.folders.weights import require_ids_can_be_read
from hydralign.models.forms.build import load_supervised_policy, make_supervised_policy
from hydralign.models.policy import Policy
from hydralign.progress import say
from hydralign.runs.section import RESULT, load_or_measure_numbers, open_section, write_json
from hydralign.types import Demonstration


@dataclass(frozen=True)
class LoadedSFT:
    """What an sft section works with."""

    policy: Policy
    data: DataSet[Demonstration]
    train: tuple[TokenSequence, ...]
    held_out: tuple[TokenSequence, ...]
    shortened: Mapping[str, int]
    """Training and held-out demonstrations that were cut, split or left out: reason and count."""
    measured: str
    """Fingerprint of the demonstrations behind `held_out`."""

    def describe(self) -> str:
        """One paragraph on the data."""
        learned = sum(sequence.learned for sequence in self.train)
        lines = [describe_demonstrations(self.data, self.shortened)]
        lines.append(
            f"{len(self.train):,} sequences with {learned:,} tokens to learn; {len(self.held_out):,} to measure."
        )
        return "\n".join(lines)


def run_sft(recipe: Recipe, config: SFTConfig, folder: Path, processes: Distributed) -> list[Difference]:
    """Train as one item of the `sft` section says, into `folder`; returns the paired difference of held-out loss."""
    loaded = load_sft(recipe, config, processes)
    policy, rows = loaded.policy, config.batch.micro_batch_size
    if processes.main:
        say(loaded.describe())
    with open_section(recipe, config, folder, processes) as records:

        def losses() -> tuple[Tensor, Tensor]:
            return held_out_losses(policy, loaded.held_out, rows, processes)

        before = load_or_measure_numbers(
            folder / "before.json", loaded.measured, lambda: torch.div(*losses()).tolist(), processes
        )
        parts = SFTParts(policy, loaded.train, loaded.held_out, folder, records, processes)
        train(config, parts, seed=recipe.seed)
        nll_N, tokens_N = losses()
    difference = compare_paired(
        "loss per token of held-out texts (nats)",
        before,
        (nll_N / tokens_N).tolist(),
        higher_is_better=False,
        unit="texts",
    )
    if processes.main:
        policy.save(folder / "model")
        record = sft_record(difference, nll_N, tokens_N)
        write_json(folder / RESULT, record)
        say(difference.sentence())
        perplexity = f"Held-out perplexity {record['perplexity']:.2f} over {record['tokens']:,} tokens."
        say(f"{perplexity} The model lies in {folder / 'model'}.")
    processes.barrier()
    return [difference]


def sft_record(difference: Difference, nll_N: Tensor, tokens_N: Tensor) -> dict[str, Any]:
    """The result as plain JSON: loss and perplexity over all held-out tokens, and the paired difference per text."""
    loss = float(nll_N.sum() / tokens_N.sum())
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": int(tokens_N.sum()),
        "n": difference.n,
        "before": {"mean": difference.before_mean},
        "after": {"mean": difference.after_mean},
        "difference": {"mean": difference.difference, "ci_low": difference.ci_low, "ci_high": difference.ci_high},
        "verdict": difference.verdict,
        "sentence": difference.sentence(),
    }


def demonstrations_of(recipe: Recipe, config: SFTConfig) -> SourceConfig:
    """The demonstrations' source. Raises ConfigError when the recipe names none."""
    source = config.data or recipe.data.demonstrations
    if source is None:
        raise ConfigError(
            "The recipe has no `data.demonstrations`: SFT has nothing to imitate. Name a source of texts."
        )
    return source


def load_sft(recipe: Recipe, config: SFTConfig, processes: Distributed) -> LoadedSFT:
    """Everything that an sft section needs, with every check that can be made before the first step."""
    source = demonstrations_of(recipe, config)
    model = config.model or recipe.model
    data: DataSet[Demonstration] | None = None
    if model.new is not None:
        data = load_demonstrations(source)
    policy = _policy(model, data, recipe.seed, processes)
    data = recount_special_tokens(data, policy.tokenizer) if data else load_demonstrations(source, policy.tokenizer)
    longest = max_tokens_of(config, policy)
    shaping: dict[str, Any] = {"max_tokens": longest, "too_long": config.too_long}
    made, cut = sequences(data.train, policy.tokenizer, policy.stop_ids, **shaping)
    chosen = choose_rows(data.held_out, config.evaluation.rows)
    apart, cut_apart = sequences(chosen, policy.tokenizer, policy.stop_ids, max_tokens=longest, too_long="cut")
    shortened = {**cut, **{f"{reason} (held out)": count for reason, count in cut_apart.items()}}
    require_sequences(made, apart, longest, describe_demonstrations(data, shortened))
    ids = (one.ids for one in (*made, *apart))
    require_ids_can_be_read(ids, policy.tokenizer, policy.vocabulary, "A demonstration")
    if config.packing:
        require_apart(policy)
    return LoadedSFT(policy, data, made, apart, shortened, fingerprint(chosen))


def require_sequences(made: Sequence[TokenSequence], apart: Sequence[TokenSequence], longest: int, told: str) -> None:
    """Raise DataError, with the account of what became of all rows, unless some are to learn and some to measure."""
    if not made or len(apart) < 2:
        raise DataError(
            f"{len(made)} sequences to train on and {len(apart)} held out: both are needed, at least one and two. "
            "Name more demonstrations, hold out others (data.demonstrations.held_out), or raise sft.max_tokens "
            f"({longest:,} here) where texts are longer.\n{told}"
        )


def describe_demonstrations(data: DataSet[Demonstration], shortened: Mapping[str, int]) -> str:
    """What became of every row that was read, and of the demonstrations that do not fit."""
    lines = [data.report.describe()]
    if shortened:
        lines.append("Of them " + ", ".join(f"{count:,} {reason}" for reason, count in shortened.items()) + ".")
    return "\n".join(lines)


def _policy(model: ModelConfig, data: DataSet[Demonstration] | None, seed: int, processes: Distributed) -> Policy:
    if model.path is not None:
        return load_supervised_policy(
            model.path,
            form=model.form,
            precision=model.precision,
            pad_token=model.pad_token,
            device=processes.device,
            seed=seed,
        )
    assert model.new is not None
    assert data is not None
    texts = (row.prompt + row.completion for row in data.train)
    tokenizer = train_tokenizer(texts, vocabulary=model.new.vocabulary)
    fresh = make_model(tokenizer, **model.new.model_dump(exclude={"vocabulary"}), seed=seed)
    return make_supervised_policy(
        fresh.to(processes.device), tokenizer, form=model.form, precision=model.precision, seed=seed
    )
