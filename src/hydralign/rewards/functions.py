"""Python functions as rewards: found by name, called with the columns that they ask for.

A reference is `module:function` or `path/to/file.py:function`. Everything is passed by parameter name: `prompts`,
`completions`, `finished`, `completion_tokens` and the columns of the data set. A function with `**columns` gets
all of them, any other only those that it names. The answer is checked in `combine`, not here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from hydralign.errors import HydralignError, RewardError, did_you_mean
from hydralign.rewards.torch_modes import modes_kept_calling, modes_kept_importing

FORMS = "Write module:function or path/to/file.py:function."


def load_function(reference: str) -> Callable[..., Any]:
    """The callable that `reference` names. Raises RewardError for anything that cannot be called as a reward."""
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise RewardError(f"reward function {reference!r} lacks a module or a name: it cannot be found. {FORMS}")
    module = _module_of_file(Path(os.path.expanduser(place))) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(
            f"{place} has no {name!r}: the reward {reference!r} cannot be called. {did_you_mean(name, known)}"
        )
    function = getattr(module, name)
    if not callable(function) or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise RewardError(
            f"{reference!r} is {kind}: a reward is called as f(prompts, completions, **columns) and returns a list. "
            "Name a function, or a module-level instance with __call__."
        )
    refuse_async(function, reference)
    return function


def call(
    function: Callable[..., Any],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Any],
    *,
    name: str,
) -> Any:
    """What `function` returns for these rows, called with the arguments that its signature asks for.

    `name` is the reward's name in messages. Raises RewardError for a required parameter that is no column, and for a
    function that asks Python to exit or raises an exception of its own, with its file and line; errors of hydralign
    pass as they are.
    """
    given = {**columns, "prompts": list(prompts), "completions": list(completions)}
    wanted, takes_all = wanted_arguments(function, given, name=name)
    try:
        with modes_kept_calling(function):
            return function(**{key: value for key, value in given.items() if takes_all or key in wanted})
    except HydralignError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {_ended(str(error))}{_place_in(function, error)}: the "
            "answers have no score. Correct the reward, or return None for rows that it cannot score; --debug shows "
            "the whole traceback."
        ) from error
    except SystemExit as error:
        raise RewardError(
            f"reward {name!r} asked Python to exit (SystemExit: {error.code!r}) instead of returning scores: the run "
            "would end half-done, with that exit code. Return None for rows that it cannot score, or raise an error."
        ) from error


def _ended(message: str) -> str:
    """The message without its full stop and in one line, cut to fit into a sentence."""
    message = " ".join(message.split()).rstrip(".")
    return message if len(message) <= 300 else f"{message[:300]}…"


def _place_in(function: Callable[..., Any], error: Exception) -> str:
    """Where in the reward's own file the error came from, and the line there; nothing where that is not known."""
    plain: Any = inspect.unwrap(function)
    code = getattr(plain if inspect.isroutine(plain) else type(plain).__call__, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the call itself
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename] or frames
    if not own:
        return ""
    line = f" ({own[-1].line})" if own[-1].line else ""
    return f" at {own[-1].filename}:{own[-1].lineno}{line}"


def wanted_arguments(function: Callable[..., Any], given: Collection[str], *, name: str) -> tuple[set[str], bool]:
    """(parameters that `function` names, whether it takes all others too), out of the names in `given`.

    Raises RewardError when it requires one that is not given, shows no signature, or is async.
    """
    refuse_async(function, name)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward {name!r} shows no signature: it is unknown which columns it wants. "
            "Wrap it in a function (prompts, completions, **columns)."
        ) from error
    wanted = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    missing = [
        parameter
        for parameter, p in wanted.items()
        if p.default is p.empty and (parameter not in given or p.kind is p.POSITIONAL_ONLY)
    ]
    if missing:
        raise RewardError(
            f"reward {name!r} requires {', '.join(map(repr, missing))}: no column of that name can be passed to it. "
            f"Columns here: {', '.join(sorted(given))}. Rename the parameter or the column, or give it a default."
        )
    return set(wanted), any(p.kind is p.VAR_KEYWORD for p in parameters)


