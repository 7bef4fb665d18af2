"""Dropout by the examples' keys in a module's run, and no draw from torch's global generator.

A :class:`Keyed` block intercepts every torch function that runs in it. All forms of dropout draw their masks by key: use n
of a call folds n into each example's key. Other draws are refused.
"""

import math
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from purevdm import nn, random
from purevdm._compile import constant

# Calls, and the count of their uses

_REMEDY = (
    "networks draw only by key: use dropout (nn.Dropout, F.dropout, attention's), or write a purevdm.networks.Network "
    "whose apply takes the key"
)


class Call(NamedTuple):
    """One run of a module: the module's name, for messages, and a key for each example, (B, 2), or None in evaluation."""

    name: str
    keys: Tensor | None

    def error(self, problem: str) -> RuntimeError:
        return RuntimeError(f"network: {self.name} {problem}")


class _Uses(threading.local):
    """How many uses each running call has made, the innermost last; each thread has its own."""

    def __init__(self) -> None:
        self.counts: list[int] = []


_uses = _Uses()


@constant
def begin() -> None:
    """Starts a call, without any use. A compiler calls this, and the next three, while it traces."""
    _uses.counts.append(0)


@constant
def end() -> None:
    """Ends a call."""
    _uses.counts.pop()


@constant
def use() -> str:
    """Numbers a use, as text, which a compiler takes for a constant."""
    _uses.counts[-1] += 1
    return str(_uses.counts[-1] - 1)


@constant
def transformed() -> str:
    """Names the ``torch.func`` transforms at work, as text."""
    return " ".join(interpreter.key().name for interpreter in torch._C._functorch.get_interpreter_stack() or ())


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
def running(call: Call) -> Iterator[None]:
    """Keys a module's run in eager mode. In training it refuses checkpoints, which draw again when the keys are gone, and
    draws from the global generator that no torch function shows."""
    begin()
    try:
        with ExitStack() as stack:
            if call.keys is not None:
                before = torch.get_rng_state()
                with suppress(RuntimeError):  # the caller's own hooks, around the whole run, are at work
                    stack.enter_context(disable_saved_tensors_hooks("saved tensor hooks"))
            stack.enter_context(Keyed(call))
            yield
        if call.keys is not None and not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            raise call.error(f"drew from torch's global generator, which no key governs; {_REMEDY}")
    finally:
        end()


# Masks


def _mask(call: Call, rate: float, shape: Sequence[int]) -> Tensor:
    """Draws which numbers of a shape stay, each example's by its own key.

    Examples lie along the first axis, each with one row or several in succession (heads and windows are folded so); else
    along the second (sequences first). Without such an axis, the first example's key is used.
    """
    assert call.keys is not None
    number, keys, shape = int(use()), call.keys, tuple(shape)
    n = keys.shape[0]
    axis = next((i for i in range(min(2, len(shape))) if shape[i] % n == 0), None)
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


def _dropped(call: Call, x: Tensor, rate: float, shape: Sequence[int]) -> Tensor:
    return torch.zeros_like(x) if rate == 1.0 else nn.dropout(_mask(call, rate, shape), x, rate)


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
    if attn_mask is None:
        weights = torch.softmax(logits, -1)
    else:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        none = (logits == -math.inf).all(-1, keepdim=True)  # rows that may attend to nothing: 0, as in torch's own
        weights = torch.softmax(logits.masked_fill(none, 0.0), -1).masked_fill(none, 0.0)
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


def _recurrent(call: Call, func: Any, *args: Any) -> Any:
    try:
        return func(*args)
    except RuntimeError as error:
        if "Vmap" not in transformed():
            raise
        raise call.error("runs a recurrent layer that torch.func.vmap does not know; take gradients of batches") from error


def _checkpoint(call: Call, func: Any, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Traces a checkpoint; under ``torch.func``, which does not support checkpoints, the block itself."""

    def keyed(*args: Any, **kwargs: Any) -> Any:
        with Keyed(call):
            return block(*args, **kwargs)

    if not transformed():
        return func(keyed, *args, **kwargs)
    options = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
    return keyed(*args, **{name: value for name, value in kwargs.items() if name not in options})


_KEYED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), _dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "tag_activation_checkpoint": _checkpoint,
}
# Methods that are written in Python, which a compiler follows as methods and not as functions.
_METHODS = frozenset(n for n, f in vars(Tensor).items() if isinstance(f, types.FunctionType) and not n.startswith("_"))
_NAMES = (
    "rand randn randint randperm rand_like randn_like randint_like bernoulli bernoulli_ multinomial normal normal_ poisson "
    "uniform_ exponential_ random_ cauchy_ geometric_ log_normal_ dropout_ feature_dropout_ alpha_dropout_ native_dropout"
)
_DRAWS = frozenset(_NAMES.split())
