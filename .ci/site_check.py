"""Holds a built site against what a reader needs: python .ci/site_check.py FOLDER

All relative links and anchors resolve, nothing is loaded from elsewhere, no mathematics and no role of Sphinx is left raw.
Prints what is wrong, and exits with 1 where anything is.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

RAW = re.compile(r"\$|\\[a-zA-Z(\[]|:(?:func|class|mod|meth|attr|data|exc):|^>>> ", re.M)
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """A page's anchors, links, what it loads, and its text outside of code."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.text, self.within = {""}, [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if attrs.get(LOADS.get(tag, "")) and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(attrs[LOADS[tag]])
        if tag in ("code", "pre", "script", "style", "math"):
            self.within.append(tag)

    def handle_endtag(self, tag):
        if self.within and self.within[-1] == tag:
            self.within.pop()

    def handle_data(self, data):
        if not self.within:
            self.text.append(data)


def wrong(folder):
    """Lists what is wrong, each with its page."""
    pages = {path.resolve(): Page(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        found += [f"{name}: raw: {text.strip()[:100]}" for text in page.text if RAW.search(text)]
        for link in page.loads + page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https") and link in page.loads:
                found.append(f"{name}: loads {link}")
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (target in pages and unquote(parts.fragment) not in pages[target].ids):
                found.append(f"{name}: no {link}")
    for path in folder.rglob("*.css"):
        found += [
            f"{path.name}: loads {link}"
            for link in re.findall(r"(?:url\(|@import )[\"']?(https?:[^)\"']+)", path.read_text())
        ]
    return found if pages else ["no pages"]


if __name__ == "__main__":
    problems = wrong(Path(sys.argv[1]).resolve())
    print("\n".join(problems))
    sys.exit(bool(problems))
