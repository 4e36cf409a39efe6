"""The command line passes settings on, reports errors in one line with exit code 2, and answers --help at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from hydralign.cli import main, split_arguments
from hydralign.config import Recipe
from hydralign.errors import RunFolderError

RECIPE = "output: runs/x\nmodel: {path: tiny}\nppo: {rewards: [{type: function, function: 'module:score'}]}\n"


class Loops(ModuleType):
    """Stands in for the loops: notes what it was asked to do, or does `instead`."""

    def __init__(self) -> None:
        super().__init__("hydralign.runs.recipes")
        self.calls: list[tuple[str, Recipe]] = []
        self.instead: Callable[[], None] = lambda: None

    def run_recipe(self, recipe: Recipe) -> None:
        self.calls.append(("run", recipe))
        self.instead()

    def run_section(self, recipe: Recipe, section: str) -> None:
        self.calls.append((section, recipe))
        self.instead()

    def plan(self, recipe: Recipe, section: str | None = None) -> str:
        return f"plan of {section or 'all'} in {recipe.output}"


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Loops:
    fake = Loops()
    monkeypatch.setitem(sys.modules, "hydralign.runs", ModuleType("hydralign.runs"))
    monkeypatch.setitem(sys.modules, "hydralign.runs.recipes", fake)
    return fake


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("command", ["run", "ppo"])
def test_command_runs_its_sections_with_overrides_applied(loops: Loops, path: str, command: str) -> None:
    overrides = ["--seed", "3", "--ppo.rewards.0.weight=-2", "--ppo.steps", "7", "--ppo.optimizer.betas", "[0.8, 0.9]"]
    assert main([command, path, *overrides]) == 0
    [(ran, recipe)] = loops.calls
    assert ran == command
    assert recipe.ppo is not None
    assert (recipe.seed, recipe.ppo.rewards[0].weight, recipe.ppo.steps) == (3, -2.0, 7)
    assert recipe.ppo.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize("command", ["run", "ppo"])
def test_dry_run_prints_the_plan_and_runs_nothing(
    loops: Loops, path: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, path, "--output", "elsewhere", "--dry-run", "--seed", "1"]) == 0
    assert capsys.readouterr().out == f"plan of {'all' if command == 'run' else command} in elsewhere\n"
    assert loops.calls == []


def test_unknown_setting_stops_with_a_message_and_no_traceback(
    loops: Loops, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ppo", path, "--ppo.stepz", "7"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ppo.stepz is not a setting: ")
    assert "Did you mean 'steps'?" in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert loops.calls == []


def test_options_are_never_abbreviated(loops: Loops, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", path, "--dry"]) == 2
    assert capsys.readouterr().err.startswith("error: --dry has no value: ")
    assert loops.calls == []


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        (["--seed", "3", "PATH"], 3),
        (["--seed=3", "PATH"], 3),
        (["--seed", "3", "--debug", "PATH", "--seed", "4"], 4),
        (["--debug", "PATH", "--seed", "5"], 5),
        (["--ppo.rewards.0.weight", "-2", "PATH"], 0),
    ],
)
def test_recipe_may_stand_anywhere_among_the_settings(loops: Loops, path: str, arguments: list[str], seed: int) -> None:
    assert main(["ppo", *(path if argument == "PATH" else argument for argument in arguments)]) == 0
    assert [recipe.seed for _, recipe in loops.calls] == [seed]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dryrun", "PATH"], "--dryrun is neither a setting nor an option: "),
        (["PATH", "--dry_run"], "--dry_run has no value: "),
        (["PATH", "--dryrun", "--seed", "1"], "--dryrun has no value: "),
        (["PATH", "-dry-run"], "--dry-run has no value: "),
        (["PATH", "--dryrun=true"], "--dryrun is neither a setting nor an option: "),
        (["PATH", "--debgu"], "--debgu has no value: "),
    ],
)
def test_option_that_is_nearly_a_flag_names_it(
    loops: Loops, path: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ppo", *(path if argument == "PATH" else argument for argument in arguments)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said}")
    assert f"Did you mean --{'debug' if 'debgu' in said else 'dry-run'}?" in told
    assert loops.calls == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "PATH"], "no recipe is named: --config "),
        (["--ppo.steps", "20"], "no recipe is named: --ppo.steps 20 counts as settings"),
        (["PATH", "second.yaml"], "argument 'second.yaml' names no setting"),
        (["PATH", "-seed", "3"], "argument '-seed' names no setting"),
        (["PATH", "—seed", "3"], "argument '—seed' names no setting"),
    ],
)
def test_arguments_that_fit_nowhere_are_named(
    loops: Loops, path: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ppo", *(path if argument == "PATH" else argument for argument in arguments)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert loops.calls == []


def test_no_setting_of_a_recipe_is_taken_for_a_flag() -> None:
    settings = [f"--{name}=1" for name in Recipe.model_fields]
    assert split_arguments(["r.yaml", *settings], "run") == (["r.yaml"], settings)


def test_error_of_a_loop_exits_with_2_and_shows_its_traceback_only_in_debug(
    loops: Loops, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RunFolderError("the folder belongs to another recipe: nothing was run. Choose another output.")

    loops.instead = fail
    last = "error: the folder belongs to another recipe: nothing was run. Choose another output.\n"
    assert main(["run", path]) == 2
    assert capsys.readouterr().err == last
    assert main(["run", path, "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.endswith(last)


def test_interrupt_exits_with_130(loops: Loops, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    loops.instead = interrupt
    assert main(["ppo", path]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_bug_in_a_loop_is_not_hidden(loops: Loops, path: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    loops.instead = fail
    with pytest.raises(ZeroDivisionError):
        main(["ppo", path])


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"hydralign {version('hydralign')}\n"


@pytest.mark.parametrize("arguments", [[], ["fly", "recipe.yaml"], ["run"]])
def test_wrong_command_exits_with_2_and_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: hydralign" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom hydralign.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--section.key value" in done.stdout


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import contextlib, sys\nfrom hydralign.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: hydralign")
    assert done.stdout.splitlines()[-1] == "[]"
