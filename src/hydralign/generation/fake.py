"""A sampler that answers from a script: for tests of rewards and loops without chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hydralign.data.detokenise import decode_completions
from hydralign.models.policy import Policy
from hydralign.types import Prompt, Rollout, SamplingParams, TokenBatch


@dataclass(frozen=True)
class ScriptedSampler:
    """Gives prompt i the i-th scripted token ids (cycling); log-probabilities and values are the policy's own."""

    answers: tuple[tuple[int, ...], ...]

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        """The scripted answers as a rollout; a row is finished if its answer ends with a stop token."""
        answers = [self.answers[(params.first_row + i) % len(self.answers)] for i in range(len(prompts))]
        prompt_ids = [prompt.token_ids for prompt in prompts]
        batch = TokenBatch.of(
            prompt_ids,
            answers,
            pad_id=policy.tokenizer.pad_token_id,
            device=policy.device,
            temperature=params.temperature,
            min_new_tokens=params.min_new_tokens,
            stop_ids=policy.stop_ids,
        )
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
