"""What a module draws while it runs: dropout by the examples' keys, and nothing from torch's global generator.

A :class:`Keyed` block sees every torch function that runs in it. Dropout, in whatever form, draws its masks by key: use n of
a call folds n into each example's key. Other draws are refused.
"""

import math
import re
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from purevdm import nn, random
from purevdm.modules import _calls
from purevdm.modules._calls import REMEDY, Call, transformed

_regimes = _calls.Local()  # how autograd recorded when each module that is under way began, in this thread

# Blocks in which draws are keyed


def _regime() -> Any:
    """How autograd records: within a checkpoint otherwise than around it."""
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(False)


class Keyed(TorchFunctionMode):
    """A block in which torch's draws are those of a call's keys."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _KEYED:
            if "train" in kwargs:  # torch.dropout's word for F.dropout's training
                kwargs = {"training" if word == "train" else word: value for word, value in kwargs.items()}
            return _KEYED[name](self.call, func, *args, **kwargs)
        if name in _DRAWS and not _given_no_rate(name, args, kwargs):
            raise self.call.error(f"calls {name}, which draws from torch's global generator; {REMEDY}")
        if torch.compiler.is_compiling() and name in _METHODS and isinstance(args[0], Tensor):
            return getattr(args[0], name)(*args[1:], **kwargs)
        return func(*args, **kwargs)


def _given_no_rate(name: str, args: Sequence[Any], kwargs: Any) -> bool:
    """Whether a call of ``rrelu``, which draws in training alone, draws nothing."""
    return name.startswith("rrelu") and not (kwargs.get("training", False) or True in args[3:4])


@contextmanager
def within(call: Call) -> Iterator[None]:
    """The run of a module, or of a part of it that a checkpoint runs again; in eager."""
    _regimes.stack.append(_regime())
    try:
        if len(_regimes.stack) > 1:  # a part of a module under way, which is in a block
            yield
        else:
            with Keyed(call):
                yield
    finally:
        _regimes.stack.pop()


# Masks


def _mask(call: Call, rate: float, shape: Sequence[int], axis: int | None = None) -> Tensor:
    """Which numbers of a shape stay, each example's by its own key.

    The examples lie along the first axis, or several rows of it each, one example's after another's (heads and windows are
    folded so), or along the second axis (sequences that come first), or along the one given. A shape with none takes the
    first example's key.
    """
    assert call.keys is not None
    if not torch.compiler.is_compiling() and _regimes.stack and _regimes.stack[-1] != _regime():
        raise call.error(
            "calls a dropout function in a checkpointed function itself, which would not see the keys when it is computed "
            "again; use nn.Dropout there, or checkpoint a module that calls it"
        )
    number = int(_calls.use())
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


def _dropped(call: Call, x: Tensor, rate: float, shape: Sequence[int]) -> Tensor:
    return torch.zeros_like(x) if rate == 1.0 else nn.dropout(_mask(call, rate, shape), x, rate)


def _written(x: Tensor, out: Tensor, inplace: bool) -> Tensor:
    return x.copy_(out) if inplace else out


def _features(x: Tensor, unbatched: int) -> tuple[int, ...]:
    """The shape of a mask of whole channels."""
    kept = 1 if x.ndim == unbatched else 2
    return (*x.shape[:kept], *(1 for _ in x.shape[kept:]))


def _dropout(call: Call, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if _off(call, "dropout", p, training):
        return input
    return _written(input, _dropped(call, input, p, input.shape), inplace)


_UNBATCHED = {"dropout1d": 2, "dropout3d": 4}


def _channel_dropout(
    call: Call, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if _off(call, func.__name__, p, training):
        return input
    out = _dropped(call, input, p, _features(input, _UNBATCHED.get(func.__name__, 0)))
    return _written(input, out, inplace)


_ALPHA = -1.7580993408473766  # where SELU saturates: the value that dropped numbers take (Klambauer et al. 2017)


def _alpha_dropout(
    call: Call, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    if _off(call, func.__name__, p, training):
        return input
    if p == 1.0:
        return _written(input, torch.zeros_like(input), inplace)
    keep = _mask(call, p, _features(input, 0) if func.__name__.startswith("feature") else input.shape)
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * _ALPHA**2))
    return _written(input, scale * (torch.where(keep, input, _ALPHA) - p * _ALPHA), inplace)


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
    """Attention, written out where its weights are dropped, and under vmap and jvp, which do not know the kernel."""
    off = _off(call, "scaled_dot_product_attention", dropout_p, True)
    if off and not any(name in transformed() for name in ("Vmap", "Jvp")):
        return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)  # type: ignore[no-any-return]
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    logits = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    none: Tensor | None = None  # rows that may attend to nothing, whose weights are 0, as torch's own
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        none = (logits == -math.inf).all(-1, keepdim=True)
        logits = logits.masked_fill(none, 0.0)
    weights = torch.softmax(logits, -1)
    weights = weights if none is None else weights.masked_fill(none, 0.0)
    return (weights if off else _dropped(call, weights, dropout_p, weights.shape)) @ value


def _check_key_padding_mask(mask: Tensor, length: int, n: int) -> None:
    if mask.shape != (n, length):
        raise ValueError(f"key_padding_mask: expected shape {(n, length)}, got {tuple(mask.shape)}")


# torch's own function, but one that runs where it would hand itself to a block again. What it calls is seen by the block.
# A compiler does not take torch's own check of the mask.
_multi_head_attention_forward: Any = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda inputs: False, "_check_key_padding_mask": _check_key_padding_mask},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)


def _multi_head(call: Call, func: Any, *args: Any, **kwargs: Any) -> Any:
    with Keyed(call):
        return _multi_head_attention_forward(*args, **kwargs)


def _glu(call: Call, func: Any, input: Tensor, dim: int = -1) -> Tensor:
    """Written out under jvp: torch's own tangent has no derivative."""
    if "Jvp" not in transformed():
        return func(input, dim)  # type: ignore[no-any-return]
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _recurrent(call: Call, func: Any, input: Tensor, *args: Any) -> Any:
    """Recurrent layers: by torch's kernel, one at a time where what goes from one to the next is dropped."""
    packed = not isinstance(args[2], bool)
    sizes, (hx, weights, biases, layers, rate, train, *form) = args[: int(packed)], args[int(packed) :]
    run = _decomposition(func.__name__, packed) if "Vmap" in transformed() else func  # vmap does not know the kernel
    if layers == 1 or _off(call, func.__name__, rate, train):
        return run(input, *args)
    each, directions, ends = len(weights) // layers, 1 + form[0], []
    for i in range(layers):
        rows = slice(i * directions, (i + 1) * directions)
        state = hx[rows] if isinstance(hx, Tensor) else tuple(h[rows] for h in hx)
        held = list(weights[i * each : (i + 1) * each])
        input, *end = run(input, *sizes, state, held, biases, 1, 0.0, train, *form)
        ends.append(end)
        if i < layers - 1:
            axis = None if packed else int(not form[1])
            input = torch.zeros_like(input) if rate == 1.0 else nn.dropout(_mask(call, rate, input.shape, axis), input, rate)
    return input, *(torch.cat(state) for state in zip(*ends, strict=True))


