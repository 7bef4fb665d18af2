"""Dropout by the examples' keys in a module's run, and no draw from torch's global generator.

A :class:`Keyed` block intercepts every torch function that runs in it. All forms of dropout draw their masks by key: use n
of a call folds n into each example's key. Other draws are refused.

A checkpointed block draws again in the backward pass, after the call, and must draw the same. So the count of uses is kept
where checkpoints save what randomness depends on: it is the seed of torch's CPU generator. Nothing is drawn from that
generator, and each call leaves it as it was.
"""

import math
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from purevdm import nn, random
from purevdm._compile import constant

# Calls, and the count of their uses

_REMEDY = (
    "networks draw by key alone: use dropout (nn.Dropout, F.dropout, attention's), or write a purevdm.networks.Network "
    "whose apply takes the key"
)
_FIRST = 0x7672656D << 32  # the seed before any use


class Call(NamedTuple):
    """One run of a module: the module's name, for messages, and a key for each example, (B, 2), or None in evaluation."""

    name: str
    keys: Tensor | None

    def error(self, problem: str) -> RuntimeError:
        return RuntimeError(f"network: {self.name} {problem}")


class _Local(threading.local):
    """Each thread's stacks: the generator's states around its calls, and how autograd recorded as each part began."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.regimes: list[Any] = []


_local = _Local()
_lock = threading.RLock()


@constant
def begin() -> None:
    """Starts a call, without any use. A compiler calls this, and the next three, while it traces."""
    _local.states.append(torch.default_generator.get_state())
    torch.default_generator.manual_seed(_FIRST)


@constant
def end() -> None:
    """Ends a call."""
    torch.default_generator.set_state(_local.states.pop())


@constant
def use() -> str:
    """Numbers a use, as text, which a compiler takes for a constant."""
    number = torch.default_generator.initial_seed() - _FIRST
    torch.default_generator.manual_seed(_FIRST + number + 1)
    return str(number)


@constant
def transformed() -> str:
    """Names the ``torch.func`` transforms at work, as text."""
    return " ".join(interpreter.key().name for interpreter in torch._C._functorch.get_interpreter_stack() or ())


@contextmanager
def counted(call: Call) -> Iterator[None]:
    """Counts uses in eager mode. In training, one thread at a time; unseen draws from the global generator are refused."""
    if call.keys is None:
        yield
        return
    with _lock:
        begin()
        try:
            yield
            fresh = torch.Generator().manual_seed(torch.default_generator.initial_seed())
            if not torch.equal(torch.default_generator.get_state(), fresh.get_state()):
                raise call.error(f"drew from torch's global generator, which no key governs; {_REMEDY}")
        finally:
            end()


# Blocks in which draws are keyed


def _regime() -> Any:
    """Says how autograd records, which differs within a checkpoint and around it."""
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(False)


class Keyed(TorchFunctionMode):
    """A block in which torch's draws are those of a call's keys."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _KEYED:
            return _KEYED[name](self.call, func, *args, **kwargs)
        if name in _DRAWS:
            raise self.call.error(f"calls {name}, which draws from torch's global generator; {_REMEDY}")
        if torch.compiler.is_compiling() and name in _METHODS and isinstance(args[0], Tensor):
            return getattr(args[0], name)(*args[1:], **kwargs)
        return func(*args, **kwargs)


@contextmanager
def within(call: Call) -> Iterator[None]:
    """Keys the run of a module, or of a part of it that a checkpoint runs again; in eager mode."""
    _local.regimes.append(_regime())
    try:
        if len(_local.regimes) > 1:  # a part of a module that is running, which is in a block
            yield
        else:
            with Keyed(call):
                yield
    finally:
        _local.regimes.pop()


# Masks


def _mask(call: Call, rate: float, shape: Sequence[int], axis: int | None = None) -> Tensor:
    """Draws which numbers of a shape stay, each example's by its own key.

    Examples lie along the axis given; else along the first axis, each with one row or several in succession (heads and
    windows are folded so); else along the second (sequences first). Without such an axis, the first example's key is used.
    """
    assert call.keys is not None
    if not torch.compiler.is_compiling() and _local.regimes and _local.regimes[-1] != _regime():
        raise call.error(
            "calls a dropout function in a checkpointed function itself, which would not get the keys when it is computed "
            "again; use nn.Dropout there, or checkpoint a module that calls it"
        )
    number = int(use())
    if not torch.compiler.is_compiling() and not 0 <= number < 2**31:
        raise call.error("draws in a checkpoint with preserve_rng_state=False, which cannot be repeated; leave that out")
    keys, shape = call.keys, tuple(shape)
    n, axes = keys.shape[0], range(min(2, len(shape)))
    axis = next((i for i in axes if shape[i] % n == 0), None) if axis is None else axis
    if axis is None:
        return random.bernoulli(random.fold_in(keys[0], number), 1.0 - rate, shape)
    first = (shape[axis], *(size for i, size in enumerate(shape) if i != axis))
    each = (shape[axis] // n, *first[1:])
    masks = torch.func.vmap(lambda key: random.bernoulli(random.fold_in(key, number), 1.0 - rate, each))(keys)
    return masks.reshape(first).movedim(0, axis)


def _off(call: Call, name: str, rate: float, training: bool) -> bool:
    if not training or rate == 0.0:
        return True
    if call.keys is None:
        raise call.error(f"calls {name} with training=True in evaluation; pass training=self.training")
    return False


def _dropped(call: Call, x: Tensor, rate: float, shape: Sequence[int], axis: int | None = None) -> Tensor:
    return torch.zeros_like(x) if rate == 1.0 else nn.dropout(_mask(call, rate, shape, axis), x, rate)


_ALPHA = -1.7580993408473766  # where SELU saturates: the value of dropped numbers (Klambauer et al. 2017)


def _dropout(
    call: Call, func: Any, input: Tensor, p: float = 0.5, training: bool | None = None, inplace: bool = False
) -> Tensor:
    name, shape = func.__name__, tuple(input.shape)
    alpha = name in ("alpha_dropout", "feature_alpha_dropout")
    if _off(call, name, p, not alpha if training is None else training):
        return input
    if name not in ("dropout", "alpha_dropout"):  # whole channels
        kept = 1 if input.ndim == {"dropout1d": 2, "dropout3d": 4}.get(name) else 2
        shape = (*shape[:kept], *(1 for _ in shape[kept:]))
    if alpha and p < 1.0:
        scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * _ALPHA**2))
        out = scale * (torch.where(_mask(call, p, shape), input, _ALPHA) - p * _ALPHA)
    else:
        out = _dropped(call, input, p, shape)
    return input.copy_(out) if inplace else out


