"""What a section would do, in lines to read: data, parameters, memory, one sample. Trains and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydralign.config import PPOConfig, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.model import Form, HydraForm, LoraForm, ModelConfig
from hydralign.config.recipe import OUTPUT
from hydralign.config.reward import Labels, RewardConfig
from hydralign.config.sft import SFTConfig
from hydralign.data.detokenise import decode_completions
from hydralign.data.packing import TokenSequence, packed
from hydralign.data.tokens import encode_text
from hydralign.distributed import Distributed
from hydralign.encoder_input import encoder_limit, feeds_encoder
from hydralign.evaluation.statistics import fewest_changes
from hydralign.methods.reward import Pair
from hydralign.methods.sampling import sampling_params
from hydralign.methods.sft import max_tokens_of, packs
from hydralign.methods.supervised import steps_of
from hydralign.models.encoder_decoder_sizes import encoder_decoder_sizes_of
from hydralign.models.folders.merged import adapter_config_of
from hydralign.models.policy import Policy
from hydralign.models.sizes import sizes_of
from hydralign.rewards.classifier import ClassifierReward
from hydralign.rewards.combine import RewardTerm
from hydralign.rewards.reward_model import RewardModel
from hydralign.runs import compare as compare_run
from hydralign.runs import held_out_prompts
from hydralign.runs import ppo as ppo_run
from hydralign.runs import reward as reward_run
from hydralign.runs import sft as sft_run
from hydralign.runs.encoder_decoder_memory import encoder_decoder_forms, plan_encoder_decoder_memory
from hydralign.runs.memory_plan import (
    MB,
    MemoryPlan,
    Separate,
    Stored,
    Work,
    memory_lines,
    other_forms,
    plan_memory,
)
from hydralign.runs.reward_tests import LoadedTest
from hydralign.runs.same_settings import comparable_text
from hydralign.runs.steps import Step
from hydralign.types import Prompt


def plan_sft(recipe: Recipe, config: SFTConfig, processes: Distributed) -> list[str]:
    """Lines about an sft section, with one sequence rendered: what is read, and what of it is learned."""
    loaded = sft_run.load_sft(recipe, config, processes)
    policy = loaded.policy
    rows = len(packed(loaded.train, max_tokens_of(config, policy))) if packs(config, policy) else len(loaded.train)
    sample = loaded.train[0]
    return [
        loaded.report,
        f"steps      {steps_of(config, rows):,}, each of {config.batch.rows} rows; an epoch has {rows:,} rows",
        *_verdict_lines(len(loaded.held_out)),
        _length_line(max_tokens_of(config, policy), policy),
        *_start_lines(config.model or recipe.model),
        *_form_lines(config.model or recipe.model),
        *size_lines(policy.trained(), policy.frozen(), config.optimizer.type),
        f"sample     read: {_shown(policy.tokenizer, sample, 0, sample.learned_from)}",
        f"           learned: {_shown(policy.tokenizer, sample, max(1, sample.learned_from), len(sample.ids))}",
    ]


def _length_line(longest: int, policy: Policy) -> str:
    """How long what a supervised policy reads may be."""
    if not feeds_encoder(policy.tokenizer):
        return f"rows       up to {longest:,} tokens of a context of {policy.context:,}"
    limit = encoder_limit(policy.tokenizer)
    prompts = "of any length" if limit is None else f"of up to {limit:,} tokens"
    return f"rows       prompts {prompts}, completions of up to {longest:,}; a context of {policy.context:,} for each"


def plan_reward(recipe: Recipe, config: RewardConfig, processes: Distributed) -> list[str]:
    """Lines about a reward section, with one row as the classifier reads it."""
    loaded = reward_run.load_reward(recipe, config, processes)
    classifier = loaded.classifier
    copies = 1 + (config.task.crops.per_text if isinstance(config.task, Labels) and config.task.crops else 0)
    rows = copies * len(loaded.train)
    first = loaded.train[0]
    if isinstance(first, Pair):
        shown = {"sample     chosen": first.chosen, "           rejected": first.rejected}
    else:
        shown = {f"sample     {classifier.labels[first.label]}": first.ids}
    return [
        loaded.report,
        f"steps      {steps_of(config, rows):,}, each of {config.batch.rows} rows; an epoch has {rows:,} rows",
        *_verdict_lines(len(loaded.held_out)),
        *(_test_line(test) for test in loaded.tests),
        *_form_lines(config.model or recipe.model, frozen=config.freeze_layers),
        *size_lines(classifier.trained(), classifier.frozen(), config.optimizer.type),
        *(f"{side}: {_end(classifier.tokenizer, ids)!r} (the end; {len(ids)} tokens)" for side, ids in shown.items()),
    ]


def _test_line(test: LoadedTest) -> str:
    """A source to test on: its rows, and the groups among them."""
    groups = f", accuracy by {test.config.by} ({len(set(test.groups))} values)" if test.config.by else ""
    called = f" of {test.config.name}" if test.config.name else ""
    return f"test       {len(test.rows):,} rows{called}{groups}"


def plan_ppo(recipe: Recipe, config: PPOConfig, processes: Distributed) -> list[str]:
    """Lines about a ppo section, with one prompt as the policy reads it."""
    loaded = ppo_run.load_ppo(recipe, config, processes)
    source = recipe.data.prompts
    assert source is not None
    policy = loaded.policy
    return [
        loaded.prompts.report.describe(),
        f"held out   {len(loaded.held_out)} prompts{_fewer(len(loaded.held_out), config.evaluation.prompts)}, "
        "answered before and after",
        *_verdict_lines(len(loaded.held_out)),
        *_repeated_lines(len(loaded.prompts.train), config.batch.prompts),
        *_start_lines(config.model or recipe.model),
        f"{parameter_line(policy.trained(), policy.frozen())}{_copied(config.model or recipe.model)}",
        *_memory_of_ppo(recipe, config, loaded, processes),
        f"answers    up to {sampling_params(config.sampling, recipe.seed).longest} tokens; context {policy.context}",
        *_reward_lines(loaded.terms, loaded.prompts.train, sampling_params(config.sampling, recipe.seed).longest),
        f"prompt     {held_out_prompts.prompt_preview(loaded.prompts.train[0], source)}",
    ]


def _fewer(there: int, wanted: int) -> str:
    """Said behind a number of rows when the data hold fewer than the recipe asks for."""
    return f" (all there are of the {wanted:,} wanted)" if there < wanted else ""


def _verdict_lines(held_out: int) -> list[str]:
    """A warning where so few rows are held out that no result could be distinguished from chance."""
    needed = fewest_changes(0.95)
    if held_out >= needed:
        return []
    return [f"held out   {held_out} rows: fewer than {needed} give no verdict. Hold out more (held_out.percent)."]


def _repeated_lines(prompts: int, wanted: int) -> list[str]:
    """Said when an iteration takes more prompts than there are."""
    if prompts >= wanted:
        return []
    return [f"prompts    {prompts:,} for {wanted:,} per iteration: some are answered more than once in each"]


def _form_lines(model: ModelConfig, *, frozen: int = 0) -> list[str]:
    """What a supervised section makes of a hydra form, which asks for less than it trains."""
    if not isinstance(model.form, HydraForm):
        return []
    rest = f" above the {frozen} of freeze_layers" if frozen else ""
    return [f"form       hydra is for ppo: this section trains every layer{rest}"]


def _start_lines(model: ModelConfig) -> list[str]:
    """Which adapter and base a section starts from, and whether it trains the adapter or the two as one model."""
    adapter = None if model.path is None else adapter_config_of(model.path)
    if adapter is None:
        return []
    if isinstance(model.form, LoraForm):
        settings = "with the rank and targets that it was made with, not those of model.form"
        base = adapter.base_model_name_or_path
        return [f"start      adapter {model.path}, trained further on its base {base} ({settings})"]
    return [f"start      adapter {model.path}, merged into its base {adapter.base_model_name_or_path}"]


def later_lines(recipe: Recipe, step: Step, missing: Sequence[Path], steps: Sequence[Step]) -> list[str]:
    """What can be said of a step that starts from what an earlier one has not made yet; `steps` are the recipe's."""
    lines = [f"later      {step.title} waits for {', '.join(map(str, missing))}, which an earlier section makes"]
    start: Any = step.config.model if step.section.makes == "language model" else None
    maker = _maker_of_adapter(recipe, steps, start)
    if maker and maker.folder / "model" in missing:
        further = isinstance(step.config, SFTConfig) and isinstance(start.form, LoraForm)
        first = maker
        for _ in steps:
            first = _maker_of_adapter(recipe, steps, first.config.model) or first
        base = (first.config.model or recipe.model).path
        how = "trained further on" if further else "merged into"
        lines.append(f"start      the adapter that {maker.title} makes, {how} its base {base}")
    return lines


