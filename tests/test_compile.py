"""What is said to the compiler changes no value."""

import importlib

import pytest
import torch

from purevdm import _compile, _sharding, random

NORMALS, MASK = random.normal(random.key(0), (3, 8)), random.bernoulli(random.key(0), 0.5, (3, 8))


@pytest.mark.parametrize(("x", "used"), [(NORMALS, lambda x: x * 2), (MASK, lambda x: x & True)])
def test_materialize_is_the_same_value(x, used):
    assert _compile.materialize(x) is x
    compiled = torch.compile(torch.func.vmap(lambda x: used(_compile.materialize(x))))
    assert torch.equal(compiled(x), used(x))


def test_channels_last_is_the_same_value_in_another_layout():
    x = random.normal(random.key(0), (2, 3, 4, 5))
    assert torch.equal(_compile.channels_last(x[0]), x[0])
    y = torch.compile(torch.func.vmap(_compile.channels_last), fullgraph=True)(x)
    assert torch.equal(y, x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("turns", [0, 3])
@pytest.mark.parametrize("of", ["start", "factor"])
def test_a_compiled_loop_passes_no_derivatives_rather_than_wrong_ones(turns, of):
    given = {name: torch.full((2,), 1.5, requires_grad=name == of) for name in ("start", "factor")}

    def power(start, factor, turns):
        state = (torch.zeros((), dtype=torch.int64), start)
        return _compile.while_loop(lambda i, x: i < turns, lambda i, x: (i + 1, x * factor), state, "power")[1]

    compiled = torch.compile(power, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="power: a compiled loop passes no derivatives"):
        compiled(**given, turns=torch.tensor(turns))
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given, turns=torch.tensor(turns)), torch.full((2,), 1.5 ** (turns + 1)))


def test_empty_branches_compile_where_leaves_may_be_sharded():
    """As networks and schedules without parameters have them."""
    importlib.import_module("torch.distributed.tensor")  # as any use of several processes does
    tree = {"network": {}, "schedule": {"w": torch.ones(2)}}
    compiled = torch.compile(_sharding.whole, fullgraph=True, backend="eager")
    assert compiled(tree)["network"] == {}
    assert torch.equal(compiled(tree)["schedule"]["w"], torch.ones(2))
