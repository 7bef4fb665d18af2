"""The tour, `examples/tour.ipynb`: its code names what exists; its figures, stored or found anew, say what its text says."""

import ast
import math
import re

import nbclient
import nbformat
import pytest
from processes import ROOT

PATH = ROOT / "examples" / "tour.ipynb"
FIGURE = re.compile(r"(.{35}) (-?\d[\d.e-]*)(?: \+- ([\d.]+))?")


def read():
    return nbformat.read(PATH, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(notebook):
    """Returns the numbers that the notebook printed, (mean, error), by section and label; an error not printed is 0."""
    found, section = {}, 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = int((re.findall(r"^## (\d+)\.", cell.source, re.M) or [section])[-1])
            continue
        assert all(
            output.output_type in ("stream", "display_data") and output.get("name") != "stderr" for output in cell.outputs
        )
        for line in "".join(output.text for output in cell.outputs if output.output_type == "stream").splitlines():
            match = FIGURE.match(line)
            assert match, line
            key = section, match[1].rstrip()
            assert key not in found, key
            found[key] = float(match[2]), float(match[3] or 0.0)
    return found


def check(found):
    """Holds the figures against what the text says of them."""
    mean = {key: value for key, (value, _) in found.items()}

    def agrees(key, value=0.0, rounding=0.0):
        assert abs(mean[key] - value) <= 4 * found[key][1] + rounding, (key, found[key], value)

    assert mean[1, "uniform"] == pytest.approx(math.log2(17), abs=1e-4)
    assert mean[1, "histograms"] < mean[1, "uniform"]
    for term in ("recon", "prior", "diffusion"):
        assert found[3, f"{term}, by hand"] == pytest.approx(found[3, f"{term}, by purevdm"], rel=1e-3)
    assert mean[3, "largest relative difference"] < 1e-4
    assert mean[3, "diffusion, by hand"] > mean[1, "uniform"]
    assert mean[4, "bound"] == pytest.approx(sum(mean[4, term] for term in ("recon", "prior", "diffusion")), abs=2e-4)
    assert mean[4, "bound"] + 4 * found[4, "bound"][1] < mean[1, "histograms"]
    for bend in ("slow, then fast", "fast, then slow"):
        agrees((5, f"{bend}, less the line"))
    assert mean[5, "slow, then fast, scatter"] < mean[5, "line, scatter"] < mean[5, "fast, then slow, scatter"]
    agrees((6, "learned less the line"))
    assert mean[6, "scatter after"] < mean[6, "scatter before"]
    both = math.hypot(found[7, "diffusion, line"][1], found[7, "diffusion, learned"][1])
    assert abs(mean[7, "diffusion, line"] - mean[7, "diffusion, learned"]) <= 4 * both
    assert abs(mean[8, "flow less truth"]) < 0.01
    agrees((8, "bound less truth"))
    assert mean[8, "flow less bound"] > 3 * found[8, "flow less bound"][1]
    assert mean[9, "file"] < mean[9, "JPEG XL"]
    agrees((9, "bound in 50 steps"), mean[9, "file"], rounding=0.1)  # the file's initial bits
    assert mean[9, "images that come back"] == 297
    assert mean[10, "ends that come back"] == 6
    assert mean[11, "largest relative difference"] < 1e-4
    both = math.hypot(found[11, "whole bound as a flow"][1], found[11, "whole bound as a diffusion"][1])
    assert abs(mean[11, "whole bound as a flow"] - mean[11, "whole bound as a diffusion"]) <= 4 * both
    assert mean[12, "bound less truth"] >= -4 * found[12, "bound less truth"][1]
    assert mean[12, "padding, masked"] < 1e-3 < 100 < mean[12, "padding, not masked"]


def test_the_stored_figures_say_what_the_text_says():
    check(figures(read()))


def test_its_pictures_are_stored():
    pictures = [output for cell in code(read()) for output in cell.outputs if output.output_type == "display_data"]
    assert len(pictures) == 7
    assert all(len(output.data["image/png"]) > 2_000 for output in pictures)
    assert PATH.stat().st_size < 400_000


def test_its_code_names_what_exists():
    cells = [compile(cell.source, PATH.name, "exec", ast.PyCF_ONLY_AST) for cell in code(read())]
    given = {}
    imports = [part for part in cells[0].body if isinstance(part, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), PATH.name, "exec"), given)
    ours = {name: part for name, part in given.items() if getattr(part, "__name__", "").startswith("purevdm")}
    assert len(ours) > 10
    chains = {ast.unparse(part) for cell in cells for part in ast.walk(cell) if isinstance(part, ast.Attribute)}
    for root, *names in (chain.split(".") for chain in chains if re.fullmatch(r"[\w.]+", chain)):
        held = ours.get(root)
        for name in names if held else ():
            held = getattr(held, name)


@pytest.mark.slow
def test_it_runs_and_finds_the_same(tmp_path, monkeypatch):
    """Run anew, it finds what is stored within the errors of both."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook, stored = read(), figures(read())
    for cell in code(notebook):
        cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = figures(notebook)
    check(found)
    assert found.keys() == stored.keys()
    for key, (value, error) in found.items():
        if error:
            assert abs(value - stored[key][0]) <= 4 * math.hypot(error, stored[key][1]), (key, value, stored[key])
