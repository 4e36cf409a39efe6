"""One PPO iteration of TRL 0.11.4 (`PPOTrainer.generate` and `.step`) on random weights, as one JSON line.

Runs in an environment of its own: torch, trl==0.11.4, transformers==4.46.3, peft==0.13.2, accelerate==1.1.1,
"datasets<4", "numpy<2", "pyarrow<21", rich. Answers never end early; rewards are random numbers.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from geometry import add_geometry, fill
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frozen", type=int, default=0, help="bottom layers that policy and reference share, frozen")
    add_geometry(parser)
    a = fill(parser.parse_args())
    import_mb = peak_mb()
    torch.manual_seed(0)
    trainer = build(a)
    seconds = []
    for _ in range(a.iters + 1):
        queries = list(torch.randint(1, a.vocab, (a.batch, a.q)))
        started = time.perf_counter()
        answers = trainer.generate(
            queries,
            batch_size=a.batch,
            return_prompt=False,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=a.r,
            min_new_tokens=a.r,
            eos_token_id=None,
            pad_token_id=0,
        )
        trainer.step(queries, [answer[: a.r] for answer in answers], list(torch.randn(a.batch)))
        seconds.append(time.perf_counter() - started)
    steps = a.epochs * a.batch // a.mini
    told = {"peer": "TRL 0.11.4", "seconds": statistics.median(seconds[1:]), "optimizer_steps": steps}
    print(json.dumps({**told, "import_mb": import_mb, "peak_mb": peak_mb(), "args": vars(a)}))


def build(a: argparse.Namespace) -> PPOTrainer:
    """The classic trainer around a GPT-2 shape."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(a.vocab)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0", padding_side="left")
    config = GPT2Config(
        vocab_size=a.vocab,
        n_layer=a.layers,
        n_embd=a.dim,
        n_head=a.heads,
        n_positions=1024,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLMWithValueHead(GPT2LMHeadModel(config))
    model.is_peft_model = False
    reference = create_reference_model(model, num_shared_layers=a.frozen or None)
    settings = PPOConfig(batch_size=a.batch, mini_batch_size=a.mini, ppo_epochs=a.epochs, learning_rate=1.4e-5, seed=0)
    return PPOTrainer(settings, model, reference, tokenizer)


def peak_mb() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
