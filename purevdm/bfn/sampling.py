"""From a key to data: a BFN's steps from t = 0, where nothing is known, to t = 1, and the network's output there."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from purevdm import _checks, _facts, _trees, random
from purevdm._masks import inside, of_events, zeroed
from purevdm.bfn import bound
from purevdm.bfn.solvers import Path, Solver
from purevdm.sampling import trajectory
from purevdm.sampling.trajectory import Options
from purevdm.types import Key, Params

if TYPE_CHECKING:
    from purevdm.bfn.model import BFN

__all__ = ["Sample"]


class Sample(NamedTuple):
    """Samples and the trajectory that led to them.

    Attributes:
        x: data, (n, *event_shape); None where sampling stops at latents.
        theta: the input distribution's parameters from the first to the last, (steps + 1, n, *event_shape): means; or
            probabilities, with a last axis of K.
    """

    x: Tensor | None
    theta: Tensor


def sample(
    model: "BFN",
    net_params: Params,
    key: Key,
    n: int,
    options: Options,
    *,
    z: Tensor | None,
    start: float | Tensor,
    until: float | Tensor | None,
    decode: str,
) -> Any:
    """Samples as :meth:`purevdm.bfn.BFN.sample` says, which checks the parameters and the key first.

    The key is split in three: the first draws w_0, step i draws from ``fold_in`` of the second and i, the third decodes.
    """
    k_w, k_steps, k_decode = random.split(key, 3).unbind(0)
    _checks.choice("decode", decode, ("argmax", "sample"))
    options = trajectory.checked(options, Solver, "purevdm.bfn.solvers.ode_2()", ("time", "root"))
    flow, output, solver, self_condition = model.flow, model.output, options.solver, model.network.self_condition
    shape = (_checks.integer("n", n, 1, 2**31 - 1), *flow.latent_shape(model.event_shape))
    w = trajectory.started(z, start, 0.0, shape, model.dtype, k_w)
    there = of_events(model, options.mask, n, key.device)
    if there is not None:
        there = there.expand(n, *model.event_shape)
        w = bound.within(w, there) if z is None else inside("z", w, bound.within(w, there))
    begin, end = trajectory.times("start", start, "until", 1.0 if until is None else until, w)
    roots, total = (begin.sqrt(), end.sqrt()), torch.as_tensor(options.steps, device=w.device)

    def time(i: Tensor) -> Tensor:
        """Gives the time after i steps."""
        part = i.to(w.dtype) / total.to(w.dtype)
        return torch.lerp(*roots, part).square() if options.grid == "root" else torch.lerp(begin, end, part)

    with trajectory.recording(options, (net_params, w, begin, end, options.cond, options.guidance)):
        weight = trajectory.guidance_weight(options, w)

        def outputs(w: Tensor, t: Tensor, x_hat: Tensor | None) -> tuple[Tensor, ...]:
            return bound.outputs(model, net_params, w, t.expand(n), options.cond, None, x_hat, weight, there)

        def step(i: Tensor, w: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            # A self-conditioned network takes the last step's estimate.
            x_hat, carry = (state[0], state[1:]) if self_condition else (None, state)

            def predict(w: Tensor, t: Tensor) -> tuple[Tensor, Callable[[Key], Tensor]]:
                out = outputs(w, t, x_hat)
                return output.mean(out), lambda key: output.draw(key, out)

            done = solver.step(Path(flow, predict), w, time(i), time(i + 1), random.fold_in(k_steps, i), carry)
            w, h_hat, carry = trajectory.stepped(done, w)
            w = bound.within(w, there)
            # A copy, as a loop may not hand on one tensor twice, and a solver may carry its estimate, too.
            return (w, vmap(flow.estimate)(h_hat).clone(), *carry) if self_condition else (w, *carry)

        first = (w.new_zeros((n, *flow.network_shape(model.event_shape))),) if self_condition else ()
        how: Any = dict(trajectory=options.trajectory, callback=options.callback, unroll=options.differentiable)
        path, *rest = trajectory.loop(step, (w, *first, *solver.init(w)), options.steps, **how)
        _facts.verify(_trees.finite("latents", {(): path}))
        x = None
        if until is None:
            out = outputs(
                path[-1] if options.trajectory else path, torch.ones_like(end), rest[0] if self_condition else None
            )
            _facts.verify(_trees.finite("network's output", {(i,): part for i, part in enumerate(out)}))
            x = zeroed(output.decode(None if decode == "argmax" else k_decode, out), there)
        if not options.trajectory:
            return path if x is None else x
        at = time(torch.arange(len(path), device=w.device))
        return Sample(x, vmap(vmap(flow.parameters, in_dims=(0, None)))(path, at))
