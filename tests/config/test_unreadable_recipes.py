"""What YAML cannot build, and what no path, name or optimizer can take, is one named error that comes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydralign.config import Recipe, load_recipe, parse_overrides, read_config
from hydralign.config.sft import SFTConfig
from hydralign.config.yaml_reading import MAX_DEPTH, MAX_VALUES
from hydralign.errors import ConfigError

START = "output: o\nmodel: {path: p}\n"
DOUBLING = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGING = "a0: &a0 {k: [1, 1]}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 2024-13-45\n", "line 3: the value '2024-13-45' cannot be read as timestamp"),
        ("\nseed: !!int x\n", "line 4: the value 'x' cannot be read as int"),
        ("seed: !!int ''\n", "line 3: the value '' cannot be read as int"),
        ("seed: !!bool perhaps\n", "line 3: the value 'perhaps' cannot be read as bool"),
        ("seed: !!timestamp x\n", "line 3: the value 'x' cannot be read as timestamp"),
        ("sft:\n  name: !!float x\n", "line 4: the value 'x' cannot be read as float"),
        ("seed: " + "9" * 5000 + "\n", "line 3: the value '9999"),
        ("seed: 0x" + "f" * 5000 + "\n", f"line 3: the number 0x{'f' * 38}… is beyond"),
        ("seed: 0" + "1" * 5000 + "\n", f"line 3: 0{'1' * 39}… would be read to base 8"),
        ("seed: !" + "t" * 5000 + " x\n", f"the tag !{'t' * 79}… is not known"),
        ("seed: 99999999999999999999\n", "line 3: the number 99999999999999999999 is beyond 9223372036854775807"),
        ("seed: '99999999999999999999'\n", "seed='99999999999999999999' cannot be used"),
        ("seed: '" + "9" * 5000 + "'\n", "Give a whole number with fewer digits."),
        ("sft: " + "[" * 5000, f"line 3: sections within sections, {MAX_DEPTH} deep"),
        ("sft: " + "{a: " * 5000, f"line 3: sections within sections, {MAX_DEPTH} deep"),
        ("sft:\n  " + "- " * 5000 + "1\n", f"line 4: sections within sections, {MAX_DEPTH} deep"),
        (DOUBLING, f"more than {MAX_VALUES} values, aliases written out"),
        (MERGING, f"more than {MAX_VALUES} values, aliases written out"),
        ("sft: &a [*a]\n", "line 3: *a stands inside &a itself"),
        ("sft: &a {<<: *a}\n", "line 3: *a stands inside &a itself"),
        ("sft: *a\n", "line 3, column 6: this is not YAML"),
        ("? [a]\n: 1\n", "line 3, column 3: a list or section stands where a key belongs"),
        ("seed: {{seed}}\n", "line 3, column 8: a list or section stands where a key belongs"),
        ("seed: !env SEED\n", "line 3, column 7: the tag !env is not known"),
        ("seed: 1:30\n", "line 3: 1:30 would be read to base 60"),
        ("seed: 010\n", "line 3: 010 would be read to base 8"),
        ("ppo:\n  steps: -1:30.5\n", "line 4: -1:30.5 would be read to base 60"),
        ('sft: "\\U00110000"\n', "this is not YAML"),
        ("sft: \x07\n", "line 3: the character '\\x07' cannot stand in YAML"),
        ("--- 1\n", "line 3, column 1: this is not YAML"),
    ],
)
def test_yaml_that_cannot_be_built_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(START + text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--seed=" + "9" * 5000, "--seed: line 1: the value '9999"),
        ("--seed=2024-13-45", "--seed: line 1: the value '2024-13-45' cannot be read as timestamp"),
        ("--sft=" + "[" * 5000, f"--sft: line 1: sections within sections, {MAX_DEPTH} deep"),
        ("--output=\udcff", "--output, line 1: the character '\\udcff' cannot stand in YAML"),
        ("--a" + ".a" * 5000 + "=1", f"has more than {MAX_DEPTH} parts"),
    ],
)
def test_override_that_cannot_be_built_is_named(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([argument])
    assert said in str(caught.value)


def test_index_of_thousands_of_digits_is_none_of_the_items(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(START + "sft: [{name: a}]\n")
    with pytest.raises(ConfigError, match="is none of its items"):
        load_recipe(file, ["--sft." + "9" * 5000 + "=1"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_file_in_another_encoding_is_named_with_the_way_out(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("output: caf\xe9\nmodel: {path: p}\n", encoding=encoding)
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert str(file) in str(caught.value)
    assert "UTF-8" in str(caught.value)


def test_byte_order_mark_of_utf_8_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(START, encoding="utf-8-sig")
    assert load_recipe(file).output == "o"


def test_recipe_path_with_a_nul_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe("a\0b.yaml")


def test_merged_section_may_be_merged_again_where_it_replaced_a_key(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    # The outer section is built first, which writes the merged keys into the inner one.
    inner = "reward: [{name: r, optimizer: &b {<<: {eps: 0.1}, eps: 0.5}}]\n"
    file.write_text(START + inner + "sft: {optimizer: {<<: *b, warmup: 0.5}}\n")
    recipe = load_recipe(file)
    assert isinstance(recipe.sft, SFTConfig)
    assert (recipe.sft.optimizer.eps, recipe.sft.optimizer.warmup) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"output": "a\0b"}, "output='a\\x00b' holds a NUL character"),
        ({"model": {"path": "a\0b"}}, "model.path='a\\x00b' holds a NUL character"),
        ({"sft": [{"name": "a\0"}]}, "sft.0.name='a\\x00' holds a NUL character"),
        ({"output": "a\ud800"}, "output='a\\ud800' holds half a character"),
        ({"a\ud800": 1}, "key 'a\\ud800' of the recipe holds half a character"),
        ({"output": "runs/" + "x" * 256}, "a name of 256 bytes"),
        ({"output": "runs/" + "é" * 128}, "a name of 256 bytes"),
        ({"output": "x/" * 2000}, "is 4000 bytes long"),
        ({"output": "x/" * 1501}, "names 1501 folders inside each other"),
        ({"data": {"prompts": {"source": []}}}, "data.prompts.source=[] cannot be used"),
        ({"data": {"prompts": {"source": ""}}}, "Give text that is not empty"),
        (
            {"data": {"prompts": {"source": "s", "held_out": {"by": "source", "source": []}}}},
            "prompts.held_out.source=[] cannot",
        ),
        ({"model": {"path": "p", "form": {"type": "lora", "targets": []}}}, "model.form.targets=[] cannot be used"),
        ({"output": b"\0\0"}, "output=b'\\x00\\x00' is binary (!!binary)"),
        ({"data": {"prompts": {"source": "s", "columns": {b"a": "b"}}}}, "key b'a' of data.prompts.columns is binary"),
        ({"sft": [{"name": "x" * 256}]}, "a name of 256 bytes"),
        ({"reward": {"name": "x" * 256}}, "a name of 256 bytes"),
        ({"sft": {"name": "a/b"}}, "Give letters, digits"),
        ({"ppo": {"optimizer": {"betas": [0.9, 1]}}}, "ppo.optimizer.betas.1=1 cannot be used"),
        ({"sft": {"optimizer": {"betas": [-0.1, 0.9]}}}, "sft.optimizer.betas.0=-0.1 cannot be used"),
        ({"sft": {"optimizer": {"eps": 0}}}, "sft.optimizer.eps=0 cannot be used"),
        ({"sft": {"optimizer": {"weight_decay": float("inf")}}}, "sft.optimizer.weight_decay=inf cannot be used"),
        ({"sft": {"optimizer": {"weight_decay": -1}}}, "sft.optimizer.weight_decay=-1 cannot be used"),
        ({"model": {"path": "p", "form": {"type": "lora", "rank": 10**9}}}, "model.form.rank=1000000000 cannot"),
    ],
)
def test_value_that_no_folder_or_optimizer_can_take_is_named(values: dict[str, object], said: str) -> None:
    ppo = {"rewards": [{"type": "function", "function": "m:f"}]}
    given = {"output": "o", "model": {"path": "p"}} | values
    if isinstance(section := values.get("ppo"), dict):
        given["ppo"] = ppo | section
    with pytest.raises(ConfigError) as caught:
        read_config(Recipe, given)
    assert said in str(caught.value)


def test_names_of_the_greatest_length_and_replaced_nul_characters_are_fine() -> None:
    data = {"labelled": {"source": "s", "replace": {"\0": "", "a": "\0"}}}
    recipe = read_config(
        Recipe, {"output": "x" * 255, "model": {"path": "p"}, "sft": {"name": "y" * 255}, "data": data}
    )
    assert recipe.data.labelled is not None
    assert recipe.data.labelled.replace == {"\0": "", "a": "\0"}
