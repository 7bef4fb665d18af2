"""The noise of a batch: its times, and a key for each example, from which all else is drawn."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.codes import Code
from purevdm.types import Key, Shape

__all__ = ["CodedNoise", "Noise", "Seeds", "discretise", "draw_noise", "draw_seeds", "draw_times"]


class Seeds(NamedTuple):
    """What the noise of a batch is made from, one row an example. Rows of a batch's seeds are the seeds of those examples,
    so a process or a piece takes its rows and computes what the whole would.

    Attributes:
        t: the times, (B,), in [0, 1); at T >= 1 steps, each one of 1/T, ..., 1.
        key: a key for each example, int32 (B, 2).
        timesteps: T of the model that drew them, int32 (B,), or 0; another model refuses them. None if unknown.
    """

    t: Tensor
    key: Tensor
    timesteps: Tensor | None = None

    def rows(self, index: slice | Tensor) -> "Seeds":
        """Gives the seeds of some examples."""
        return Seeds(*(None if field is None else field[index] for field in self))  # type: ignore[arg-type]


class Noise(NamedTuple):
    """All that is random in one example's bound. A batch of them has a leading axis on each field.

    Attributes:
        t: the time, shape (), as in :class:`Seeds`.
        eps_0, eps: the noise in z_0 and in z_t, shape ``event_shape``, standard normal.
        key: a key for the network's own randomness (dropout), or None for none.
    """

    t: Tensor
    eps_0: Tensor
    eps: Tensor
    key: Tensor | None = None


class CodedNoise(NamedTuple):
    """All that is random in one example's bound under a model with a code. A batch of them has a leading axis on each field.

    Attributes:
        t, eps_0, eps, key: as in :class:`Noise`.
        code: what the code is drawn with, shape (m,) (:meth:`purevdm.codes.Code.noise`).
    """

    t: Tensor
    eps_0: Tensor
    eps: Tensor
    key: Tensor | None
    code: Tensor


def kind_of(code: Code | None) -> tuple[type, str]:
    """Gives the class of a model's noise, and what messages call it."""
    return (
        (Noise, "a purevdm.Noise") if code is None else (CodedNoise, "a purevdm.noise.CodedNoise, as the model has a code")
    )


def discretise(t: Tensor, timesteps: int) -> Tensor:
    """Gives the times of T discrete steps: t in [0, 1) goes to the end of its step, one of 1/T, ..., 1, each equally likely.

    T = 0 leaves t as it is. (The official code's ceil(t T) / T differs only where t T is an integer: it sends a drawn
    t = 0 to time 0, from where no step is left.)
    """
    if timesteps == 0:
        return t
    return ((t * timesteps).floor().clamp(max=timesteps - 1) + 1.0) / timesteps


def draw_times(
    key: Key, n: int, *, antithetic: bool = True, timesteps: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draws the times of a batch, shape (n,).

    Antithetic times (App. I) are evenly spread, t_i = (u + i / n) mod 1 with one uniform u: each is uniform, and
    together they leave the diffusion loss a smaller variance than n independent uniforms.
    """
    n, timesteps = _checks.integer("n", n, 1), _checks.timesteps(timesteps, dtype)
    if antithetic:
        t = (random.uniform(key, (), dtype) + torch.arange(n, dtype=dtype, device=key.device) / n) % 1.0
    else:
        t = random.uniform(key, (n,), dtype)
    return discretise(t, timesteps)


def draw_seeds(
    key: Key, n: int, *, antithetic: bool = True, timesteps: int = 0, dtype: torch.dtype = torch.float32
) -> Seeds:
    """Draws the seeds of a batch of n examples: times drawn together, and a key for each example.

    Example i's key depends only on the batch's key and on i, not on n. The times depend on the dtype, too.
    """
    _checks.key("key", key)
    keys = random.split(key, _checks.integer("n", n, 1, 2**31 - 1) + 1)
    t = draw_times(keys[0], n, antithetic=antithetic, timesteps=timesteps, dtype=dtype)
    return Seeds(t, keys[1:], torch.full((n,), timesteps, dtype=torch.int32, device=key.device))


def draw_noise(seeds: Seeds, event_shape: Shape, train: bool = True, code: Code | None = None) -> Any:
    """Draws the noise of a batch from its seeds, in the dtype of its times; ``train`` gives the network keys, and a code has
    noise of its own."""
    dtype = seeds.t.dtype

    def one(key: Key) -> tuple[Tensor, Tensor, Tensor]:
        k_noise, k_network = random.split(key).unbind(0)
        eps_0, eps = random.normal(k_noise, (2, *event_shape), dtype).unbind(0)
        return eps_0, eps, k_network

    eps_0, eps, keys = torch.func.vmap(one)(seeds.key)
    noise = Noise(seeds.t, eps_0, eps, keys if train else None)
    if code is None:
        return noise
    return CodedNoise(*noise, torch.func.vmap(lambda k: code.noise(random.fold_in(k, 2), dtype))(seeds.key))
