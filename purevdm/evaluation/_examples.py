"""Each example's -log p(x) or the bound on it, over batches, passes and processes."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from purevdm import _checks, _sharding, likelihood, parallel, random
from purevdm._batches import triples
from purevdm._masks import dims, mask_of
from purevdm.bound import CodedNLLBound, NLLBound
from purevdm.evaluation._figures import Evaluation, PerExample
from purevdm.likelihood import Estimate
from purevdm.model import Bounded, bounded
from purevdm.parallel import Group
from purevdm.types import Key, Params

__all__ = ["evaluate", "per_example"]

T = TypeVar("T")
M = TypeVar("M", bound=Bounded)


@torch.no_grad()
def per_example(
    model: Bounded,
    params: Params,
    batches: Iterable[Any],
    key: Key,
    *,
    method: Callable[..., NLLBound | Estimate] | None = None,
    passes: int = 1,
    timesteps: int | None = None,
    failures: str = "raise",
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> PerExample:
    """Computes -log p(x) of each example of a data set by one method, or the bound on it.

    Args:
        model, params, key: a VDM, a BFN or a MaskedDiffusion, its parameters, a key.
        batches: an iterable of x, (x,), (x, cond) or (x, cond, mask); see :mod:`purevdm.evaluation`.
        method: ``method(params, x, key, cond)``, with ``mask=`` for batches that have one, compiled or not, which returns an
            :class:`~purevdm.NLLBound` or a :class:`~purevdm.likelihood.Estimate`: for instance
            ``torch.compile(model.nll_bound)``, ``partial(likelihood.log_prob, model, samples=8)``, or
            ``partial(likelihood.importance_bound, model, timesteps=100, samples=8)``. Left out, it is ``model.nll_bound``.
        passes: how often the method is called on each batch, with fresh keys. Of the bound the mean counts. Of an estimate
            the weights of all passes are combined: passes times K samples, in the memory of K.
        timesteps: in how many steps the model is bounded, 0 for continuous time, instead of its own number. Not with
            ``method``: take ``model._replace(timesteps=...).nll_bound``.
        failures: what becomes of an example that the method gives NaN: "raise" for an error, "nan" to keep NaN, which
            figures then leave out and count. In eager mode an integrator must not raise itself:
            ``ode.dopri5(failures="nan")``.
        group: the processes that share the work, of :func:`purevdm.parallel.join`. Each goes through the same batches, takes
            its turns (each pass of a batch is one), and returns the figures of all, those that one process would find.
        callback: called with the number of examples done, for a progress bar; in a group with this process's own, which
            :func:`purevdm.parallel.counted` adds up.

    Raises:
        TypeError, ValueError: bad input, as the method says it; an item of another form, no batch, passes < 1; a method that
            returns something else; figures that are no numbers; processes that see different data.

    >>> from functools import partial
    >>> import purevdm
    >>> from purevdm import evaluation, likelihood, networks, ode, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16, fourier=()), schedules.fixed_linear(-6.0, 5.0), event_shape=(2,), vocab_size=16)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (64, 2), 0, 16)
    >>> bound = evaluation.per_example(model, params, x.split(32), random.key(2), passes=8)
    >>> flow = partial(likelihood.log_prob, model, samples=4, integrator=ode.rk4(20))
    >>> exact = evaluation.per_example(model, params, x.split(32), random.key(3), method=flow)
    >>> gap = evaluation.compare(exact, bound).difference  # how far the flow is below the bound, paired
    """
    model, call = called(model, timesteps, "method", method)
    params = _sharding.whole(params)  # as processes take turns, no two compute at once
    _checks.choice("failures", failures, ("raise", "nan"))
    unit = _checks.choice("model.decoder.unit", model.decoder.unit, ("bits/dim", "nats"))

    def result(x: Tensor, key: Key, cond: Any, **mask: Tensor) -> NLLBound | Estimate:
        return _checked(call(params, x, key, cond, **mask), x.shape[0])

    done, checksum, dims = draws(model, result, batches, key, passes, group, callback)
    kind = type(done[0][0])
    of_passes: Any = [kind(*(torch.cat(parts, -1) for parts in zip(*of_pass, strict=True))) for of_pass in done]
    if kind is not Estimate:
        combined: Any = kind(*(sum(terms) / len(terms) for terms in zip(*of_passes, strict=True)))
    else:
        evaluations = torch.stack([each.evaluations for each in of_passes]).sum(0)
        combined = likelihood.combine(torch.cat([each.log_weights for each in of_passes]), evaluations)
    each = PerExample(combined, dims, checksum, len(done), unit)
    broken = (each.nll == -math.inf) | (each.nll.isnan() & (failures == "raise"))
    if broken.any():  # after all have gathered, so that no process is left waiting
        i = int(broken.nonzero()[0])
        raise ValueError(f"method: expected -log p(x) that is a number, got {each.nll[i]} for example {i} of the data")
    return each


def evaluate(
    model: Bounded,
    params: Params,
    batches: Iterable[Any],
    key: Key,
    *,
    method: Callable[..., NLLBound | Estimate] | None = None,
    passes: int = 1,
    timesteps: int | None = None,
    failures: str = "raise",
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> Evaluation:
    """Computes the mean -log p(x) of a data set by one method, or of the bound on it: the summary of :func:`per_example`,
    whose arguments and errors these are.

    A batch's evenly spread times leave the mean of a bound less noise than its standard error says, so that errors are on
    the safe side, the more so the fewer the passes.

    >>> import purevdm
    >>> from purevdm import evaluation, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.fixed_linear(), event_shape=(2,))
    >>> x = random.randint(random.key(0), (64, 2), 0, 256)
    >>> result = evaluation.evaluate(model, model.init(random.key(1)), x.split(32), random.key(2), passes=2)
    >>> result.nll.error > 0, result.examples, result.unit, list(result.terms)
    (True, 64, 'bits/dim', ['recon', 'prior', 'diffusion'])
    """
    options: Any = dict(method=method, passes=passes, timesteps=timesteps, failures=failures, group=group, callback=callback)
    return per_example(model, params, batches, key, **options).summary()


def called(model: M, timesteps: int | None, name: str, method: Callable[..., Any] | None) -> tuple[M, Callable[..., Any]]:
    """Returns the model in another number of steps, and the method or its bound."""
    bounded(model)
    if timesteps is not None:
        if method is not None:
            raise ValueError(
                f"{name}: expected None with timesteps={timesteps}; take model._replace(timesteps=...).nll_bound"
            )
        model = model._replace(timesteps=_checks.timesteps(timesteps, model.dtype))
    return model, model.nll_bound if method is None else _checks.function(name, method)


def _checked(result: Any, n: int) -> NLLBound | Estimate:
    """Returns what a method says of n examples, in float64."""
    kinds = (NLLBound, CodedNLLBound, Estimate)
    _checks.instance("method's result", result, kinds, "a purevdm.NLLBound or a likelihood.Estimate")
    if not isinstance(result, Estimate):
        return type(result)(*(_checks.shaped(f"method's {name}", x, (n,)).double() for name, x in result._asdict().items()))
    weights = _checks.shaped("method's log_weights", result.log_weights, (*result.log_weights.shape[:1], n))
    return likelihood.combine(weights.double(), result.evaluations.long())


@contextmanager
def within(where: str) -> Iterator[None]:
    """Makes errors say where they arose."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        if type(error) not in (TypeError, ValueError, RuntimeError):  # whose arguments are not a message
            raise
        raise type(error)(f"{where}: {error}") from error


