"""Wrong values at the outer doors: a zoo in place of one argument, of two at a time, and damaged files.

``python tests/doors.py`` tries them all and prints a table: how many gave an error that names what is wrong, how many a
result, and, one by one, those that did neither. Names after it choose: singles, pairs, files, or parts of doors' names.
"""

import itertools
import math
import os
import random as dice
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import damage
import numpy as np
import optree
import torch
from calls import GAUSSIAN, Door, doors

from purevdm import codec, evaluation, random


class Wrong(NamedTuple):
    name: str
    value: Any


def _nested(around: Callable[[Any], Any]) -> Any:
    x: Any = 1
    for _ in range(2000):
        x = around(x)
    return x


ZOO = [
    Wrong("None", None),
    Wrong("True", True),
    Wrong("0", 0),
    Wrong("-1", -1),
    Wrong("3", 3),
    Wrong("1.5", 1.5),
    Wrong("nan", math.nan),
    Wrong("-inf", -math.inf),
    Wrong("10**400", 10**400),
    Wrong("2**40", 2**40),
    Wrong("1e300", 1e300),
    Wrong("'text'", "text"),
    Wrong("b'bytes'", b"bytes"),
    Wrong("()", ()),
    Wrong("[]", []),
    Wrong("{}", {}),
    Wrong("(1, 2)", (1, 2)),
    Wrong("(-1, 2.5)", (-1, 2.5)),
    Wrong("('a',)", ("a",)),
    Wrong("{'a': 1}", {"a": 1}),
    Wrong("object()", object()),
    Wrong("a function", lambda *args, **options: None),
    Wrong("a class", int),
    Wrong("a module", math),
    Wrong("a path", Path("/nonexistent/file")),
    Wrong("1j", 1j),
    Wrong("an array", np.zeros((3, 2))),
    Wrong("a number's tensor", torch.tensor(1.5)),
    Wrong("an integer's tensor", torch.tensor(3)),
    Wrong("a tensor of nothing", torch.zeros(0)),
    Wrong("a NaN", torch.full((3, 2), math.nan)),
    Wrong("an infinity", torch.full((3, 2), math.inf)),
    Wrong("a float64 tensor", torch.zeros(3, 2, dtype=torch.float64)),
    Wrong("a float16 tensor", torch.zeros(3, 2, dtype=torch.float16)),
    Wrong("a bool tensor", torch.zeros(3, 2, dtype=torch.bool)),
    Wrong("a complex tensor", torch.zeros(3, 2, dtype=torch.complex64)),
    Wrong("a uint16 tensor", torch.zeros(3, 2, dtype=torch.uint16)),
    Wrong("a tensor of rank 4", torch.zeros(3, 2, 2, 2)),
    Wrong("a sparse tensor", torch.eye(3).to_sparse()),
    Wrong("a key", random.key(1)),
    Wrong("a dtype", torch.float16),
    Wrong("a device", torch.device("cpu")),
    Wrong("a device that is not there", "cuda:99"),
    Wrong("a bfloat16 tensor", torch.zeros(3, 2, dtype=torch.bfloat16)),
    Wrong("a tensor without values", torch.zeros(3, 2, device="meta")),
    Wrong("a NumPy float", np.float64(1.5)),
    Wrong("a NumPy integer", np.int64(3)),
    Wrong("a set", {1, 2}),
    Wrong("2000 lists", _nested(lambda x: [x])),
    Wrong("2000 dicts", _nested(lambda x: {"a": x})),
]

PATIENT = {"steps", "limit", "timesteps", "passes"}
"""Arguments of which a large number is valid, and takes as long as it says."""


CALLED = {"grad_fn", "skip", "project", "callback", "bound", "method", "call", "function"}
"""Arguments that are called: what another function raises is its own."""


class Case(NamedTuple):
    """A call with wrong values for some arguments."""

    name: str
    door: Door
    wrong: dict[str, Any]


class Verdict(NamedTuple):
    kind: str  # "clear", "result", "silent", "unclear"
    told: str


def tried(case: Case) -> Verdict:
    """What a door says of wrong values."""
    door, values = case.door, list(case.wrong.values())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = door.call(**(door.arguments | case.wrong))
    except (TypeError, ValueError) as error:
        told = str(error)
        head = re.sub(r"^block \d+: ", "", told).split(":", 1)[0]
        # Where two arguments do not fit together, either may be named; none that the caller does not know.
        names = "|".join(map(re.escape, door.arguments))
        named = re.search(rf"(^|[\s,])({names})([\s,.\[]|$)", head) is not None
        # What a file holds is named by the file.
        file = re.match(r"\S*(safetensors|json|flax): ", told) is not None or isinstance(error, codec.CodecError)
        return Verdict("clear" if file or (named and ":" in told) else "unclear", f"{type(error).__name__}: {told}")
    except OSError as error:
        # A path that cannot be opened, as open() says it.
        paths = any(isinstance(value, (str, Path)) for value in values)
        return Verdict("clear" if paths else "unclear", f"{type(error).__name__}: {error}")
    except Exception as error:
        if "can't allocate memory" in str(error):  # what was asked for is valid, and more than this machine has
            return Verdict("result", "")
        return Verdict("unclear", f"{type(error).__name__}: {error}")
    return _sound(door, found)


