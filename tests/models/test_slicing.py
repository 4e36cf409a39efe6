"""The cut: two parts in a row are the whole, to the bit, in every family; what cannot be cut is refused.

Tiny random models of five layers, with mixed layer types and sequences longer than the sliding window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hydralign.errors import ModelError
from hydralign.models.backbones import slicing as split
from hydralign.models.backbones.slicing import (
    capture_output,
    check_split,
    copy_trained,
    layers_of,
    modules_after_layers,
    replace_input,
    slice_layers,
)

LAYERS, WINDOW = 5, 8
MIXED = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
WINDOWED = {**GROUPED, "head_dim": 16, "sliding_window": WINDOW}
OLD = {"vocab_size": 300, "n_layer": LAYERS, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**OLD, "n_embd": 32, "n_positions": 64},
    "gptj": {**OLD, "n_embd": 32, "n_positions": 64, "rotary_dim": 8},
    "gpt_neo": {
        **SIZES, "num_layers": LAYERS, "num_heads": 2, "window_size": WINDOW,
        "attention_types": [[["global", "local"], 2], [["local"], 1]],
    },
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {**OLD, "hidden_size": 32},
    "llama": GROUPED,
    "mistral": WINDOWED,
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    "qwen3": {**WINDOWED, "use_sliding_window": True, "max_window_layers": 4},
    "gemma2": WINDOWED,
    "gemma3_text": {**WINDOWED, "layer_types": MIXED},
    "phi3": {**GROUPED, "sliding_window": WINDOW},
    "granite": {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "cohere": GROUPED,
}  # fmt: skip
CUTS = (1, 2, LAYERS - 1)
MIXING = ("qwen2", "gemma2", "gemma3_text")
"""Families whose layer types the body looks up in its config."""


def new_model(family: str, **changes: Any) -> Any:
    """A random model that is far from its own starting point: spread matrices, norms and biases that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**FAMILIES.get(family, WINDOWED), **changes})
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(torch.randn_like(parameter) * 0.15)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


kept_model = cache(new_model)
"""One model per family, for tests that leave it as it is."""


