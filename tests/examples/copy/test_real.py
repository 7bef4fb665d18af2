"""The table of real numbers: no value repeated often, densities that the change of variables keeps, a whole run."""

import numpy as np
import tables
import torch
from test_density import run

from purevdm import random


def test_the_table_has_no_repeated_values():
    x = tables.table()
    assert x.shape == (569, 24)
    assert max(np.unique(column, return_counts=True)[1].max() for column in x.T) <= 5


def test_the_parts_share_out_the_rows_by_key():
    x = torch.arange(569.0, dtype=torch.float64)[:, None]
    rows = tables.split(x, random.key(0))
    assert [len(part) for part in rows] == [342, 85, 142]
    assert len(torch.cat(rows).unique()) == 569
    assert abs(rows.train.mean()) < 1e-12
    assert not torch.equal(rows.test, tables.split(x, random.key(1)).test)


def test_whitening_keeps_the_single_gaussians_density():
    """Its log-density is the standard normal one of the whitened rows, less what whitening gains."""
    rows = tables.split(torch.from_numpy(tables.table()), random.key(0))
    white, gained = tables.whitened(rows)
    torch.testing.assert_close(white.train.T.cov(correction=0), torch.eye(24), rtol=0, atol=1e-4)
    got = torch.distributions.Normal(0.0, 1.0).log_prob(white.test.double()).sum(1) - gained
    _, want = tables.mixture(rows, range(1, 2), ("full",))
    # the mixture adds 1e-6 to each variance
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=0.01, atol=0.05)


def test_a_run_prints_what_it_promises(monkeypatch, capsys):
    arguments = ("--steps", 4, "--every", 2, "--passes", 4, "--components", 2, "--batch", 32, "--eager")
    lines = run(tables.main, monkeypatch, capsys, *arguments)
    gaussian, mixture, diffusion = (
        float(lines[name].split()[0]) for name in ("one Gaussian", "Gaussian mixture", "diffusion, at least")
    )
    assert "components" in lines["Gaussian mixture"]
    # training starts from the single Gaussian; the errors of 4 passes over 142 rows
    assert abs(diffusion - gaussian) < 3
    assert abs(float(lines["diffusion - mixture"].split()[0]) - (diffusion - mixture)) < 0.002
