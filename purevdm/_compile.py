"""Hints to the compiler, which do nothing in eager mode, the modes that a call runs under, and what batching rules share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import _disable_current_modes

OLD = TorchVersion(torch.__version__) < "2.13"
ZEROS = TorchVersion(torch.__version__) < "2.12"

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", int, float)
Tensors = tuple[Tensor, ...]


def constant(f: F) -> F:
    """Marks a function, or a method whose value depends on its object only, for compilers to call while they trace.

    This is ``torch.compiler.assume_constant_result`` without importing the compiler. Older compilers cannot do it for a
    method of a NamedTuple, and trace it.
    """
    if not OLD or "." not in f.__qualname__:
        f._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return f


def fixed(number: T) -> T:
    """Makes a Python number a constant to a compiler, even under ``dynamic=True``, which makes numbers symbolic."""
    if not torch.compiler.is_compiling():
        return number
    return torch.fx.experimental.symbolic_shapes.guard_scalar(number)  # type: ignore[attr-defined, no-any-return, return-value]


@contextmanager
def untraced() -> Iterator[None]:
    """Keeps what runs within it out of a program that ``torch.export`` traces, and out of ``torch.func`` transforms."""
    with _disable_current_modes(), temporarily_clear_interpreter_stack():
        yield


def transformed() -> bool:
    """Says whether a ``torch.func`` transform is at work. Older compilers cannot say, and take it that none is."""
    if OLD and torch.compiler.is_compiling():
        return False
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


@constant
def _inference() -> bool:
    return torch.is_inference_mode_enabled()


def refuse_zero_derivatives() -> None:
    """Refuses inference mode where ``torch.func`` is about to differentiate: an older PyTorch finds zeros in it, without a
    word (its issue 177318).

    Raises:
        RuntimeError: inference mode, with a PyTorch older than 2.12.
    """
    if ZEROS and _inference():
        raise RuntimeError(
            f"torch.inference_mode: PyTorch {torch.__version__} takes derivatives for 0 in it, and this needs some; "
            "use torch.no_grad()"
        )


def in_front(x: Tensor, axis: int | None, n: int) -> Tensor:
    """Gives a tensor, to a batching rule of ``torch.func.vmap``, its mapped axis in front, or n times itself without one."""
    return x.expand(n, *x.shape) if axis is None else x.movedim(axis, 0)


def exporting() -> bool:
    """Says whether ``torch.export`` is at work. Older compilers take ``torch.compiler.is_exporting()`` for True."""
    return torch.compiler._is_exporting_flag if OLD else torch.compiler.is_exporting()


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """Gives a block without the user's autocast, which is for what a network computes; all else keeps its dtype."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def while_loop(condition: Callable[..., Tensor], body: Callable[..., Tensors], state: Tensors, what: str) -> Tensors:
    """Runs ``torch.while_loop`` without derivatives: its own are wrong, silently, where a start requires no gradient and
    where the loop takes no turn (PyTorch 2.13 to 2.15).

    Raises:
        RuntimeError: a start requires a gradient, or a tensor that the body closes over; ``what`` is named.
    """
    done = torch.while_loop(condition, body, state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in done):
        raise RuntimeError(f"{what}: a compiled loop passes no derivatives; call it under torch.no_grad(), or in eager mode")
    return done  # type: ignore[no-any-return]


def materialize(x: Tensor) -> Tensor:
    """Gives x itself, which a compiler is told to compute once and keep; x must be dense, not made by ``expand``.

    Inductor repeats the expression of a small intermediate at each of its uses. A strided view needs a value in memory.
    """
    if not torch.compiler.is_compiling():
        return x
    if x.dtype == torch.bool:
        # Vectors of bool are stored one by one; those of bytes, made from floats, in one go.
        return materialize(x.to(torch.float32).to(torch.uint8)) != 0
    return torch.as_strided(x, x.shape, x.stride())


def channels_last(x: Tensor) -> Tensor:
    """Gives x itself, (channels, *space), with the channels of a position next to one another in memory; in eager mode for
    maps of two axes only.

    Convolutions and norms run faster so, and keep the layout: one call at a network's input serves all its layers. (In eager
    mode on a CPU those over one axis and over three do not.)
    """
    if torch.compiler.is_compiling() or x.ndim == 3:
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x
