"""The memory that PPO needs on an encoder–decoder: the parts of `memory_plan.py`, encoder and decoder apart.

The encoder's activations count where it learns; where it is frozen its states are kept once per prompt. A decoder's
layer reads the answer, and keeps keys and values of the prompt too.
"""

from __future__ import annotations

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.models.encoder_decoder_sizes import EncoderDecoderSizes, StackSaved, StackSizes
from hydralign.models.kernels.few_states import PACKED_FROM
from hydralign.runs.memory_plan import BF16, FP32, MemoryPlan, Stored, Work, form_name, sampling_logits, update_logits

UNTIED_TABLES = 3
"""Tables of embeddings that a new model makes beside the one that it keeps: of encoder, decoder and head."""


def plan_encoder_decoder_memory(
    sizes: EncoderDecoderSizes,
    form: Form,
    work: Work,
    *,
    precision: str = "fp32",
    stored: Stored | None = None,
    critic: bool = True,
    moments: int = 2,
    fresh: bool = False,
    cpu: bool = True,
) -> MemoryPlan:
    """The plan of a form; arguments are those of `plan_memory`."""
    stored = stored or encoder_decoder_stored(sizes, form, precision, critic=critic)
    learns_head = isinstance(form, FullForm)
    number = BF16 if precision == "bf16" else FP32
    state = BF16 if (getattr(form, "states", None) or precision) == "bf16" else FP32
    table = sizes.vocabulary * sizes.width * FP32
    prompt, answer = work.prompt * sizes.width, work.answer * sizes.width
    kept = 0 if encoder_learns(form) else prompt
    kept += answer if _cut(form) else 0
    rollout = float(work.rows * kept * state) if cpu or not getattr(form, "offload", False) else 0.0
    rows = work.decode_batch_size
    # What the encoder made of the prompts is read at every step; a decoder's states are harvested beside it.
    harvest = rollout + rows * number * (prompt + (answer if _cut(form) else 0))
    layer = sizes.encoder.frozen.per_layer + sizes.encoder.frozen.besides
    model = FP32 * sizes.whole * (2 if learns_head else 1)
    layers = len(sizes.decoder.layers)
    return MemoryPlan(
        weights=stored.trained + stored.fixed,
        gradients=stored.trained,
        optimizer=moments * stored.trained,
        trunk_states=rollout,
        kv_cache=rows * layers * (work.prompt * sizes.cached_prompt + work.answer * sizes.cached_answer),
        reading=rows * (layer + 2 * FP32 * prompt) + harvest,
        sampling_logits=sampling_logits(sizes, work, precision, cpu),
        activations=_activations(sizes, form, work),
        update_logits=update_logits(sizes, work, precision, cpu, learns_head),
        backward=work.micro_batch_size
        * max(_learning(each, form).per_layer for each in _learning_stacks(sizes, form))
        / 2,
        loading=max(model, FP32 * sizes.whole + UNTIED_TABLES * table) if fresh else model,
        packed=table if cpu and precision == "fp32" and not learns_head and work.answer >= PACKED_FROM else 0.0,
        accumulates=work.accumulates,
        cpu=cpu,
    )


