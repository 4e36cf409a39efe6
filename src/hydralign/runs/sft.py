"""A recipe's sft section from beginning to end: load, measure, train, measure again, save, report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hydralign.config import Recipe
from hydralign.config.data import DemonstrationSourceConfig
from hydralign.config.sft import SFTConfig
from hydralign.data import DataSet, choose_rows, fingerprint, load_demonstrations
from hydralign.data.loading import load_uncut
from hydralign.data.packing import TokenSequence, sequences
from hydralign.data.prompt_limits import prompt_limit
from hydralign.data.special_tokens import recount_special_tokens
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError, DataError
from hydralign.evaluation.statistics import Difference, compare_paired
from hydralign.methods.packing_check import require_apart
from hydralign.methods.sft import SFTParts, held_out_losses, max_tokens_of, packs, train
from hydralign.models import make_model
from hydralign.models.folders.weights import require_ids_can_be_read
from hydralign.models.forms.build import load_supervised_policy, make_supervised_policy
from hydralign.models.policy import Policy
from hydralign.progress import say
from hydralign.runs.section import load_or_measure_numbers, open_section
from hydralign.runs.section_files import RESULT, write_json
from hydralign.runs.section_model import load_or_make
from hydralign.runs.steps import Step
from hydralign.types import Demonstration


@dataclass(frozen=True)
class EncodedDemonstrations:
    """What an sft section reads, as a policy reads it."""

    train: tuple[TokenSequence, ...]
    held_out: tuple[TokenSequence, ...]
    report: str
    """What became of every row that was read, in a paragraph."""
    measured: str
    """Fingerprint of the demonstrations behind `held_out`."""


@dataclass(frozen=True)
class LoadedSFT(EncodedDemonstrations):
    """What an sft section works with."""

    policy: Policy


def run_sft(recipe: Recipe, step: Step, processes: Distributed) -> list[Difference]:
    """Train as an item of the `sft` section says, into its folder; returns the paired difference of held-out loss."""
    config, folder = step.config, step.folder
    loaded = load_sft(recipe, config, processes)
    policy, rows = loaded.policy, config.batch.micro_batch_size
    if processes.main:
        say(loaded.report)
    with open_section(recipe, step, processes) as records:

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


def demonstrations_of(recipe: Recipe, config: SFTConfig) -> DemonstrationSourceConfig:
    """The demonstrations' source. Raises ConfigError when the recipe names none."""
    source = config.data or recipe.data.demonstrations
    if source is None:
        raise ConfigError(
            "The recipe has no `data.demonstrations`: SFT has nothing to imitate. Name a source of texts."
        )
    return source


def load_sft(recipe: Recipe, config: SFTConfig, processes: Distributed) -> LoadedSFT:
    """Everything that an sft section needs, with every check that can be made before the first step."""
    source, model = demonstrations_of(recipe, config), config.model or recipe.model
    data = load_uncut(source) if model.new else None
    policy = load_or_make(
        model,
        (row.prompt + row.completion for row in data.train) if data else (),
        load=load_supervised_policy,
        make=make_model,
        wrap=make_supervised_policy,
        device=processes.device,
        seed=recipe.seed,
    )
    if data is None or source.cut is not None:
        data = load_demonstrations(source, policy.tokenizer, seed=recipe.seed)
    else:
        data = recount_special_tokens(data, policy.tokenizer)
    encoded = encode_demonstrations(config, source, data, policy, policy.stop_ids)
    if packs(config, policy):
        require_apart(policy)
    return LoadedSFT(**vars(encoded), policy=policy)


def encode_demonstrations(
    config: SFTConfig,
    source: DemonstrationSourceConfig,
    data: DataSet[Demonstration],
    policy: Any,
    stop_ids: Sequence[int],
) -> EncodedDemonstrations:
    """The demonstrations of a source as the policy, or one of which these facts are known, will read them.

    Raises DataError, with what became of all rows, unless some are to learn and some to measure, or for prompts that
    are too long, and TokenizerError for ids that the policy cannot read.
    """
    longest = max_tokens_of(config, policy)
    read = partial(
        sequences,
        tokenizer=policy.tokenizer,
        stop_ids=stop_ids,
        max_tokens=longest,
        prompts=prompt_limit(source, policy.tokenizer),
    )
    train, cut = read(data.train, too_long=config.too_long)
    chosen = choose_rows(data.held_out, config.evaluation.rows)
    held_out, cut_apart = read(chosen, too_long="cut")
    shortened = {**cut, **{f"{reason} (held out)": count for reason, count in cut_apart.items()}}
    report = data.report.describe()
    if shortened:
        report += "\nOf them " + ", ".join(f"{count:,} {reason}" for reason, count in shortened.items()) + "."
    if not train or len(held_out) < 2:
        raise DataError(
            f"{len(train)} sequences to train on and {len(held_out)} held out: both are needed, at least one and two. "
            "Name more demonstrations, hold out others (data.demonstrations.held_out), or raise sft.max_tokens "
            f"({longest:,} here) where texts are longer.\n{report}"
        )
    ids = (one.ids for one in (*train, *held_out))
    require_ids_can_be_read(ids, policy.tokenizer, policy.vocabulary, "A demonstration")
    learned = sum(sequence.learned for sequence in train)
    report += f"\n{len(train):,} sequences with {learned:,} tokens to learn; {len(held_out):,} to measure."
    return EncodedDemonstrations(train, held_out, report, fingerprint(chosen))
