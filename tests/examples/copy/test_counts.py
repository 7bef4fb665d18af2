"""The cells' source, whose -log p is known, and a short run."""

import math

import counts
import torch
from processes import figures

from purevdm import random


def test_the_source_draws_what_its_density_says():
    types = counts.source(random.key(0))
    torch.manual_seed(0)
    x, kind = counts.draw(types, 20_000)
    assert kind.bincount(minlength=counts.TYPES).min() > 1000
    some = x[kind == 3].double()
    error = (types.variance[3].double() / len(some)).sqrt()
    assert ((some.mean(0) - types.mean[3].double()).abs() < 5.0 * error).all()
    each = types.log_prob(x[:200, None].float()).double().sum(-1)
    assert (each.argmax(1) == kind[:200]).double().mean() > 0.95


def test_a_run_prints_what_it_promises(tmp_path):
    lines = figures("counts.py", "--steps", 2, "--passes", 1, "--out", tmp_path)
    bound, known, independent = (float(lines[name].split()[0]) for name in ("test bound", "known", "independent"))
    assert known < independent < bound < math.inf
    assert (tmp_path / "counts.png").stat().st_size > 5_000
