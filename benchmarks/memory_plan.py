"""Compare the memory plan of `--dry-run` with what PPO iterations take, and print one JSON line.

    python benchmarks/memory_plan.py --geometries S L --forms full lora hydra --precisions fp32 bf16
    python benchmarks/memory_plan.py --family t5 --geometries T --forms full lora decoder-lora hydra --precisions fp32

Each pair is measured by `ppo_iteration.py` in a process of its own: `measured_mb` is its peak resident size less what
was resident after imports. `error` is plan ÷ measured − 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from geometry import GEOMETRIES, t5_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from hydralign.config import FullForm, HydraForm, LoraForm
from hydralign.config.model import Form
from hydralign.models import make_model
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone
from hydralign.models.branch import Branch
from hydralign.models.encoder_decoder_sizes import EncoderDecoderSizes, encoder_decoder_sizes_of
from hydralign.models.sizes import ModelSizes, sizes_of
from hydralign.runs.encoder_decoder_memory import plan_encoder_decoder_memory
from hydralign.runs.memory_plan import MB, SEPARATE, MemoryPlan, Separate, Work, plan_memory

FORMS: dict[str, Form | Separate] = {
    "full": FullForm(),
    "lora": LoraForm(),
    "hydra": HydraForm(unfrozen_layers=2),
    "separate": SEPARATE,
}
T5_FORMS: dict[str, Form] = {
    "full": FullForm(),
    "lora": LoraForm(rank=32, alpha=32),
    "decoder-lora": LoraForm(rank=32, alpha=32, decoder_only=True),
    "hydra": HydraForm(unfrozen_layers=2),
}
Sizes = ModelSizes | EncoderDecoderSizes


def main() -> None:
    """Parse, plan, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=["gpt2", "t5"], default="gpt2")
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--forms", nargs="+", choices={**FORMS, **T5_FORMS})
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iters", type=int, default=2)
    arguments = parser.parse_args()
    known = T5_FORMS if arguments.family == "t5" else FORMS
    unknown = set(arguments.forms or ()) - set(known)
    if unknown:
        parser.error(f"family {arguments.family} is not measured in the forms {sorted(unknown)}")
    pairs = [
        pair(geometry, form, precision, sizes, arguments)
        for geometry in arguments.geometries
        for precision in arguments.precisions
        for sizes in [sizes_in(geometry, precision, arguments.family)]
        for form in arguments.forms or known
    ]
    print(json.dumps({"worst": max(abs(each["error"]) for each in pairs), "pairs": pairs}))


def pair(geometry: str, form: str, precision: str, sizes: Sizes, arguments: argparse.Namespace) -> dict[str, Any]:
    """One form on one geometry: planned and measured peak in MB."""
    planned = plan_of(sizes, geometry, form, precision)
    measured = measured_mb(geometry, form, precision, arguments)
    return {
        "family": arguments.family,
        "geometry": geometry,
        "form": form,
        "precision": precision,
        "plan_mb": round(planned.peak / MB, 1),
        "measured_mb": round(measured, 1),
        "error": round(planned.peak / MB / measured - 1, 4),
        "phase": planned.peak_phase,
    }


def sizes_in(geometry: str, precision: str, family: str) -> Sizes:
    """The sizes of the model that `ppo_iteration.py` makes."""
    shape = GEOMETRIES[geometry]
    if family == "t5":
        backbone = EncoderDecoderBackbone(T5ForConditionalGeneration(t5_config(**shape)).eval(), precision=precision)
        return encoder_decoder_sizes_of(Branch(backbone), prompt=shape["q"], answer=shape["r"])
    words = Tokenizer(models.WordLevel({str(i): i for i in range(shape["vocab"])}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")
    model = make_model(
        tokenizer, family="gpt2", layers=shape["layers"], width=shape["dim"], heads=shape["heads"], context=1024
    )
    return sizes_of(
        Branch(CausalBackbone(model, precision=precision)), columns=shape["q"] + shape["r"], answer=shape["r"]
    )


def plan_of(sizes: Sizes, geometry: str, form: str, precision: str) -> MemoryPlan:
    """The plan of the iterations that `ppo_iteration.py` runs."""
    shape = GEOMETRIES[geometry]
    work = Work(
        prompt=shape["q"],
        answer=shape["r"],
        rows=shape["batch"],
        decode_batch_size=shape["batch"],
        micro_batch_size=shape["mini"],
        minibatch_rows=shape["mini"],
    )
    if isinstance(sizes, EncoderDecoderSizes):
        return plan_encoder_decoder_memory(sizes, T5_FORMS[form], work, precision=precision, fresh=True)
    return plan_memory(sizes, FORMS[form], work, precision=precision, fresh=True)


def measured_mb(geometry: str, form: str, precision: str, arguments: argparse.Namespace) -> float:
    """Peak resident size above the imports, of a fresh process."""
    shown = {name: getattr(arguments, name) for name in ("family", "epochs", "iters")}
    settings = {"form": form.removeprefix("decoder-"), "dtype": precision, "geometry": geometry, "k": 2, **shown}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    options += ["--decoder-only"] if form.startswith("decoder-") else []
    script = Path(__file__).with_name("ppo_iteration.py")
    done = subprocess.run(
        [sys.executable, str(script), *options],
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return float(told["peak_mb"] - told["import_mb"])


if __name__ == "__main__":
    main()
