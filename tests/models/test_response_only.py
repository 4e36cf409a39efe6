"""The last layer's parts at some positions only: taken where that changes nothing, left out where it would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.backbones.slicing import layers_of
from hydralign.models.kernels.response_only import position_wise_parts
from hydralign.testing import tiny_model
from hydralign.types import TokenBatch
from tests.models.test_slicing import FAMILIES, new_model


def final_states(backbone: CausalBackbone, rows: TokenBatch) -> tuple[Tensor, Tensor]:
    """hidden_ND as they are read, and by a plain pass."""
    row_N, position_N = rows.response_index
    with torch.no_grad():
        return backbone.hidden(rows), backbone.states(rows)[row_N, rows.prompt_lengths_B[row_N] + position_N - 1]


def mixing(layer: nn.Module) -> None:
    """Let the layer hand on means over all positions so far, so that what its parts do elsewhere is seen."""
    forward = layer.forward

    def mixed(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        states_BTD = out[0] if isinstance(out, tuple) else out
        mean_BTD = states_BTD.cumsum(1) / torch.arange(1, states_BTD.shape[1] + 1)[:, None]
        return (mean_BTD, *out[1:]) if isinstance(out, tuple) else mean_BTD

    layer.forward = mixed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_whose_other_positions_are_seen_above_are_left_out(
    family: str, precision: str, rows: TokenBatch, tokenizer: Any
) -> None:
    model = tiny_model(tokenizer, family=family)
    assert len(CausalBackbone(model, precision=precision).position_wise_parts) == 2
    mixing(layers_of(model.base_model)[-1])
    backbone = CausalBackbone(model, precision=precision)
    assert backbone.position_wise_parts == []
    with backbone.autocast():
        assert torch.equal(*final_states(backbone, rows))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_by_name_is_also_used(family: str, precision: str) -> None:
    backbone = CausalBackbone(new_model(family), precision=precision)
    assert backbone.position_wise_parts == position_wise_parts(backbone.body)
    assert len(backbone.position_wise_parts) == (0 if family == "opt" else 2)


def test_of_two_matrices_that_might_end_the_attention_none_is_taken(rows: TokenBatch, tokenizer: Any) -> None:
    model = tiny_model(tokenizer, family="llama")
    layer = layers_of(model.base_model)[-1]
    attention: Any = layer.self_attn
    assert position_wise_parts(model.base_model) == [layer.mlp, attention.o_proj]
    attention.dense = nn.Linear(32, 32)
    assert position_wise_parts(model.base_model) == [layer.mlp]
    torch.testing.assert_close(*final_states(CausalBackbone(model), rows), atol=1e-5, rtol=0)


def test_a_body_without_a_single_list_of_layers_has_no_such_parts(tokenizer: Any) -> None:
    body = tiny_model(tokenizer).base_model
    assert position_wise_parts(body) != []
    body.more = nn.ModuleList(nn.Identity() for _ in body.h)
    assert position_wise_parts(body) == []
    bare = nn.Linear(2, 2)
    bare.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=1))  # type: ignore[assignment]
    assert position_wise_parts(bare) == []
