"""From a key to tokens: ancestral steps from time 1, where nothing is known, to time 0."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _facts, random
from purevdm._compile import fixed
from purevdm._masks import of_events, zeroed
from purevdm.masked import corruptions
from purevdm.masked.bound import log_probs
from purevdm.sampling import trajectory
from purevdm.sampling.trajectory import Options
from purevdm.types import Key, Params

if TYPE_CHECKING:
    from purevdm.masked.model import MaskedDiffusion

__all__ = ["Sample"]


class Sample(NamedTuple):
    """Samples and the trajectory that led to them.

    Attributes:
        x: data, (n, *event_shape).
        z: the symbols from the first to the last, (steps + 1, n, *event_shape); K is a mask.
    """

    x: Tensor
    z: Tensor


def sample(
    model: "MaskedDiffusion",
    params: Params,
    key: Key,
    n: int,
    options: Options,
    known: Tensor | None = None,
    x: Tensor | None = None,
) -> Any:
    """Samples as :meth:`purevdm.masked.MaskedDiffusion.sample` says, which checks the parameters and the key first.

    The key is split in three: the first draws z_1, step i draws from ``fold_in`` of the second and i, the third decodes.
    """
    options = trajectory.checked(options, object, "", ("time", "cosine"))
    shape = (_checks.integer("n", n, 1, 2**31 - 1), *map(fixed, model.event_shape))
    k_start, k_steps, k_decode = random.split(key, 3).unbind(0)
    known, x = _given(model, known, x, shape, key.device)
    there = of_events(model, options.mask, n, key.device)
    there = None if there is None else there.expand(shape)
    corruption, total = model.corruption, torch.as_tensor(options.steps, device=key.device).to(model.dtype)
    one = torch.ones((), dtype=model.dtype, device=key.device)

    def gamma(t: Tensor) -> Tensor:
        return trajectory.level(model, params, t, n, options.cond).expand(shape)  # type: ignore[arg-type]

    def time(i: Tensor) -> Tensor:
        t = (total - i) / total
        return torch.cos(0.5 * math.pi * (1.0 - t)) if options.grid == "cosine" else t

    def held(z: Tensor) -> Tensor:
        """Gives what is known as it is, and 0 where nothing exists."""
        return zeroed(z if known is None else torch.where(known, x, z), there)  # type: ignore[arg-type]

    with trajectory.recording(options, (params, options.cond, options.guidance)):
        weight = trajectory.guidance_weight(options, one.expand(n))

        def back(i: Tensor, z: Tensor) -> tuple[Tensor]:
            gamma_t, gamma_s = gamma(time(i)), gamma(time(i + 1))
            log_p = log_probs(model, params["network"], z, gamma_t, options.cond, None, there, weight)
            return (held(corruption.back(random.fold_in(k_steps, i), log_p, z, corruptions.between(gamma_t, gamma_s))),)

        z_1 = held(corruption.start(k_start, shape, gamma(one)))
        how: Any = dict(trajectory=options.trajectory, callback=options.callback)
        (z,) = trajectory.loop(back, (z_1,), options.steps, **how)
        last = z[-1] if options.trajectory else z
        drawn = held(corruption.finish(k_decode, last, gamma(0.0 * one)))
    return Sample(drawn, z) if options.trajectory else drawn


def _given(
    model: "MaskedDiffusion", known: Any, x: Any, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Checks what is known of the samples."""
    if (known is None) != (x is None):
        raise ValueError(f"known, x: expected both or neither, got {_checks.describe(known)} and {_checks.describe(x)}")
    if known is None:
        return None, None
    if not isinstance(model.corruption, corruptions.Masking):
        raise ValueError(
            "known: expected None for uniform noise, whose network cannot tell what is known from what was put there"
        )
    known = _checks.together("known", _checks.broadcasting("known", known, shape), device)
    if known.dtype != torch.bool:
        raise TypeError(f"known: expected a bool tensor, got {_checks.describe(known)}")
    known, x = known.expand(shape), _checks.together("x", _checks.shaped("x", x, shape), device)
    holds = model.decoder.check(x) | ~known
    if _facts.readable(known):
        hidden = ~known.reshape(shape[0], -1).all(1)
        nothing = "known: expected something that is not known in every sample, got all known"
        facts = [
            _facts.Fact(holds, lambda: _checks.outside(f"{model.decoder.support} where known", "x", x)),
            _facts.Fact(hidden, lambda: ValueError(nothing)),
        ]
        _facts.verify(facts)
    return known, x.to(torch.int64)
