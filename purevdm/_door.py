"""The door: ``parse`` checks what a model's function is given, once; behind it nothing is checked again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _facts, _masks, _sharding, _spread, _trees, random, schedules
from purevdm._compile import OLD, untraced
from purevdm.decoders import plain
from purevdm.model import latent_shape
from purevdm.noise import Seeds
from purevdm.types import Key, Params


class Batch(NamedTuple):
    """What a function of a model is given, parsed at the door.

    Attributes:
        n: the number of examples, or 0 where nothing says it.
        device: where the parameters are.
        params: the parameters, whole where they were sharded; but the network's stay sharded for a loss.
        x: the data, (n, *event_shape), 0 where nothing exists; None for a function that takes none.
        mask: what exists of the data, bool, of x's shape, or None for all.
        there: what exists of the latents, bool, (n, *latent_shape), or None for all.
        dims: the dimensions of each example, a number, or (n,) where they differ.
    """

    n: int
    device: torch.device
    params: Params
    x: Any = None
    mask: Tensor | None = None
    there: Tensor | None = None
    dims: Tensor | float = 0.0


def structure_of(init: Callable[[Key], Params], dtype: torch.dtype) -> _trees.Structure:
    """Lists the leaves that an ``init`` gives a model of this dtype, without computing them where it runs on the meta
    device."""
    with untraced():
        try:
            params = init(random.key(0, device="meta"))
        except (NotImplementedError, RuntimeError, OverflowError) as error:  # an init that reads its key or mixes devices
            if isinstance(error, OverflowError) or "overflow" in str(error):  # and not one whose sizes no memory holds
                raise ValueError(f"init: expected parameters that a memory holds, got: {error}") from None
            params = init(random.key(0, device="cpu"))
    leaves = _trees.structure(params)
    return tuple((path, shape, dtype if kind.is_floating_point else kind) for path, shape, kind in leaves)


def parse(
    model: Any,
    params: Params,
    x: Any = ...,
    key: Any = None,
    cond: Any = None,
    *,
    n: int = 0,
    mask: Any = None,
    sharded: bool = False,
    **given: Any,
) -> Batch:
    """Checks what a model's function is given, against the model and one another; values are read in one transfer.

    Args:
        model: a VDM, a BFN or a MaskedDiffusion.
        params: parameters of the model's structure.
        x: data, (B, *event_shape); left out by a function that takes none.
        key: a key, or the seeds or the noise of these examples.
        cond: a condition for each example.
        n: the number of examples, where there are no data that say it; 0 for any number.
        mask: bool, which broadcasts to the data, or, where there are none, to the latents: what exists. Data are looked at
            only there.
        sharded: whether the network's parameters stay sharded, if they are, for the network to make whole part by part.
        given: further tensors by name, whose shapes and dtypes the caller checks; they must be finite.

    Raises:
        TypeError, ValueError: whatever does not fit, by its name, and tensors on other devices than the parameters'.
    """
    structure = None if OLD and torch.compiler.is_compiling() else model._structure()  # its trace would hold init
    facts: list[_facts.Fact] = []
    batch = Batch(n, torch.device("cpu"), params)
    if x is not ...:
        batch, facts = _data(model, params, x, mask)
        given["mask"] = mask
    elif mask is not None:
        given["mask"] = there = _masks.mask_of(mask, (n, *latent_shape(model)))
        batch, facts = batch._replace(there=there), _masks.something(there)
    if batch.n:
        batch_axes(cond, batch.n)
    coded = getattr(model, "code", None) is not None
    explicit = isinstance(key, tuple) and hasattr(key, "t")  # seeds or noise
    if explicit:
        facts += drawn(model, key, batch.n)
    names = [name for name in ("network", "schedule") if hasattr(model, name)]
    if not isinstance(params, dict) or not all(name in params for name in names):
        got = f"the keys {sorted(map(str, params))[:4]}" if isinstance(params, dict) else _checks.describe(params)
        keys = f"the keys {' and '.join(map(repr, names))}" if len(names) > 1 else f"the key {names[0]!r}"
        raise ValueError(f"params: expected a dict with {keys}, as init makes it, got {got}")
    others = {"noise" if explicit and not isinstance(key, Seeds) else "key": key, "cond": cond, **given}
    trees = {"params": _checks.leaves(params)} | {name: _checks.leaves(tree) for name, tree in others.items()}
    if structure is not None:
        _trees.matches("params", trees["params"], structure)
    mesh = _spread.mesh_of(trees["params"], "params")
    if mesh is not None:
        stay = {"network": params["network"]} if sharded else {}
        params = _sharding.whole({name: branch for name, branch in params.items() if name not in stay}) | stay
    device = _trees.one_device(trees if x is ... else {**trees, "x": {(): x}}) or batch.device
    dtypes = {"params": None, "cond": model.network.dtype or model.dtype}  # what leaves are cast to
    for name, tree in trees.items():
        if name == "params" and mesh is not None:
            facts += _spread.finite(name, tree, mesh)
        else:
            facts += _trees.finite(name, tree, dtypes.get(name, model.dtype))
    # Under a code the context comes later, and the levels are held to it.
    if hasattr(model, "schedule") and not torch.compiler.is_compiling() and not (coded and model.schedule.contextual):
        like = torch.empty((), dtype=model.dtype, device=device)
        facts += schedules.increasing(model.schedule, params["schedule"], like, cond)
    _facts.verify(facts)
    return batch._replace(device=device, params=params)


def _data(model: Any, params: Params, x: Any, mask: Any) -> tuple[Batch, list[_facts.Fact]]:
    """Parses a batch of at least one example. That it is in the decoder's support, and that the model's dtype holds real
    numbers and the sum of their squares once encoded, comes back as facts."""
    decoder, shape = model.decoder, model.event_shape
    holds = decoder.check(x)
    if x.ndim == 0 or tuple(x.shape[1:]) != shape:
        last = x.ndim > 2 and (x.shape[-1], *x.shape[1:-1]) == shape
        hint = "; channels come first: x.movedim(-1, 1)" if last else ""
        wanted = ", ".join(map(str, ("B", *shape))) if shape else "B,"
        raise ValueError(f"x: expected shape ({wanted}), got {_checks.describe(x)}{hint}")
    nonempty("x", x)
    n, facts, original, there = x.shape[0], [], x, None
    if mask is not None:
        mask = _checks.together("mask", _masks.mask_of(mask, tuple(x.shape)), x.device).expand_as(x)
        x, there = _masks.zeroed(x, mask), decoder.latent_mask(mask)
        holds = holds | ~mask
        facts = _masks.something(mask)
    batch = Batch(n, x.device, params, x, mask, there, _masks.dims(model, n, mask, x.device))
    if not _facts.readable(x):
        return batch, []
    facts.insert(0, _facts.Fact(holds, lambda: _checks.outside(decoder.support, "x", original)))
    subspace = getattr(model, "subspace", None)
    if subspace is not None or (plain(decoder, shape) and decoder.vocab_size is None):
        f = decoder.encode({}, x, dtype=model.dtype)
        wanted = f"numbers whose latents {model.dtype} holds"
        squares = f.square().sum(tuple(range(1, x.ndim)))
        facts.append(_facts.Fact(squares.isfinite(), lambda: _checks.outside(wanted, "x", original)))
        if subspace is not None:
            text = f"data in the model's subspace, {subspace!r} (model.subspace.project(x, mask) puts them there)"
            facts.append(_masks.near("x", f, subspace.project(f, there), text, there))
    return batch, facts


def nonempty(name: str, x: Tensor) -> Tensor:
    """Checks that a batch has at least one example."""
    if x.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one example, got an empty batch of shape {tuple(x.shape)}")
    return x


def latents(name: str, z: Any, model: Any) -> Tensor:
    """Checks latents of at least one example, (B, *latent_shape), of the model's dtype."""
    z = _checks.tensor(name, z)
    return nonempty(name, _checks.alike(name, z, (*z.shape[:1], *latent_shape(model)), model.dtype))


