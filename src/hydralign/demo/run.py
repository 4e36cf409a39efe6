"""`hydralign demo`: the whole loop, offline, on the model that comes with the package.

Supervised fine-tuning on made-up reviews, pairs of the model's own answers, choices by a simulated annotator, a reward
model trained on them, PPO, and a comparison on held-out prompts whose score is the annotator's own rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from hydralign.config import Recipe, load_recipe
from hydralign.data import load_prompts
from hydralign.demo.annotator import Answer, prefers_first
from hydralign.demo.texts import demonstrations, prompts
from hydralign.files import write_text
from hydralign.generation import sample
from hydralign.methods.sampling import sampling_params
from hydralign.models import load_policy
from hydralign.models.policy import Policy
from hydralign.progress import progress, say
from hydralign.runs.lock import locked
from hydralign.runs.recipes import claim_folder, run_section
from hydralign.runs.section_files import read_result
from hydralign.types import Prompt, SamplingParams

DEMONSTRATIONS = 800
"""Openings that get an ending to imitate; the other openings are prompts only."""

PAIRS = 2
"""Pairs of answers to each training prompt."""

WRONG = 0.1
"""Share of the annotator's choices that are turned round."""


def demo_recipe(overrides: Iterable[str] = ()) -> Recipe:
    """The demonstration's recipe with the packaged model in it."""
    home = files("hydralign.demo")
    with_model = ["--model.path", str(home / "model"), *overrides]
    return load_recipe(Path(str(home / "recipe.yaml")), with_model)


def run_demo(overrides: Iterable[str] = ()) -> None:
    """Run every part that is not finished yet, and print what came out."""
    recipe = demo_recipe(overrides)
    disable_progress_bar()
    output = Path(recipe.output).expanduser()
    with locked(output):
        _run_parts(recipe, output)


def _run_parts(recipe: Recipe, output: Path) -> None:
    claim_folder(output, recipe)
    write_texts(output / "data")
    say("1 of 4: supervised fine-tuning on made-up reviews.")
    run_section(recipe, "sft", tell_settings=False)
    say("2 of 4: a simulated annotator chooses between answers; a reward model learns its choices.")
    if not (output / "data" / "comparisons.jsonl").exists():
        write_comparisons(recipe, output)
    run_section(recipe, "reward", tell_settings=False)
    say("3 of 4: PPO against the reward model.")
    run_section(recipe, "ppo", tell_settings=False)
    say("4 of 4: held-out prompts, before and after, scored by the annotator's own rule.")
    run_section(recipe, "compare", tell_settings=False)
    result = read_result(output / "compare")
    say(f"{result['metrics']['score']['sentence']} The annotator is simulated: a rule, not a person.")
    say(f"Open {(output / 'report.html').resolve()} in a browser.")


def write_texts(folder: Path) -> None:
    """demonstrations.jsonl and prompts.jsonl; both are made of phrases, and the same every time."""
    openings = prompts()
    pairs = demonstrations(openings[:DEMONSTRATIONS])
    _write(folder / "demonstrations.jsonl", ({"prompt": prompt, "completion": text} for prompt, text in pairs))
    _write(folder / "prompts.jsonl", ({"prompt": prompt} for prompt in openings[DEMONSTRATIONS:]))


def write_comparisons(recipe: Recipe, output: Path) -> None:
    """comparisons.jsonl: pairs of the fine-tuned model's answers to training prompts, and the annotator's choices."""
    assert recipe.ppo is not None
    assert recipe.data.prompts is not None
    policy = load_policy(str(output / "sft" / "model"))
    asked = load_prompts(recipe.data.prompts, policy.tokenizer, seed=recipe.seed).train
    params = sampling_params(recipe.ppo.sampling, recipe.seed)
    asked = tuple(prompt for prompt in asked for _ in range(PAIRS))
    first, second = sampled_answers(policy, asked, params)
    rows = [
        compared(prompt.text, one, other, seed=recipe.seed)
        for prompt, one, other in zip(asked, first, second, strict=True)
        if one != other
    ]
    _write(output / "data" / "comparisons.jsonl", rows)
    say(f"{len(rows):,} pairs labelled by the simulated annotator, about {WRONG:.0%} of them wrongly on purpose.")


def sampled_answers(
    policy: Policy, asked: Sequence[Prompt], params: SamplingParams
) -> tuple[list[Answer], list[Answer]]:
    """Two answers to each prompt, shown on a progress bar. How many rows are decoded together changes none of them."""
    sides: tuple[list[Answer], list[Answer]] = ([], [])
    with progress("answers", 2 * len(asked)) as shown:
        for side, answers in enumerate(sides):
            for start in range(0, len(asked), params.decode_batch_size):
                few = asked[start : start + params.decode_batch_size]
                rollout = sample(policy, few, params.at(ANNOTATION + side, first_row=start))
                answers += map(Answer, rollout.completions, rollout.finished_B.tolist())
                shown.update(side * len(asked) + len(answers), {})
    return sides


def compared(prompt: str, one: Answer, other: Answer, *, seed: int) -> dict[str, Any]:
    """The annotator's choice between two answers, as a row of comparisons.jsonl."""
    if not prefers_first(prompt, one, other, wrong=WRONG, seed=seed):
        one, other = other, one
    return {
        "prompt": prompt,
        "chosen": one.text,
        "rejected": other.text,
        "chosen_finished": one.finished,
        "rejected_finished": other.finished,
        "annotator": "simulated",
    }


ANNOTATION = 0xFFFF_0000
"""Iteration numbers that key the answers which are compared; no training iteration reaches them."""


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