def _sound(door: Door, found: Any) -> Verdict:
    """Whether a result holds no NaN, nor the integer that a NaN becomes."""
    try:
        leaves = [leaf for leaf in optree.tree_leaves(found) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
    except RecursionError:
        leaves = []
    # Numbers as they are; errors of bins with a single draw.
    passing = door.call in (GAUSSIAN.encode, random.permutation, evaluation.profile)
    if not passing and any(leaf.isnan().any() for leaf in leaves if leaf.is_floating_point()):
        return Verdict("silent", "NaN")
    if any((leaf == -(2**63)).any() for leaf in leaves if leaf.dtype == torch.int64):
        return Verdict("silent", "-2**63")
    return Verdict("result", "")


def fits(argument: str, wrong: Wrong) -> bool:
    """Whether a wrong value may be tried: not where it is valid and takes as long as it says, or is called."""
    return not (argument in PATIENT and wrong.name == "2**40") and not (argument in CALLED and callable(wrong.value))


def singles(made: dict[str, Door]) -> Iterator[Case]:
    """Each door with each of its arguments replaced by each wrong value."""
    for name, door in made.items():
        for argument, wrong in itertools.product(door.arguments, ZOO):
            if fits(argument, wrong):
                yield Case(f"{name}({argument}={wrong.name})", door, {argument: wrong.value})


def pairs(made: dict[str, Door], n: int) -> Iterator[Case]:
    """n draws of two wrong arguments at once, the same each time."""
    draw = dice.Random(0)
    several = {name: door for name, door in made.items() if len(door.arguments) > 1}
    # Doors with many arguments have many pairs.
    names, weights = list(several), [len(door.arguments) for door in several.values()]
    while n:
        (name,) = draw.choices(names, weights)
        door, chosen = several[name], [draw.choice(ZOO) for _ in range(2)]
        arguments = draw.sample(list(door.arguments), 2)
        if all(map(fits, arguments, chosen)):
            n -= 1
            told = ", ".join(f"{argument}={wrong.name}" for argument, wrong in zip(arguments, chosen, strict=True))
            yield Case(f"{name}({told})", door, {a: wrong.value for a, wrong in zip(arguments, chosen, strict=True)})


def files(folder: Path, most: int) -> Iterator[tuple[str, Verdict]]:
    """The verdict on each damaged file."""
    for i, form in enumerate(damage.formats(folder / "made")):
        want = damage.whole(form, folder / str(i))
        for harm in damage.damages(form, most):
            yield f"{form.name}, {harm.name}", Verdict(*damage.tried(form, folder / str(i), harm, want))


def main() -> None:
    torch.set_num_threads(1)
    kinds = [kind for kind in sys.argv[1:] if kind in ("singles", "pairs", "files")] or ["singles", "pairs", "files"]
    only = [part for part in sys.argv[1:] if part not in ("singles", "pairs", "files")]
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        made = {name: door for name, door in doors(Path(name)).items() if not only or any(part in name for part in only)}
        tries: dict[str, Iterator[tuple[str, Verdict]]] = {
            "singles": ((case.name, tried(case)) for case in singles(made)),
            "pairs": ((case.name, tried(case)) for case in pairs(made, 6000)),
            "files": files(Path(name) / "files", 20),
        }
        for kind in kinds:
            table[kind] = Counter()
            for told, verdict in tries[kind]:
                table[kind][verdict.kind] += 1
                if verdict.kind in ("silent", "unclear"):
                    print(f"{verdict.kind:8} {told}: {verdict.told[:160]!r}", flush=True)
    if len(table) > 1:
        table["together"] = sum(table.values(), Counter())
    print(f"{'':10}{'tried':>8}{'clear':>8}{'correct':>9}{'silent':>8}{'unclear':>9}")
    for kind, count in table.items():
        figures = (count.total(), *(count[verdict] for verdict in ("clear", "result", "silent", "unclear")))
        print(f"{kind:10}{figures[0]:8}{figures[1]:8}{figures[2]:9}{figures[3]:8}{figures[4]:9}")


if __name__ == "__main__":
    main()