def encoder_decoder_stored(sizes: EncoderDecoderSizes, form: Form, precision: str, *, critic: bool = True) -> Stored:
    """Bytes of weights of a form, as `stored_by` counts them."""
    value_head = FP32 * (sizes.width + 1) if critic else 0
    small = BF16 if precision == "bf16" else FP32
    table = sizes.vocabulary * sizes.width
    if isinstance(form, FullForm):
        # Rounding a head that is the embedding table would round look-ups, of which the policy's are exact.
        copy = FP32 * (sizes.whole - sizes.head - sizes.matrices) + small * (sizes.matrices + sizes.head)
        return Stored(FP32 * sizes.whole + value_head, copy)
    rounded = sizes.head or table
    upper = sizes.decoder.layers[len(sizes.decoder.layers) - _top(sizes, form) :]
    if isinstance(form, LoraForm):
        adapted = [*upper, *(sizes.encoder.layers if encoder_learns(form) else ())]
        adapters = form.rank * sum(layer.inputs + layer.outputs for layer in adapted)
        start = FP32 * adapters if form.unfrozen_layers else 0
        base = FP32 * (sizes.whole - sizes.matrices - rounded) + small * (sizes.matrices + rounded)
        return Stored(FP32 * adapters + value_head, base + start)
    branch, above = sum(layer.parameters for layer in upper) + sizes.decoder.final, sum(m.matrices for m in upper)
    lower = sizes.matrices - above
    trunk = FP32 * (sizes.whole - branch - lower - rounded) + small * (lower + rounded)
    copies = 2 if form.value == "branch" else 1
    return Stored(copies * FP32 * branch + value_head, trunk + FP32 * branch - (FP32 - small) * above)


def encoder_learns(form: Form) -> bool:
    """Whether something in the encoder is trained."""
    return isinstance(form, FullForm) or (
        isinstance(form, LoraForm) and not form.decoder_only and form.unfrozen_layers is None
    )


def encoder_decoder_forms(form: Form, layers: int, *, critic: bool = True) -> dict[str, Form]:
    """As `other_forms`, with adapters on the decoder alone, without four whole models; `layers` are the decoder's."""
    top = min(getattr(form, "unfrozen_layers", None) or HydraForm().unfrozen_layers, layers - 1)
    rank = form.rank if isinstance(form, LoraForm) else LoraForm().rank
    forms: list[Form] = [FullForm(), LoraForm(rank=rank), LoraForm(rank=rank, decoder_only=True)]
    if top:
        forms += [LoraForm(rank=rank, unfrozen_layers=top), HydraForm(unfrozen_layers=top)]
        forms += [HydraForm(unfrozen_layers=top, value="branch")] if critic else []
    return {form_name(each): each for each in forms if form_name(each) != form_name(form)}


def _cut(form: Form) -> bool:
    """Whether lower decoder layers are frozen, and their states kept."""
    return not isinstance(form, FullForm) and form.unfrozen_layers is not None


def _top(sizes: EncoderDecoderSizes, form: Form) -> int:
    """Decoder layers that are trained or adapted."""
    layers = len(sizes.decoder.layers)
    return layers if isinstance(form, FullForm) else form.unfrozen_layers or layers


def _learning_stacks(sizes: EncoderDecoderSizes, form: Form) -> list[StackSizes]:
    return [sizes.decoder, *([sizes.encoder] if encoder_learns(form) else [])]


def _learning(stack: StackSizes, form: Form) -> StackSaved:
    """What autograd saves of a stack's layers in this form."""
    if isinstance(form, FullForm):
        return stack.trained
    return stack.adapted if isinstance(form, LoraForm) else stack.top


def _activations(sizes: EncoderDecoderSizes, form: Form, work: Work) -> float:
    """Bytes that autograd saves of one micro-batch."""

    def of_stack(stack: StackSizes, layers: int, tokens: int) -> float:
        saved = _learning(stack, form)
        # What leaves an adapter's first factor.
        extra = FP32 * form.rank * bool(stack.layers[-1].inputs) * tokens if isinstance(form, LoraForm) else 0
        rows = work.micro_batch_size * (layers * (saved.per_layer + extra) + saved.besides)
        return rows + layers * saved.constant

    passes = 2 if isinstance(form, HydraForm) and form.value == "branch" else 1
    through = passes * of_stack(sizes.decoder, _top(sizes, form), work.answer)
    if encoder_learns(form):
        through += of_stack(sizes.encoder, len(sizes.encoder.layers), work.prompt)
    # States in fp32 that the first layers read, of the prompts and of the answers.
    return through + work.micro_batch_size * FP32 * sizes.width * (work.prompt + work.answer)
