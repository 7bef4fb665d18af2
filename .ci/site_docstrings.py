"""Docstrings as the site shows them: an extension of griffe for `.ci/mkdocs.yml`.

In `help()` docstrings are plain text. Here their roles become links, their sessions blocks of code, and their formulas
LaTeX, which `site_hooks.py` renders. A formula is a run of symbols, numbers and operators, as in `z = alpha x + sigma eps`.
"""

import ast
import re
import textwrap

import griffe

WORDS = {"given": r"\mid ", "at": r"\text{ at }", "log": r"\log ", "exp": r"\exp ", "E": r"\mathbb{E}"}
ROLE = re.compile(r":\w+:`(~?)([^`]+)`")
GREEK = "alpha beta gamma delta epsilon eps theta lambda mu pi rho sigma tau phi Phi Gamma"
FUNCTIONS = "log exp expm1 sqrt sigmoid softplus softmax tanh sech erf KL cos sin div max min"
DIFFERENTIAL = r"d(?:gamma|[a-z](?:_\w)?)(?= / d)|(?<=/ )d(?:gamma|[a-z](?:_\w)?)(?!\w)"
LETTER = rf"{'|'.join(GREEK.split())}|abar|SNR|snr|[b-zB-HJ-Z]"
SYMBOL = rf"(?:{LETTER})(?:_(?:\{{[^{{}} ]+\}}|[a-z0-9A-Z]+))*(?![\w.]*\w)'*(?![a-z])|I(?=\))"
TOKEN = re.compile(
    rf"(?P<symbol>(?<![\w`'])(?:{DIFFERENTIAL}|{SYMBOL}|(?:{'|'.join(FUNCTIONS.split())}|E)(?=[ (\[])|given|at(?= t =)))"
    r"|(?P<number>(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?!\w|\.\d))"
    r"|(?P<operator>(?<=[ \n])(?:<=|>=|\|\||[-+/=<])(?=[ \n])|\.\.\.|\*\*|[-|,;^])"
    r"|(?P<open>[(\[])|(?P<close>[)\]])|(?P<space>[ \n]+)"
)
SAID = re.compile(r"\*\*|[ \n](?:[-+/=<]|<=|>=|\|\|)[ \n]|\w'?\(|-log p")


def latex(text):
    """Typesets a formula written in plain text."""
    tokens = list(TOKEN.finditer(text))
    bars = 0

    def one(i):
        """The token at i, or the whole of a bracket: its LaTeX, and where the next begins."""
        nonlocal bars
        token = tokens[i][0]
        if tokens[i].lastgroup == "open":
            inner, i = [token], i + 1
            while tokens[i].lastgroup != "close":
                part, i = power(i)
                inner.append(part)
            return "".join([*inner, tokens[i][0]]), i + 1
        if tokens[i].lastgroup == "symbol":
            following = tokens[i + 1][0] if i + 1 < len(tokens) else ""
            if token == "sqrt":
                part, i = one(i + 1)
                return rf"\sqrt{{{part[1:-1]}}}", i
            if token == "N" and following == "(":
                return r"\mathcal{N}", i + 1
            return name(token), i + 1
        if token == "|":
            bars += 1
            return (r"\lvert " if bars % 2 else r"\rvert "), i + 1
        return {"||": r"\,\|\,", "<=": r"\le ", ">=": r"\ge ", "...": r"\dots "}.get(token, token), i + 1

    def power(i):
        part, i = one(i)
        while i < len(tokens) and tokens[i][0] in ("**", "^"):
            sign = "-" if tokens[i + 1][0] == "-" else ""
            exponent, i = one(i + 1 + len(sign))
            part += f"^{{{sign}{exponent[1:-1] if exponent[0] == '(' else exponent}}}"
        return part, i

    parts, i = [], 0
    while i < len(tokens):
        part, i = power(i)
        parts.append(part)
    return "".join(parts)


def name(token):
    """Typesets a symbol: `eps_hat` is an epsilon with a hat."""
    base, *marks = token.rstrip("'").split("_")
    if base in WORDS:
        return WORDS[base]
    if len(base) > 1 and base[0] == "d" and base not in GREEK.split() + FUNCTIONS.split():
        return "d" + name(token[1:])
    base = "\\" + base if base in GREEK.split() else base if len(base) == 1 else rf"\operatorname{{{base}}}"
    base = {r"\eps": r"\epsilon", r"\operatorname{abar}": r"\bar\alpha"}.get(base, base)
    if "hat" in marks:
        marks.remove("hat")
        base = rf"\hat{{{base}}}"
    marks = [mark if len(mark) == 1 or mark.isdigit() or mark[0] == "{" else rf"\mathrm{{{mark}}}" for mark in marks]
    below = ",".join(marks).replace(r"\mathrm{infinity}", r"\infty").replace("|", r"\mid ")
    return base + "'" * token.count("'") + (f"_{{{below}}}" if marks else " ")


