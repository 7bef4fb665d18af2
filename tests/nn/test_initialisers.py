"""How kernels start: their moments."""

from purevdm import nn, random


def test_initialisers():
    k = random.key(0)
    kernel = nn.lecun_normal(k, (400, 500), 400)
    assert abs(kernel.std() * 20 - 1) < 0.01
    assert kernel.abs().max() <= 2 / 20 / 0.8796 + 1e-6
    assert nn.zeros(k, (3,), 1).eq(0).all()
    assert nn.constant(2.5)(k, (3,), 1).eq(2.5).all()
    assert abs(nn.normal(0.1)(k, (10_000,), 1).std() * 10 - 1) < 0.05
