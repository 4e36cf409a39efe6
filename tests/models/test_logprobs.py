"""The trained head and the token embeddings: gradients that are formed by hand are those of plain autograd."""

from __future__ import annotations

import copy
import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hydralign.config.model import HydraForm
from hydralign.errors import GradientError
from hydralign.methods.start_checks import check_start
from hydralign.models import make_policy
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.branch import Branch
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels import logprobs
from hydralign.models.kernels.tied_embedding import look_up
from hydralign.types import TokenBatch
from tests.conftest import cut_rows, shake
from tests.models.test_hydra import collected, moved, new_policy
from tests.models.test_policies import gradients
from tests.models.test_slicing import new_model

STOPS = [2, 7, 2499]


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """hidden_ND, targets_N (never a stop), blocked_N."""
    draw = torch.Generator().manual_seed(5)
    hidden_ND = torch.randn(10, 32, generator=draw) * 2
    return hidden_ND, torch.randint(9, 2400, (10,), generator=draw), torch.arange(10) % 3 == 0


@pytest.mark.parametrize("elements", [1, 7000, 1 << 19])  # one, two and all rows at once
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "granite"])
def test_a_trained_head_gets_the_gradients_of_autograd(
    family: str, temperature: float, chunk: int | None, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", {"cpu": elements})
    head = TokenHead(new_model(family, vocab_size=2500))
    head.softcap = head.softcap and 3.0  # small enough to bend these logits
    hidden_ND, targets_N, blocked_N = drawn()
    weights_N = torch.randn(2, 10, generator=torch.Generator().manual_seed(6))
    for kinds in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.5)):
        found, wide = hidden_ND.clone().requires_grad_(), hidden_ND.double().requires_grad_()
        settings: dict[str, Any] = {"temperature": temperature, "stop_ids": STOPS, "chunk_rows": chunk}
        ours = logprobs.token_logprobs(
            found, targets_N, blocked_N, head=head, entropy_gradient=kinds[1] > 0, **settings
        )
        theirs = by_autograd(head, wide, targets_N, blocked_N, temperature, STOPS)
        gradients = []
        for (chosen_N, entropy_N), states_ND in ((ours, found), (theirs, wide)):
            loss = kinds[0] * (chosen_N @ weights_N[0].to(chosen_N)) + kinds[1] * (
                entropy_N @ weights_N[1].to(chosen_N)
            )
            gradients.append(torch.autograd.grad(loss, [states_ND, head.linear.weight]))
        torch.testing.assert_close(torch.stack(ours).double(), torch.stack(theirs), atol=1e-5, rtol=0)
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine.double(), other.double(), atol=2e-5, rtol=1e-5)
            assert other.abs().max() > 1e-3


def test_a_target_that_is_a_blocked_stop_moves_its_own_logit_no_more_than_autograd_does() -> None:
    head = TokenHead(new_model("gptj", vocab_size=2500))
    hidden_ND, targets_N, blocked_N = drawn()
    targets_N[0] = 7
    assert bool(blocked_N[0])
    (chosen_N, _) = logprobs.token_logprobs(
        hidden_ND, targets_N, blocked_N, head=head, temperature=1.0, stop_ids=STOPS, entropy=False
    )
    chosen_N.sum().backward()
    logits_NV = head(hidden_ND)
    shaped_NV = logprobs.apply_temperature_and_min_length(
        logits_NV, temperature=1.0, stop_ids=STOPS, blocked_N=blocked_N
    )
    by_hand_N = torch.log_softmax(shaped_NV, -1).gather(1, targets_N[:, None])[:, 0]
    (expected,) = torch.autograd.grad(by_hand_N.sum(), head.linear.weight)
    torch.testing.assert_close(head.linear.weight.grad, expected, atol=1e-5, rtol=0)


def test_a_second_backward_through_what_was_overwritten_is_an_error() -> None:
    hidden_ND, targets_N, blocked_N = drawn()
    head = TokenHead(new_model("gpt2", vocab_size=2500))
    chosen_N, _ = logprobs.token_logprobs(
        hidden_ND, targets_N, blocked_N, head=head, temperature=1.0, stop_ids=(), entropy=False
    )
    chosen_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        chosen_N.sum().backward()


