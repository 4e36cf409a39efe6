"""The house rules that a machine can check, each with a snippet that breaks it, so that no rule is unable to fail.

A rule takes a module's dotted name (packages end in `.__init__`) and its tree, and returns findings.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import hydralign

Rule = Callable[[str, ast.Module], list[str]]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "reproducible"),
    ("types", "config", "files", "streams"),
    ("algorithms", "tracking", "progress", "distributed"),
    ("micro_batches", "hub", "encoder_input"),
    ("data", "models"),
    ("training", "generation", "rewards"),
    ("rollout",),
    ("evaluation",),
    ("methods",),
    ("runs",),
    ("compat", "demo", "testing"),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every module of the package by name."""
    source = ROOT / "src"
    files = sorted((source / "hydralign").rglob("*.py"))
    return {".".join(file.relative_to(source).with_suffix("").parts): ast.parse(file.read_bytes()) for file in files}


# What the rules look at.


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without the bodies of `if TYPE_CHECKING`."""
    yield node
    typing_only = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        if not (typing_only and isinstance(node, ast.If) and child in node.body):
            yield from runtime_nodes(child)


def imports(name: str, tree: ast.Module) -> list[tuple[int, str]]:
    """Line and full dotted target of each import that runs, in functions too; relative ones made absolute."""
    found: list[tuple[int, str]] = []
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = [*above, node.module] if node.module else above
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def public_definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """Public functions and classes of a body, and the public methods of those classes."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from public_definitions(node.body)
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            yield from public_definitions(node.body) if isinstance(node, ast.ClassDef) else ()


# The rules for one module.


def stays_in_its_layer(name: str, tree: ast.Module) -> list[str]:
    """A module imports from lower layers and from its own folder only."""
    own = name.split(".")[1]
    if own not in LAYER_OF:
        return [f"{name}: {own} has no place in LAYERS"]
    targets = [(line, (target + ".__init__").split(".")[1]) for line, target in imports(name, tree) if is_ours(target)]
    return [
        f"{name}:{line}: {own} imports from {other}"
        for line, other in targets
        if other != own and LAYER_OF.get(other, len(LAYERS)) >= LAYER_OF[own]
    ]


def is_ours(target: str) -> bool:
    return target.split(".")[0] == "hydralign"


def file_is_short(name: str, tree: ast.Module) -> list[str]:
    """A file has at most LONGEST_FILE lines."""
    lines = tree.body[-1].end_lineno or 0 if tree.body else 0
    return [f"{name}: {lines} lines"] if lines > LONGEST_FILE else []


