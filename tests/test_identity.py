"""A digest tells functions apart by all that they depend on, and is the same in every process."""

import functools
import subprocess
import sys
import types

import pytest
import torch

import purevdm
from purevdm import _identity

SCALE = 2.0


def closing(value):
    return lambda x: x * value


def defaulting(value):
    def f(x, by=value):
        return x * by

    return f


def reading(value):
    f = types.FunctionType((lambda x: x * SCALE).__code__, {"SCALE": value})
    f.__module__ = __name__
    return f


def calling(value):
    inner = closing(value)
    return lambda x: [inner(y) for y in x]


class Affine:
    def __init__(self, value):
        self.value = value


def model(**options):
    schedule = purevdm.schedules.learned_linear(**options)
    return purevdm.vdm(purevdm.networks.mlp(8, 1), schedule, (2,), vocab_size=8)


KINDS = {
    "closure": closing,
    "default": defaulting,
    "global": reading,
    "nested": calling,
    "partial": lambda value: functools.partial(torch.mul, value),
    "tensor": lambda value: closing(torch.tensor([value, 1.0])),
    "tuple": lambda value: closing((value, None, ...)),
    "dict": lambda value: closing({"a": value, "b": torch.float32}),
    "loss": lambda value: torch.func.grad_and_value(model(gamma_max=value).loss_fn),
    "sampler": lambda value: model(gamma_max=value).sample,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_function_depends_on_tells_it_apart(kind):
    make = KINDS[kind]
    assert _identity.digest(make(3.0)) == _identity.digest(make(3.0))
    assert _identity.digest(make(3.0)) != _identity.digest(make(4.0))


def test_code_tells_functions_apart():
    assert _identity.digest(lambda x: x + 1.0) != _identity.digest(lambda x: x + 2.0)
    assert _identity.digest(lambda x: x.sin()) != _identity.digest(lambda x: x.cos())
    assert _identity.digest(torch.sin) != _identity.digest(torch.cos)
    assert _identity.digest(torch.sin) != _identity.digest(torch.sin, "more")


def test_a_module_of_ones_own_is_compared_by_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_a.py").write_text("def f(x):\n    return x\n")
    import helper_a

    def f(x):
        return helper_a.f(x)

    before = _identity.digest(f)
    (tmp_path / "helper_a.py").write_text("def f(x):\n    return 2 * x\n")
    assert _identity.digest(f) != before


def test_a_function_that_refers_to_itself_ends():
    def f(x):
        return f(x)

    assert _identity.digest(f) == _identity.digest(f)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TypeError, match=r"f: holds .*Affine.*cannot be compared"):
        _identity.digest(closing(Affine(1.0)))


def test_the_digest_is_the_same_in_another_process():
    code = (
        "import torch, purevdm\nfrom purevdm import _identity\ntorch.set_num_threads(2)\n"
        "m = purevdm.vdm(purevdm.networks.mlp(8, 1), purevdm.schedules.learned_linear(gamma_max=3.0), (2,), vocab_size=8)\n"
        "print(_identity.digest(torch.func.grad_and_value(m.loss_fn)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == _identity.digest(KINDS["loss"](3.0))