def some_ids(columns: int = 40) -> Tensor:
    return torch.randint(0, 300, (2, columns), generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def whole_and_parts(model: Any, top: int) -> tuple[Tensor, Tensor]:
    """Final states by the model itself, from ids, and by its two parts one after the other."""
    ids_BT, cut = some_ids(), LAYERS - top
    whole_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    trunk, branch = slice_layers(model.base_model, 0, cut), slice_layers(model.base_model, cut, LAYERS)
    with capture_output(layers_of(trunk)[-1]) as seen:
        trunk(inputs_embeds=model.get_input_embeddings()(ids_BT), use_cache=False)
    # What the branch is called with gives the shape alone.
    with replace_input(layers_of(branch)[0], seen[0]):
        states = branch(inputs_embeds=torch.full_like(seen[0], 9.0), use_cache=False)
    return whole_BTD, states.last_hidden_state


@pytest.mark.parametrize("top", CUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_trunk_and_branch_in_a_row_are_the_model_to_the_bit(family: str, top: int) -> None:
    model = kept_model(family)
    whole_BTD, parts_BTD = whole_and_parts(model, top)
    assert torch.equal(whole_BTD, parts_BTD)
    assert check_split(model, top) == LAYERS - top


def test_sequences_of_these_tests_are_longer_than_the_window_and_types_differ_above_and_below() -> None:
    wide = {"gpt_neo": "window_size"}
    for family in ("gpt_neo", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"):
        model = kept_model(family)
        other = new_model(family, **{wide.get(family, "sliding_window"): 60})
        with torch.no_grad():
            gap_T = (other(some_ids()).logits - model(some_ids()).logits).abs().amax(dim=(0, 2))
        assert gap_T[:WINDOW].max() < 1e-5, family
        assert gap_T[30:].max() > 1e-3, family
    for family in MIXING:
        types = kept_model(family).config.layer_types
        assert len(set(types)) == 2
        assert types[-2:] != types[:2]


@pytest.mark.parametrize("family", MIXING)
def test_check_notices_layer_types_of_the_wrong_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def types_of_the_lowest(config: Any, first: int, last: int) -> Any:
        short = copy.deepcopy(config)
        short.num_hidden_layers, short.layer_types = last - first, config.layer_types[: last - first]
        return short

    # A window of real size is no help: the check's own sequences are far shorter.
    model = new_model(family, sliding_window=4096, max_position_embeddings=8192)
    monkeypatch.setattr(split, "_shortened", types_of_the_lowest)
    with pytest.raises(ModelError, match=r"differs from the whole by \d"):
        check_split(model, 2)


@pytest.mark.parametrize(
    ("top", "reason"),
    [(0, "nothing would be trained"), (5, "no trunk would be left"), (6, "no trunk would be left")],
)
def test_a_cut_that_leaves_nothing_on_one_side_is_refused(top: int, reason: str) -> None:
    with pytest.raises(ModelError, match=f"unfrozen_layers={top}, but GPT2LMHeadModel has 5 layers: {reason}") as error:
        check_split(kept_model("gpt2"), top)
    assert "Use 1 to 4" in str(error.value)


class FromTheFirst(nn.Module):
    """A body whose layers all read the first one's states too."""

    def __init__(self, *, shares: bool) -> None:
        super().__init__()
        self.config, self.shares = PreTrainedConfig(num_hidden_layers=3), shares
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, inputs_embeds: Tensor, use_cache: bool) -> Any:
        states = first = self.layers[0](inputs_embeds)
        for layer in self.layers[1:]:
            states = layer(states + first * self.shares)
        return SimpleNamespace(last_hidden_state=states)


def test_layers_that_share_more_than_their_states_are_refused_with_the_way_out() -> None:
    torch.manual_seed(0)

    class Toy(nn.Module):
        def __init__(self, body: FromTheFirst) -> None:
            super().__init__()
            self.base_model, self.embedding = body, nn.Embedding(20, 8)

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

    assert check_split(Toy(FromTheFirst(shares=False)), 1) == 2
    with pytest.raises(ModelError, match=r"Toy cut below its top 1 layers differs from the whole by \d\.\d+") as error:
        check_split(Toy(FromTheFirst(shares=True)), 1)
    assert "{type: full} or {type: lora} without unfrozen_layers" in str(error.value)


@pytest.mark.parametrize("top", CUTS)
def test_gemma3n_whose_layers_share_keys_and_four_streams_is_refused(top: int) -> None:
    sizes = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "laurel_rank": 4}
    per_layer = {"intermediate_size": [64] * 5, "activation_sparsity_pattern": [0.0] * 5, "layer_types": MIXED}
    model = new_model("gemma3n_text", **sizes, **per_layer, num_kv_shared_layers=2)
    with pytest.raises(ModelError, match="cannot be run in two parts|has 3 lists of 3 layers"):
        check_split(model, top)


def with_derived_types(family: str, derive: Callable[[Any], list[str]]) -> Any:
    """A model whose config derives its layers' types from other entries and lets nobody set them."""
    model = new_model(family)
    derived = type("Derived", (type(model.config),), {"layer_types": property(derive)})
    model.config.__class__ = model.base_model.config.__class__ = derived
    return model


def test_layer_types_that_cannot_be_set_are_no_obstacle_where_they_are_right_anyway() -> None:
    model = with_derived_types("llama", lambda config: ["full_attention"] * config.num_hidden_layers)
    assert check_split(model, 2) == LAYERS - 2
    assert slice_layers(model.base_model, 3, LAYERS).config.layer_types == ["full_attention"] * 2


def test_layer_types_that_cannot_be_set_to_those_of_a_part_are_refused_by_name() -> None:
    model = with_derived_types("gemma3_text", lambda config: MIXED[: config.num_hidden_layers])
    for cut in (partial(check_split, model, 2), partial(slice_layers, model.base_model, 3, LAYERS)):
        with pytest.raises(ModelError, match=r"Derived.layer_types cannot be set \(AttributeError: .*setter") as error:
            cut()
        assert "{type: full} or {type: lora} without unfrozen_layers" in str(error.value)


def test_a_body_with_two_lists_of_layers_is_refused() -> None:
    body = kept_model("gpt2").base_model
    two = split._shell(body, body.config)
    two._modules["more"] = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    with pytest.raises(ModelError, match="GPT2Model has 2 lists of 5 layers"):
        layers_of(two)


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_leaves_the_model_as_it_was(family: str) -> None:
    model = new_model(family)
    config, names, modules = copy.deepcopy(model.config), list(model.state_dict()), list(model.named_modules())
    with torch.no_grad():
        before = model(some_ids()).logits
        check_split(model, 2)
        piece = slice_layers(model.base_model, 3, LAYERS, sliding_window=4)
        piece(inputs_embeds=torch.ones(1, 3, 32), use_cache=False)
        modules_after_layers(model.base_model, torch.ones(1, 2, 32))
        assert torch.equal(model(some_ids()).logits, before)
    assert list(model.state_dict()) == names
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(modules, model.named_modules(), strict=True))
    assert model.config.to_dict() == config.to_dict()
    assert model.base_model.config.num_hidden_layers == LAYERS
    assert piece.config.num_hidden_layers == 2
    assert hooks(model) == 0
    shared = {id(p) for p in model.parameters()}
    assert {id(p) for p in piece.parameters()} <= shared