def drawn(model: Any, noise: Any, n: int) -> list[_facts.Fact]:
    """Checks that seeds or noise are those of n examples of a model; that their times are the model's comes back as a
    fact."""
    name, t, steps = "key" if isinstance(noise, Seeds) else "noise", noise.t, model.timesteps
    latent, code = latent_shape(model), getattr(model, "code", None)
    for field, value in noise._asdict().items():
        if value is not None or field not in ("timesteps" if name == "key" else "key", "sender", "others"):
            count = _checks.tensor(f"{name}.{field}", value).shape[1:2] if field == "sender" else ()
            shapes = {"t": (n,), "key": (n, 2), "timesteps": (n,), "code": (n, code.size if code is not None else 0)}
            shape = shapes.get(field, (n, *count, *latent))
            dtype = {"key": torch.int32, "timesteps": torch.int32, "others": torch.int64}.get(field, model.dtype)
            _checks.alike(f"{name}.{field}", value, shape, dtype)
    if not _facts.readable(t):
        return []
    if steps == 0:
        wanted, holds = "times in [0, 1), as time is continuous", (t >= 0.0) & (t < 1.0)
    else:
        i = (t * steps).round()
        wanted = f"times of {steps} steps, each one of 1/{steps}, ..., 1"
        near = (i / steps - t).abs() <= torch.finfo(torch.float32).eps * t  # times that were float32's once
        holds = (i >= 1) & (i <= steps) & near
    facts = [_facts.Fact(holds, lambda: _checks.outside(wanted, f"{name}.t", t))]
    own = getattr(noise, "timesteps", None)
    if own is not None:
        of = f"{steps}, as the model's (0 is continuous time)"
        facts.append(_facts.Fact(own == steps, lambda: _checks.outside(of, f"{name}.timesteps", own)))
    return facts


def seeds_of(model: Any, key: Any, n: int) -> Seeds:
    """Gives the seeds of n examples: those that a key makes, or those given, checked."""
    if isinstance(key, Seeds):
        _facts.verify(drawn(model, key, _checks.integer("n", n, 1)))
    return seeded(model, key, n)


def seeded(model: Any, key: Any, n: int) -> Seeds:
    """Gives the seeds of n examples, behind the door."""
    return key if isinstance(key, Seeds) else model.seeds(key, n)  # type: ignore[no-any-return]


def batch_axes(cond: Any, n: int) -> Any:
    """Gives the batch axes of a condition for vmap's ``in_dims``: the first of every tensor in it, n long.

    Raises:
        TypeError, ValueError: something that is not a tensor, or a tensor of another length.
    """
    if cond is None:
        return None

    def axis(leaf: Any) -> int | None:
        if leaf is None:
            return None
        if _checks.tensor("cond", leaf).ndim == 0 or leaf.shape[0] != n:
            raise ValueError(f"cond: expected a condition for each of the {n} examples, got {_checks.describe(leaf)}")
        return 0

    return optree.tree_map(axis, cond, none_is_leaf=True)
