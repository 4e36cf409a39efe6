"""PPO iterations of TRL 1.12.0 (`trl.experimental.ppo`) on random weights, as one JSON line.

Runs in an environment of its own: torch, trl==1.12.0, transformers==5.23.0, peft, accelerate, datasets. Policy, value
and reference are three full models; the reward model is made so small that its cost is nothing.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from geometry import add_geometry, fill
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Times(TrainerCallback):
    """When each iteration ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser()
    add_geometry(parser)
    a = fill(parser.parse_args())
    import_mb = peak_mb()
    torch.manual_seed(0)
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        build(a, times, folder).train()
    seconds = [after - before for before, after in zip(times.ends[:-1], times.ends[1:], strict=True)]
    told = {"peer": "TRL 1.12.0", "seconds": statistics.median(seconds), "optimizer_steps": a.epochs}
    print(json.dumps({**told, "import_mb": import_mb, "peak_mb": peak_mb(), "args": vars(a)}))


def build(a: argparse.Namespace, times: Times, folder: str) -> PPOTrainer:
    """The trainer around GPT-2 shapes."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(a.vocab)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0", padding_side="left")

    def shape(layers: int, width: int, heads: int) -> GPT2Config:
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": 1024}
        return GPT2Config(vocab_size=a.vocab, num_labels=1, **sizes, **ids)

    whole = shape(a.layers, a.dim, a.heads)
    settings = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=a.mini,
        gradient_accumulation_steps=a.batch // a.mini,
        num_mini_batches=a.batch // a.mini,
        num_ppo_epochs=a.epochs,
        total_episodes=a.batch * (a.iters + 1),
        response_length=a.r,
        local_rollout_forward_batch_size=a.batch,
        bf16=False,
        gradient_checkpointing=False,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        logging_steps=1000,
        temperature=1.0,
    )
    prompts = torch.randint(1, a.vocab, (a.batch * (a.iters + 2), a.q)).tolist()
    return PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=GPT2LMHeadModel(whole),
        ref_model=GPT2LMHeadModel(whole),
        value_model=GPT2ForSequenceClassification(whole),
        reward_model=GPT2ForSequenceClassification(shape(1, 8, 1)),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[times],
    )


def peak_mb() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
