"""The memory that PPO needs on one device, by part, before anything runs: of the recipe's form and of every other.

Parameters are counted, a layer's work is measured (`models/sizes.py`), and the rest is arithmetic on what lives at the
same time. Left out: rewards that are models, and the second and later processes on one machine.

Moments and gradients of the last optimizer step live on while the next answers are sampled. An update begins by
forgetting the gradients; it needs most when its forward pass ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.generation.sampler import DRAWN_ELEMENTS
from hydralign.models.encoder_decoder_sizes import EncoderDecoderSizes
from hydralign.models.kernels.few_states import PACKED_FROM
from hydralign.models.kernels.logprobs import BLOCK_ELEMENTS, PASSING_ROWS, STORED_ELEMENTS
from hydralign.models.sizes import ModelSizes

MB = 2**20
FP32, BF16 = 4, 2

RUNTIME = 40 * MB
"""On a CPU: libraries that load after imports, and a tokenizer. Measured: 34 to 50 MB."""

Separate = Literal["separate"]
SEPARATE: Separate = "separate"
"""Four whole models, policy and value trained, reference and reward frozen: what runs where nothing is shared."""


@dataclass(frozen=True)
class Work:
    """What goes through the model at once, on one process; lengths in tokens, the longest of each."""

    prompt: int
    answer: int
    rows: int
    """Answers per iteration."""
    decode_batch_size: int
    micro_batch_size: int
    minibatch_rows: int

    @property
    def columns(self) -> int:
        """Longest row."""
        return self.prompt + self.answer

    @property
    def accumulates(self) -> bool:
        """Whether gradients of one micro-batch wait while the next one goes forward."""
        return self.minibatch_rows > self.micro_batch_size


@dataclass(frozen=True)
class Stored:
    """Bytes that last throughout a run."""

    trained: int
    """fp32, so gradients take as much."""
    fixed: int

    @classmethod
    def of(cls, trained: Iterable[Tensor], fixed: Iterable[Tensor]) -> Stored:
        """Counted on a policy in memory."""
        return cls(*(sum(p.numel() * p.element_size() for p in parameters) for parameters in (trained, fixed)))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part. `peak` is the most that lives at once."""

    weights: float
    gradients: float
    optimizer: float
    trunk_states: float
    """Of one rollout."""
    kv_cache: float
    """While sampling."""
    reading: float
    """While sampling: one layer at work on the prompts, and what is harvested there."""
    sampling_logits: float
    activations: float
    """While updating: what autograd saves of one micro-batch."""
    update_logits: float
    """While updating: logits, and the gradient of a trained head where it is larger."""
    backward: float
    """While updating: gradients inside one layer, after the logits are gone."""
    loading: float
    """The whole model in fp32 as it is read or made, before its frozen weights are rounded."""
    packed: float = 0.0
    """A frozen head laid out once more, for long answers."""
    accumulates: bool = False
    """Whether gradients live while an update goes forward."""
    cpu: bool = True
    """Whether memory comes from a C library, which keeps what it once got for small tensors."""

    @property
    def phases(self) -> dict[str, float]:
        """Bytes at the most demanding moment of each phase.

        On a CPU tensors freed in one phase leave holes that those of the other, of other sizes, do not fill: what both
        use for a short time adds up.
        """
        sampling = self.kv_cache + self.reading + self.sampling_logits
        left, runtime = (sampling, RUNTIME) if self.cpu else (0, 0)
        lasting = self.weights + self.optimizer + self.trunk_states + self.packed
        forward = self.activations + max(self.update_logits, self.backward)
        forward += self.gradients if self.accumulates else 0.0
        return {
            "loading": runtime + self.loading,
            "sampling": runtime + lasting + self.gradients + sampling,
            "updating": runtime + lasting + left + max(forward, self.gradients),
        }

    @property
    def peak(self) -> float:
        """Bytes above what the imports take."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=self.phases.__getitem__)


def plan_memory(
    sizes: ModelSizes,
    form: Form | Separate,
    work: Work,
    *,
    precision: str = "fp32",
    stored: Stored | None = None,
    critic: bool = True,
    moments: int = 2,
    fresh: bool = False,
    cpu: bool = True,
) -> MemoryPlan:
    """The plan of a form. `stored` are the bytes counted on a policy in memory; by default they follow from the sizes.

    Without a `critic` no value head is trained. `moments` are the optimizer's numbers per trained one (AdamW 2, SGD 0);
    a `fresh` model is made, not read.
    """
    stored = stored or stored_by(sizes, form, precision, critic=critic)
    top = _top(form, len(sizes.layers))
    shares = top < len(sizes.layers)
    learns_head = form == SEPARATE or isinstance(form, FullForm)
    number = BF16 if precision == "bf16" else FP32
    table, position = sizes.vocabulary * sizes.width * FP32, work.columns * sizes.width
    state = BF16 if (getattr(form, "states", None) or precision) == "bf16" else FP32
    kept = shares and (cpu or not getattr(form, "offload", False))
    rollout = float(work.rows * position * state) if kept else 0.0
    harvest = rollout + work.decode_batch_size * position * number if shares else 0.0
    whole = sizes.body + sizes.head
    model = FP32 * whole * (2 if learns_head else 1)
    return MemoryPlan(
        weights=stored.trained + stored.fixed,
        gradients=stored.trained,
        optimizer=moments * stored.trained,
        trunk_states=rollout,
        kv_cache=work.decode_batch_size * work.columns * sizes.cached * len(sizes.layers),
        reading=work.decode_batch_size * work.prompt * (sizes.frozen.per_token + 2 * FP32 * sizes.width) + harvest,
        sampling_logits=sampling_logits(sizes, work, precision, cpu),
        activations=_activations(sizes, form, work, top),
        update_logits=update_logits(sizes, work, precision, cpu, learns_head),
        backward=work.micro_batch_size * work.columns * sizes.trained.per_token / 2,
        loading=max(model, FP32 * whole + table) if fresh else model,
        packed=table if cpu and precision == "fp32" and not learns_head and work.answer >= PACKED_FROM else 0.0,
        accumulates=work.accumulates,
        cpu=cpu,
    )


def stored_by(sizes: ModelSizes, form: Form | Separate, precision: str, *, critic: bool = True) -> Stored:
    """Bytes of weights of a form, from counted parameters: in bf16 mode frozen matrices take two bytes a number.

    Without a `critic` there is no value head.
    """
    top, head = _top(form, len(sizes.layers)), FP32 * (sizes.width + 1)
    value_head = head if critic else 0
    small = BF16 if precision == "bf16" else FP32
    upper = sizes.layers[len(sizes.layers) - top :]
    table = sizes.vocabulary * sizes.width
    whole = sizes.body + sizes.head
    matrices = sum(layer.matrices for layer in sizes.layers)
    if form == SEPARATE or isinstance(form, FullForm):
        # Rounding a head that is the embedding table would round look-ups, of which the policy's are exact.
        body = FP32 * (sizes.body - matrices) + small * matrices
        trained, copy = FP32 * whole, body + small * sizes.head
        if form == SEPARATE:
            trained, copy = trained + FP32 * sizes.body, copy + body + head
        return Stored(trained + value_head, copy)
    rounded = table if sizes.tied else sizes.head
    if isinstance(form, LoraForm):
        adapters = form.rank * sum(layer.inputs + layer.outputs for layer in upper)
        start = FP32 * adapters if form.unfrozen_layers else 0
        base = FP32 * (whole - matrices - rounded) + small * (matrices + rounded)
        return Stored(FP32 * adapters + value_head, base + start)
    branch = sum(layer.parameters for layer in upper) + sizes.final
    lower = matrices - sum(layer.matrices for layer in upper)
    trunk = FP32 * (whole - branch - lower - rounded) + small * (lower + rounded)
    copies = 2 if form.value == "branch" else 1
    reference = FP32 * branch - (FP32 - small) * sum(layer.matrices for layer in upper)
    return Stored(copies * FP32 * branch + value_head, trunk + reference)


def _top(form: Form | Separate, layers: int) -> int:
    """Layers that are trained or adapted."""
    return layers if isinstance(form, str | FullForm) else form.unfrozen_layers or layers


def _activations(sizes: ModelSizes, form: Form | Separate, work: Work, top: int) -> float:
    """Bytes that autograd saves of one micro-batch."""
    tokens, state, saved = work.micro_batch_size * work.columns, FP32 * sizes.width, sizes.trained
    extra = 0
    if isinstance(form, LoraForm):
        saved, upper = sizes.frozen, sizes.layers[len(sizes.layers) - top :]
        extra = FP32 * sum(layer.inputs + form.rank * bool(layer.inputs) for layer in upper)
    passes = 2 if form == SEPARATE or (isinstance(form, HydraForm) and form.value == "branch") else 1
    # Two states besides the layers': the last layer's and the final norm's. One more: what the first layer reads.
    through = tokens * (saved.per_token * (top - 1) + saved.last + extra + 2 * state) + saved.per_layer * top
    return passes * through + tokens * state


def sampling_logits(sizes: ModelSizes | EncoderDecoderSizes, work: Work, precision: str, cpu: bool) -> float:
    """Bytes of the next tokens' logits, and of their probabilities as far as they are drawn from at once."""
    product = BF16 if precision == "bf16" else 0
    drawn = min(work.decode_batch_size, max(1, DRAWN_ELEMENTS // sizes.vocabulary)) if cpu else work.decode_batch_size
    # Log-probabilities, probabilities, shaped logits; probabilities and their sums in fp64.
    return float(sizes.vocabulary * (work.decode_batch_size * (FP32 + product) + drawn * (3 * FP32 + 2 * 8)))


def update_logits(
    sizes: ModelSizes | EncoderDecoderSizes, work: Work, precision: str, cpu: bool, learns_head: bool
) -> float:
    """Bytes at the output head in an update."""
    tokens, product = work.micro_batch_size * work.answer, BF16 if precision == "bf16" else 0
    most = max(1, STORED_ELEMENTS // sizes.vocabulary) if learns_head else PASSING_ROWS
    chunk = -(-tokens // -(-tokens // most))
    if not learns_head:
        elements = BLOCK_ELEMENTS["cpu" if cpu else "other"]
        block = chunk * min(sizes.vocabulary, max(1024, elements // chunk))
        # Logits, exponentials, a product of both; per token the sums over blocks, and the gradient that is kept.
        return float(block * (3 * FP32 + product) + FP32 * sizes.width * (3 * chunk + tokens))
    logits, table = chunk * sizes.vocabulary, sizes.vocabulary * sizes.width
    # One tensor of logits, then probabilities, then their gradient; and the head's gradient, of a chunk and of those
    # before it. In bf16 a copy of each, and of the weights.
    tables = 1 if chunk == tokens else 2
    return float(logits * (FP32 + product) + table * (tables * FP32 + 2 * product))


def memory_lines(own: MemoryPlan, form: Form, others: Mapping[str, MemoryPlan], work: Work) -> list[str]:
    """The plan to read, in MB: the recipe's own form by part, then what other forms would need on this model."""
    phases = own.phases
    kept = f"states of {work.rows} rows of up to {work.columns} tokens, for all epochs"
    if getattr(form, "offload", False):
        kept += " (on a CPU, offload changes nothing)"
    rows = {
        "weights": (own.weights, "trained and frozen"),
        "gradients": (own.gradients, "one number per trained weight; the last step's stay while sampling"),
        "optimizer": (own.optimizer, "AdamW's two numbers per trained weight"),
        "trunk cache": (own.trunk_states, kept),
        "head copy": (own.packed, f"laid out for few states, with answers of {PACKED_FROM} tokens and more"),
        "KV cache": (own.kv_cache, f"sampling: {work.decode_batch_size} rows of up to {work.columns} tokens"),
        "prompts": (
            own.reading,
            f"sampling: one layer reads {work.decode_batch_size} prompts of up to {work.prompt} tokens",
        ),
        "next tokens": (
            own.sampling_logits,
            f"sampling: probabilities of the next token of {work.decode_batch_size} rows",
        ),
        "activations": (own.activations, f"update: what {work.micro_batch_size} rows leave for the backward pass"),
        "backward": (own.backward, f"update: gradients inside one layer, of {work.micro_batch_size} rows"),
        "head": (own.update_logits, f"update: logits of {work.micro_batch_size} rows × {work.answer} tokens, in parts"),
        "runtime": (RUNTIME if own.cpu else 0, "libraries that load later, the tokenizer"),
    }
    lines = [f"memory     in MB, of one process, above what the imports take; form {form_name(form)}"]
    for name, (size, note) in rows.items():
        if size:
            lines.append(f"           {name:<12}{size / MB:>12,.1f}   {note}")
    by_phase = ", ".join(f"{name} {size / MB:,.0f}" for name, size in phases.items())
    lines.append(f"           {'peak':<12}{own.peak / MB:>12,.1f}   the most that lives at once: {by_phase}")
    lines.append("           rewards that are models come on top; peaks of other forms on this model:")
    for name, plan in others.items():
        lines.append(f"           {plan.peak / MB:>24,.1f}   {name}")
    return lines


def other_forms(form: Form, layers: int, *, critic: bool = True) -> dict[str, Form | Separate]:
    """The forms that `form` is not, by name, with its own number of unfrozen layers and rank, or the defaults.

    Without a `critic` those are left out that have values of their own.
    """
    top = min(getattr(form, "unfrozen_layers", None) or HydraForm().unfrozen_layers, layers - 1)
    rank = form.rank if isinstance(form, LoraForm) else LoraForm().rank
    forms: list[Form | Separate] = [FullForm(), LoraForm(rank=rank)]
    if top:
        forms += [LoraForm(rank=rank, unfrozen_layers=top), HydraForm(unfrozen_layers=top)]
    if critic:
        forms += [HydraForm(unfrozen_layers=top, value="branch"), SEPARATE] if top else [SEPARATE]
    return {form_name(each): each for each in forms if form_name(each) != form_name(form)}


def form_name(form: Form | Separate) -> str:
    """A form in words, with its number k of unfrozen layers."""
    if isinstance(form, str):
        return "separate: four whole models (policy and value trained, reference, reward)"
    if isinstance(form, FullForm):
        return "full: every layer trained, and a frozen copy"
    k = f"k = {form.unfrozen_layers}"
    if isinstance(form, LoraForm):
        everywhere = "the decoder" if form.decoder_only else "all layers"
        where = everywhere if form.unfrozen_layers is None else f"top layers, {k}"
        return f"lora: adapters of rank {form.rank} on {where}"
    return f"hydra: {k} layers trained, " + ("value branch" if form.value == "branch" else "value head")