def functions_are_short(name: str, tree: ast.Module) -> list[str]:
    """A function has at most LONGEST_FUNCTION lines, docstring included."""
    lengths = [(node, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions(tree)]
    return [f"{name}:{node.lineno}: {node.name} has {n} lines" for node, n in lengths if n > LONGEST_FUNCTION]


def module_has_a_docstring(name: str, tree: ast.Module) -> list[str]:
    """Every module says what it computes."""
    return [] if ast.get_docstring(tree) else [f"{name}: no docstring"]


def public_names_have_docstrings(name: str, tree: ast.Module) -> list[str]:
    """Every public function, class and method says what it is."""
    missing = [node for node in public_definitions(tree.body) if not ast.get_docstring(node)]
    overloads = {node for node in missing if "overload" in ast.unparse(node).split("\n")[0]}
    return [f"{name}:{node.lineno}: {node.name} has no docstring" for node in missing if node not in overloads]


def file_is_not_a_drawer(name: str, tree: ast.Module) -> list[str]:
    """A file is named after its subject."""
    return [f"{name}: name it after what it is about" for part in name.split(".") if part in ("utils", "helpers")]


def names_say_what_they_are(name: str, tree: ast.Module) -> list[str]:
    """No definition is called a manager, a helper or a handler."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, Definition)]
    empty = re.compile(r"(?:^|_)(?:manager|helper|handler)s?(?:$|_)|(?:Manager|Helper|Handler)s?(?![a-z])")
    return [f"{name}:{node.lineno}: {node.name} says nothing" for node in nodes if empty.search(node.name)]


def nothing_is_printed(name: str, tree: ast.Module) -> list[str]:
    """Output goes through progress and tracking."""
    return [f"{name}:{node.lineno}: print" for node in calls(tree) if ast.unparse(node.func) == "print"]


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def nothing_is_pickled(name: str, tree: ast.Module) -> list[str]:
    """Files are safetensors, JSON or YAML: reading them runs no code."""
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    return [f"{name}:{line}: {target}" for line, target in imports(name, tree) if target.split(".")[0] in picklers]


def torch_load_is_unused(name: str, tree: ast.Module) -> list[str]:
    """`torch.load` unpickles."""
    called = [(node.lineno, ast.unparse(node.func)) for node in calls(tree)]
    return [f"{name}:{line}: {target}" for line, target in [*called, *imports(name, tree)] if target == "torch.load"]


def moving_names_stand_in_one_place(name: str, tree: ast.Module) -> list[str]:
    """Only models.versions imports from inside transformers and peft, whose insides move between versions."""
    inside = re.compile(r"transformers\.(?!utils\b)[a-z_]+\.|peft\.[a-z_]+\.")
    found = [(line, target) for line, target in imports(name, tree) if inside.match(target)]
    return [] if name == "hydralign.models.versions" else [f"{name}:{line}: {target}" for line, target in found]


SETTINGS_ARE_READ_BY = re.compile(
    r"hydralign\.(?:(?:config|methods|runs|cli|demo|testing|__init__)\b|data\.|models\.forms\.|models\.classifiers\.training|rewards\.build)"
)
"""Beside methods and runs: what makes a source, a form or a reward of a tagged union reads that union."""


def configs_stop_where_things_are_made(name: str, tree: ast.Module) -> list[str]:
    """Everything below methods and runs takes plain arguments; a constant is no config."""
    if SETTINGS_ARE_READ_BY.match(name):
        return []
    found = [(line, target) for line, target in imports(name, tree) if target.startswith("hydralign.config")]
    return [f"{name}:{line}: {target}" for line, target in found if not target.rpartition(".")[2].isupper()]


def forms_are_told_apart_in_one_place(name: str, tree: ast.Module) -> list[str]:
    """Of the networks only models.forms.build asks which form it has; classifiers ask whether they are adapted."""
    if not re.match(r"hydralign\.(?:models|generation|training|rollout)\b", name):
        return []
    asked = [node for node in calls(tree) if ast.unparse(node.func) == "isinstance" and len(node.args) == 2]
    found = [node.lineno for node in asked if re.search(r"\w(?:Form|Model)\b", ast.unparse(node.args[1]))]
    apart = ("hydralign.models.forms.build", "hydralign.models.classifiers.training")
    return [] if name in apart else [f"{name}:{line}" for line in found]


def remote_code_is_not_trusted(name: str, tree: ast.Module) -> list[str]:
    """No model runs code that came with it."""
    pairs = [(word.arg, word.value) for node in calls(tree) for word in node.keywords]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs += [
                (ast.unparse(key).strip("'"), value) for key, value in zip(node.keys, node.values, strict=True) if key
            ]
    trusting = [value for key, value in pairs if key == "trust_remote_code" and ast.unparse(value) == "True"]
    return [f"{name}:{value.lineno}: trust_remote_code=True" for value in trusting]


def errors_are_not_swallowed(name: str, tree: ast.Module) -> list[str]:
    """No bare `except`, and no `except Exception` that does nothing."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            silent = all(isinstance(step, ast.Pass | ast.Continue) or ast.unparse(step) == "..." for step in node.body)
            if not caught or (silent and {"Exception", "BaseException"} & set(re.findall(r"\w+", caught))):
                found.append(f"{name}:{node.lineno}: except {caught}")
    return found


RULES: dict[Rule, tuple[str, str]] = {
    stays_in_its_layer: (
        "def f():\n    from hydralign.methods.ppo import train",
        "if TYPE_CHECKING:\n    import hydralign.loops\nfrom ..errors import ModelError\nfrom .heads import Head",
    ),
    file_is_short: ("x = 1\n" * 401, "x = 1\n" * 400),
    functions_are_short: ("def f():\n" + "    x = 1\n" * 60, "def f():\n" + "    x = 1\n" * 59),
    module_has_a_docstring: ("x = 1", '"""Says it."""'),
    public_names_have_docstrings: (
        'class A:\n    """A."""\n    def f(self): ...',
        'class A:\n    """A."""\n    def _f(self): ...\ndef f():\n    """F."""\n    def inner(): ...',
    ),
    file_is_not_a_drawer: ("x = 1", "x = 1"),
    names_say_what_they_are: ("class RunManager: ...", "class Manageress: ...\ndef handle(): ..."),
    nothing_is_printed: ("print('x')", "sys.stderr.write('x')\nfingerprint('x')"),
    nothing_is_pickled: ("def f():\n    from pickle import loads", "import pickletools"),
    torch_load_is_unused: ("x = torch.load('x')", "x = torch.loads('x')\njson.load(x)"),
    moving_names_stand_in_one_place: (
        "from transformers.pytorch_utils import Conv1D",
        "from transformers import AutoTokenizer\nfrom transformers.utils import logging\nfrom peft import PeftModel",
    ),
    configs_stop_where_things_are_made: (
        "from hydralign.config.model import LoraForm",
        "from hydralign.config.data import RESERVED_COLUMNS\nfrom hydralign.types import Prompt",
    ),
    forms_are_told_apart_in_one_place: (
        "if isinstance(form, LoraForm | HydraForm): pass",
        "if isinstance(x, nn.Linear): pass\nform = LoraForm()",
    ),
    remote_code_is_not_trusted: (
        "load(path, **{'trust_remote_code': True})",
        "load(path, trust_remote_code=False, x=True)",
    ),
    errors_are_not_swallowed: (
        "try:\n    f()\nexcept (OSError, Exception):\n    pass",
        "try:\n    f()\nexcept Exception as e:\n    raise E from e\nfinally:\n    g()",
    ),
}
"""Each rule with a snippet that breaks it and one that comes near but does not."""

BAD_NAMES: dict[Rule, str] = {file_is_not_a_drawer: "hydralign.models.utils"}
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@each_rule
def test_package_keeps_the_rule(rule: Rule, trees: Mapping[str, ast.Module]) -> None:
    findings = [finding for name, tree in trees.items() for finding in rule(name, tree)]
    assert not findings, f"{rule.__doc__}\n" + "\n".join(findings)


@each_rule
def test_rule_finds_what_breaks_it_and_nothing_else(rule: Rule) -> None:
    bad, good = RULES[rule]
    assert rule(BAD_NAMES.get(rule, "hydralign.models.made_up"), ast.parse(bad))
    assert rule("hydralign.models.made_up", ast.parse(good)) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("hydralign.models.a", "from hydralign.data import rows", True),
        ("hydralign.data.a", "from .rows import Row", False),
        ("hydralign.data.__init__", "from .rows import Row", False),
        ("hydralign.data.__init__", "from ..methods import ppo", True),
        ("hydralign.errors", "import hydralign.types", True),
        ("hydralign.methods.a", "from hydralign import Recipe", True),
        ("hydralign.methods.a", "import hydralign", True),
        ("hydralign.methods.a", "from hydralign import errors\nfrom hydralignment import methods", False),
        ("hydralign.unheard_of", "x = 1", True),
    ],
)
def test_layers_are_read_from_every_form_of_import(name: str, text: str, found: bool) -> None:
    assert bool(stays_in_its_layer(name, ast.parse(text))) is found


