"""The sets' source, whose density the bound is held against, and a short run."""

import math

import sets
import torch
from processes import figures

from purevdm import random, sizes


def test_the_true_density_is_that_of_the_source():
    """Of one point it has mass one; of sets it is the sum written out; the source's own sets are likelier in their turns."""
    centres = (torch.arange(80) + 0.5) / 80 * 4 - 2
    cells = torch.cartesian_prod(centres, centres)
    x = torch.zeros(len(cells), *sets.SHAPE).index_copy(1, torch.tensor([0]), cells[:, None])
    whole, single = sets.true_log_density(x, torch.ones(len(cells), dtype=torch.int64))
    torch.testing.assert_close(whole, single)
    assert abs(whole.exp().sum() * 0.05**2 * 36 - 1) < 1e-6
    x, size = sets.draw_sets(random.key(0), 300)
    assert size.min() == sets.FEWEST
    assert size.max() == sets.MOST
    assert not x[~sizes.mask(size, sets.SHAPE).expand_as(x)].any()
    points, corners = x[0, : size[0]].double(), sets.CORNERS.double()
    of_point = torch.distributions.Normal(corners, sets.STD).log_prob(points[:, None, None]).sum(-1).exp().mean(-1)
    want = of_point.log().sum(0).exp().mean().log() - math.log(36)
    whole, single = sets.true_log_density(x, size)
    torch.testing.assert_close(whole[0], want)
    assert whole.mean() > single.mean() + 5


def test_a_run_prints_what_it_promises(tmp_path):
    lines = figures("sets.py", "--no-compile", "--steps", 2, "--test", 64, "--passes", 1, "--out", tmp_path)
    bound, truth, above, single = (
        float(lines[name].split()[0]) for name in ("test bound", "true entropy", "bound less truth", "point by point")
    )
    assert truth < single < bound
    assert abs(bound - truth - above) < 0.01
    assert (tmp_path / "sets.png").stat().st_size > 5_000
