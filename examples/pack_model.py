"""Store a model folder with half the bytes: weights rounded to fp16, everything else as it was.

python examples/pack_model.py out/film-language-model/sft/model small-model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, round, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a causal language model")
    parser.add_argument("target", type=Path, help="folder to write")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype=torch.float16)
    model.save_pretrained(arguments.target)
    AutoTokenizer.from_pretrained(arguments.source).save_pretrained(arguments.target)
    size = sum(file.stat().st_size for file in arguments.target.iterdir()) / 2**20
    print(f"{model.num_parameters():,} parameters, {size:.1f} MB in {arguments.target}")


if __name__ == "__main__":
    main()