def draws(
    model: Bounded,
    call: Callable[..., T],
    batches: Iterable[Any],
    key: Key,
    passes: int,
    group: Group | None,
    callback: Callable[[int], None] | None,
) -> tuple[list[list[T]], Tensor, Tensor]:
    """Calls ``call(x, key, cond)``, with ``mask=`` where a batch has one, for every pass of every batch.

    Processes take turns at the passes of the batches. Batches stay whole, so that the same numbers are computed.

    Returns:
        What it returned, for each pass a list over batches, on the CPU; the checksum of each example, and how many
        dimensions it has, int64 (N,).
    """
    _checks.key("key", key)
    passes = _checks.integer("passes", passes, 1)
    rank, size = parallel.place(group)
    callback = (lambda n: None) if callback is None else _checks.function("callback", callback)
    mine: list[T] = []
    sums: list[Tensor] = []
    sizes: list[Tensor] = []
    for j, (x, cond, mask) in enumerate(triples(batches)):
        with within(f"batches[{j}]"):
            there = None if mask is None else mask_of(mask, tuple(x.shape)).expand_as(x)
            size_of = dims(model, len(x), there, x.device)
            sizes.append(torch.as_tensor(size_of, device="cpu").long().expand(len(x)))
            for p, k in enumerate(random.split(random.fold_in(key, j), passes)):
                if (j * passes + p) % size == rank:
                    mine.append(call(x, k, cond, **({} if mask is None else {"mask": mask})))
        sums.append(x.reshape(len(x), -1).contiguous().view(torch.uint8).sum(1))
        callback(len(x) if (j * passes + passes - 1) % size == rank else 0)
    if not sums:
        raise ValueError("batches: expected at least one, got none")
    mine, sums = optree.tree_map(Tensor.cpu, (mine, sums))  # type: ignore[arg-type, assignment]
    everyone = parallel.of_all(group, (mine, sums))
    if len(everyone) != size:
        raise ValueError(f"group: expected as many processes as have joined, {len(everyone)}, got {size}")
    if any(len(other) != len(sums) or not all(map(torch.equal, other, sums)) for _, other in everyone):
        raise ValueError("batches: expected the same data in the same order in every process, got different ones")
    turns = [everyone[turn % size][0][turn // size] for turn in range(len(sums) * passes)]
    return [turns[p::passes] for p in range(passes)], torch.cat(sums), torch.cat(sizes)
