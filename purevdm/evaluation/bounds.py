"""Each example's bound, over passes and processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.bfn import BFN
from purevdm.bound import NLLBound
from purevdm.training import parallel
from purevdm.training.parallel import Group
from purevdm.types import Key, Params
from purevdm.vdm import VDM

__all__ = ["bounds"]

M = TypeVar("M", bound=VDM | BFN)


@torch.no_grad()
def bounds(
    model: VDM | BFN,
    params: Params,
    batches: Iterable[Any],
    key: Key,
    *,
    passes: int = 1,
    timesteps: int | None = None,
    elbo: Callable[..., NLLBound] | None = None,
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> NLLBound:
    """The bound's three terms for each example of a data set, in the order of the data: each (N,), nats, float64, on the
    CPU. ``.total`` is their sum.

    Args:
        model: the model, a VDM or a BFN.
        params: its parameters.
        batches: an iterable of x, (x,) or (x, cond); see :mod:`purevdm.evaluation`.
        key: a key.
        passes: how often each example is bounded, at fresh times and noise; the mean counts.
        timesteps: in how many steps, 0 for continuous time, whatever the model's own number.
        elbo: ``model.nll_bound`` compiled, or left out to run it in eager. Not with ``timesteps``: compile that of
            ``model._replace(timesteps=...)``.
        group: the processes that share the work, of :func:`purevdm.training.parallel.join`. Each goes through the same
            batches, takes its turns (each pass of a batch is one), and returns the terms of all, those that one process
            alone would find. It pays to have more turns than processes.
        callback: called with the number of examples done, for a progress bar.

    Raises:
        TypeError, ValueError: bad input, as ``model.nll_bound`` says it, an item of another form, no batch, passes < 1, elbo
            together with timesteps, processes that see different data.

    >>> import purevdm
    >>> from purevdm import evaluation, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.fixed_linear(), event_shape=(2,))
    >>> x = random.randint(random.key(0), (64, 2), 0, 256)
    >>> terms = evaluation.bounds(model, model.init(random.key(1)), x.split(32), random.key(2), timesteps=1000)
    >>> terms.total.shape
    torch.Size([64])
    """
    _, elbo = stepped(model, timesteps, elbo)

    def terms(x: Tensor, cond: Any, key: Key) -> Tensor:
        return stacked("elbo", elbo(params, x, key, cond), len(x))

    return NLLBound(*numbers("elbo", mean(draws(terms, batches, key, passes, group, callback))).unbind(1))


# What all evaluations share


def stepped(
    model: M, timesteps: int | None, elbo: Callable[..., NLLBound] | None, name: str = "elbo"
) -> tuple[M, Callable[..., NLLBound]]:
    """The model in another number of steps, and its bound."""
    _checks.instance("model", model, (VDM, BFN), "a purevdm VDM or BFN")
    if elbo is not None:
        _checks.function(name, elbo)
    if timesteps is not None:
        if elbo is not None:
            raise ValueError(
                f"{name}: expected None with timesteps={timesteps}; compile model._replace(timesteps=...).nll_bound"
            )
        model = model._replace(timesteps=_checks.timesteps(timesteps, model.dtype))  # type: ignore[assignment]
    return model, model.nll_bound if elbo is None else elbo


def stacked(name: str, found: Any, n: int) -> Tensor:
    """The terms of n examples, (n, 3)."""
    if not isinstance(found, NLLBound):
        raise TypeError(f"{name}: expected it to return a purevdm.NLLBound, got {_checks.describe(found)}")
    return torch.stack([_checks.shaped(f"{name}'s {field}", term, (n,)) for field, term in found._asdict().items()], 1)


def mean(found: Tensor) -> Tensor:
    """The mean over passes of what :func:`draws` returns."""
    return sum(found.unbind(0)) / len(found)  # type: ignore[return-value]


def numbers(name: str, terms: Tensor) -> Tensor:
    """Bounds of examples, (N, k), of which none is NaN."""
    if (broken := terms.isnan().any(1)).any():  # after all have gathered, so that no process is left waiting
        i = int(broken.nonzero()[0])
        raise ValueError(f"{name}: expected bounds that are numbers, got NaN for example {i} of the data")
    return terms


@contextmanager
def within(where: str) -> Iterator[None]:
    """Errors say where they arose."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        if type(error) not in (TypeError, ValueError, RuntimeError):  # whose arguments are not a message
            raise
        raise type(error)(f"{where}: {error}") from error


