"""`trl_old.py` on a T5 shape: LoRA of rank 32 on q and v, or with `--full` every weight. In the same environment."""

import argparse
import json
import statistics
import time

import torch
from geometry import add_geometry, fill
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model
from trl_old import peak_mb


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="train every weight")
    add_geometry(parser)
    a = fill(parser.parse_args())
    import_mb = peak_mb()
    torch.manual_seed(0)
    trainer = build(a)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": a.r, "min_new_tokens": a.r}
    seconds = []
    for _ in range(a.iters + 1):
        queries = list(torch.randint(2, a.vocab, (a.batch, a.q)))
        started = time.perf_counter()
        answers = trainer.generate(queries, batch_size=a.batch, **settings)
        trainer.step(queries, answers, list(torch.randn(a.batch)))
        seconds.append(time.perf_counter() - started)
    steps = a.epochs * a.batch // a.mini
    measured = {"peer": "TRL 0.11.4", "seconds": statistics.median(seconds[1:]), "optimizer_steps": steps}
    print(json.dumps({**measured, "import_mb": import_mb, "peak_mb": peak_mb(), "args": vars(a)}))


def build(a: argparse.Namespace) -> PPOTrainer:
    """The classic trainer around the shape of T5's first version."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(a.vocab)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    config = T5Config(
        vocab_size=a.vocab,
        num_layers=a.layers,
        d_model=a.dim,
        d_kv=a.dim // a.heads,
        num_heads=a.heads,
        d_ff=4 * a.dim,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
    )
    model = T5ForConditionalGeneration(config)
    if a.full:
        policy = AutoModelForSeq2SeqLMWithValueHead(model)
        policy.is_peft_model = False
    else:
        targets = ["q", "v"]
        adapters = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=32, lora_alpha=32, target_modules=targets)
        adapted = get_peft_model(model, adapters)
        policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(adapted, is_trainable=True)
    settings = PPOConfig(batch_size=a.batch, mini_batch_size=a.mini, ppo_epochs=a.epochs, learning_rate=1.4e-5, seed=0)
    return PPOTrainer(settings, policy, create_reference_model(policy), tokenizer)


if __name__ == "__main__":
    main()