# The frozen head.


def by_autograd(
    head: TokenHead, hidden_ND: Tensor, targets_N: Tensor, blocked_N: Tensor, temperature: float, stops: list[int]
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in fp64 from the definitions, blocked tokens left out of the sum."""
    linear = head.linear
    bias = 0.0 if linear.bias is None else linear.bias.double()
    logits_NV = (hidden_ND @ linear.weight.double().t() + bias) * head.scale
    if head.softcap:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    barred_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
    barred_NV[:, stops] = blocked_N[:, None]
    logprobs_NV = torch.log_softmax((logits_NV / temperature).masked_fill(barred_NV, -math.inf), -1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV.masked_fill(barred_NV, 0.0)).sum(-1)
    return logprobs_NV.gather(1, targets_N[:, None])[:, 0], entropy_N


@pytest.mark.parametrize("trained", [True, False])
def test_the_chunked_head_is_the_plain_one(trained: bool) -> None:
    head = TokenHead(new_model("gemma2", vocab_size=2500).requires_grad_(trained), absent_ids=[4, 2498])
    hidden_ND, targets_N, blocked_N = drawn()
    found, plain = hidden_ND.clone().requires_grad_(), hidden_ND.clone().requires_grad_()
    settings: dict[str, Any] = {"head": head, "temperature": 0.7, "stop_ids": STOPS}
    ours = logprobs.token_logprobs(found, targets_N, blocked_N, **settings, entropy_gradient=True, chunk_rows=4)
    theirs = logprobs.plain_token_logprobs(plain, targets_N, blocked_N, **settings)
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-5, rtol=0)
    (a,), (b,) = (torch.autograd.grad(torch.stack(x).sum(), y) for x, y in ((ours, found), (theirs, plain)))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert b.abs().max() > 1e-3


@pytest.mark.parametrize(("rows", "blocks"), [(None, 1), (None, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "granite", "cohere"])
def test_gradients_formed_with_a_frozen_head_are_those_of_autograd(
    family: str, temperature: float, rows: int | None, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = TokenHead(new_model(family, vocab_size=2500).requires_grad_(False))
    head.softcap = head.softcap and 3.0  # small enough to bend these logits
    scaled = {"gemma2": head.softcap == 3.0, "granite": head.scale == 0.25, "cohere": head.scale == 0.0625}
    assert scaled.get(family, (head.softcap, head.scale) == (None, 1.0))
    seen: list[range] = []
    block = TokenHead.block

    def watched(head: TokenHead, hidden_ND: Tensor, tokens: range) -> Tensor:
        seen.append(tokens)
        return block(head, hidden_ND, tokens)

    if blocks > 1:
        monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(TokenHead, "block", watched)
    draw = torch.Generator().manual_seed(5)
    hidden_ND = torch.randn(10, 32, generator=draw) * 2
    targets_N, blocked_N = torch.randint(9, 1500, (10,), generator=draw), torch.arange(10) % 3 == 0
    targets_N[5:] += 999  # some in every block
    stops = [2, 7, 2499]
    weight_N, other_N = torch.randn(10, generator=draw), torch.randn(10, generator=draw)
    found, wide = hidden_ND.clone().requires_grad_(), hidden_ND.double().requires_grad_()
    chosen_N, entropy_N = logprobs.token_logprobs(
        found, targets_N, blocked_N, head=head, temperature=temperature, stop_ids=stops, entropy_gradient=True,
        chunk_rows=rows,
    )  # fmt: skip
    assert len(set(seen)) == blocks
    expected_N, spread_N = by_autograd(head, wide, targets_N, blocked_N, temperature, stops)
    torch.testing.assert_close(chosen_N.double(), expected_N, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy_N.double(), spread_N, atol=1e-5, rtol=0)
    for ours, theirs in (
        (chosen_N @ weight_N, expected_N @ weight_N.double()),
        (entropy_N @ other_N, spread_N @ other_N.double()),
        (chosen_N @ weight_N + entropy_N @ other_N, expected_N @ weight_N.double() + spread_N @ other_N.double()),
    ):
        (a,), (b,) = (torch.autograd.grad(*x, retain_graph=True) for x in ((ours, found), (theirs, wide)))
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)
        assert b.abs().max() > 1e-4


def test_a_frozen_and_a_trained_head_give_one_gradient_in_bf16_too(tokenizer: Any) -> None:
    policy = new_policy("mistral", "k2-values", tokenizer, precision="bf16")
    rows = collected(policy).rollout.rows
    shake(policy)
    assert policy.branch.head.frozen
    formed = gradients(policy, rows, list(range(6)), 6)
    policy.model.get_output_embeddings().weight.requires_grad_(True)
    assert not policy.branch.head.frozen
    stored = gradients(policy, rows, list(range(6)), 6)
    scale = max(g.abs().max().item() for g in stored.values())
    for name, gradient in formed.items():
        torch.testing.assert_close(gradient / scale, stored[name] / scale, atol=1e-2, rtol=0)


def test_entropies_carry_a_gradient_only_when_asked() -> None:
    policy, rows = moved("gemma2", "k1")
    plain, asked = policy.evaluate(rows), policy.evaluate(rows, entropy_gradient=True)
    assert torch.equal(plain.entropy_BR, asked.entropy_BR)
    assert torch.equal(plain.logprobs_BR, asked.logprobs_BR)
    parameter = policy.branch.backbone.body.norm.weight
    (gradient,) = torch.autograd.grad(asked.entropy_BR.sum(), parameter)
    assert gradient.abs().max() > 1e-3
    assert not plain.entropy_BR.requires_grad


# The head while sampling.


@pytest.mark.parametrize("states", [1, 3, 8, 32, 33])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_a_head_laid_out_for_few_states_gives_the_same_logits(family: str, states: int) -> None:
    head = TokenHead(new_model(family, vocab_size=2500).requires_grad_(False))
    hidden_ND = torch.randn(40, 1, 32, generator=torch.Generator().manual_seed(2))[:states, -1]
    with torch.no_grad():
        plain_NV = head(hidden_ND)
        head.product.pack()
        assert head.product.packed is not None
        torch.testing.assert_close(head(hidden_ND), plain_NV, atol=1e-5, rtol=0)
        head.linear.weight.mul_(2)
        product_NV = hidden_ND @ head.linear.weight.t()
        torch.testing.assert_close(head(hidden_ND), head._shaped(product_NV, range(2500)), atol=1e-5, rtol=0)


def test_only_frozen_heads_and_long_answers_are_laid_out(tokenizer: Any) -> None:
    def packed(precision: str = "fp32", new_tokens: int = 32, **form: Any) -> bool:
        policy = new_policy("llama", HydraForm(unfrozen_layers=1, **form), tokenizer, precision=precision)
        policy.start([(5, 6, 7)], new_tokens)
        return policy.whole.head.product.packed is not None

    assert packed()
    assert not packed(new_tokens=31)
    assert not packed("bf16")
    full = TokenHead(new_model("llama"))
    full.product.pack()
    assert full.product.packed is None


@pytest.mark.parametrize("form", ["k1", "lora2"])
def test_long_answers_from_a_laid_out_head_pass_the_start_checks(form: str, tokenizer: Any) -> None:
    policy = new_policy("mistral", form, tokenizer)
    experience = collected(policy, max_new_tokens=36)
    assert policy.whole.head.product.packed is not None
    assert check_start(policy, experience, fresh=True)["sampler/logprob_drift_max"] < 1e-4


# Token embeddings.


@pytest.mark.parametrize("stored", [1 << 24, 9 * 300])  # one chunk, and three that are computed again
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])  # tied; a matrix of its own; tied and scaled
def test_what_is_looked_up_gets_the_gradient_of_autograd(
    family: str, precision: str, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "STORED_ELEMENTS", stored)
    model = new_model(family)
    plain = copy.deepcopy(model)
    rows = some_rows()
    branch = Branch(CausalBackbone(model, precision=precision))
    for _ in range(2):  # gradients of micro-batches add up
        hidden_ND = branch.backbone.hidden(rows)
        chosen_N, _ = branch.read_tokens(hidden_ND, rows, entropy=False)
        chosen_N.sum().backward()
        with branch.backbone.autocast():
            logits_BTV = plain(input_ids=lay_out(rows)).logits.float()
        row_N, position_N = rows.response_index
        column_N = rows.prompt_lengths_B[row_N] + position_N
        target_N1 = lay_out(rows)[row_N, column_N][:, None]
        torch.log_softmax(logits_BTV, -1)[row_N, column_N - 1].gather(1, target_N1).sum().backward()
    allowed = 1e-4 if precision == "fp32" else 3e-2
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None
        scale = max(1.0, float(theirs.grad.abs().max()))
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, atol=allowed, rtol=0, msg=name)


def some_rows() -> TokenBatch:
    ids_BT = torch.randint(2, 300, (3, 20), generator=torch.Generator().manual_seed(4))
    return cut_rows(ids_BT, [5, 12, 8], [15, 7, 3])


def test_a_tied_embedding_alone_frozen_or_untied() -> None:
    head, ids_BT = nn.Linear(2, 6, bias=False), torch.tensor([[1, 4, 1]])
    lookup = nn.Embedding(6, 2)
    lookup.weight = head.weight
    states_BTD = look_up(lookup, ids_BT, head=head)
    states_BTD *= 3  # some architectures scale what they are given in place
    states_BTD.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.tolist() == [[0, 0], [6, 6], [0, 0], [0, 0], [3, 3], [0, 0]]
    lookup.requires_grad_(False)
    assert not look_up(lookup, ids_BT, head=head).requires_grad
    with torch.no_grad():
        assert not look_up(lookup.requires_grad_(True), ids_BT, head=head).requires_grad
    own = nn.Embedding(6, 2)
    (gradient,) = torch.autograd.grad(look_up(own, ids_BT, head=head).sum(), own.weight)
    assert gradient.tolist() == [[0, 0], [2, 2], [0, 0], [0, 0], [1, 1], [0, 0]]


def test_part_of_a_tied_embedding_s_gradient_is_never_given(tokenizer: Any) -> None:
    policy, whole = (make_policy(new_model("gpt2"), tokenizer) for _ in range(2))
    rows = some_rows()
    weight, norm = policy.model.transformer.wte.weight, policy.model.transformer.ln_f.weight
    loss = policy.evaluate(rows).logprobs_BR.sum()
    with pytest.raises(GradientError, match=r"tied to the output head.*backward\(\)"):
        torch.autograd.grad(loss, [weight, norm])
    (gradient,) = torch.autograd.grad(policy.evaluate(rows).logprobs_BR.sum(), norm)  # of other weights it is right
    assert weight.grad is None
    whole.evaluate(rows).logprobs_BR.sum().backward()
    torch.testing.assert_close(whole.model.transformer.ln_f.weight.grad, gradient)
    del loss
    gc.collect()
    (alone,) = torch.autograd.grad(weight.sum(), weight)  # nothing is looked up, so this is the whole
    assert torch.equal(alone, torch.ones_like(weight))
    assert not weight._backward_hooks


@pytest.mark.parametrize("trained", [True, False])
def test_tokens_that_a_model_rules_out_leave_numbers_finite(trained: bool) -> None:
    model = new_model("gptj", vocab_size=2500)
    bias = model.get_output_embeddings().bias
    head = TokenHead(model.requires_grad_(trained))
    hidden_ND, targets_N, blocked_N = drawn()
    settings: dict[str, Any] = {"head": head, "temperature": 0.7, "stop_ids": STOPS, "entropy_gradient": True}
    found = []
    for low in (-math.inf, -1e3):
        with torch.no_grad():
            bias[:5] = low
        states_ND = hidden_ND.clone().requires_grad_()
        chosen_N, entropy_N = logprobs.token_logprobs(states_ND, targets_N, blocked_N, **settings)
        (gradient_ND,) = torch.autograd.grad((chosen_N + entropy_N).sum(), states_ND)
        found.append((chosen_N, entropy_N, gradient_ND))
    for ruled_out, unlikely in zip(*found, strict=True):
        assert bool(ruled_out.isfinite().all())
        torch.testing.assert_close(ruled_out, unlikely, atol=1e-5, rtol=0)
    targets_N[0] = 3
    with torch.no_grad():
        bias[:5] = -math.inf
        chosen_N, _ = logprobs.token_logprobs(hidden_ND, targets_N, blocked_N, **settings)
    assert chosen_N[0] == -math.inf
