"""Classification by the bound: the split, and a whole run with a small network."""

import math

import classify
import torch
from processes import printed

from purevdm import random


def test_classes_go_with_their_images():
    (x, label), (test, truth) = classify.data(random.key(0))
    assert (len(x), len(label), len(test), len(truth)) == (1500, 1500, 297, 297)
    assert torch.cat([label, truth]).bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    rings = x[label == 0][:, 0, 3:5, 3:5].double().mean()  # zeros are empty inside, ones are not
    assert rings < 2 < 10 < x[label == 1][:, 0, 3:5, 3:5].double().mean()


def test_errors_of_shares_are_binomial():
    assert classify.accuracy(torch.arange(100) < 90) == "0.900 +- 0.030"


def test_a_run_prints_accuracies_and_information():
    lines = printed("classify.py", "--steps", 3, "--batch", 16, "--passes", 1).splitlines()
    values = [float(line.split("+-")[0].split()[-1]) for line in lines]
    assert "3 steps, 297 images" in lines[0]
    assert max(values[:2]) < 0.5
    assert values[2] > 0.93
    assert values[3] > 0.97
    assert values[4] < math.log2(10)
