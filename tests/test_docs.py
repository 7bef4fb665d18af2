"""The examples in the docstrings and the code of the README run and print what they say."""

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import purevdm

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MODULES = ["purevdm", *(found.name for found in pkgutil.walk_packages(purevdm.__path__, "purevdm."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("path", sorted((ROOT / "purevdm").rglob("*.py")), ids=lambda path: path.stem)
def test_docstrings_of_functions_begin_with_a_verb(path):
    """In the third person; those of properties name what they are. Nouns in the plural pass."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not any("property" in ast.unparse(d) for d in node.decorator_list):
            first = ast.get_docstring(node) or "Says"
            assert re.match(r"(?!This|Its|As|Is)[A-Z][a-z-]*s\b", first), f"{node.name}: {first}"


@pytest.mark.parametrize("name", [name for name in MODULES if "._" not in name])
def test_all_is_true(name):
    """Every public module has an ``__all__`` of names that it holds, sorted as ruff sorts them, each with a docstring of its
    own (a tuple's or a dataclass's lists the fields where nobody wrote one)."""
    module = importlib.import_module(name)
    kind = lambda entry: 0 if entry.isupper() and len(entry) > 1 else 1 if entry[0].isupper() else 2  # noqa: E731
    assert list(module.__all__) == sorted(set(module.__all__), key=lambda entry: (kind(entry), entry))
    for entry in module.__all__:
        value = getattr(module, entry)
        if callable(value) and getattr(value, "__module__", "").startswith("purevdm"):
            assert value.__doc__, entry
            assert not (isinstance(value, type) and value.__doc__.startswith(f"{entry}(")), entry


def test_readme_loop_runs():
    """The ten lines of the custom loop, with small sizes put in."""
    (code,) = re.findall(r"```python\n(import optree.*?)```", README.read_text(), re.S)
    for old, new in (
        ("embed=32, layers=2", "embed=32, layers=1"),
        ("3, 32, 32", "3, 8, 8"),
        ("16, steps=100", "2, steps=2"),
    ):
        assert old in code
        code = code.replace(old, new)
    scope = {}
    exec(code, scope)
    assert scope["loss"].shape == ()
    assert scope["images"].shape == (2, 3, 8, 8)


def test_the_index_of_the_api_is_current():
    module = runpy.run_path(str(ROOT / ".ci" / "api.py"))
    assert (ROOT / ".github" / "API.md").read_text() == module["index"](), "run `python .ci/api.py`"


def test_the_readme_is_short_and_names_files_that_exist():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    mentioned = re.findall(r"(?:python|bash) ((?:examples|\.ci)/[\w./]+)", text)
    assert linked
    assert mentioned
    assert not [path for path in linked + mentioned if not (ROOT / path).exists()]
