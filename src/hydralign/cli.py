"""The command line: one command per loop, all of them `hydralign COMMAND RECIPE.yaml [--section.key value …]`.

Parses, reports errors and sets the exit code; the loops do the work, and Python calls mirror the commands. Nothing
heavy is imported before a recipe is read, so `--help` and a mistyped command answer at once.
Exit codes: 0 done, 2 the user can mend it (the message says how), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Sequence

from hydralign.errors import ConfigError, HydralignError
from hydralign.streams import lasting_output, open_missing_descriptors

_COMMANDS = {
    "run": "every section of the recipe in order, going on at the first unfinished one",
    "sft": "the sft section: learning to imitate demonstrations",
    "reward": "the reward section: a reward model from comparisons, or a classifier from labelled texts",
    "ppo": "the ppo section: reinforcement learning from rewards",
    "compare": "the compare section: two models on the same held-out prompts, and a report",
}


_FLAGS = ("--dry-run", "--debug", "--help", "-h")
_DASHES = ("-", "–", "—")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `argv` defaults to the process's arguments."""
    open_missing_descriptors()
    with lasting_output():
        return _run_command(argv)


def _run_command(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given and given[0] in {*_COMMANDS, "demo"}:
            rest, overrides = split_arguments(given[1:], given[0])
            arguments = _parser().parse_args([given[0], *rest])
        else:
            arguments, overrides = _parser().parse_known_args(given)
        _execute(arguments, overrides)
    except HydralignError as error:
        if "--debug" in given:
            traceback.print_exc()
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(
            "interrupted. The same command goes on from what was saved, or begins again where nothing was.\n"
        )
        return 130
    return 0


def split_arguments(arguments: Sequence[str], command: str) -> tuple[list[str], list[str]]:
    """(what the parser takes: flags and the recipe; the overrides), wherever each of them stands.

    A setting takes the word after it, so that `--ppo.steps 20 r.yaml` does not run a recipe called 20. Raises
    ConfigError for an option that is nearly a flag, and when settings are given and no recipe.
    """
    taken: list[str] = []
    recipes: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.partition("=")[0] in _FLAGS:
            taken.append(argument)
        elif argument.startswith(_DASHES):
            alone = "=" in argument or not rest or rest[0].startswith("--")
            _refuse_near_flag(argument, has_value=not alone or "=" in argument)
            overrides += [argument] if alone else [argument, rest.pop(0)]
        elif recipes or command == "demo":
            overrides.append(argument)
        else:
            recipes.append(argument)
    if overrides and not recipes and command != "demo" and not {"-h", "--help"} & set(taken):
        raise ConfigError(
            f"no recipe is named: {' '.join(overrides)[:80]} counts as settings with their values, and there is none "
            f"to change. Write hydralign {command} RECIPE.yaml, and the settings after it."
        )
    return taken + recipes, overrides


def _refuse_near_flag(argument: str, *, has_value: bool) -> None:
    name = argument.lstrip("".join(_DASHES)).partition("=")[0]
    near = difflib.get_close_matches(name.replace("_", "-"), [flag.lstrip("-") for flag in _FLAGS], n=1, cutoff=0.6)
    if near:
        problem = "is neither a setting nor an option" if has_value else "has no value"
        raise ConfigError(
            f"--{name} {problem}: it would be taken for a setting, and there is none of this name. "
            f"Did you mean --{near[0]}?"
        )


def _execute(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    command = arguments.command
    if command == "demo":
        from hydralign.demo.run import run_demo

        run_demo(overrides)
        return

    from hydralign.config.loading import load_recipe

    recipe = load_recipe(arguments.recipe, overrides)

    from hydralign.runs.recipes import plan, run_recipe, run_section

    if arguments.dry_run:
        sys.stdout.write(plan(recipe, None if command == "run" else command) + "\n")
    elif command == "run":
        run_recipe(recipe)
    else:
        run_section(recipe, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hydralign",
        description="Teach language models from human feedback, and prove with error bars that it worked.",
        epilog="`hydralign COMMAND --help` describes one command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersion, help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="the whole loop, offline, in minutes, on a small model that comes along",
        description="Runs fine-tuning, reward model, PPO and comparison on a small model, with a simulated annotator.",
        epilog="Results go to hydralign-demo; --output NAME changes that, and any other setting can follow likewise.",
        usage="hydralign demo [--debug] [--output FOLDER] [--section.key value ...]",
        allow_abbrev=False,
    )
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"Runs {summary}.",
            epilog="Any setting of the recipe can follow it: --ppo.steps 20 --ppo.rewards.0.weight=2 "
            "--model.form '{type: lora}'. Values are YAML.",
            usage=f"hydralign {name} RECIPE.yaml [--dry-run] [--debug] [--section.key value ...]",
            allow_abbrev=False,
        )
        command.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe to run")
        command.add_argument("--dry-run", action="store_true", help="print the resolved plan and stop")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _PrintVersion(argparse.Action):
    """Looks the version up only when asked: reading package metadata costs time."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"hydralign {version('hydralign')}\n")
        parser.exit()