# The rules for the package as a whole.


def import_cycle(trees: Mapping[str, ast.Module]) -> list[str]:
    """Names of modules that import each other in a circle, or nothing."""

    def home(target: str) -> str | None:
        parts = target.split(".")
        prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        return next((name for p in prefixes for name in (p, f"{p}.__init__") if name in trees), None)

    graph = {name: {home(target) for _, target in imports(name, tree)} - {None} for name, tree in trees.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


SHARED_NAMES = {"train"}
"""What every method calls its loop."""


def shared_names(trees: Mapping[str, ast.Module]) -> list[str]:
    """Public functions and classes that two modules define under one name: a reader could not tell which is meant."""
    homes: dict[str, list[str]] = {}
    for module, tree in trees.items():
        for node in tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    return [
        f"{name}: {', '.join(where)}" for name, where in homes.items() if len(where) > 1 and name not in SHARED_NAMES
    ]


def test_no_two_modules_share_a_public_name(trees: Mapping[str, ast.Module]) -> None:
    assert shared_names(trees) == []


def test_shared_names_are_found() -> None:
    modules = {name: ast.parse("def load(): ...\ndef _own(): ...\ndef train(): ...") for name in ("a", "b")}
    assert shared_names(modules) == ["load: a, b"]


def test_modules_import_each_other_in_no_circle(trees: Mapping[str, ast.Module]) -> None:
    assert import_cycle(trees) == []


def test_import_cycle_is_found_through_functions_and_packages() -> None:
    texts = {"p.__init__": "from p.a import f", "p.a": "import p.b", "p.b": "def g():\n    from p import f"}
    modules = {name: ast.parse(text) for name, text in texts.items()}
    assert set(import_cycle(modules)) == set(texts)
    modules["p.b"] = ast.parse("if TYPE_CHECKING:\n    from p import f")
    assert import_cycle(modules) == []


def test_all_names_only_what_is_there(trees: Mapping[str, ast.Module]) -> None:
    packages = [name.removesuffix(".__init__") for name in trees if name.endswith(".__init__")]
    modules = [importlib.import_module(name) for name in packages]
    exported = [(module, name) for module in modules for name in getattr(module, "__all__", ())]
    assert [f"{module.__name__}.{name}" for module, name in exported if not hasattr(module, name)] == []
    assert (hydralign, "Recipe") in exported


def test_all_of_the_package_is_sorted_and_known_to_type_checkers(trees: Mapping[str, ast.Module]) -> None:
    tree = trees["hydralign.__init__"]
    runtime = set(runtime_nodes(tree))
    for_typing = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node not in runtime]
    assert hydralign.__all__ == sorted(alias.name for node in for_typing for alias in node.names)
    assert set(hydralign.__all__) <= set(dir(hydralign))


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hydralign' has no attribute 'sing'"):
        _ = hydralign.sing


@pytest.mark.parametrize("module", ["hydralign", "hydralign.config", "hydralign.cli"])
def test_light_module_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def machine_paths(text: str) -> list[str]:
    """Paths of somebody's own machine."""
    return re.findall(r"(?<![\w.~])/(?:root|work|home/\w+|Users/\w+)/[\w./-]*", text)


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    named = {file.name: machine_paths(file.read_text(encoding="utf-8", errors="ignore")) for file in files}
    assert {name: paths for name, paths in named.items() if paths} == {}


def test_machine_path_is_found_and_a_relative_one_is_not() -> None:
    folders = ["root/x", "work/main/y", "home/ann/z.py", "Users/ann/z"]
    assert machine_paths(" ".join("/" + folder for folder in folders)) == ["/" + folder for folder in folders]
    assert machine_paths("src/work/x ~/work/x ../root/x https://example.org/home/ann/x /tmp/x") == []