def _attention(
    call: Call,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Computes attention, written out where weights are dropped, and under vmap and jvp, which the kernel lacks."""
    off = _off(call, "scaled_dot_product_attention", dropout_p, True)
    if off and not any(name in transformed() for name in ("Vmap", "Jvp")):
        return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)  # type: ignore[no-any-return]
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    logits = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    none: Tensor | None = None  # rows that may attend to nothing: their weights are 0, as in torch's own
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        none = (logits == -math.inf).all(-1, keepdim=True)
        logits = logits.masked_fill(none, 0.0)
    weights = torch.softmax(logits, -1)
    weights = weights if none is None else weights.masked_fill(none, 0.0)
    return (weights if off else _dropped(call, weights, dropout_p, weights.shape)) @ value


def _check_padding(mask: Tensor, length: int, n: int) -> None:
    if mask.shape != (n, length):
        raise ValueError(f"key_padding_mask: expected shape {(n, length)}, got {tuple(mask.shape)}")


# torch's own function, without its dispatch to the block: it runs there, and what it calls is intercepted. A compiler does
# not follow torch's own check of the mask.
_multi_head_attention_forward: Any = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda inputs: False, "_check_key_padding_mask": _check_padding},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)


def _multi_head(call: Call, func: Any, *args: Any, **kwargs: Any) -> Any:
    with Keyed(call):
        return _multi_head_attention_forward(*args, **kwargs)


def _glu(call: Call, func: Any, input: Tensor, dim: int = -1) -> Tensor:
    """Computes a gated linear unit, written out under jvp: torch's own tangent has no derivative."""
    if "Jvp" not in transformed():
        return func(input, dim)  # type: ignore[no-any-return]
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _recurrent(call: Call, func: Any, input: Tensor, *args: Any) -> Any:
    """Runs recurrent layers by torch's kernel, one at a time where dropout lies between them."""
    if not isinstance(args[2], bool):
        raise call.error("runs a recurrent layer over packed sequences; give it padded ones")
    run = _decomposition(func.__name__) if "Vmap" in transformed() else func  # the kernel has no batching rule
    hx, weights, biases, layers, rate, train, bidirectional, batch_first = args
    if layers == 1 or _off(call, func.__name__, rate, train):
        return run(input, *args)
    each, directions, states = len(weights) // layers, 1 + bidirectional, []
    for i in range(layers):
        rows = slice(i * directions, (i + 1) * directions)
        start = hx[rows] if isinstance(hx, Tensor) else tuple(h[rows] for h in hx)
        own = list(weights[i * each : (i + 1) * each])
        input, *state = run(input, start, own, biases, 1, 0.0, train, bidirectional, batch_first)
        states.append(state)
        if i < layers - 1:
            input = _dropped(call, input, rate, input.shape, int(not batch_first))
    return input, *(torch.cat(state) for state in zip(*states, strict=True))


def _decomposition(name: str) -> Any:
    from torch._decomp import decompositions as known

    return {"gru": known.gru_impl, "lstm": known.lstm_impl}.get(name) or getattr(known, f"{name}_input")


def _checkpoint(call: Call, func: Any, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Traces a checkpoint; under ``torch.func``, which does not support checkpoints, the block itself."""
    if transformed():
        options = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
        kwargs = {name: value for name, value in kwargs.items() if name not in options}
        with Keyed(call):
            return block(*args, **kwargs)

    def keyed(*args: Any, **kwargs: Any) -> Any:
        with Keyed(call):
            return block(*args, **kwargs)

    return func(keyed, *args, **kwargs)


_KEYED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), _dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "glu": _glu,
    "tag_activation_checkpoint": _checkpoint,
}
# Methods that are written in Python, which a compiler follows as methods and not as functions.
_METHODS = frozenset(n for n, f in vars(Tensor).items() if isinstance(f, types.FunctionType) and not n.startswith("_"))
_NAMES = (
    "rand randn randint randperm rand_like randn_like randint_like bernoulli bernoulli_ multinomial normal normal_ poisson "
    "uniform_ exponential_ random_ cauchy_ geometric_ log_normal_ dropout_ feature_dropout_ alpha_dropout_ native_dropout"
)
_DRAWS = frozenset(_NAMES.split())
