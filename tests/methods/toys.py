"""Small worlds whose best policy is known: one favourite token, and walks on a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hydralign.config import PPOConfig
from hydralign.data import PromptStream
from hydralign.evaluation.held_out import Answers, answer_held_out
from hydralign.methods.ppo import PPOParts, train
from hydralign.methods.sampling import sampling_params
from hydralign.models import make_model
from hydralign.models.policy import Policy
from hydralign.rewards.combine import RewardTerm
from hydralign.tracking import JsonLines, Trackers
from hydralign.types import Prompt


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word; `<eos>` is 0, `<pad>` is 1, the words follow in order."""
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<pad>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def small_model(tokenizer: Any, *, family: str = "gpt2", layers: int = 1, width: int = 32, seed: int = 0) -> Any:
    """Random weights; embeddings wide enough apart that a frozen tied head can tell tokens with certainty."""
    model = make_model(tokenizer, family=family, layers=layers, width=width, heads=2, context=16, seed=seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    return model


def random_speaker(tokenizer: Any, *, family: str = "gpt2", layers: int = 1, width: int = 32, seed: int = 0) -> Any:
    """A small model after plain training on random words: every word is about as likely as any other, anywhere.

    Without this step a tied model of wide embeddings repeats its last word almost surely, and whether PPO ever sees
    another word is luck. Only the blocks are trained: the final norm and the head must stay able to be certain.
    """
    model = small_model(tokenizer, family=family, layers=layers, width=width, seed=seed)
    blocks = [p for name, p in model.named_parameters() if ".h." in name or ".layers." in name]
    generator = torch.Generator().manual_seed(seed)

    def random_words() -> list[list[int]]:
        return torch.randint(2, len(tokenizer), (64, 5), generator=generator).tolist()

    _learn_next_tokens(model, blocks, random_words, steps=60, pad=tokenizer.pad_token_id)
    return model


def taught(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Callable[..., Any],
    folder: Path,
    *,
    seed: int = 0,
    **settings: Any,
) -> list[dict[str, float]]:
    """Run PPO; returns its metrics by iteration."""
    import json

    config = toy_config(**settings)
    record = JsonLines(folder)
    parts = PPOParts(policy, PromptStream(tuple(prompts)), (RewardTerm("toy", reward),), folder, Trackers(record))
    try:
        train(config, parts, seed=seed)
    finally:
        record.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def toy_config(**settings: Any) -> PPOConfig:
    return PPOConfig.model_validate({"rewards": [{"type": "function", "function": "toys:unused"}], **settings})


def answered(policy: Policy, prompts: Sequence[Prompt], reward: Callable[..., Any], **settings: Any) -> Answers:
    """Fresh answers of the policy, by sampling, on random numbers that training never used."""
    plan = sampling_params(toy_config(**settings).sampling, seed=1)
    return answer_held_out(policy, prompts, (RewardTerm("toy", reward),), plan, micro_batch_size=256)


@dataclass(frozen=True)
class Walks:
    """A directed graph with a goal. An answer is a walk from its prompt's node; the shorter, the better."""

    edges: np.ndarray
    """edges[i, j] is True where one may step from i to j."""
    distance: np.ndarray
    """Fewest steps from each node to the goal, node 0."""
    longest: int = 10

    @property
    def names(self) -> list[str]:
        return [f"n{i}" for i in range(len(self.edges))]

    def optimality(self, prompts: Sequence[str], completion_tokens: Sequence[Sequence[str]]) -> list[float]:
        """1 for a shortest way to the goal, 0 for a way of `longest` steps, an illegal step or never arriving."""
        return [self._one(int(start[1:]), walk) for start, walk in zip(prompts, completion_tokens, strict=True)]

    def _one(self, start: int, walk: Sequence[str]) -> float:
        here = start
        for steps, name in enumerate(walk, start=1):
            if not name.startswith("n") or not self.edges[here, int(name[1:])]:
                return 0.0
            here = int(name[1:])
            if here == 0:
                return float((self.longest - steps) / (self.longest - self.distance[start]))
        return 0.0

    def random_walks(self, count: int, rng: np.random.Generator) -> list[list[int]]:
        """Walks from random nodes until the goal or `longest` steps; node numbers."""
        walks = []
        for _ in range(count):
            walk = [int(rng.integers(1, len(self.edges)))]
            while walk[-1] != 0 and len(walk) <= self.longest:
                walk.append(int(rng.choice(np.flatnonzero(self.edges[walk[-1]]))))
            walks.append(walk)
        return walks


def random_graph(nodes: int = 21, *, chance: float = 0.1, seed: int = 0) -> Walks:
    """A random graph in which every node reaches the goal within nine steps."""
    rng = np.random.default_rng(seed)
    while True:
        edges = rng.random((nodes, nodes)) < chance
        np.fill_diagonal(edges, False)
        distance = np.full(nodes, nodes)
        distance[0] = 0
        for _ in range(nodes):
            for i in range(1, nodes):
                if edges[i].any():
                    distance[i] = min(distance[i], 1 + distance[edges[i]].min())
        if edges.sum(1).min() > 0 and distance.max() < 10:
            return Walks(edges, distance)


def teach_to_walk(model: Any, tokenizer: Any, walks: Walks, *, steps: int, seed: int = 0) -> None:
    """Plain next-token training on random walks, so that the model starts as a random walker."""
    rng = np.random.default_rng(seed)

    def some_walks() -> list[list[int]]:
        return [[node + 2 for node in walk] + [tokenizer.eos_token_id] for walk in walks.random_walks(64, rng)]

    _learn_next_tokens(model, list(model.parameters()), some_walks, steps=steps, pad=tokenizer.pad_token_id)


def _learn_next_tokens(
    model: Any, trained: Sequence[torch.nn.Parameter], batch: Callable[[], list[list[int]]], *, steps: int, pad: int
) -> None:
    """So many steps of cross-entropy, each on a batch of token ids."""
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(steps):
        rows = batch()
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
