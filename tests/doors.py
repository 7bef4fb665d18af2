"""Wrong values at the outer doors: a zoo in place of one argument, of two at a time, and damaged files.

A table says which values of the zoo are valid for which arguments. All others must be refused. ``python tests/doors.py``
tries them all and prints how many gave an error that names what is wrong, how many valid ones a result, and, one by one,
those that did neither: accepted, though not valid; NaN for a result; an error that names nothing. Names after it choose:
singles, pairs, files, or parts of doors' names.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import damage
import numpy as np
import optree
import torch
from calls import Door, doors

from purevdm import codec, random


class Wrong(NamedTuple):
    name: str
    value: Any


ZOO = [
    Wrong("None", None),
    Wrong("True", True),
    Wrong("0", 0),
    Wrong("-1", -1),
    Wrong("3", 3),
    Wrong("1.5", 1.5),
    Wrong("nan", math.nan),
    Wrong("-inf", -math.inf),
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
]

PATIENT = {"steps", "limit", "timesteps", "passes"}
"""Arguments of which a large number is valid, and takes as long as it says."""


CALLED = {"grad_fn", "skip", "project", "callback", "bound", "method", "call", "function"}
"""Arguments that are called: what another function raises is its own."""


# What is valid. Each entry: some arguments (or a door and an argument), and the values of the zoo that they take.

INTEGERS = ("3", "an integer's tensor", "a NumPy integer")
REALS = ("0", "-1", "3", "1.5", "a NumPy float")
LARGE = ("2**40", "1e300")
SEQUENCES = ("()", "[]", "(1, 2)")
FLOATS = ("a float64 tensor", "a float16 tensor", "a bfloat16 tensor")
SHAPES = ("a number's tensor", "a tensor of nothing", "a tensor of rank 4", "a tensor without values")
TABLE: list[tuple[str, tuple[str, ...]]] = [
    ("accumulate batch bins blocks chunk classes cond_dim ctrl_dim data embed held_out hidden keep lanes layers", INTEGERS),
    (
        "limit n num outputs passes probes repeats samples seed step steps timesteps vocab_size random.randint.maxval",
        INTEGERS,
    ),
    (
        "accumulate blocks chunk classes cond_dim ctrl_dim embed hidden keep layers outputs probes repeats samples",
        ("2**40",),
    ),
    ("evaluation.profile.bins codec.decode.lanes codec.read.lanes data.rows.n num step random.key.seed", ("2**40",)),
    ("random.permutation.n", ("0", "2**40")),
    ("classes cond_dim ctrl_dim data seed step timesteps axis", ("0",)),
    ("cond_drop dropout rate p start until", ("0",)),
    ("axis random.key.seed random.uniform.minval random.randint.minval lower", ("-1",)),
    ("random.randint.minval", (*INTEGERS, "0")),
    ("random.uniform.minval random.uniform.maxval lower upper gamma_0 gamma_min gamma_max loc metric", REALS),
    ("atol rtol scale beta_1 spacing exponent", ("3", "1.5", "a NumPy float")),
    ("exponent", LARGE),
    ("masked.diffusion.schedule codec.encode_tokens.steps", ("None",)),
    ("atol rtol scale loc spacing metric upper random.uniform.maxval networks.unet.gamma_max", LARGE),
    ("beta_1", ("2**40",)),
    ("atol rtol upper random.uniform.maxval", ("a number's tensor", "an integer's tensor")),
    ("metric", ("nan", "-inf")),  # written as null
    ("lower", ("-inf",)),
    ("upper", ("a key",)),  # one bound a number
    ("mask", ("None",)),
    ("sizes.counts.smoothing", (*REALS, *LARGE)),
    ("most", INTEGERS),
    ("width", ("2**40",)),
    ("columns coordinates zero_centre.axis", (*INTEGERS, "2**40")),
    ("columns decoders.integers.least decoders.integers.most", ("None",)),
    ("least", (*INTEGERS, "0", "-1")),
    ("floor", ("0",)),
    ("time_scale", ("3", "1.5", "a NumPy float", *LARGE)),
    ("antithetic classes_last clip compile differentiable ema attention pin_endpoints portable pretrained remat", ("True",)),
    ("positions self_condition train trajectory variance independent extra", ("True",)),
    ("bfn.continuous.clip", ("(1, 2)", "(-1, 2.5)")),
    ("callback chunk codec.decode.lanes codec.read.lanes blocks decoder dequantisation device method bound call", ("None",)),
    ("gamma_min group integrator like metric outputs probes project shape skip solver std_bounds time timesteps", ("None",)),
    ("until vocab_size x_hat z extra", ("None",)),
    ("shape num fourier", SEQUENCES),
    ("event_shape std_bounds hidden multipliers", ("(1, 2)",)),
    ("vdm.event_shape attention blocks loc scale", ("()", "[]")),  # of an empty scale, the model says that it fits no event
    ("loc scale", ("(1, 2)",)),
    ("loc", ("(-1, 2.5)",)),
    ("decoders.gaussian.noise", ("3", "1.5", "a NumPy float", *LARGE, "()", "[]", "(1, 2)", "None")),
    ("checkpoint.save.extra", (*REALS, *LARGE, *SEQUENCES, "'text'", "{}", "(-1, 2.5)", "('a',)", "{'a': 1}")),
    ("checkpoint.save.extra folder", ("a device that is not there",)),  # a text
    ("folder", ("'text'", "a path")),
    ("interop.save_params.path codec.write.path", ("'text'", "a device that is not there")),
    ("interop.save_params.params module.Module.params interop.to_flax.params", ("{}",)),
    ("device", ("a device",)),
    ("dtype", ("a dtype",)),
    ("key", ("a key",)),
    ("time", ("a function", "a class")),
    ("known", ("a bool tensor",)),
    ("sampling.interpolate.weights", ("a tensor of nothing",)),
    ("gamma.t eps_hat.gamma", (*FLOATS, "a number's tensor")),
    ("gamma.t data.augment.x gaussian.check.x", ("a tensor of rank 4",)),
    ("sampling.inpaint.x sampling.repaint.x", (*FLOATS, "a tensor without values")),
    ("gaussian.check.x", ("a NaN", "an infinity", "a float64 tensor", "a number's tensor", "a tensor without values")),
    ("gaussian.check.x", ("a tensor of nothing",)),
    ("x", ("a uint16 tensor",)),
    ("nll_bound_of_one.x discrete.check.x discrete.encode.x discrete.log_prob.x", ("a key", "an integer's tensor")),
    ("discrete.mode.z discrete.sample.z gaussian.mode.z gaussian.sample.z gaussian.encode.x", (*FLOATS, *SHAPES)),
    ("discrete.log_prob.z gaussian.log_prob.z", FLOATS),
    ("discrete.log_prob.gamma_0 discrete.sample.gamma_0 gaussian.log_prob.gamma_0 gaussian.sample.gamma_0", FLOATS),
    ("discrete.log_prob.gamma_0 discrete.sample.gamma_0 gaussian.log_prob.gamma_0", ("a number's tensor",)),
    ("gaussian.sample.gamma_0 gaussian.log_prob.x", ("a number's tensor",)),
    ("discrete.sample.gamma_0 gaussian.sample.gamma_0", ("a tensor of rank 4",)),  # where z is one, too
    ("gaussian.encode.x", ("a NaN", "an infinity")),  # numbers as they are
    ("gaussian.log_prob.x real.loss_fn.x real.nll_bound.x real.log_prob.x real.evaluate.x", ("a float64 tensor",)),
    ("real.log_prob_and_grad.x", ("a float64 tensor",)),
    ("context size schedules.polynomial.hidden schedules.multivariate_mlp.hidden out", (*INTEGERS, "2**40")),
    ("context", ("0",)),
    ("k temperature", (*INTEGERS, "1.5", "a NumPy float", *LARGE)),
    ("schedules.polynomial.hidden schedules.multivariate_mlp.hidden", ("None",)),
    ("schedules.polynomial.event_shape schedules.multivariate_mlp.event_shape", ("()", "[]")),
    ("coded.posterior.cond", (*FLOATS, "None")),
    ("nll_bound_of_one.cond", ("a number's tensor", "an integer's tensor")),
]
VALID = {(name, value) for names, values in TABLE for name in names.split() for value in values}
ANYTHING = {"gamma.cond", "update.cond", "bfn.update.cond", "masked.update.cond"}
"""Where the model has no use for a condition."""


def valid(door: str, argument: str, wrong: Wrong) -> bool:
    """Whether a value of the zoo is valid for an argument of a door."""
    own = f"{door}.{argument}"
    return own in ANYTHING or not {(argument, wrong.name), (own, wrong.name)}.isdisjoint(VALID)


class Case(NamedTuple):
    """A call with wrong values for some arguments."""

    name: str
    door: Door
    wrong: dict[str, Any]
    valid: bool = False


class Verdict(NamedTuple):
    kind: str  # "clear", "result", "accepted", "silent", "unclear"
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
        named |= any(f"{argument}=" in told for argument in case.wrong)  # in a part that holds it
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
    return _sound(case, found)


def _sound(case: Case, found: Any) -> Verdict:
    """Whether a result is of valid values, and holds no NaN, nor the integer that a NaN becomes."""
    try:
        leaves = [leaf for leaf in optree.tree_leaves(found) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
    except RecursionError:
        leaves = []
    # Numbers as they are; errors of a single draw.
    one = ("evaluation.profile", "likelihood.log_prob_latent", "real.log_prob_and_grad")
    passing = case.name.startswith(("gaussian.encode", "random.permutation", *one))
    if not passing and any(leaf.isnan().any() for leaf in leaves if leaf.is_floating_point()):
        return Verdict("silent", "NaN")
    if any((leaf == -(2**63)).any() for leaf in leaves if leaf.dtype == torch.int64):
        return Verdict("silent", "-2**63")
    return Verdict("result" if case.valid else "accepted", "")


def fits(argument: str, wrong: Wrong) -> bool:
    """Whether a wrong value may be tried: not where it is valid and takes as long as it says, or is called."""
    return not (argument in PATIENT and wrong.name == "2**40") and not (argument in CALLED and callable(wrong.value))


def singles(made: dict[str, Door]) -> Iterator[Case]:
    """Each door with each of its arguments replaced by each wrong value."""
    for name, door in made.items():
        for argument, wrong in itertools.product(door.arguments, ZOO):
            if fits(argument, wrong):
                yield Case(f"{name}({argument}={wrong.name})", door, {argument: wrong.value}, valid(name, argument, wrong))


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
            values = {a: wrong.value for a, wrong in zip(arguments, chosen, strict=True)}
            yield Case(
                f"{name}({told})", door, values, all(valid(name, *pair) for pair in zip(arguments, chosen, strict=True))
            )


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
                if verdict.kind in ("accepted", "silent", "unclear"):
                    print(f"{verdict.kind:8} {told}: {verdict.told[:160]!r}", flush=True)
    if len(table) > 1:
        table["together"] = sum(table.values(), Counter())
    print(f"{'':10}{'tried':>8}{'clear':>8}{'correct':>9}{'accepted':>10}{'silent':>8}{'unclear':>9}")
    for kind, count in table.items():
        figures = (count.total(), *(count[verdict] for verdict in ("clear", "result", "accepted", "silent", "unclear")))
        print(
            kind.ljust(10),
            "".join(str(figure).rjust(width) for figure, width in zip(figures, (7, 8, 9, 10, 8, 9), strict=True)),
        )


if __name__ == "__main__":
    main()
