"""Reward functions: found by reference, called with what they ask for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.errors import NonFiniteError, RewardError
from hydralign.rewards import LengthReward, load_function
from hydralign.rewards.functions import call

SOURCE = """
from dataclasses import dataclass

@dataclass
class Judge:
    bonus: float = 1.0
    def __call__(self, completions):
        return [self.bonus] * len(completions)

judge = Judge()
number = 3

def brevity(prompts, completions):
    return [-len(text) for text in completions]

async def later(prompts, completions):
    return []
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "my rewards.py").write_text(SOURCE)
    return str(tmp_path / "my rewards.py")


def test_load_function_finds_functions_and_instances_in_a_file(source: str) -> None:
    assert load_function(f"{source}:brevity")(prompts=["p"], completions=["abc"]) == [-3]
    assert load_function(f"{source}:judge")(completions=["abc"]) == [1.0]


def test_load_function_finds_a_function_in_a_module(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import math

    assert load_function("math:fsum") is math.fsum
    Path(source).rename(Path(source).with_name("my_rewards_on_path.py"))
    monkeypatch.syspath_prepend(str(Path(source).parent))
    assert load_function("my_rewards_on_path:brevity")(["p"], ["ab"]) == [-2]
    del sys.modules["my_rewards_on_path"]


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("brevity", "lacks a module or a name"),
        ("module:", "lacks a module or a name"),
        ("no_such_module_here:f", "there is no module 'no_such_module_here'"),
        ("json.no_such_part:f", "there is no module 'json.no_such_part'"),
        ("nowhere/none.py:f", "there is no file 'nowhere/none.py'"),
        ("FILE:brevety", "has no 'brevety'.*Did you mean 'brevity'"),
        ("FILE:number", "is of type int"),
        ("FILE:Judge", "is a class"),
        ("FILE:later", "is an async function"),
    ],
)
def test_load_function_says_what_is_wrong(source: str, reference: str, problem: str) -> None:
    with pytest.raises(RewardError, match=problem):
        load_function(reference.replace("FILE", source))


def test_load_function_names_the_error_of_a_file_that_does_not_import(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_dependency\n")
    with pytest.raises(RewardError, match=r"importing .*broken\.py' failed with ModuleNotFoundError.*no_such_depend"):
        load_function(f"{broken}:f")
    assert not any(name.startswith("hydralign_reward_file_broken") for name in sys.modules)


def test_call_passes_only_the_columns_that_are_named() -> None:
    def named(completions: list[str], summary: list[str], factor: float = 2.0) -> list[float]:
        return [factor * len(c + s) for c, s in zip(completions, summary, strict=True)]

    columns = {"summary": ["xy"], "other": [1], "finished": [True]}
    assert call(named, ["p"], ["abc"], columns, name="named") == [10.0]


def test_call_passes_everything_when_the_function_takes_all() -> None:
    def takes_all(completions: list[str], **columns: Any) -> list[str]:
        return sorted(columns)

    assert call(takes_all, ["p"], ["c"], {"finished": [True]}, name="f") == ["finished", "prompts"]


def test_call_lists_the_columns_when_a_required_one_is_missing() -> None:
    def wants(completions: list[str], sumary: list[str]) -> list[float]:
        return []

    with pytest.raises(RewardError, match=r"'wants' requires 'sumary'.*Columns here: completions, prompts, summary"):
        call(wants, ["p"], ["c"], {"summary": ["s"]}, name="wants")


def test_call_refuses_async_objects_and_hidden_signatures() -> None:
    class Later:
        async def __call__(self, completions: list[str]) -> list[float]:
            return []

    with pytest.raises(RewardError, match="is an async function"):
        call(Later(), ["p"], ["c"], {}, name="later")
    with pytest.raises(RewardError, match="shows no signature"):
        call(dict.fromkeys(["x"]).update, ["p"], ["c"], {}, name="update")


def test_exception_of_a_reward_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("def inner():\n    raise ValueError('boom.')\n\ndef f(completions):\n    inner()\n")
    with pytest.raises(RewardError) as caught:
        call(load_function(f"{file}:f"), ["p"], ["c"], {}, name="f")
    assert f"reward 'f' raised ValueError: boom at {file}:2 (raise ValueError('boom.')): the" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_errors_of_hydralign_pass_through_a_reward() -> None:
    def poisoned(completions: list[str]) -> list[float]:
        raise NonFiniteError("here", "NaN")

    with pytest.raises(NonFiniteError):
        call(poisoned, ["p"], ["c"], {}, name="poisoned")


def test_modes_of_torch_that_a_reward_sets_are_its_own(tmp_path: Path) -> None:
    def modes() -> tuple[bool, torch.dtype, torch.device]:
        return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()

    file = tmp_path / "scorer.py"
    file.write_text(
        "import torch\ntorch.set_grad_enabled(False)\ndef f(completions):\n    at_import = torch.is_grad_enabled()\n"
        "    torch.set_grad_enabled(True)\n    torch.set_default_dtype(torch.float64)\n"
        "    torch.set_default_device('meta')\n    return [at_import]\n"
    )
    before = modes()
    function = load_function(f"{file}:f")
    assert modes() == before
    assert call(function, ["p"], ["c"], {}, name="f") == [False]
    assert modes() == before == (True, torch.float32, torch.device("cpu"))


def test_reward_that_asks_python_to_exit_is_refused_at_import_and_when_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    for reference in ("leaving.py:f", "leaving:f"):
        with pytest.raises(RewardError, match=r"importing .leaving(\.py)?. asked Python to exit \(SystemExit: 0\)"):
            load_function(reference)

    def leaves(completions: list[str]) -> list[float]:
        sys.exit(0)

    with pytest.raises(RewardError, match=r"'leaves' asked Python to exit \(SystemExit: 0\)"):
        call(leaves, ["p"], ["c"], {}, name="leaves")


def test_call_protects_the_callers_texts_from_a_function_that_changes_its_lists() -> None:
    def greedy(prompts: list[str], completions: list[str]) -> list[float]:
        completions.clear()
        return [0.0]

    texts = ["c"]
    call(greedy, ["p"], texts, {}, name="greedy")
    assert texts == ["c"]
    assert call(LengthReward(2), ["p"], ["one two three"], {}, name="length") == [-1.0]