def _decomposition(name: str, packed: bool) -> Any:
    from torch._decomp import decompositions as known

    if packed:
        return {"gru": known.gru_impl_data, "lstm": known.lstm_data_impl}.get(name) or getattr(known, f"{name}_data")
    return {"gru": known.gru_impl, "lstm": known.lstm_impl}.get(name) or getattr(known, f"{name}_input")


def _checkpoint(call: Call, func: Any, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A checkpoint, as a compiler sees it: as the block itself under ``torch.func``, which knows no checkpoints."""
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
    **dict.fromkeys(("dropout",), _dropout),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d", "feature_dropout"), _channel_dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), _alpha_dropout),
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "glu": _glu,
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    "tag_activation_checkpoint": _checkpoint,
}
# Methods that are written in Python, which a compiler follows as methods and not as functions.
_METHODS = frozenset(n for n, f in vars(Tensor).items() if isinstance(f, types.FunctionType) and not n.startswith("_"))
_DRAWS = frozenset(
    re.findall(
        r"\w+",
        "rand randn randint randperm rand_like randn_like randint_like bernoulli bernoulli_ multinomial normal normal_ "
        "poisson uniform_ exponential_ random_ cauchy_ geometric_ log_normal_ dropout_ feature_dropout_ alpha_dropout_ "
        "feature_alpha_dropout_ native_dropout gumbel_softmax rrelu rrelu_ fractional_max_pool2d fractional_max_pool3d "
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices",
    )
)
