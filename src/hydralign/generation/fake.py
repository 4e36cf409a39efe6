"""A sampler that answers from a script: for tests of rewards and loops without chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hydralign.data.detokenise import decode_completions
from hydralign.generation.sampler import batch_of
from hydralign.models.policy import Policy
from hydralign.types import Prompt, Rollout, SamplingParams


@dataclass(frozen=True)
class ScriptedSampler:
    """Gives prompt i the i-th scripted token ids (cycling); log-probabilities and values are the policy's own."""

    answers: tuple[tuple[int, ...], ...]

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        """The scripted answers as a rollout; a row is finished if its answer ends with a stop token."""
        answers = [self.answers[(params.first_row + i) % len(self.answers)] for i in range(len(prompts))]
        prompt_ids = [prompt.token_ids for prompt in prompts]
        batch = batch_of(policy, prompt_ids, answers, params)
        output = policy.evaluate(batch)
        finished = [bool(answer) and answer[-1] in policy.stop_ids for answer in answers]
        return Rollout(
            prompts=tuple(prompts),
            rows=batch,
            old_logprobs_BR=output.logprobs_BR,
            values_BR=output.values_BR,
            finished_B=torch.tensor(finished, device=policy.device),
            completions=tuple(decode_completions(policy.tokenizer, prompt_ids, answers)),
        )
