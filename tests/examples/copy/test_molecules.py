"""The molecules example: its data, the rule of what is valid, a short run."""

import pytest
import torch

pytest.importorskip("ase")

import molecules
from processes import figures

from purevdm import random


def test_the_molecules_are_padded_centred_and_split_by_key():
    train, test = molecules.data(random.key(0))
    assert (train.shape, test.shape) == ((100, 14, 5), (24, 14, 5))
    x = torch.cat([train, test])
    there = x[..., 4] > 0
    assert molecules.DECODER.check(x).all()
    assert x[..., :3].sum(1).abs().max() < 1e-4
    assert not x[~there].any()
    assert there.sum(1).min() == 2
    assert there.sum(1).max() == 14
    types = x[there][:, 3].long()
    assert torch.equal(molecules.NUMBERS[types], x[there][:, 4].long())
    assert not torch.equal(train, molecules.data(random.key(1))[0])


def test_the_rule_takes_nearly_all_real_molecules_and_no_broken_ones():
    x = torch.cat(molecules.data(random.key(0)))
    each = [(row[row[:, 4] > 0][:, :3], row[row[:, 4] > 0][:, 3].long()) for row in x]
    assert sum(molecules.bonds(*molecule)[1] for molecule in each) == 122
    large = [(position, types) for position, types in each if len(types) > 3]
    assert not any(molecules.bonds(2.0 * position, types)[1] for position, types in large)  # apart
    assert not any(molecules.bonds(0.5 * position, types)[1] for position, types in large)  # too near
    water = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    bound, valid = molecules.bonds(water, torch.tensor([3, 0, 0]))
    assert valid
    assert bound.tolist() == [[False, True, True], [True, False, False], [True, False, False]]
    assert not molecules.bonds(water, torch.tensor([0, 3, 3]))[1]  # a hydrogen with two bonds


def test_a_run_prints_what_it_promises(tmp_path):
    lines = figures("molecules.py", "--steps", 2, "--samples", 20, "--out", tmp_path)
    assert "nats (2 steps, 24 molecules), with their sizes" in lines["test bound"]
    total, terms = float(lines["test bound"].split()[0]), lines["by terms"].split(", ")
    assert [term.split()[0] for term in terms] == ["recon", "prior", "diffusion"]
    assert abs(sum(float(term.split()[1]) for term in terms) - total) < 0.1
    assert (tmp_path / "molecules.png").stat().st_size > 5_000
