"""What may be copied: each program stands alone, and the loop is spelled alike in all."""

import ast
import re
import sys

import pytest
from processes import ROOT

COPIES = sorted((ROOT / "examples" / "copy").glob("*.py"))
EXAMPLES = {"PIL", "accelerate", "ase", "imagecodecs", "lightning", "matplotlib", "numpy", "optree", "purevdm", "sklearn"}
EXAMPLES |= {"torch", "tqdm"}


@pytest.mark.parametrize("path", COPIES, ids=lambda path: path.stem)
def test_a_copy_needs_only_purevdm_and_the_extras(path):
    tree = ast.parse(path.read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    roots = {name.split(".")[0] for name in names}
    assert "purevdm" in roots
    assert roots <= EXAMPLES | sys.stdlib_module_names


def test_the_loop_is_spelled_alike():
    loops = {
        match for path in COPIES for match in re.findall(r"^def train\(.*?^    return .*?$", path.read_text(), re.M | re.S)
    }
    assert len(loops) == 1
    assert sum("def train(" in path.read_text() for path in COPIES) == 11


def test_every_program_has_its_line_in_the_list():
    listed = (ROOT / "examples" / "README.md").read_text()
    programs = [path for path in (ROOT / "examples").glob("*/*.py") if "__main__" in path.read_text()]
    assert not [path.name for path in programs if f"`{path.name}`" not in listed]
