"""The pages, `examples/docs/*.md`: their code runs, commands and links lead somewhere; and how the site shows docstrings."""

import doctest
import importlib
import pkgutil
import re
import shlex
import sys
import unicodedata

import pytest
from processes import ROOT

import purevdm

DOCS = ROOT / "examples" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NAMES = (
    "coming_from compression data families glossary index likelihoods networks numerics sampling schedules solvers training "
    "verified"
)
MODEL = purevdm.vdm(purevdm.networks.mlp(8), purevdm.schedules.learned_linear(), event_shape=(2,))
ROOMS = {module.name for module in pkgutil.iter_modules(purevdm.__path__)}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def prose(text):
    """Returns a page without its blocks of code, and without code in lines."""
    return re.sub(r"`[^`\n]+`", "", BLOCK.sub("", text))


def anchors(text):
    """Returns the anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.M)
    plain = (unicodedata.normalize("NFKD", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_the_pages_are_those_that_others_link_to():
    assert [page.stem for page in PAGES] == NAMES.split()


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "coming_from"], ids=lambda page: page.stem)
def test_a_page_s_session_runs(page):
    """`test_coming_from.py` runs the code of the one that is left out."""
    blocks = [code for language, code in BLOCK.findall(page.read_text()) if language == "python"]
    assert all(code.startswith(">>> ") for code in blocks)
    if not blocks:
        assert page.stem == "glossary"
        return
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_commands_name_files_that_exist():
    commands = [code for page in PAGES for language, code in BLOCK.findall(page.read_text()) if language == "sh"]
    words = [word for code in commands for word in shlex.split(code, comments=True)]
    named = {word for word in words if word.startswith(("examples/", "tests/", ".ci/"))}
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose(page.read_text())) if not link.startswith("http")]
    assert links or page.stem == "glossary"
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def found(name):
    """Returns what a name in the library stands for, importing what it has to; `model` stands for a VDM."""
    first, *rest = name.split(".")
    path, value = f"purevdm.{first}", MODEL if first == "model" else importlib.import_module(f"purevdm.{first}")
    for part in rest:
        path += f".{part}"
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)
    return value


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "coming_from"], ids=lambda page: page.stem)
def test_names_exist(page):
    """What stands as `module.name` in a line of text is a name of the library, and `model.name` one of a model's."""
    spans = re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))
    names = [match[0].removeprefix("purevdm.") for span in spans if (match := re.match(r"(?:[a-z_]+\.)+\w+", span))]
    values = [found(name) for name in names if name.split(".")[0] in {"model", *ROOMS} - {"noise"}]
    assert values or page.stem == "index"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"(\w+\.md)$", (ROOT / ".ci" / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted([*(page.name for page in PAGES), "tour.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_dollars_are_in_pairs(page):
    """So that GitHub and the site take the same for mathematics."""
    text = prose(page.read_text())
    assert text.count("$$") % 2 == 0
    assert all(paragraph.replace("$$", "").count("$") % 2 == 0 for paragraph in text.split("\n\n"))


# How the site shows docstrings; what it needs is in the extra "docs"


@pytest.fixture(scope="module")
def docstrings():
    pytest.importorskip("griffe")
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import site_docstrings
    finally:
        sys.path.remove(str(ROOT / ".ci"))
    return site_docstrings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("z = alpha x + sigma eps, with", r"$z = \alpha x + \sigma \epsilon$, with"),
        ("with alpha**2 + sigma**2 = 1", r"with $\alpha ^{2} + \sigma ^{2} = 1$"),
        ("of p(x given z_0).", r"of $p (x \mid z_{0})$."),
        ("|x - x_hat|**2 / sigma_1**(2 t')", r"$\lvert x - \hat{x} \rvert ^{2} / \sigma_{1}^{2 t' }$"),
        ("sqrt(1 - g) and N(0, I)", r"$\sqrt{1 - g }$ and $\mathcal{N}(0, I )$"),
        ("latents (B, *event_shape), gamma (B,)", r"latents (B, \*event_shape), gamma (B,)"),
        ("an *input distribution*, **bold**, x's bin, in [0, 1)", "an *input distribution*, **bold**, x's bin, in [0, 1)"),
        (
            "and\n-log(s) |x - x_hat|**2 +\nN(z_1; 0, I)",
            "and\n$" + r"-\log (s ) \lvert x - \hat{x} \rvert ^{2} + \mathcal{N}(z_{1}; 0, I )$",
        ),
        ("dz / dgamma = sigma_{t|s}**2, to do", r"$dz / d\gamma = \sigma_{{t\mid s}}^{2}$, to do"),
        ("nats**2, a low-order step at t", r"nats\*\*2, a low-order step at t"),
    ],
)
def test_formulas_in_plain_text(docstrings, text, shown):
    assert re.sub(" +", " ", docstrings.formulas(text)) == shown


def test_sessions_blocks_and_roles(docstrings):
    text = "Gives :func:`~a.f`.\n\n>>> f(2)\n4\n\nIt is\n\n    gamma(t) = log(sigma**2 / alpha**2),\n\nor\n\n    f(x, y)\n"
    got = docstrings.shown(text, lambda match: f"[{match[2]}]")
    assert "Gives [a.f]." in got
    assert "```pycon\n>>> f(2)\n4\n```" in got
    assert re.search(r"^\$\$\n\\gamma.*\n\$\$$", got, re.M)
    assert "```python\nf(x, y)\n```" in got
