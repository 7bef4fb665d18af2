"""The door: ``parse`` checks what a model's function is given, once; behind it nothing is checked again."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import optree
import torch
from torch import Tensor

from purevdm import _checks, _sharding, _spread, random, schedules
from purevdm._compile import OLD, untraced
from purevdm.codes import Code
from purevdm.decoders import Decoder, plain
from purevdm.networks import Network
from purevdm.noise import Seeds
from purevdm.parts import Encoder, Reverse, Subspace
from purevdm.schedules import Schedule
from purevdm.types import Key, Params

__all__ = ["Bounded", "Model"]


class Model(Protocol):
    """What the bound and the sampler need of a model; :class:`purevdm.VDM` is one."""

    @property
    def network(self) -> Network: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def event_shape(self) -> tuple[int, ...]: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def subspace(self) -> Subspace | None: ...
    @property
    def reverse(self) -> Reverse: ...
    @property
    def code(self) -> Code | None: ...
    @property
    def encoder(self) -> Encoder | None: ...


@runtime_checkable
class Bounded(Protocol):
    """What training and evaluation need of a model: a loss, and a bound on -log p(x). :class:`purevdm.VDM`,
    :class:`purevdm.bfn.BFN` and :class:`purevdm.masked.MaskedDiffusion` have it."""

    @property
    def network(self) -> Network: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def event_shape(self) -> tuple[int, ...]: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def _replace(self) -> Callable[..., Self]: ...
    def init(self, key: Key) -> Params: ...
    def seeds(self, key: Key, n: int) -> Seeds: ...
    def loss_and_stats(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]: ...
    def nll_bound(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> Any: ...


def bounded(model: Any) -> Any:
    """Refuses what is not :class:`Bounded`."""
    return _checks.instance("model", model, Bounded, "a purevdm VDM, BFN or MaskedDiffusion")  # type: ignore[type-abstract]


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


def device_of(params: Params) -> torch.device | None:
    """Finds where the parameters are, if there are any."""
    return next((leaf.device for leaf in _checks.leaves(params).values()), None)


def structure_of(init: Callable[[Key], Params], dtype: torch.dtype) -> _checks.Structure:
    """Lists the leaves that an ``init`` gives a model of this dtype, without computing them where it runs on the meta
    device."""
    with untraced():
        try:
            params = init(random.key(0, device="meta"))
        except (NotImplementedError, RuntimeError, OverflowError) as error:  # an init that reads its key or mixes devices
            if isinstance(error, OverflowError) or "overflow" in str(error):  # and not one whose sizes no memory holds
                raise ValueError(f"init: expected parameters that a memory holds, got: {error}") from None
            params = init(random.key(0, device="cpu"))
    leaves = _checks.structure(params)
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
    facts: list[_checks.Fact] = []
    batch = Batch(n, torch.device("cpu"), params)
    if x is not ...:
        batch, facts = _data(model, params, x, mask)
        given["mask"] = mask
    elif mask is not None:
        given["mask"] = there = mask_of(mask, (n, *latent_shape(model)))
        batch, facts = batch._replace(there=there), something(there)
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
        _checks.matches("params", trees["params"], structure)
    mesh = _spread.mesh_of(trees["params"], "params")
    if mesh is not None:
        stay = {"network": params["network"]} if sharded else {}
        params = _sharding.whole({name: branch for name, branch in params.items() if name not in stay}) | stay
    device = _checks.one_device(trees if x is ... else {**trees, "x": {(): x}}) or batch.device
    dtypes = {"params": None, "cond": model.network.dtype or model.dtype}  # what leaves are cast to
    for name, tree in trees.items():
        if name == "params" and mesh is not None:
            facts += _spread.finite(name, tree, mesh)
        else:
            facts += _checks.finite(name, tree, dtypes.get(name, model.dtype))
    # Under a code the context comes later, and the levels are held to it.
    if hasattr(model, "schedule") and not torch.compiler.is_compiling() and not (coded and model.schedule.contextual):
        like = torch.empty((), dtype=model.dtype, device=device)
        facts += schedules.increasing(model.schedule, params["schedule"], like, cond)
    _checks.verify(facts)
    return batch._replace(device=device, params=params)


def _data(model: Any, params: Params, x: Any, mask: Any) -> tuple[Batch, list[_checks.Fact]]:
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
        mask = _checks.together("mask", mask_of(mask, tuple(x.shape)), x.device).expand_as(x)
        x, there = zeroed(x, mask), decoder.latent_mask(mask)
        holds = holds | ~mask
        facts = something(mask)
    batch = Batch(n, x.device, params, x, mask, there, dims(model, n, mask, x.device))
    if not _checks.readable(x):
        return batch, []
    facts.insert(0, _checks.Fact(holds, lambda: _checks.outside(decoder.support, "x", original)))
    subspace = getattr(model, "subspace", None)
    if subspace is not None or (plain(decoder, shape) and decoder.vocab_size is None):
        f = decoder.encode({}, x, dtype=model.dtype)
        wanted = f"numbers whose latents {model.dtype} holds"
        squares = f.square().sum(tuple(range(1, x.ndim)))
        facts.append(_checks.Fact(squares.isfinite(), lambda: _checks.outside(wanted, "x", original)))
        if subspace is not None:
            text = f"data in the model's subspace, {subspace!r} (model.subspace.project(x, mask) puts them there)"
            facts.append(_near("x", f, subspace.project(f, there), text, there))
    return batch, facts


def _near(name: str, f: Tensor, wanted: Tensor, text: str, mask: Tensor | None = None) -> _checks.Fact:
    """Makes the fact that latents are what they ought to be, up to rounding."""
    size = 1.0 + f.abs().amax(tuple(range(1, f.ndim)), keepdim=True)
    near = (f - wanted).abs() <= 1e-4 * size
    told = f"{name}: expected {text}, got some that are not"
    return _checks.Fact(near if mask is None else near | ~mask, lambda: ValueError(told))


def inside(name: str, z: Tensor, within: Tensor) -> Tensor:
    """Gives latents within the model's subspace and the mask; in eager mode, all must be."""
    if within is not z and _checks.readable(z):
        _checks.verify([_near(name, z, within, "latents in the model's subspace, and 0 where nothing exists")])
    return within