def draws(
    terms: Callable[[Tensor, Any, Key], Tensor],
    batches: Iterable[Any],
    key: Key,
    passes: int,
    group: Group | None,
    callback: Callable[[int], None] | None,
) -> Tensor:
    """What ``terms(x, cond, key) -> (B, k)`` says of every example in every pass: (passes, N, k), float64, on the CPU.

    Processes take turns at the passes of the batches. Batches stay whole, so that the same numbers are computed.
    """
    _checks.key("key", key)
    passes = _checks.integer("passes", passes, 1)
    if group is not None:
        _checks.instance("group", group, Group, "a Group of purevdm.training.parallel.join")
    if callback is not None:
        _checks.function("callback", callback)
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    mine: list[Tensor] = []
    seen: list[tuple[int, int]] = []  # the lengths of batches, and the sums of their bytes, by which processes compare them
    for j, (x, cond) in enumerate(pairs(batches)):
        for p, k in enumerate(random.split(random.fold_in(key, j), passes)):
            if (j * passes + p) % size == rank:
                with within(f"batches[{j}]"):
                    found = terms(x, cond, k).double()
                mine += [found.new_tensor([found.shape[1]]), found.flatten()]  # k first, which may differ between calls
        seen.append((x.shape[0], 0 if group is None else int(x.flatten().view(torch.uint8).sum())))
        if callback is not None:
            callback(x.shape[0])
    if not seen:
        raise ValueError("batches: expected at least one, got none")
    whole = torch.cat(mine) if mine else torch.empty(0, dtype=torch.float64)
    parts = [whole] if group is None else _shared(whole, torch.tensor(seen), group)
    lengths = torch.tensor(seen, device="cpu")[:, 0].repeat_interleave(passes)  # of each pass of each batch
    pieces: list[Any] = [None] * len(lengths)
    for i, part in enumerate(parts):
        rest = part.cpu()
        for turn in range(i, len(lengths), size):
            n = int(lengths[turn]) * int(rest[0])
            pieces[turn], rest = rest[1 : 1 + n].reshape(int(lengths[turn]), -1), rest[1 + n :]
    for turn, piece in enumerate(pieces):
        if piece.shape[1] != pieces[0].shape[1]:
            wanted = f"as many numbers an example as in the first call, {pieces[0].shape[1]}"
            raise ValueError(f"batches[{turn // passes}]: expected {wanted}, got {piece.shape[1]} in pass {turn % passes}")
    return torch.stack([torch.cat(pieces[p::passes]) for p in range(passes)])


def pairs(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """The batches as pairs (x, cond)."""
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        found = _checks.describe(batches)
        raise TypeError(f"batches: expected an iterable of batches, as [x] for a single tensor x, got {found}")
    for j, batch in enumerate(batches):
        pair = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if len(pair) not in (1, 2) or not isinstance(pair[0], Tensor):
            parts = f" of {', '.join(type(part).__name__ for part in pair)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(f"batches[{j}]: expected a tensor x, (x,) or (x, cond), got {type(batch).__name__}{parts}")
        if pair[0].ndim == 0 or pair[0].shape[0] == 0:
            raise ValueError(f"batches[{j}]: expected at least one example, got {_checks.describe(pair[0])}")
        yield pair if len(pair) == 2 else (pair[0], None)  # type: ignore[misc]


def _shared(mine: Tensor, seen: Tensor, group: Group) -> list[Tensor]:
    """What each process computed, by rank."""
    if len(everyone := parallel.gather(seen.to(group.device))) != group.size:
        raise ValueError(f"group: expected as many processes as have joined, {len(everyone)}, got {group.size}")
    if not all(torch.equal(other, everyone[0]) for other in everyone):
        raise ValueError("batches: expected the same data in the same order in every process, got different ones")
    return parallel.gather(mine.to(group.device))