def _maker_of_adapter(recipe: Recipe, steps: Sequence[Step], model: ModelConfig | None) -> Step | None:
    """The step that makes this model's folder, if that will be a language model's adapter."""
    folder = model and model.path and comparable_text(model.path, recipe.output)
    makers = (one for one in steps if one.section.makes == "language model" and folder == f"{OUTPUT}/{one.title}/model")
    return next((one for one in makers if isinstance((one.config.model or recipe.model).form, LoraForm)), None)


def _memory_of_ppo(recipe: Recipe, config: PPOConfig, loaded: ppo_run.LoadedPPO, processes: Distributed) -> list[str]:
    """What one process needs, by part, and what it would in every other form."""
    model = config.model or recipe.model
    policy = loaded.policy
    share = [-(-rows // processes.count) for rows in (config.batch.rows, config.batch.minibatch_rows)]
    held_out = min(config.sampling.decode_batch_size, -(-len(loaded.held_out) // processes.count))
    work = Work(
        prompt=max(len(prompt.token_ids) for prompt in [*loaded.prompts.train, *loaded.held_out]),
        answer=sampling_params(config.sampling, recipe.seed).longest,
        rows=max(share[0], held_out),
        decode_batch_size=max(min(config.sampling.decode_batch_size, share[0]), held_out),
        micro_batch_size=min(config.batch.micro_batch_size, share[1]),
        minibatch_rows=share[1],
    )
    targets = model.form.targets if isinstance(model.form, LoraForm) else None
    settings: dict[str, Any] = {
        "precision": model.precision,
        "moments": 2 if config.optimizer.type == "adamw" else 0,
        "critic": config.has_critic,
        "fresh": model.new is not None,
        "cpu": processes.device.type == "cpu",
    }
    plan: Callable[..., MemoryPlan]
    forms: Mapping[str, Form | Separate]
    if feeds_encoder(policy.tokenizer):
        pair = encoder_decoder_sizes_of(policy.whole, prompt=work.prompt, answer=work.answer, targets=targets)
        plan = partial(plan_encoder_decoder_memory, pair, work=work, **settings)
        forms = encoder_decoder_forms(model.form, len(pair.decoder.layers), critic=config.has_critic)
    else:
        sizes = sizes_of(policy.whole, columns=work.columns, answer=work.answer, targets=targets)
        plan = partial(plan_memory, sizes, work=work, **settings)
        forms = other_forms(model.form, len(sizes.layers), critic=config.has_critic)
    own = plan(model.form, stored=Stored.of(policy.trained().values(), policy.frozen()))
    return memory_lines(own, model.form, {name: plan(form) for name, form in forms.items()}, work)


def plan_compare(recipe: Recipe, config: CompareConfig, processes: Distributed) -> list[str]:
    """Lines about a compare section."""
    loaded = compare_run.load_comparison(recipe, config, processes)
    terms = ", ".join(f"{term.name} (weight {term.weight:g})" for term in loaded.terms)
    asked = f"{len(loaded.prompts):,} held-out prompts{_fewer(len(loaded.prompts), config.prompts)}"
    return [
        f"models     {config.before} and {config.after}",
        f"answers    {asked}, up to {loaded.params.longest} tokens each, by both",
        f"metrics    {terms}",
        *_reward_lines(loaded.terms, loaded.prompts, loaded.params.longest),
    ]


def _reward_lines(terms: Sequence[RewardTerm], prompts: Sequence[Prompt], answer: int) -> list[str]:
    """For each reward model and classifier: how long its texts may be, and how many prompts would be cut for it."""
    lines = []
    for term in terms:
        reward = term.reward
        if not isinstance(reward, RewardModel | ClassifierReward):
            continue
        alone = isinstance(reward, ClassifierReward) and reward.text == "completion"
        texts = [""] if alone else [prompt.text for prompt in prompts]
        lengths = [len(encode_text(reward.tokenizer, text)) + answer for text in texts]
        too_long = sum(length > reward.max_tokens for length in lengths)
        if not too_long:
            line = f"reads up to {reward.max_tokens:,} tokens; the longest text may have about {max(lengths):,}"
        elif alone:
            line = f"reads up to {reward.max_tokens:,} tokens; answers may have {answer:,} and would be cut"
        else:
            line = (
                f"reads up to {reward.max_tokens:,} tokens; with the longest answers {too_long:,} of {len(texts):,} "
                f"prompts would be cut at the beginning (the longest text may have about {max(lengths):,})"
            )
        lines.append(f"reward     {term.name} {line}")
    return lines


def size_lines(
    trained: Mapping[str, torch.nn.Parameter], fixed: Sequence[torch.Tensor], optimizer: str = "adamw"
) -> list[str]:
    """Parameter counts, and the memory in MB that lasts throughout a run: weights, gradients, AdamW's two moments."""
    stored = Stored.of(trained.values(), fixed)
    moments = 2 * stored.trained if optimizer == "adamw" else 0
    parts = {"weights": stored.trained + stored.fixed, "gradients": stored.trained, "optimizer": moments}
    listed = ", ".join(f"{name} {size / MB:,.1f} MB" for name, size in parts.items())
    return [
        parameter_line(trained, fixed),
        f"memory     {listed}: {sum(parts.values()) / MB:,.1f} MB in all; activations and caches come on top",
    ]


def parameter_line(trained: Mapping[str, torch.nn.Parameter], fixed: Sequence[torch.Tensor]) -> str:
    """How many parameters are trained, those of a value head apart, and how many are frozen."""
    head = sum(p.numel() for name, p in trained.items() if name.startswith("value_head."))
    counts = [sum(p.numel() for p in parameters) for parameters in (trained.values(), fixed)]
    of_head = f" ({head:,} of them in the value head)" if head else ""
    return f"parameters {counts[0]:,} trained{of_head}, {counts[1]:,} frozen"


def _copied(model: ModelConfig) -> str:
    """Why a policy counts more parameters than its model has."""
    form = model.form
    if isinstance(form, LoraForm) and form.adapter is None and form.unfrozen_layers is None:
        return ""
    return " (with the reference's own copy of what is trained)"


def _end(tokenizer: Any, ids: Sequence[int]) -> str:
    """The last 60 tokens as text."""
    return decode_completions(tokenizer, [ids[:-60]], [ids[-60:]], skip_special_tokens=False)[0]


def _shown(tokenizer: Any, sequence: TokenSequence, start: int, end: int) -> str:
    """The tokens as text, cut to fit a line, with their number."""
    ids = sequence.ids[start:end].tolist()
    before = sequence.ids[:start].tolist()
    text = decode_completions(tokenizer, [before], [ids[:40]], skip_special_tokens=False)[0]
    return f"{text!r}{'…' if len(ids) > 40 else ''} ({len(ids)} tokens)"
