"""What the documents show must run, and what they name must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hydralign.config import dump_recipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FILE = re.compile(r"`((?:src|tests|docs|examples|recipes|benchmarks)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), namespace)
    assert "__builtins__" in namespace or not BLOCK.search(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [file for file in FILE.findall(text) if not (ROOT / file).exists()]
    assert missing == []


def test_functions_that_the_ppo_page_names_exist() -> None:
    text = (ROOT / "docs/ppo.md").read_text(encoding="utf-8") + (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`((?:algorithms|methods|training|runs|models|rewards)/[\w/]+\.py):(\w+)`", text)
    assert len(named) >= 9
    for file, function in named:
        assert f"def {function}(" in (ROOT / "src/hydralign" / file).read_text(encoding="utf-8"), (file, function)


def test_the_loop_of_the_readme_has_ten_lines() -> None:
    block = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    assert {"collect", "estimate", "update"} <= set(re.findall(r"hy\.(\w+)\(", block))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_read_and_written_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert "{output}" not in dump_recipe(recipe)
    if recipe.ppo is not None:
        assert recipe.compare is not None
        assert None not in (recipe.compare.before, recipe.compare.after)
    assert f"recipes/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_recipe_expects_stands_in_the_readme(path: Path) -> None:
    header, _, _ = path.read_text(encoding="utf-8").partition("\noutput:")
    expected = re.findall(r"[+-]?\d+\.\d+", header.partition("Expect")[2])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [number for number in expected if number not in readme] == []
