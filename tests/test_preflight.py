"""A mistake in any section is found before the first one runs, by --dry-run and run alike, and nothing is written."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hydralign.cli import main
from hydralign.config import load_recipe, read_config
from hydralign.config.recipe import Recipe
from hydralign.data import load_prompts
from hydralign.data.subsets import hash_order
from hydralign.distributed import SINGLE_PROCESS
from hydralign.errors import ConfigError, HydralignError
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.runs import recipes as runs
from hydralign.runs.kinds import all_steps
from hydralign.testing import tiny_model, tiny_tokenizer

Settings = dict[str, Any]
WORDS = ["this", "that", "thing", "other", "small", "plain"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a classifier, data of every kind and a reward file. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    sizes: Settings = {"family": "gpt2", "layers": 1, "width": 16, "heads": 2, "context": 32}
    for name, labels in (("judge", ("GOOD", "BAD")), ("score", ("score",))):
        make_classifier(tokenizer, **sizes, labels=labels).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    make_classifier(tokenizer, **{**sizes, "family": "bert"}, labels=["A", "B"]).save_pretrained(folder / "encoder")
    tiny: Settings = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **tiny)).save_pretrained(folder / "t5")
    few = GPT2Config(vocab_size=len(tokenizer) - 9, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(few).save_pretrained(folder / "few_rows")
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(bert).save_pretrained(folder / "bare_encoder")
    BertForMaskedLM(bert).save_pretrained(folder / "gap_filler")
    few_scores = GPT2Config(**few.to_dict() | {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id})
    GPT2ForSequenceClassification(few_scores).save_pretrained(folder / "few_rows_score")
    for name in ("encoder", "t5", "few_rows", "few_rows_score", "bare_encoder", "gap_filler"):
        tokenizer.save_pretrained(folder / name)
    openings = [f"{a} {b} and" for a in WORDS for b in WORDS]
    data: dict[str, list[Settings]] = {
        "demonstrations": [{"prompt": text, "completion": " words"} for text in openings],
        "comparisons": [{"prompt": text, "chosen": " plain words", "rejected": " other"} for text in openings],
        "labelled": [{"text": f"{text} {word}", "label": word} for word in WORDS[:2] for text in openings],
        "prompts": [{"prompt": text, "reference": " words"} for text in openings],
        "single": [{"text": text, "label": "this"} for text in openings],
        "few": [{"prompt": text} for text in openings[:2]],
        "long": [{"prompt": text * 12} for text in openings],
        "unfinished": [{"prompt": t, "chosen": "a", "rejected": "b", "chosen_finished": "maybe"} for t in openings],
    }
    for name, rows in data.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rule.py").write_text(
        "def length(completions):\n    return [float(len(c)) for c in completions]\n"
        "def wants(completions, colour):\n    return length(completions)\nnumber = 3\n"
    )
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def recipe(inputs: Path, tmp_path: Path) -> Settings:
    """A recipe with every kind of section; each case breaks one thing in it."""
    sources = ("demonstrations", "comparisons", "labelled", "prompts")
    split = {"by": "hash", "percent": 40}
    return {
        "output": str(tmp_path / "out"),
        "model": {"path": str(inputs / "model")},
        "data": {name: {"source": str(inputs / f"{name}.jsonl"), "held_out": split} for name in sources},
        "sft": {"batch": {"rows": 8}},
        "reward": [
            {"name": "pairs"},
            {"name": "labels", "task": {"type": "labels", "names": {"this": "THIS", "that": "THAT"}}},
        ],
        "ppo": {
            "steps": 1,
            "rewards": [
                {"type": "model", "path": "{output}/reward/pairs/model"},
                {"type": "function", "function": f"{inputs / 'rule.py'}:length", "minus_reference": "reference"},
            ],
            "sampling": {"max_new_tokens": 5},
            "batch": {"rows": 8, "minibatches": 1},
        },
        "compare": {
            "judges": [{"type": "classifier", "path": "{output}/reward/labels/model", "label": "this"}],
            "shares": [{"name": "mostly this", "of": "judge/THIS"}],
        },
    }


def change(settings: Settings, key: str, value: Any) -> Settings:
    """A copy with one setting changed; `IN` in a value stands for the folder of inputs."""
    settings = copy.deepcopy(settings)
    node: Any = settings
    *above, last = key.split(".")
    for part in above:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    inputs = str(Path(settings["model"]["path"]).parent)
    value = yaml.safe_load(yaml.safe_dump(value, width=10**6).replace("IN/", f"{inputs}/"))
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value
    return settings


FUNCTION = {"type": "function", "function": "IN/rule.py:length"}
JUDGE = {"type": "classifier", "path": "IN/judge", "label": "GOOD"}
OWN = "{output}/reward/labels/model"
CASES: dict[str, tuple[str, Any, str, list[str]]] = {
    "column of demonstrations": ("data.demonstrations.columns", {"prompt": "promt"}, "sft", ["'promt'", "'prompt'"]),
    "rows per step": ("sft.max_tokens", 4000, "sft", ["4000", "64 positions"]),
    "too few demonstrations": ("data.demonstrations.held_out", {"by": "none"}, "sft", ["0 held out"]),
    "column of comparisons": ("data.comparisons.columns", {"chosen": "chosn"}, "reward/pairs", ["'chosn'"]),
    "comparisons missing": ("data.comparisons.source", "IN/gone.jsonl", "reward/pairs", ["gone.jsonl"]),
    "data of another kind": ("data.comparisons.source", "IN/prompts.jsonl", "reward/pairs", ["no columns for compar"]),
    "neither yes nor no": ("data.comparisons.source", "IN/unfinished.jsonl", "reward/pairs", ["'maybe'"]),
    "no comparisons": ("data.comparisons", None, "reward/pairs", ["data.comparisons"]),
    "label without a name": ("reward.1.task.names", {"this": "A", "thot": "B"}, "reward/labels", ["'that'", "'thot'"]),
    "a single label": ("data.labelled.source", "IN/single.jsonl", "reward/labels", ["single label"]),
    "labels of a test": ("reward.1.test", {"source": "IN/gone.csv"}, "reward/labels", ["gone.csv"]),
    "frozen layers": ("reward.0.freeze_layers", 9, "reward/pairs", ["freeze_layers=9", "2 blocks"]),
    "reward model's length": ("reward.0.max_tokens", 900, "reward/pairs", ["max_tokens=900", "64"]),
    "reward file missing": ("ppo.rewards.1.function", "IN/gone.py:length", "ppo", ["gone.py"]),
    "reward file that fails": ("ppo.rewards.1.function", "IN/broken.py:length", "ppo", ["nothing_of_this_name"]),
    "reward function missing": ("ppo.rewards.1.function", "IN/rule.py:lenght", "ppo", ["'length'"]),
    "reward that is no function": ("ppo.rewards.1.function", "IN/rule.py:number", "ppo", ["of type int"]),
    "column for a reward": ("ppo.rewards.1.function", "IN/rule.py:wants", "ppo", ["'colour'", "Columns here"]),
    "reference column": ("ppo.rewards.1.minus_reference", "refrence", "ppo", ["'refrence'", "reference"]),
    "label of a classifier": ("ppo.rewards.0", {**JUDGE, "label": "GOD"}, "ppo", ["'GOD'", "'GOOD'"]),
    "classifier as a score": ("ppo.rewards.0.path", "IN/judge", "ppo", ["2 outputs", "type classifier"]),
    "score as a label": ("ppo.rewards.0", {**JUDGE, "path": "IN/score"}, "ppo", ["'score'"]),
    "language model as a score": ("ppo.rewards.0.path", "{output}/sft/model", "ppo", ["a language model"]),
    "later classifier as a score": ("ppo.rewards.0.path", OWN, "ppo", ["a classifier", "type classifier"]),
    "later label": ("ppo.rewards.0", {**JUDGE, "path": OWN, "label": "THOT"}, "ppo", ["'THOT'", "'THAT'"]),
    "folder without weights": ("ppo.rewards.0.path", "IN/empty", "ppo", ["no config.json"]),
    "section that is not there": ("ppo.rewards.0.path", "{output}/reward/pears/model", "ppo", ["pears"]),
    "layers of the form": (
        "model.form",
        {"type": "hydra", "unfrozen_layers": 2},
        "ppo",
        ["unfrozen_layers=2", "2 lay"],
    ),
    "targets of the form": ("model.form", {"type": "lora", "targets": ["q_proj"]}, "sft", ["'q_proj'", "c_attn"]),
    "adapter missing": (
        "ppo.model",
        {"path": "IN/model", "form": {"type": "lora", "adapter": "IN/gone"}},
        "ppo",
        ["gone"],
    ),
    "context": ("ppo.sampling.max_new_tokens", 60, "ppo", ["context holds 64", "Shorten"]),
    "context and prompts": ("data.prompts.source", "IN/long.jsonl", "ppo", ["The longest prompt", "holds 64"]),
    "too few prompts": ("data.prompts.source", "IN/few.jsonl", "ppo", ["prompts are held out, at least 2"]),
    "nothing held out": ("data.prompts.held_out", {"by": "none"}, "ppo", ["0 prompts are held out"]),
    "column of prompts": ("data.prompts.columns", {"prompt": "question"}, "ppo", ["'question'"]),
    "model of ppo": ("ppo.model", {"path": "IN/gone"}, "ppo", ["gone", "does not exist"]),
    "classifier as a policy": ("ppo.model", {"path": "IN/judge"}, "ppo", ["GPT2ForSequenceClassification", "to score"]),
    "encoder as a policy": ("ppo.model", {"path": "IN/encoder"}, "ppo", ["BertForSequenceClassification", "to score"]),
    "encoder without a head as a policy": ("ppo.model", {"path": "IN/bare_encoder"}, "ppo", ["BertModel", "both ways"]),
    "filler of gaps as a policy": ("ppo.model", {"path": "IN/gap_filler"}, "ppo", ["BertForMaskedLM", "both ways"]),
    "tokens without a row, of a reward term": (
        "ppo.rewards.0.path",
        "IN/few_rows_score",
        "ppo",
        ["few_rows_score", "gives 9 ids"],
    ),
    "tokens without a row, of a judge": (
        "compare.judges.0",
        {"type": "classifier", "path": "IN/few_rows_score", "label": "LABEL_0"},
        "compare",
        ["few_rows_score", "gives 9 ids"],
    ),
    "tokens without a row": ("ppo.model", {"path": "IN/few_rows"}, "ppo", ["gives 9 ids", "no embedding"]),
    "tokens without a row, of a reward": ("reward.0.model", {"path": "IN/few_rows"}, "reward/pairs", ["gives 9 ids"]),
    "reward model as a policy": ("ppo.model", {"path": "{output}/reward/pairs/model"}, "ppo", ["a reward model"]),
    "encoder and decoder as a start": ("reward.0.model", {"path": "IN/t5"}, "reward/pairs", ["'t5'", "no classifier"]),
    "adapter of a section that trains whole models": (
        "ppo.model",
        {"path": "IN/model", "form": {"type": "lora", "adapter": "{output}/sft/model"}},
        "ppo",
        ["adapter", "form full", "lora"],
    ),
    "values that no critic learns": (
        "ppo",
        {
            "rewards": [{"type": "function", "function": "IN/rule.py:length"}],
            "advantages": {"type": "rloo"},
            "batch": {"rows": 8, "samples_per_prompt": 2, "minibatches": 1},
            "model": {"path": "IN/model", "form": {"type": "hydra", "unfrozen_layers": 1, "value": "branch"}},
        },
        "ppo",
        ["value=branch", "rloo", "no critic"],
    ),
    "truncated sampling": ("ppo.sampling.top_k", 5, "", ["off-policy", "allow_truncated_sampling"]),
    "own result": ("ppo.model", {"path": "{output}/ppo/model"}, "ppo", ["makes that itself"]),
    "result of a later section": ("reward.0.model", {"path": "{output}/ppo/model"}, "reward/pairs", ["runs later"]),
    "before": ("compare.before", "./gone", "compare", ["compare.before", "gone", "does not exist"]),
    "classifier as a side": ("compare.before", "IN/judge", "compare.before", ["to score texts"]),
    "after": ("compare.after", "{output}/ppo/modell", "compare", ["modell"]),
    "path of a judge": ("compare.judges.0", {**JUDGE, "path": "IN/gone"}, "compare", ["gone"]),
    "label of a judge": ("compare.judges.0.label", "thsi", "compare", ["'thsi'", "'THIS'"]),
    "output of a judge": (
        "compare.judges.0",
        {**JUDGE, "path": "IN/score", "label": "score", "output": "log_odds"},
        "compare",
        ["single output"],
    ),
    "share of nothing": ("compare.shares.0.of", "judge/THOSE", "compare", ["'judge/THOSE'", "judge/THIS"]),
    "share's name": ("compare.shares.0.name", "score", "compare", ["second metric"]),
    "column of human answers": (
        "compare.references",
        ["reference", "referense"],
        "compare",
        ["'referense'", "Columns here: prompt, reference"],
    ),
    "context of a comparison": ("compare.sampling", {"max_new_tokens": 60}, "compare", ["context holds 64"]),
    "another tokenizer's model": ("compare.before", "IN/empty", "compare", ["no config.json"]),
}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error: ") == 1, error
    return error[error.index("error: ") :].removeprefix("error: ")


def refuse(recipe: Settings, capsys: pytest.CaptureFixture[str], folder: Path, *commands: str) -> str:
    """The one message of the dry run and of each command; nothing may be written."""
    file = folder / "the.yaml"
    file.write_text(yaml.safe_dump(recipe))
    before = sorted(folder.rglob("*"))
    messages = []
    for arguments in (["run", str(file), "--dry-run"], *([command, str(file)] for command in commands)):
        assert main(arguments) == 2, arguments
        messages.append(said(capsys))
        assert sorted(folder.rglob("*")) == before
    assert len(set(messages)) == 1, messages
    return messages[0]


@pytest.mark.parametrize(("key", "value", "section", "words"), CASES.values(), ids=CASES)
def test_mistake_is_refused_alike_by_dry_run_and_run_before_anything_is_written(
    key: str,
    value: Any,
    section: str,
    words: list[str],
    recipe: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refuse(change(recipe, key, value), capsys, tmp_path, "run")
    assert message.startswith(section)
    assert all(word in message for word in words), message


def test_the_unbroken_recipe_is_planned(recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "the.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert main(["run", str(file), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert plan.count("waits for") == 4, plan
    assert not (tmp_path / "out").exists()


def test_a_section_alone_is_judged_alone(recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "the.yaml"
    broken = change(change(recipe, "compare.shares.0.of", "nothing"), "data.comparisons.source", "gone.csv")
    file.write_text(yaml.safe_dump(broken))
    assert main(["sft", str(file), "--dry-run"]) == 0
    capsys.readouterr()
    for arguments, words in ((["ppo", str(file)], "the reward section makes it"), (["compare", str(file)], "makes it")):
        assert main(arguments) == 2
        assert words in said(capsys)
    assert not (tmp_path / "out").exists()


def test_only_the_head_of_large_data_is_read_closely(
    recipe: Settings, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydralign.runs import preflight

    monkeypatch.setattr(preflight, "HEAD", 8)
    rows = [{"text": f"{text} {n}", "label": "this"} for n, text in enumerate(WORDS * 4)]
    (tmp_path / "sorted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(tmp_path / "sorted.jsonl"), "held_out": {"by": "hash", "percent": 40}}
    made = load_recipe_of({**recipe, "data": {**recipe["data"], "labelled": source}})
    steps = all_steps(made)
    preflight.check_steps(made, steps, [step.title for step in steps], SINGLE_PROCESS)
    monkeypatch.setattr(preflight, "HEAD", 100)
    with pytest.raises(HydralignError, match="reward/labels: the data have the single label 'this'"):
        preflight.check_steps(made, steps, [step.title for step in steps], SINGLE_PROCESS)


def test_every_source_is_read_once_and_its_sparse_columns_are_known(
    recipe: Settings, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydralign.data import reading
    from hydralign.runs import preflight

    read: list[str] = []
    plain = reading._read
    monkeypatch.setattr(reading, "_read", lambda source, split: read.append(source) or plain(source, split))  # type: ignore[func-returns-value]
    monkeypatch.setattr(preflight, "HEAD", 8)
    rows: list[Settings] = [{"prompt": f"{a} {b} {c}"} for a in WORDS for b in WORDS for c in WORDS]
    rows[0]["colour"] = "red"
    assert 0 not in hash_order(rows)[:8]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = [{"prompt": f"{row['prompt']}!"} for row in rows]
    held_out = {"by": "source", "source": str(tmp_path / "test.jsonl")}
    changed = change(recipe, "data.prompts", {"source": str(tmp_path / "train.jsonl"), "held_out": held_out})
    changed = change(changed, "ppo.rewards.1.function", f"{inputs / 'rule.py'}:wants")
    made = load_recipe_of(change(changed, "ppo.rewards.1.minus_reference", None))
    steps = all_steps(made)
    preflight.check_steps(made, steps, [step.title for step in steps], SINGLE_PROCESS)
    assert len(read) == len(set(read)) == 5
    data, whole = preflight.read_head(load_prompts, made.data.prompts, tiny_tokenizer())  # type: ignore[arg-type]
    assert (len(data.train), len(data.held_out), whole) == (8, 8, False)


def load_recipe_of(settings: Settings) -> Recipe:
    return read_config(Recipe, settings).resolved()


def test_a_hub_model_that_is_not_here_is_left_to_its_turn(recipe: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydralign.runs import preflight

    made = load_recipe_of(change(recipe, "model.path", "somebody/a-model"))
    steps = all_steps(made)
    preflight.check_steps(made, steps, [step.title for step in steps], SINGLE_PROCESS)


def test_adapter_that_an_earlier_section_makes_is_no_base_of_lora(
    recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = change(recipe, "sft.model", {"path": "IN/model", "form": {"type": "lora"}})
    recipe = change(recipe, "ppo.model", {"path": "{output}/sft/model", "form": {"type": "lora"}})
    assert "is an adapter, not a whole model" in refuse(recipe, capsys, tmp_path, "run")


@pytest.mark.parametrize("spelling", ["./out", "{here}/out"])
def test_every_spelling_of_the_output_names_what_an_earlier_section_makes(
    spelling: str, recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = spelling.replace("{here}", str(tmp_path))
    made = load_recipe_of(change({**recipe, "output": "out"}, "ppo.model", {"path": f"{folder}/sft/model"}))
    runs.check_before(made, runs.present_sections(made), SINGLE_PROCESS)
    assert "ppo waits for out/reward/pairs/model, out/sft/model" in runs.plan(made, "ppo")
    itself = load_recipe_of(change({**recipe, "output": "out"}, "ppo.model", {"path": f"{folder}/ppo/model"}))
    with pytest.raises(ConfigError, match="makes that itself"):
        runs.check_before(itself, ["ppo"], SINGLE_PROCESS, dry=True)


@pytest.mark.parametrize(("path", "why"), [("~nobody-here/x", "no user of that name"), ("x" * 300, "300 bytes")])
def test_path_that_no_file_system_takes_is_named_wherever_it_stands(
    path: str, why: str, recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["data.prompts.source", "reward.1.test.source", "sft.model.path", "compare.before", "ppo.rewards.0.path"]
    for key in (*keys, "reward.1.test.held_out.source"):
        recipe = change(recipe, key, path)
    recipe = change(recipe, "reward.1.test.held_out.by", "source")
    recipe = change(recipe, "ppo.model", {"path": "IN/model", "form": {"type": "lora", "adapter": path}})
    recipe = change(recipe, "ppo.rewards.1.function", f"{path}/rule.py:f")
    message = refuse(recipe, capsys, tmp_path, "run")
    for key in (*keys, "reward.1.test.held_out.source", "ppo.model.form.adapter", "ppo.rewards.1.function"):
        assert f"{key}=" in message
    assert message.count(why) == 8


NO_FOLDERS = ["", " ", "{output}", "{output}/x", "/", "//", "~", "~/", ".", "./", "..", "../..", "~nobody-here/x"]


@pytest.mark.parametrize("output", NO_FOLDERS)
def test_output_that_names_no_folder_of_its_own_is_refused_when_the_recipe_is_read(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "the.yaml").write_text(yaml.safe_dump({"output": output, "model": {"path": "x"}}))
    with pytest.raises(ConfigError, match=re.escape(f"output={output!r} cannot be used: ")):
        load_recipe("the.yaml")


def test_working_folder_by_its_full_name_is_refused_unless_a_run_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "the.yaml").write_text(yaml.safe_dump({"output": str(work), "model": {"path": "x"}}))
    with pytest.raises(ConfigError, match="among the files of the folder that the command runs in"):
        load_recipe(tmp_path / "the.yaml")
    (tmp_path / "the.yaml").rename(work / "recipe.yaml")
    assert load_recipe("recipe.yaml").output == str(work)


@pytest.mark.parametrize("output", ["out", "./out", "~/out", "a/../out", "...", "out.d/", "../out"])
def test_output_that_is_a_folder_of_its_own_is_taken(output: str, tmp_path: Path) -> None:
    (tmp_path / "the.yaml").write_text(yaml.safe_dump({"output": output, "model": {"path": "x"}}))
    assert load_recipe(tmp_path / "the.yaml").output


def test_home_is_refused_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for output in ("~", str(tmp_path), f"{tmp_path}/", f"{tmp_path}/x/.."):
        with pytest.raises(ConfigError, match="everything else"):
            read_config(Recipe, {"output": output, "model": {"path": "x"}})


def output_cases(folder: Path, inputs: Path) -> dict[str, tuple[Path, str]]:
    (folder / "file").write_text("mine")
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "model").symlink_to(inputs / "model")
    return {
        "a file": (folder / "file", "is a file"),
        "inside a file": (folder / "file" / "below" / "out", "which is a file"),
        "a broken link": (folder / "link", "file"),
        "the model's folder": (inputs / "model", "model.path reads"),
        "a link to the model's folder": (folder / "model", "model.path reads"),
        "inside a data folder": (inputs / "empty" / "out", "lies in"),
        "inside a model folder": (inputs / "model" / "x", "lies in"),
        "a judge's folder": (inputs / "judge", "compare.judges.0.path reads"),
        "a data file": (inputs / "prompts.jsonl", "is a file"),
        "a name that is too long": (folder / ("x" * 300), "has a name of 300 bytes"),
    }


def test_output_that_would_touch_something_else_is_refused(
    recipe: Settings, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = change(change(recipe, "compare.judges.0", JUDGE), "data.prompts.source", "IN/empty")
    before = sorted((path, path.stat().st_mtime_ns) for path in inputs.rglob("*"))
    for output, words in output_cases(tmp_path, inputs).values():
        assert words in refuse({**recipe, "output": str(output)}, capsys, tmp_path, "run", "sft"), output
    assert sorted((path, path.stat().st_mtime_ns) for path in inputs.rglob("*")) == before


def test_folder_that_cannot_be_written_is_refused(
    recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert "no permission" in refuse(recipe, capsys, tmp_path, "run", "sft")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_folder_of_a_virtual_file_system_is_refused(
    recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no permission in '/proc'" in refuse({**recipe, "output": "/proc/x"}, capsys, tmp_path, "run", "sft")


@pytest.mark.parametrize("name", ["ppo", "ppo/model", "ppo/checkpoints"])
def test_section_folder_that_is_a_file_is_refused(
    name: str, recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert "is a file" in refuse(recipe, capsys, tmp_path, "run")


def test_recipe_written_by_hand_in_the_output_folder_is_not_replaced(
    recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    own = tmp_path / "out" / "recipe.yaml"
    own.write_text("# my notes\n" + yaml.safe_dump(recipe))
    assert "no run wrote" in refuse(recipe, capsys, tmp_path, "run", "sft")
    assert own.read_text().startswith("# my notes")


def test_results_of_another_recipe_are_named_by_the_dry_run_too(
    recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_recipe_of(change(recipe, "model.form", {"type": "lora"}))
    (tmp_path / "out" / "sft").mkdir(parents=True)
    (tmp_path / "out" / "sft" / "evaluation.json").write_text("{}")
    runs.claim_folder(tmp_path / "out", other)
    told = refuse(recipe, capsys, tmp_path, "run", "sft")
    assert "holds the results of another recipe" in told
    assert f"delete what was made with the other settings: {tmp_path / 'out' / 'sft'}." in told


def test_a_missing_tracker_package_is_named(
    recipe: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    message = refuse(change(recipe, "ppo.trackers", ["wandb"]), capsys, tmp_path, "run")
    assert message.startswith("ppo: tracker 'wandb'")
