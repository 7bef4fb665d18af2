"""Conditions: a vector, a class, a sequence, a map; how networks read them, and how training drops them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._compile import fixed
from purevdm.types import Key, Params


class Condition(NamedTuple):
    """A condition of one example (or a batch of them, with a leading axis on each field).

    A network that takes only one kind also takes that tensor bare: ``cond=labels``.

    Attributes:
        vector: numbers, (cond_dim,), or () where cond_dim is 1.
        label: a class, an integer of shape () in [0, classes).
        ctrl: a control sequence for cross-attention, (tokens, ctrl_dim).
        map: numbers over the event's own space, (map_channels, *space), such as a low-resolution image, upsampled.
    """

    vector: Tensor | None = None
    label: Tensor | None = None
    ctrl: Tensor | None = None
    map: Tensor | None = None


class Kinds(NamedTuple):
    """The sizes of the kinds of condition that a network takes, 0 for none, and the rate at which training drops them."""

    cond_dim: int
    classes: int
    ctrl_dim: int
    map_channels: int
    drop: float

    def __bool__(self) -> bool:
        return any(self[:-1])


def kinds(cond_dim: int, classes: int, ctrl_dim: int, map_channels: int, cond_drop: float) -> Kinds:
    """Checks the arguments of a network."""
    kinds = Kinds(
        _checks.integer("cond_dim", cond_dim, 0),
        _checks.integer("classes", classes, 0),
        _checks.integer("ctrl_dim", ctrl_dim, 0),
        _checks.integer("map_channels", map_channels, 0),
        _checks.probability("cond_drop", cond_drop),
    )
    if kinds.drop > 0.0 and not kinds:
        raise ValueError(f"cond_drop: expected 0 for a network without a condition, got {kinds.drop}")
    return kinds


def init(kinds: Kinds, key: Key, width: int) -> Params:
    """Draws ``{"cond": ...}``: an embedding of the classes, and stand-ins for a dropped condition; {} without any."""
    params: Params = {}
    dropped = kinds.drop > 0.0
    if kinds.classes:
        params["label"] = nn.embedding_init(key, kinds.classes + dropped, width)
    sizes = {"no_vector": kinds.cond_dim, "no_ctrl": kinds.ctrl_dim, "no_map": kinds.map_channels}
    for name, size in sizes.items():
        if size and dropped:
            params[name] = torch.zeros(size, dtype=torch.float32, device=key.device)
    return {"cond": params} if params else {}


def read(kinds: Kinds, params: Params, cond: Any, like: Tensor, key: Key | None = None) -> Condition:
    """Reads the condition as the layers take it, in z's dtype: the vector (cond_dim,), the label's embedding (width,), the
    sequence (tokens, ctrl_dim), the map (map_channels, *space); None for the kinds that the network does not take.

    A key drops the whole condition at the network's rate; cond = None stands for a dropped one. Then a learned vector stands
    for the vector, for each token of the sequence, and for the map at each position.
    """
    cond = _sorted(kinds, cond)
    if not kinds:
        return cond
    params = params.get("cond", {})
    drop = fixed(kinds.drop)
    keep = random.bernoulli(key, 1.0 - drop, ()) if key is not None and drop > 0.0 else None

    def or_none(value: Tensor | None, stand_in: Tensor) -> Tensor:
        if value is None:
            return stand_in
        return value if keep is None else torch.where(keep, value, stand_in)

    def floats(value: Tensor | None, stand_in: Tensor | None) -> Tensor:
        return or_none(None if value is None else value.to(like.dtype), stand_in).to(like.dtype)  # type: ignore[arg-type]

    vector = label = ctrl = field = None
    if kinds.cond_dim:
        vector = floats(None if cond.vector is None else _vector(kinds.cond_dim, cond.vector), params.get("no_vector"))
    if kinds.classes:
        index = None if cond.label is None else _label(kinds.classes, cond.label)
        label = nn.embedding(params["label"], or_none(index, torch.full((), kinds.classes, device=like.device)))
    if kinds.ctrl_dim:
        ctrl = floats(None if cond.ctrl is None else _ctrl(kinds.ctrl_dim, cond.ctrl), params.get("no_ctrl"))
        ctrl = ctrl if ctrl.ndim == 2 else ctrl[None]
    if kinds.map_channels:
        shape, no_map = (kinds.map_channels, *like.shape[1:]), params.get("no_map")
        given = None if cond.map is None else _checks.floating("cond.map", _checks.shaped("cond.map", cond.map, shape))
        field = floats(given, None if no_map is None else nn.over_space(no_map, like).expand(shape))
    return Condition(vector, label, ctrl, field)


_FIELDS = {"vector": "cond_dim", "label": "classes", "ctrl": "ctrl_dim", "map": "map_channels"}


def _sorted(kinds: Kinds, cond: Any) -> Condition:
    """Sorts the condition by kind, and refuses kinds that the network does not take."""
    sizes = dict(zip(_FIELDS, kinds[:-1], strict=True))
    taken = [name for name, size in sizes.items() if size]
    if isinstance(cond, Tensor) and len(taken) == 1:
        cond = Condition(**{taken[0]: cond})

    def wanted() -> str:  # written only for an error, as a compiler may hold the sizes as symbols
        return ", ".join(f"{name} ({_FIELDS[name]}={sizes[name]})" for name in taken)

    if cond is not None and not isinstance(cond, Condition):
        if taken:
            raise TypeError(f"cond: expected a Condition with {wanted()}, got {_checks.describe(cond)}")
        raise ValueError(f"cond: expected None, as this network takes none (cond_dim=0), got {_checks.describe(cond)}")
    if cond is None or all(value is None for value in cond):
        if taken and fixed(kinds.drop) == 0.0:
            raise ValueError(f"cond: expected {wanted()}, got None; a network with cond_drop > 0 learns to go without")
        return Condition()
    for name, size in sizes.items():
        value = getattr(cond, name)
        if value is None and size:
            raise ValueError(f"cond.{name}: expected a tensor ({_FIELDS[name]}={size}), got None")
        if value is not None and not size:
            raise ValueError(f"cond.{name}: this network takes none ({_FIELDS[name]}=0), got {_checks.describe(value)}")
    return cond


def _vector(cond_dim: int, vector: Any) -> Tensor:
    vector = _checks.tensor("cond", vector)
    if vector.is_complex():
        raise TypeError(f"cond: expected real numbers, got {_checks.describe(vector)}; give real and imaginary parts as two")
    if tuple(vector.shape) != (cond_dim,) and not (vector.ndim == 0 and cond_dim == 1):
        one = " or ()" if cond_dim == 1 else ""
        raise ValueError(f"cond: expected shape ({cond_dim},){one} an example, got {_checks.describe(vector)}")
    return vector.reshape(cond_dim)


def _label(classes: int, label: Any) -> Tensor:
    label = _checks.shaped("cond.label", label, ())
    if label.is_floating_point() or label.dtype == torch.bool:
        raise TypeError(f"cond.label: expected an integer in [0, {classes - 1}], got {_checks.describe(label)}")
    _checks.within("cond.label", label, 0, classes - 1)
    return label.to(torch.int64)


def _ctrl(ctrl_dim: int, ctrl: Any) -> Tensor:
    ctrl = _checks.floating("cond.ctrl", ctrl)
    if ctrl.ndim != 2 or ctrl.shape[1] != ctrl_dim or ctrl.shape[0] == 0:
        raise ValueError(f"cond.ctrl: expected shape (tokens, {ctrl_dim}) an example, got {_checks.describe(ctrl)}")
    return ctrl
