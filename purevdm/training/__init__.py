"""Training: a state, the pure step from one state to the next, checkpoints, and the order of data.

    state = training.init(model, k_init)
    grad_fn = training.gradients(model, compile=True)
    for step in range(1000):
        state, metrics = training.train_step(settings, grad_fn, state, batch(step), k_train)

One key serves a whole training: each step draws from ``fold_in`` of it and the step's number. The order of the data is a
function of a key and the step, too (:func:`purevdm.training.data.rows`). So a saved state is all that a run needs to go on
as if it had never stopped. N processes compute what one computes with the whole batch, to rounding, and pieces of a batch
(``accumulate``) do the same. ``gradients(model, frozen=["network.down"])`` freezes by path.

:mod:`purevdm.training.data` (which needs NumPy) and :mod:`purevdm.training.checkpoint` (which needs safetensors) are
imported by name: the extra ``train`` brings both.
"""

from purevdm.training._gradients import gradients
from purevdm.training.optimizer import AdamW, Moments, learning_rate
from purevdm.training.state import NonFiniteLossError, TrainState, init, train_step

__all__ = ["AdamW", "Moments", "NonFiniteLossError", "TrainState", "gradients", "init", "learning_rate", "train_step"]
