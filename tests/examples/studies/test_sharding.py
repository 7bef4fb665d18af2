"""The simulation of sharded steps against what parallel.py says that a process sends."""

import pytest
import sharding
from processes import printed

NET = sharding.Network([[400, 40], [800], [80, 8]], forward=1.0)
P = NET.bytes


@pytest.mark.parametrize(
    ("gpus", "shards", "within", "beyond"),
    [
        (8, 1, 2 * P * 7 / 8, 0.0),
        (8, 8, 3 * P * 7 / 8, 0.0),
        (64, 1, 0.0, 2 * P * 63 / 64),
        (64, 64, 0.0, 3 * P * 63 / 64),
        (64, 8, 3 * P * 7 / 8, 2 * (P / 8) * (64 - 8) / 64),
        (1, 1, 0.0, 0.0),
    ],
)
def test_bytes(gpus, shards, within, beyond):
    step = sharding.step(NET, gpus, shards)
    assert (step.within, step.beyond) == pytest.approx((within, beyond))
    assert step.state == pytest.approx(5 * P / shards)
    assert step.alone == 3.0
    assert step.seconds >= 3.0
    assert step.seconds < 3.01  # messages of bytes take no time beside seconds of computation


def test_what_is_sent_after_the_last_block_is_waited_for():
    """Gradients of one block, which nothing hides: twice 1 GB by all-reduce of two."""
    net = sharding.Network([[10**9]], forward=0.0)
    assert sharding.step(net, 2, 1).seconds == pytest.approx(10**9 / sharding.WITHIN + sharding.LATENCY)


def test_it_prints_its_tables(monkeypatch):
    monkeypatch.setitem(sharding.MODELS, "ImageNet 64x64", sharding.MODELS["CIFAR-10"])
    output = printed("sharding.py")
    assert output.count("122 MB of parameters in 689 leaves") == 2
    assert len(output.splitlines()) == 20
