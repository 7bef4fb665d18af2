"""Classification by the bound: the split, and a whole run with a small network."""

import math

import classify
import torch
from processes import printed

from purevdm import networks, random


def test_classes_go_with_their_images():
    (x, label), (test, truth) = classify.data(random.key(0))
    assert (len(x), len(label), len(test), len(truth)) == (1500, 1500, 297, 297)
    assert torch.cat([label, truth]).bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    rings = x[label == 0][:, 0, 3:5, 3:5].double().mean()  # zeros are empty inside, ones are not
    assert rings < 2 < 10 < x[label == 1][:, 0, 3:5, 3:5].double().mean()


def test_errors_of_shares_are_binomial():
    assert classify.accuracy(torch.arange(100) < 90) == "0.900 +- 0.030"


def test_a_run_prints_accuracies_and_information(monkeypatch):
    small = networks.mlp(32, fourier=(), classes=10, cond_drop=0.1)
    monkeypatch.setattr(networks, "vdm_unet", lambda **options: small)
    lines = printed("classify.py", "--eager", "--steps", 3, "--batch", 16, "--passes", 1).splitlines()
    shares = [float(line.split("+-")[0].split()[-1]) for line in lines]
    assert "3 steps, 297 images" in lines[0]
    assert 0 <= shares[0] <= 1
    assert shares[1] > 0.93
    assert shares[2] > 0.97
    assert all(share < math.log2(10) for share in shares[3:])
