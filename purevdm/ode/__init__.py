"""Ordinary differential equations for a batch: fixed grids of Runge-Kutta steps, and adaptive steps of order 5.

A state is a tuple of tensors with a leading axis B, one row an example, and ``field(t, state) -> slopes`` gives its
derivative at the times t, (B,), of the dtype of the state or of ``start`` and ``stop``, whichever is wider. An
:class:`Integrator` takes the state from ``start`` to ``stop``, either direction, and adds it up in float32 at least. In
eager mode the loop is Python's. Under ``torch.compile`` it is one ``torch.while_loop``.

>>> import torch
>>> from purevdm import ode
>>> def field(t, state):
...     return (-state[0],)
>>> done = ode.dopri5(rtol=1e-8, atol=1e-8)(field, (torch.ones(2, 1, dtype=torch.float64),), torch.zeros(2), torch.ones(2))
>>> bool((done.state[0] - torch.tensor(-1.0).exp()).abs().max() < 1e-7)
True
"""

from purevdm.ode._adaptive import dopri5
from purevdm.ode._fixed import heun, rk4
from purevdm.ode._integrator import Integrator, Solution

__all__ = ["Integrator", "Solution", "dopri5", "heun", "rk4"]
