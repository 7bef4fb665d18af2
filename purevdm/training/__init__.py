"""Training: a state, the pure step from one to the next, checkpoints, and the same over several processes.

    state = training.init(model, k_init)
    grad_fn = training.gradients(model, compile=True)
    for step in range(1000):
        state, metrics = training.train_step(settings, grad_fn, state, batch(step), k_train)

:mod:`purevdm.training.data` (which needs NumPy) and :mod:`purevdm.training.checkpoint` (which needs safetensors) are
imported by name: the extra ``train`` brings both.
"""

from purevdm.training.optimizer import AdamW, Moments, learning_rate
from purevdm.training.state import NonFiniteLossError, TrainState, gradients, init, train_step

__all__ = [
    "AdamW",
    "Moments",
    "NonFiniteLossError",
    "TrainState",
    "gradients",
    "init",
    "learning_rate",
    "train_step",
]