def test_states_enter_by_position_and_by_name() -> None:
    class Adds(nn.Module):
        def forward(self, hidden_states: Tensor, more: float = 0.0) -> Tensor:
            return hidden_states + more

    layer, states = Adds(), torch.zeros(1, 2, 3)
    with replace_input(layer, states):
        assert torch.equal(layer(states + 9, 1.0), states + 1)
        assert torch.equal(layer(hidden_states=states + 9, more=1.0), states + 1)
    assert torch.equal(layer(states + 9), states + 9)


def test_hooks_go_away_when_a_pass_fails() -> None:
    model = new_model("gpt2")
    first, last = layers_of(model.base_model)[0], layers_of(model.base_model)[-1]
    with pytest.raises(ZeroDivisionError), replace_input(first, torch.ones(1, 2, 32)), capture_output(last):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError):
        modules_after_layers(model.base_model, torch.ones(1, 2, 31))
    assert hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_runs_after_the_layers_is_the_final_norm_alone(family: str) -> None:
    body = kept_model(family).base_model
    names = {"opt": "decoder.final_layer_norm", "gpt_neox": "final_layer_norm"}
    old = dict.fromkeys(("gpt2", "gptj", "gpt_neo", "bloom"), "ln_f")
    expected = body.get_submodule((names | old).get(family, "norm"))
    assert modules_after_layers(body, torch.ones(1, 2, 32)) == [expected]


def test_a_copy_owns_what_is_trained_and_shares_the_rest() -> None:
    model = new_model("llama").requires_grad_(False)
    branch = slice_layers(model.base_model, 3, LAYERS)
    for parameter in branch.layers[1].parameters():
        parameter.requires_grad_(True)
    own = copy_trained(branch)
    for (name, a), b in zip(branch.named_parameters(), own.parameters(), strict=True):
        assert torch.equal(a, b)
        assert (a.data_ptr() == b.data_ptr()) == (not name.startswith("layers.1.")), name
    assert own.layers[1] is not branch.layers[1]
    assert own.rotary_emb.inv_freq.data_ptr() == branch.rotary_emb.inv_freq.data_ptr()
