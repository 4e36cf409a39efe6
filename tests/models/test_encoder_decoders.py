"""Encoder–decoders as a backbone: the states that transformers' own model ends with, whole, cut, padded and decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hydralign.errors import ModelError
from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone, start_token_of
from hydralign.models.backbones.position_bias import shared_position_bias
from hydralign.models.backbones.slicing import layers_of
from hydralign.models.branch import Branch
from hydralign.models.heads.token import TokenHead
from hydralign.types import TokenBatch, TrunkUse
from tests.models.encoder_decoders import FAMILIES, new_encoder_decoder

PROMPTS = [[5, 6, 7, 8, 0], [9, 10, 0], [3, 4, 5, 6, 7, 8, 9, 0]]
# Longer than the distance from which on T5 tells no further apart.
ANSWERS = [[11, 12, 13, 0], [14, 15], [16, 17, 18, 19, 20, *range(30, 45)]]
BATCH = TokenBatch.of(PROMPTS, ANSWERS, pad_id=99)
TOLERANCE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-5}


def own_states(model: Any) -> Tensor:
    """hidden_ND of each row alone, by the model's own forward pass."""
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        rows = [
            model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([[start, *answer[:-1]]]),
                output_hidden_states=True,
            ).decoder_hidden_states[-1][0]
            for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
        ]
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_model_s_own_from_the_first_token_on(family: str) -> None:
    model = new_encoder_decoder(family)
    with torch.no_grad():
        hidden_ND = EncoderDecoderBackbone(model).hidden(BATCH)
    torch.testing.assert_close(hidden_ND, own_states(model), **TOLERANCE)
    assert hidden_ND.abs().max() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_any_cut_through_the_decoder_gives_the_whole_one_s_states(family: str) -> None:
    backbone = EncoderDecoderBackbone(new_encoder_decoder(family))
    with torch.no_grad():
        whole_ND = backbone.hidden(BATCH)
        for first in range(1, len(layers_of(backbone.decoder))):
            trunk = backbone.trunk(first)
            states = trunk.states(BATCH)
            torch.testing.assert_close(backbone.top(first).hidden(BATCH.with_trunk(states)), whole_ND, **TOLERANCE)
            real = int(BATCH.lengths_B.sum())
            assert trunk.use == TrunkUse(real, 3 * (8 + 20) - real)


def test_a_branch_of_t5_without_the_bias_that_the_first_layer_owns_is_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = EncoderDecoderBackbone(new_encoder_decoder("t5"))
    monkeypatch.setattr("hydralign.models.backbones.encoder_decoder.shared_position_bias", lambda *_: None)
    with torch.no_grad():
        whole_ND = backbone.hidden(BATCH)
        branch_ND = backbone.top(2).hidden(BATCH.with_trunk(backbone.trunk(2).states(BATCH)))
    assert (whole_ND - branch_ND).abs().max() > 0.01


def test_only_what_hands_its_bias_on_has_one_to_bring_along() -> None:
    assert shared_position_bias(new_encoder_decoder("bart").get_decoder(), 4) is None
    assert shared_position_bias(new_encoder_decoder("t5").get_decoder(), 4).shape == (1, 4, 4, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize("first", [None, 0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_meets_the_states_of_a_plain_pass_and_keeps_the_trunk_s(family: str, first: int | None) -> None:
    model = new_encoder_decoder(family)
    backbone = EncoderDecoderBackbone(model)
    trunk = None if first is None else backbone.trunk(first)
    with torch.no_grad():
        plain_ND = backbone.hidden(BATCH)
        decoding = backbone.start(TokenHead(model), PROMPTS, 20, trunk=trunk)
        here = torch.arange(3)
        states: dict[tuple[int, int], Tensor] = {}
        for position in range(20):
            hidden_BD = decoding.predict()[1]
            states |= {(int(row), position): hidden_BD[place] for place, row in enumerate(here)}
            going = [place for place, row in enumerate(here) if len(ANSWERS[row]) > position + 1]
            if not going:
                break
            tokens_B = torch.tensor([(ANSWERS[row] + [0] * 20)[position] for row in here])
            decoding.append(tokens_B, len(going))
            if len(going) < len(here):
                decoding.keep(torch.tensor(going))
                here = here[going]
    row_N, position_N = BATCH.response_index
    found = torch.stack([states[pair] for pair in zip(row_N.tolist(), position_N.tolist(), strict=True)])
    torch.testing.assert_close(found, plain_ND, **TOLERANCE)
    if trunk is not None:
        kept = decoding.trunk_states(BATCH.lengths_B)
        used, fresh = trunk.use.real, trunk.states(BATCH)
        assert used == int(BATCH.lengths_B.sum() if first else BATCH.prompt_lengths_B.sum())
        reader = backbone.top(first) if first else backbone
        for states_of in (kept, fresh):
            torch.testing.assert_close(reader.hidden(BATCH.with_trunk(states_of)), plain_ND, **TOLERANCE)
            few = BATCH.with_trunk(states_of).select(torch.tensor([1, 0]))
            alone_ND = backbone.hidden(BATCH.select(torch.tensor([1, 0])))
            torch.testing.assert_close(reader.hidden(few), alone_ND, **TOLERANCE)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_the_model_s_own_logits(family: str, trained: bool) -> None:
    """T5's scaling, BART's bias and a head that only its storage tells from a tied one are in them."""
    model = new_encoder_decoder(family).requires_grad_(trained)
    branch = Branch(EncoderDecoderBackbone(model))
    assert (branch.head.linear.weight is model.get_input_embeddings().weight) == (family != "flan-t5")
    assert (branch.head.scale != 1.0) == (family in ("t5", "t5-gated"))
    start = model.config.decoder_start_token_id
    expected = []
    with torch.no_grad():
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *answer[:-1]]])}
            logits_RV = model(**inputs).logits[0]
            expected.append(logits_RV.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    found_BR = branch.logprobs(BATCH)
    torch.testing.assert_close(found_BR[BATCH.mask_BR], torch.cat(expected), **TOLERANCE)
    assert (found_BR == 0)[~BATCH.mask_BR].all()


def test_a_decoder_without_a_start_token_is_refused() -> None:
    model = new_encoder_decoder("t5")
    assert start_token_of(model) == 1
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        start_token_of(model)