def mask_of(mask: Any, shape: tuple[int, ...]) -> Tensor:
    """Checks a mask of a batch of this shape."""
    if _checks.broadcasting("mask", mask, shape).dtype != torch.bool or mask.ndim != len(shape):
        wanted = f"a bool tensor that broadcasts to {shape}, with as many axes"
        raise TypeError(f"mask: expected {wanted}, got {_checks.describe(mask)}")
    return mask  # type: ignore[no-any-return]


def something(mask: Tensor) -> list[_checks.Fact]:
    """Makes the fact that something exists in every example."""
    nothing = "mask: expected something in every example, got none"
    some = mask.reshape(mask.shape[0], -1).any(1)
    return [_checks.Fact(some, lambda: ValueError(nothing))] if _checks.readable(mask) else []


def of_events(model: Any, mask: Any, n: int, device: torch.device) -> Tensor | None:
    """Checks a mask of n events, and gives that of their latents."""
    if mask is None:
        return None
    _checks.verify(something(_checks.together("mask", mask_of(mask, (n, *model.event_shape)), device)))
    return model.decoder.latent_mask(mask)  # type: ignore[no-any-return]


def zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the data with zeros where nothing exists."""
    return x if mask is None else torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def dims(model: Any, n: int, mask: Tensor | None, device: torch.device) -> Tensor | float:
    """Counts the dimensions of each of n examples: a number, or (n,) where they differ. ``mask`` is in the data's shape."""
    subspace = getattr(model, "subspace", None)
    if mask is None and subspace is None:
        return float(math.prod(model.event_shape))
    if mask is None:
        mask = torch.ones((n, *model.event_shape), dtype=torch.bool, device=device)
    return mask.reshape(n, -1).sum(1) if subspace is None else subspace.rank(mask)  # type: ignore[no-any-return]


def share(model: Any, like: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    """Gives each element's share of a dimension, in the shape of ``like``: 1 without a subspace; over what exists they add
    up to the subspace's rank."""
    if model.subspace is None:
        return 1.0
    every = torch.ones_like(like, dtype=torch.bool) if mask is None else mask.expand_as(like)
    return model.subspace.share(every).to(dtype)  # type: ignore[no-any-return]


def nonempty(name: str, x: Tensor) -> Tensor:
    """Checks that a batch has at least one example."""
    if x.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one example, got an empty batch of shape {tuple(x.shape)}")
    return x


def latent_shape(model: Any) -> tuple[int, ...]:
    """Gives the shape of one example's latent."""
    return (model.flow if hasattr(model, "flow") else model.decoder).latent_shape(model.event_shape)  # type: ignore[no-any-return]


def direct(model: Any, use: str, *, flow: bool = False, coded: bool = False) -> None:
    """Refuses a model whose latents are not its data encoded by a fixed map, for what has no formula for others.

    Args:
        model: a VDM.
        use: for what, as messages say it.
        flow: whether latents may lie in a subspace, and have another shape than the data.
        coded: whether the model may have a code.
    """
    decoder = _checks.instance("decoder", model.decoder, Decoder, "a purevdm Decoder")
    if model.code is not None and not coded:
        raise ValueError(f"model: expected one without a code for {use}; purevdm.coded.conditional gives it, given codes")
    if model.encoder is not None:
        raise ValueError(f"model: expected one whose means stay, without an encoder, for {use}, got {model.encoder!r}")
    if model.subspace is not None and not flow:
        raise ValueError(f"model: expected one without a subspace for {use}, got {model.subspace!r}")
    if decoder.learned or not (flow or plain(decoder, model.event_shape)):
        shaped = "" if flow else ", whose latents have the data's shape,"
        raise ValueError(f"model: expected a decoder without parameters{shaped} for {use}, got {decoder!r}")


def latents(name: str, z: Any, model: Any) -> Tensor:
    """Checks latents of at least one example, (B, *latent_shape), of the model's dtype."""
    z = _checks.tensor(name, z)
    return nonempty(name, _checks.alike(name, z, (*z.shape[:1], *latent_shape(model)), model.dtype))


def drawn(model: Any, noise: Any, n: int) -> list[_checks.Fact]:
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
    if not _checks.readable(t):
        return []
    if steps == 0:
        wanted, holds = "times in [0, 1), as time is continuous", (t >= 0.0) & (t < 1.0)
    else:
        i = (t * steps).round()
        wanted = f"times of {steps} steps, each one of 1/{steps}, ..., 1"
        near = (i / steps - t).abs() <= torch.finfo(torch.float32).eps * t  # times that were float32's once
        holds = (i >= 1) & (i <= steps) & near
    facts = [_checks.Fact(holds, lambda: _checks.outside(wanted, f"{name}.t", t))]
    own = getattr(noise, "timesteps", None)
    if own is not None:
        of = f"{steps}, as the model's (0 is continuous time)"
        facts.append(_checks.Fact(own == steps, lambda: _checks.outside(of, f"{name}.timesteps", own)))
    return facts


def seeds_of(model: Any, key: Any, n: int) -> Seeds:
    """Gives the seeds of n examples: those that a key makes, or those given, checked."""
    if isinstance(key, Seeds):
        _checks.verify(drawn(model, key, _checks.integer("n", n, 1)))
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
