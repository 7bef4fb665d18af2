"""What MkDocs does besides Markdown, for `.ci/mkdocs.yml`: the API's pages, the tour, the repository's files, mathematics.

A page links to files of the repository as GitHub wants it, by relative paths. Those outside of the docs' folder become pages
of the site, and so do the files that these link to. Mathematics becomes MathML as the site is built: no script runs for it.
"""

import html
import importlib.resources
import inspect
import os.path
import re
import runpy
import types
from pathlib import Path

import math_core
import nbformat
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "examples" / "tour.ipynb"
DOCS = ROOT / "examples" / "docs"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|data:|#)([^)#\s]+)(?=[)#])")
PICTURES = (".gif", ".jpg", ".png", ".svg")
LANGUAGES = {"": "text", ".py": "python", ".yml": "yaml", ".toml": "toml", ".json": "json", ".cff": "yaml"}
API = runpy.run_path(str(ROOT / ".ci" / "api.py"))
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.M | re.S)
MATHS = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.S)
typeset = math_core.LatexToMathML(annotation=False, continue_on_error=False)
origins = {}  # where a page of the site comes from


def place(path):
    """Gives the place on the site of a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path == TOUR:
        return "tour.md"
    name = "/".join(["source", *(part.lstrip(".") for part in path.relative_to(ROOT).parts)])
    return name if path.suffix in (".md", *PICTURES) else name + ".md"


def linked(path, text):
    """Rewrites the links of a page for the site: its text, and the files that it links to."""
    found = []

    def rewrite(match):
        target = (path.parent / match[1]).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{path}: no {match[1]}")
        found.append(target)
        return os.path.relpath(place(target), os.path.dirname(place(path)))

    parts = [LINK.sub(rewrite, part) for part in CODE.split(text)]
    code = [*CODE.findall(text), ""]
    return "".join(part + span for part, span in zip(parts, code, strict=True)), found


def notebook():
    """Writes the tour as a page, its pictures within."""
    text, pictures = [], 0
    for cell in nbformat.read(TOUR, as_version=4).cells:
        text.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                text.append(f"```text\n{''.join(output.text).rstrip()}\n```")
            else:
                pictures += 1
                text.append(f"![picture {pictures}](data:image/png;base64,{''.join(output.data['image/png'].split())})")
    return "\n\n".join(text)


def on_config(config):
    config["modules"] = API["modules"]()
    shown = [module.__name__ for module in config["modules"] if not API["listed_above"](module)]
    config.nav.append({"API": [{name.removeprefix("purevdm."): f"api/{name}.md"} for name in shown]})
    return config


def api_page(module, modules):
    """Writes the page of a public module: its names, and what the modules say that its names come from."""
    names = [name for name in module.__all__ if not isinstance(getattr(module, name), types.ModuleType)]
    if module.__name__ == "purevdm":  # the rest has pages of its own
        names = [name for name in names if "._" in getattr(getattr(module, name), "__module__", "")]
    parts = [f"# `{module.__name__}` {{ #{module.__name__} }}\n\n::: {module.__name__}\n    options: {{members: {names}}}\n"]
    for other in modules:
        above = other.__name__.rpartition(".")[0] == module.__name__ and API["listed_above"](other)
        if above and "\n\n" in inspect.getdoc(other):
            parts.append(f"## About `{other.__name__}` {{ #{other.__name__} }}\n\n")
            parts.append(f"::: {other.__name__}\n    options: {{members: false}}\n")
    return "\n".join(parts)


def on_files(files, config):
    pages = {TOUR: notebook()}
    pages |= {Path(file.abs_src_path): file.content_string for file in files.documentation_pages() if file.abs_src_path}
    wait = list(pages)
    while wait:
        path = wait.pop()
        text, found = linked(path, pages[path])
        origins[place(path)] = path, text
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, place(path), content=text))
        for other in found:
            if other in pages or (other.is_relative_to(DOCS) and other.suffix != ".md"):
                continue
            if other.suffix in PICTURES:
                files.append(File.generated(config, place(other), abs_src_path=str(other)))
                pages[other] = ""
                continue
            body = "\n".join(sorted(part.name for part in other.iterdir())) if other.is_dir() else other.read_text()
            if other.suffix != ".md":
                body = f"# {other.relative_to(ROOT)}\n\n```{LANGUAGES.get(other.suffix, 'text')}\n{body.rstrip()}\n```\n"
            pages[other] = body
            wait.append(other)
    font = importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "math.ttf", abs_src_path=str(font)))
    for module in config["modules"]:
        if not API["listed_above"](module):
            page = api_page(module, config["modules"])
            files.append(File.generated(config, f"api/{module.__name__}.md", content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    name = page.file.src_uri
    if name.startswith("source/"):
        page.meta["search"] = {"exclude": True}
    return origins[name][1] if name in origins else markdown


def on_page_content(content, page, config, files):
    def render(match):
        try:
            latex = html.unescape(match[2])
            shown = typeset.convert_with_local_state(latex, displaystyle=match[1] == "div")
            return f'<div class="formula">{shown}</div>' if match[1] == "div" else shown
        except math_core.LatexError as error:
            raise ValueError(f"{page.file.src_uri}: {latex}: {error}") from error

    return MATHS.sub(render, content)
