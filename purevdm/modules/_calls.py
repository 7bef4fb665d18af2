"""The count of the uses of dropout in one run of a module.

A checkpointed block draws again in the backward pass, when the call is over, and must draw the same. So the count is kept
where checkpoints keep what randomness depends on: it is the seed of torch's CPU generator, which a checkpoint saves and
restores. Nothing is drawn from that generator, and it is as before after each call.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm._compile import constant

_FIRST = 0x7672656D << 32  # the seed that stands for no use yet


class Call(NamedTuple):
    """One run of a module.

    Attributes:
        name: the module's, for messages.
        keys: a key for each example, (B, 2), or None in evaluation.
    """

    name: str
    keys: Tensor | None

    def error(self, problem: str) -> RuntimeError:
        return RuntimeError(f"network: {self.name} {problem}")


class Local(threading.local):
    """A stack for each thread."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


_saved = Local()  # the generator's states around the calls under way


@constant
def begin() -> None:
    """Starts a call: no use yet. A compiler calls this, and the next two, while it traces."""
    _saved.stack.append(torch.default_generator.get_state())
    torch.default_generator.manual_seed(_FIRST)


@constant
def end() -> None:
    torch.default_generator.set_state(_saved.stack.pop())


@constant
def use() -> str:
    """The number of a use, as text, which a compiler takes for a constant."""
    number = torch.default_generator.initial_seed() - _FIRST
    torch.default_generator.manual_seed(_FIRST + number + 1)
    return str(number)


@constant
def transformed() -> str:
    """The ``torch.func`` transforms around, as text."""
    return " ".join(interpreter.key().name for interpreter in torch._C._functorch.get_interpreter_stack() or ())


_lock = threading.RLock()


@contextmanager
def counted(call: Call) -> Iterator[None]:
    """A call in eager. In training, one thread at a time; what was drawn from the global generator unseen is refused."""
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


REMEDY = (
    "networks draw by key alone: use dropout (nn.Dropout, F.dropout, attention's), or write a purevdm.networks.Network "
    "whose apply takes the key"
)
