"""The generation config of a model, so that it can be saved after training.

transformers loads settings that it later refuses to save, such as a length penalty without beams; after hours of
training that would lose the model. So saving is tried when a model is loaded, and what does not fit is left out.
Nothing in hydralign reads these settings but the tokens that end an answer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import GenerationConfig

from hydralign.errors import first_line
from hydralign.progress import say

FILE = "generation_config.json"
TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
SWITCHES = ("do_sample", "num_beams", "return_dict_in_generate", "use_cache")
"""Settings that say whether others have a meaning, so they are kept first."""

SEARCHES = (
    *("num_beams", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "repetition_penalty"),
    *("min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
"""Settings that force or forbid tokens, or search for likely answers."""


def read_generation_config(folder: str) -> GenerationConfig | None:
    """The generation config of a local model folder that transformers would not load as it is, without what does not
    fit; None where transformers needs no help, or there is no such file. Says what is left out.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"it holds {type(found).__name__}, not settings")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        say(f"{file} cannot be read ({error}): its settings are left out; answers end as config.json says.")
        about = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return GenerationConfig(**{name: about[name] for name in TOKENS if name in about and _are_tokens(about[name])})
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as error:  # whatever transformers raises for a setting, the others can be kept
        kept, dropped = _keep_what_saves({k: v for k, v in found.items() if not k.startswith("_")})
        say(f"{file}: {first_line(error)} {_left_out(dropped)}")
        return kept
    return None


def mend_generation_settings(model: Any) -> None:
    """Leave out, in place, what transformers would refuse to save of a model's generation config, or of such settings
    in its config; says which settings these were.
    """
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        broken = [name for name in TOKENS if not _are_tokens(getattr(generation, name, None))]
        for name in broken:
            setattr(generation, name, None)
        reason = why_unsaved(generation)
        if reason or broken:
            wanted = generation.to_dict()
            model.generation_config, dropped = _keep_what_saves(wanted) if reason else (generation, [])
            say(f"The model's generation config cannot be saved as it is. {_left_out([*broken, *dropped])}")
    # Settings that belong to the generation config are refused in the model's own.
    misplaced: Iterable[str] = getattr(model.config, "_get_generation_parameters", dict)()
    for name in misplaced:
        setattr(model.config, name, None)
    if misplaced:
        say(f"The model's config holds settings of generation, which cannot be saved there. {_left_out(misplaced)}")


def say_ignored_settings(model: Any) -> None:
    """Name what a generation config asks of a decoder that sampling here does not do: answers come from the model's own
    distribution, or what is learned from them would be about another one.
    """
    generation, usual = model.generation_config, GenerationConfig()
    asked = [name for name in SEARCHES if getattr(generation, name, None) not in (None, 0, getattr(usual, name, None))]
    if asked:
        listed = ", ".join(f"{name}={getattr(generation, name)}" for name in asked)
        say(f"The model's generation config asks for {listed}: ignored, since answers are drawn from the model itself.")


def why_unsaved(generation: GenerationConfig) -> str:
    """The first line of why a generation config cannot be saved and read again; empty when it can."""
    try:
        with TemporaryDirectory() as folder:
            # A config that was not changed since it was loaded is saved with a warning only; ours may be changed.
            fresh = GenerationConfig.from_dict(generation.to_dict())
            fresh.save_pretrained(folder)
            GenerationConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds, by setting
        return first_line(error)
    return ""


def _keep_what_saves(found: Mapping[str, Any]) -> tuple[GenerationConfig, list[str]]:
    """(a generation config of those settings that can be saved together, the names of the others)."""
    default = GenerationConfig().to_dict()
    first = [name for name in (*TOKENS, *SWITCHES) if name in found]
    names = [*first, *(name for name in found if name not in first)]
    config, dropped = GenerationConfig(), []
    for name in names:
        if found[name] == default.get(name) or name.startswith("_") or name == "transformers_version":
            continue
        trial = copy.deepcopy(config)
        setattr(trial, name, found[name])
        if (name in TOKENS and not _are_tokens(found[name])) or why_unsaved(trial):
            dropped.append(name)
        else:
            config = trial
    return config, dropped


def _are_tokens(value: Any) -> bool:
    """Whether a setting is a token id, a list of some, or left open."""
    listed = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(one, int) and not isinstance(one, bool) for one in listed)


def _left_out(names: Any) -> str:
    listed = ", ".join(names)
    return f"Left out, here and in what is saved: {listed}." if listed else "Everything else is kept."
