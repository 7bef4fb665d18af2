"""From a key to data: a BFN's steps from t = 0, where nothing is known, to t = 1, and a last look of the network."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, random, walks
from purevdm.bfn import bound
from purevdm.bfn.bound import Model
from purevdm.bfn.solvers import Path, Solver
from purevdm.types import Key, Params
from purevdm.walks import Walk

__all__ = ["Sample"]


class Sample(NamedTuple):
    """What sampling gives when the trajectory is asked for.

    Attributes:
        x: data, (n, *event_shape).
        theta: the input distribution's parameters from the first to the last, (steps + 1, n, *event_shape): means; or
            probabilities, with a last axis of K.
    """

    x: Tensor
    theta: Tensor


def sample(model: Model, params: Params, key: Key, n: int, how: Walk, decode: str = "argmax") -> Any:
    """See :meth:`purevdm.bfn.BFN.sample`, which checks the parameters and the key first; ``params`` are the network's.

    The key is split in three: the first draws w_0, step i draws from ``fold_in`` of the second and i, the third decodes.
    """
    k_w, k_steps, k_decode = random.split(key, 3).unbind(0)
    _checks.choice("decode", decode, ("argmax", "sample"))
    walks.checked(how)
    _checks.choice("grid", how.grid, ("time", "root"))
    if not isinstance(how.solver, Solver):
        raise TypeError(f"solver: expected a Solver of purevdm.bfn.solvers, got {_checks.describe(how.solver)}")
    shape = (_checks.integer("n", n, 1, 2**31 - 1), *model.flow.latent_shape(model.event_shape))
    w = random.normal(k_w, shape, model.dtype)
    walks.refuse_lost_gradients(how, (params, w, how.cond, how.guidance))
    recording = how.differentiable and torch.is_grad_enabled()
    with nullcontext() if torch.compiler.is_exporting() else torch.set_grad_enabled(recording):
        return _sample(model, params, w, how, k_steps, None if decode == "argmax" else k_decode)


def _sample(model: Model, params: Params, w: Tensor, how: Walk, k_steps: Key, k_decode: Key | None) -> Any:
    flow, output, n = model.flow, model.output, len(w)
    solver: Any = how.solver
    weight = walks.guidance_weight(how, w)
    total = torch.as_tensor(walks.step_count(how.steps, how.trajectory), device=w.device).to(w.dtype)

    def time(i: Tensor) -> Tensor:
        """The time after i steps."""
        t = i.to(w.dtype) / total
        return t.square() if how.grid == "root" else t

    def look(w: Tensor, t: Tensor, x_hat: Tensor | None) -> tuple[Tensor, ...]:
        return bound.outputs(model, params, w, t.expand(n), how.cond, x_hat=x_hat, guidance=weight)

    def step(i: Tensor, w: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        # A self-conditioned network sees the last step's estimate.
        x_hat, carry = (state[0], state[1:]) if model.network.self_condition else (None, state)

        def predict(w: Tensor, t: Tensor) -> tuple[Tensor, Callable[[Key], Tensor]]:
            out = look(w, t, x_hat)
            return output.mean(out), lambda key: output.draw(key, out)

        s, t = time(i), time(i + 1)
        w, h_hat, carry = walks.stepped(solver.step(Path(flow, predict), w, s, t, random.fold_in(k_steps, i), carry), w)
        # A copy, as a loop may not hand on one tensor twice, and a solver may carry its estimate, too.
        return (w, bound.shown(model, h_hat).clone(), *carry) if model.network.self_condition else (w, *carry)

    first = (w.new_zeros((n, *flow.network_shape(model.event_shape))),) if model.network.self_condition else ()
    state = (w, *first, *solver.init(w))
    found = walks.loop(step, state, how.steps, trajectory=how.trajectory, callback=how.callback, unroll=how.differentiable)
    w = found[0][-1] if how.trajectory else found[0]
    _checks.verify(_checks.finite("latents", {(): w}))
    out = look(w, torch.ones_like(total), found[1] if model.network.self_condition else None)
    _checks.verify(_checks.finite("network's output", {(i,): part for i, part in enumerate(out)}))
    x = output.decode(k_decode, out)
    if not how.trajectory:
        return x
    at = time(torch.arange(len(found[0]), device=w.device))
    return Sample(x, torch.func.vmap(torch.func.vmap(flow.parameters, in_dims=(0, None)))(found[0], at))
