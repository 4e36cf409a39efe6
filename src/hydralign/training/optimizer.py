"""The optimizer, and one clipped step of it on gradients that are summed over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError, MemoryLimitError, NonFiniteError
from hydralign.micro_batches import MicroBatcher, is_out_of_memory, micro_batches
from hydralign.models.policy import Policy
from hydralign.models.precision import require_fp32


def make_optimizer(
    trained: Mapping[str, torch.nn.Parameter] | Policy,
    *,
    type: Literal["adamw", "sgd"] = "adamw",
    learning_rate: float = 3e-6,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-5,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """AdamW (fused) or plain SGD over the trained parameters only: a policy's, or those given by name.

    Raises ConfigError for settings that no optimizer can have, ModelError unless all that is trained is held in fp32.
    """
    named = trained if isinstance(trained, Mapping) or not hasattr(trained, "trained") else trained.trained()
    if type not in ("adamw", "sgd") or not isinstance(named, Mapping) or not named:
        given = f"type={type!r}" if isinstance(named, Mapping) and named else f"trained={trained!r:.60}"
        raise ConfigError(
            f"{given}: there is no optimizer of this. Give a policy or its trained(), and type adamw or sgd."
        )
    require_fp32(named)
    parameters = list(named.values())
    try:
        if type == "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=weight_decay)
        settings: dict[str, Any] = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fused": True}
        return torch.optim.AdamW(parameters, lr=learning_rate, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer settings cannot be used ({error}): no step could be taken. Correct them."
        ) from error


def accumulate(
    loss: Callable[[list[int]], tuple[Tensor, Mapping[str, Tensor]]],
    order: Sequence[int],
    optimizer: torch.optim.Optimizer,
    micro_batch_size: int | MicroBatcher,
    processes: Distributed,
    *,
    where: str,
    hint: str,
    undo: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """Gradients of one optimizer step's loss, and the sums of the numbers beside it, over this process's rows.

    `loss` takes the numbers of a few rows, cut from `order`; theirs is a part of the step's, so that parts add up.
    Done again with smaller ones when memory runs out, after `undo`. No backward pass on a non-finite loss: raises
    NonFiniteError on every process instead, and no gradient is left. It is a flag until all have come to the end of
    their part, so that every process makes the same collective calls in the same order.
    """

    def drop_gradients() -> None:
        optimizer.zero_grad(set_to_none=True)
        if undo:
            undo()

    def gradients(size: int) -> tuple[dict[str, Tensor], str]:
        totals: dict[str, Tensor] = {}
        for few in micro_batches(order, size):
            part, sums = loss(few)
            if not bool(torch.isfinite(part)):
                return totals, next((name for name, x in sums.items() if not bool(torch.isfinite(x))), "loss")
            part.backward()
            for name, value in sums.items():
                totals[name] = totals.get(name, torch.zeros(())) + value
        return totals, ""

    optimizer.zero_grad(set_to_none=True)
    totals, first = MicroBatcher.of(micro_batch_size).run(gradients, processes, total=len(order), undo=drop_gradients)
    if processes.any(bool(first)):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"{where}{first or 'loss of another process'}",
            "The loss is NaN or infinite: a step on it would destroy every weight, so none was taken. Lower the "
            f"learning rate, {hint}, or use precision fp32.",
        )
    return totals


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    trained: dict[str, torch.nn.Parameter],
    max_grad_norm: float,
    processes: Distributed = SINGLE_PROCESS,
) -> Tensor:
    """Sum gradients over processes, clip them to `max_grad_norm`, step; returns the norm before clipping.

    Raises NonFiniteError naming the first bad parameter, without a step; MemoryLimitError when memory runs out, which
    smaller micro-batches could not help.
    """
    try:
        return _clip_and_step(optimizer, trained, max_grad_norm, processes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = sum(p.numel() * p.element_size() for p in trained.values()) / 2**20
        raise MemoryLimitError(
            f"Out of memory in the optimizer's step: {size:,.1f} MB of weights are trained, their gradients take as "
            f"much, and AdamW's moments {2 * size:,.1f} MB, whatever the micro-batch. Train with LoRA (model.form: "
            "{type: lora}), take a smaller model, or use optimizer.type sgd, which has no moments."
        ) from error


def _clip_and_step(
    optimizer: torch.optim.Optimizer,
    trained: dict[str, torch.nn.Parameter],
    max_grad_norm: float,
    processes: Distributed,
) -> Tensor:
    parameters = list(trained.values())
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    size = float(norm)
    if not math.isfinite(size):
        named = ((n, p.grad) for n, p in trained.items() if p.grad is not None)
        first = next((name for name, grad in named if not bool(torch.isfinite(grad).all())), "the norm itself")
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"update/gradient/{first}",
            f"The gradient of {first} is NaN or infinite: a step on it would destroy every weight, so none was "
            "taken. Lower the learning rate, or use precision fp32.",
        )
    if size > max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimizer.step()
    return norm.detach()
