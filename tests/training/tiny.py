"""A small model and state that the tests of training share."""

import purevdm
from purevdm import networks, random, schedules, training


def model(**options):
    network = networks.mlp(8, fourier=(0,), **options)
    return purevdm.vdm(network, schedules.learned_linear(-5.0, 3.0), (2,), 16)


def data(n=8, seed=1):
    return random.randint(random.key(seed), (n, 2), 0, 16)


def state():
    return training.init(model(), random.key(0))


SETTINGS = training.AdamW(lr=1e-2, warmup=2, clip_norm=1.0, ema_rate=0.9, steps=10)
