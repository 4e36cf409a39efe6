"""Reward files with neighbours: found beside the file and in the working folder, apart from others of their name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hydralign.errors import RewardError
from hydralign.rewards import load_function

REWARD = """
import neighbour
from parts.inner import base

def reward(completions):
    import late_neighbour
    return [neighbour.BONUS + base + late_neighbour.BONUS for _ in completions]
"""


@pytest.fixture(autouse=True)
def same_path_afterwards() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("neighbour", "parts", "late_neighbour", "in_folder", "shadowed"):
            del sys.modules[name]


def folder_with(place: Path, bonus: int) -> str:
    (place / "parts").mkdir(parents=True)
    (place / "parts" / "__init__.py").write_text("")
    (place / "parts" / "inner.py").write_text(f"base = {10 * bonus}")
    (place / "neighbour.py").write_text(f"BONUS = {bonus}")
    (place / "late_neighbour.py").write_text("BONUS = 0.5")
    (place / "reward.py").write_text(REWARD)
    return f"{place / 'reward.py'}:reward"


def test_reward_file_imports_its_neighbours_and_two_of_one_name_stay_apart(tmp_path: Path) -> None:
    first = load_function(folder_with(tmp_path / "a", 1))
    second = load_function(folder_with(tmp_path / "b", 2))
    assert (first(["x"]), second(["x"])) == ([11.5], [22.5])
    assert load_function(f"{tmp_path / 'a' / 'reward.py'}:reward")(["x"]) == [11.5]


def test_reward_file_and_module_import_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in_folder.py").write_text("def reward(completions):\n    return [3.0] * len(completions)\n")
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").write_text("from in_folder import reward\n")
    monkeypatch.chdir(tmp_path)
    assert load_function("in_folder:reward")(["x"]) == [3.0]
    assert load_function("rewards/mine.py:reward")(["x"]) == [3.0]


def test_error_of_an_import_names_the_module_that_is_missing_and_where_it_may_stand(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text("import neighbour\n")
    (tmp_path / "neighbour.py").write_text("import not_there_at_all.part\n")
    with pytest.raises(
        RewardError, match=r"needs the module 'not_there_at_all'.*Put not_there_at_all\.py there"
    ) as caught:
        load_function(f"{tmp_path / 'outer.py'}:f")
    assert str(tmp_path) in str(caught.value)
    assert "plain Python" not in str(caught.value)
