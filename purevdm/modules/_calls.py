"""One run of a module, and the count of its uses of dropout.

A checkpointed block draws again in the backward pass, after the call, and must draw the same. So the count is kept where
checkpoints save what randomness depends on: it is the seed of torch's CPU generator. Nothing is drawn from that generator,
and each call leaves it as it was.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm._compile import constant

REMEDY = (
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


local = _Local()
_lock = threading.RLock()


@constant
def begin() -> None:
    """Starts a call, without any use. A compiler calls this, and the next three, while it traces."""
    local.states.append(torch.default_generator.get_state())
    torch.default_generator.manual_seed(_FIRST)


@constant
def end() -> None:
    """Ends a call."""
    torch.default_generator.set_state(local.states.pop())


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
                raise call.error(f"drew from torch's global generator, which no key governs; {REMEDY}")
        finally:
            end()