def formulas(text):
    """Puts LaTeX in the place of the formulas of a paragraph."""
    done, at = [], 0
    while match := TOKEN.search(text, at):
        done.append(text[at : match.start()])
        start = match.lastgroup in ("symbol", "number", "open") or match[0] in "-|"
        end = longest(text, match) if start and match[0] != "at" else match.start()
        found, before, after = text[match.start() : end], text[: match.start()], text[end:]
        whole = not (re.search(r"[-+*/=<]\s?\Z|\w\Z", before[-2:]) or re.match(r"\s?[*/_]|\(", after))
        said = SAID.search(found) and re.search(r"[a-zA-Z]|\*\*", found) and not re.fullmatch(r"[(\[][^()]*[)\]]", found)
        done.append(f"${latex(' '.join(found.split())).strip()}$" if whole and said else found or match[0])
        at = end if found else match.end()
    text = "".join([*done, text[at:]])
    text = re.sub(r"(?<=[\w)|])\*\*(?=[\w(])", r"\*\*", text)
    return re.sub(r"(?<![\w*\\])\*(?=\w+[,)])", r"\*", text)


def longest(text, match):
    """Gives the end of the longest formula that begins at a token, with brackets and bars in pairs."""
    end, depth, bars = match.start(), 0, 0
    while match and match[0] != "given" * (end == match.start()):
        depth += (match.lastgroup == "open") - (match.lastgroup == "close")
        bars += match[0] == "|"
        whole = match.lastgroup in ("symbol", "number", "close") or match[0] in ("|", "...")
        if depth < 0 or (depth == 0 and match[0] in ",;"):
            break
        if depth == 0 and bars % 2 == 0 and whole and match[0] not in {*WORDS, *FUNCTIONS.split()}:
            end = match.end()
        match = TOKEN.match(text, match.end())
    return end


def block(text):
    """Shows an indented block: a formula, code, or, as it stands, anything else."""
    body = textwrap.dedent(text).strip("\n")
    try:
        ast.parse(body)
        if "**" not in body:
            return f"```python\n{body}\n```"
    except SyntaxError:
        pass
    lines = [formulas(line.strip().rstrip(".,")) for line in body.splitlines()]
    if all(re.fullmatch(r"(?:\$[^$]+\$[, ]*)+", line) for line in lines):
        return "\n\n".join(f"$$\n{line.replace('$', ' ').strip()}\n$$" for line in lines)
    return f"```text\n{body}\n```"


def shown(text, link):
    """Rewrites a docstring for the site."""
    parts = re.split(r"(^>>> (?:.+\n?)+|(?<=\n\n)(?: {4}.*\n?(?:\n(?= {4}))?)+)", text + "\n", flags=re.M)
    for i, part in enumerate(parts):
        if part.startswith(">>> "):
            parts[i] = f"\n```pycon\n{part.rstrip()}\n```\n"
        elif i % 2:
            parts[i] = f"{block(part)}\n\n"
        else:
            spans = re.split(r"(``.+?``|:\w+:`[^`]+`|`[^`]+`|^\s*[\w, *]+: |^\|| \| | \|$)", part, flags=re.S | re.M)
            spans[::2] = map(formulas, spans[::2])
            parts[i] = ROLE.sub(link, "".join(spans))
    return "".join(parts).rstrip()


def made_of_fields(part):
    """Gives the signature of a NamedTuple, as a function."""
    kind = griffe.ParameterKind.positional_or_keyword
    fields = [field for field in part.members.values() if field.is_attribute and field.annotation]
    taken = (griffe.Parameter(f.name, annotation=f.annotation, kind=kind, default=f.value) for f in fields)
    return griffe.Function("__init__", parameters=griffe.Parameters(griffe.Parameter("self", kind=kind), *taken))


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is read."""

    def on_package(self, *, pkg, **kwargs):
        wait = [pkg]
        while wait:
            part = wait.pop()
            wait += [member for member in getattr(part, "members", {}).values() if not member.is_alias]
            if part.is_class and "NamedTuple" in map(str, part.bases):
                part.set_member("__init__", made_of_fields(part))
            if part.docstring:
                part.docstring.value = shown(part.docstring.value, lambda match, part=part: self.link(match, part))

    def link(self, match, part):
        """Gives a role as a link to what it names, as seen from a part of the package."""
        short, target = match.groups()
        label = target.rpartition(".")[2] if short else target.removeprefix("purevdm.")
        path, (first, _, rest) = target, target.partition(".")
        if first != "purevdm":
            scope = part.parent if part.is_function and first in part.parent.members else part
            home = scope.members[first].canonical_path if first in getattr(scope, "members", {}) else scope.resolve(first)
            path = f"{home}{'.' * bool(rest)}{rest}"
        return f"[`{label}`][{path}]"
