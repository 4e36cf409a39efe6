"""Parts that many tests share: a tokenizer, policies of every form and family, rows of unequal lengths."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydralign  # noqa: F401  (before torch, so that products do not depend on addresses)

os.environ["HF_HUB_OFFLINE"] = "1"  # tests never touch the network
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests compare runs to the bit, or to 1e-5: one kind of device for all

import pytest
import torch

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.models.backbones.trunk import CausalTrunkStates
from hydralign.models.policy import Policy
from hydralign.testing import tiny_policy, tiny_prompts, tiny_tokenizer
from hydralign.types import Experience, PolicyOutput, Prompt, Rollout, TokenBatch

torch.set_num_threads(1)

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _imports_out_of_garbage_collection() -> Iterator[None]:
    """What the imports made lives until the end: collections, which answer each lack of memory, need not visit it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _auto_is_fp32() -> Iterator[None]:
    """Precision `auto` is fp32 on every machine: no test depends on how fast one CPU multiplies bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydralign.models.bf16_speed.bf16_speed", lambda kind: 0.5)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


FORMS: dict[str, Form] = {
    "full": FullForm(),
    "lora": LoraForm(type="lora", rank=4),
    "hydra": HydraForm(unfrozen_layers=1),
    "hydra-values": HydraForm(unfrozen_layers=1, value="branch"),
    "hydra-lora": LoraForm(rank=4, unfrozen_layers=1),
}
FAMILIES = ("gpt2", "llama")


@pytest.fixture(params=[(family, form) for family in FAMILIES for form in FORMS], ids="-".join)
def policy(request: pytest.FixtureRequest, tokenizer: Any) -> Policy:
    """Every family in every form, fp32."""
    family, form = request.param
    return tiny_policy(family=family, form=FORMS[form], tokenizer=tokenizer)


@pytest.fixture
def prompts(tokenizer: Any) -> list[Prompt]:
    return tiny_prompts(tokenizer)


def cut_rows(ids_BT: torch.Tensor, prompts: list[int], responses: list[int], **more: Any) -> TokenBatch:
    """A batch out of rows of ids, each a prompt of the given length and then a response."""
    cuts = list(zip(ids_BT.tolist(), prompts, responses, strict=True))
    return TokenBatch.of([ids[:q] for ids, q, _ in cuts], [ids[q : q + r] for ids, q, r in cuts], **more)


def values_of(told: PolicyOutput | Rollout | Experience) -> torch.Tensor:
    """values_BR of a policy with a critic."""
    assert told.values_BR is not None
    return told.values_BR


def states_of(batch: TokenBatch) -> torch.Tensor:
    """trunk_BTD that a batch carries."""
    assert isinstance(batch.trunk, CausalTrunkStates)
    return batch.trunk.states_BTD


@pytest.fixture
def rows() -> TokenBatch:
    """Four rows of unequal prompt and answer lengths."""
    return TokenBatch.of(
        [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]], [[20, 21], [22, 23, 24, 25, 26], [27], [28, 29, 30]], pad_id=1
    )


def shake(policy: Policy, *, seed: int = 7, scale: float = 0.05) -> None:
    """Move every trained weight, as an update would, so that policy and reference differ and values are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