def refuse_async(function: Callable[..., Any], name: str) -> None:
    """Raises RewardError when calling `function` would give a coroutine instead of scores."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise RewardError(
            f"reward {name!r} is an async function: a loop would get a coroutine instead of scores. "
            "Give a plain function; inside it asyncio.run(...) may call the async one."
        )


_NEIGHBOURS: dict[str, Path] = {}
"""Modules that reward files imported from their own folders, and the folder of each."""


@contextmanager
def _importing_from(*folders: Path) -> Iterator[None]:
    """These folders come first in the search for modules, and stay at its end for imports inside functions.

    A module that another reward file imported from its own folder makes room for one of the same name here.
    """
    own = [folder.resolve() for folder in folders]
    for name, folder in list(_NEIGHBOURS.items()):
        if folder != own[0] and ((own[0] / f"{name}.py").exists() or (own[0] / name).is_dir()):
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[loaded]
            del _NEIGHBOURS[name]
    before, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(folder) for folder in own]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        added = [entry for entry in sys.path[len(own) :] if entry not in before]
        # The newest folder goes before older reward folders, behind everything else.
        later = [entry for entry in before if entry not in _SEARCHED]
        _SEARCHED[:] = dict.fromkeys([str(folder) for folder in own if str(folder) not in later] + _SEARCHED)
        sys.path[:] = [*later, *added, *_SEARCHED]
        for name in {key.partition(".")[0] for key in sys.modules.keys() - known}:
            module = sys.modules.get(name)
            places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
            if name not in known and any(place and Path(place).resolve().parent == own[0] for place in places):
                _NEIGHBOURS[name] = own[0]


_SEARCHED: list[str] = []
"""Entries at the end of `sys.path` that stand there for reward files."""


def _module(place: str) -> ModuleType:
    try:
        with _importing_from(Path.cwd()), modes_kept_importing(place):
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise _import_failed(place, error) from error
        raise RewardError(
            f"there is no module {error.name!r} on this interpreter's path or in {str(Path.cwd())!r}: the reward "
            f"in {place!r} cannot be loaded. "
            "Install it, or give the file itself as path/to/file.py:function."
        ) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(place, error) from error


def _module_of_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # Path.is_file raises for names that no file system takes
        raise RewardError(
            f"there is no file {str(path)!r} (looked from {str(Path.cwd())!r}): the reward in it cannot be loaded. "
            "Correct the path; a relative one counts from where the command is run."
        )
    digest = hashlib.sha1(str(path.resolve()).encode(), usedforsecurity=False).hexdigest()[:8]
    name = f"hydralign_reward_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py always has a loader"
    assert spec.loader is not None, "a path that ends in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    try:
        with _importing_from(path.resolve().parent, Path.cwd()), modes_kept_importing(name):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    return module


def _import_failed(place: str, error: Exception | SystemExit) -> RewardError:
    if isinstance(error, SystemExit):
        return RewardError(
            f"importing {place!r} asked Python to exit (SystemExit: {error.code!r}): the run would end before it "
            "began, with that exit code. Put what is there to be run as a script under if __name__ == '__main__'."
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        folder = Path(place).resolve().parent if place.endswith(".py") else Path.cwd()
        return RewardError(
            f"importing {place!r} failed with ModuleNotFoundError: it needs the module {error.name!r}, which is "
            f"neither in {str(folder)!r}, nor in the working folder, nor installed: the reward in it cannot be loaded. "
            f"Put {error.name.partition('.')[0]}.py there, or install it."
        )
    return RewardError(
        f"importing {place!r} failed with {type(error).__name__} ({error}): the reward in it cannot be loaded. "
        "Make the import work in plain Python first."
    )
