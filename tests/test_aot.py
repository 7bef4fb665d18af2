"""A function compiled once, for all processes: what is read back, what compiles again, what is refused."""

import json

import pytest
import torch

import purevdm
from purevdm import aot, random

pytestmark = pytest.mark.skipif(torch.__version__ < "2.13", reason="PyTorch compiles ahead of time from 2.13 on")
MODEL = purevdm.vdm(purevdm.networks.mlp(8, 1), purevdm.schedules.learned_linear(), (2,), vocab_size=8)
KEY = random.key(0)


def scaled(scale):
    return lambda params, x: {"y": params["a"] * x.sin() * scale}


def arguments(batch=4):
    return {"a": torch.tensor(3.0)}, random.normal(KEY, (batch, 2))


def example():
    """Arguments for any batch."""
    params, x = arguments()
    torch._dynamo.mark_dynamic(x, 0)
    return params, x


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "f.aot"
    aot.load_or_compile(path, scaled(2.0), example())
    return path


@pytest.fixture
def never_compiles(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled again")

    monkeypatch.setattr(torch, "compile", refuse)


@pytest.mark.usefixtures("never_compiles")
def test_the_file_serves_a_function_made_anew(saved):
    f = aot.load_or_compile(saved, scaled(2.0), example())
    for batch in (4, 7):
        params, x = arguments(batch)
        assert torch.allclose(f(params, x)["y"], 6.0 * x.sin())


@pytest.mark.usefixtures("never_compiles")
def test_another_function_options_or_kind_of_arguments_compile_again(saved):
    for f, args, options in (
        (scaled(3.0), example(), None),
        (scaled(2.0), example(), {"max_autotune": True}),
        (scaled(2.0), arguments(), None),
        (scaled(2.0), (arguments()[0], arguments()[1].double()), None),
    ):
        with pytest.raises(AssertionError, match="compiled again"):
            aot.load_or_compile(saved, f, args, options)


@pytest.mark.usefixtures("never_compiles")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, x: (p, x.repeat(1, 2)), ValueError, r"args\[1\]: expected sizes \(None, 2\), .*got \(4, 4\)"),
        (lambda p, x: (p, x[:, :1]), ValueError, r"args\[1\]: expected a contiguous tensor, got strides \(2, 1\)"),
        (lambda p, x: (p, x[0]), ValueError, r"args\[1\]: expected sizes \(None, 2\), .*got \(2,\)"),
        (lambda p, x: (p, x.double()), TypeError, r"args\[1\]: expected .*float32.* got .*float64"),
        (lambda p, x: (p, 1.0), TypeError, r"args\[1\]: expected .*float32.* got 1.0"),
        (
            lambda p, x: ({"a": p["a"].requires_grad_()}, x),
            TypeError,
            r"args\[0\]\['a'\]: expected .*got .*requires a gradient",
        ),
        (lambda p, x: ({"b": p["a"]}, x), TypeError, r"args: expected the structure .*args\[0\]\['a'\]"),
        (lambda p, x: (p,), TypeError, r"args: expected the structure .*args\[1\]"),
    ],
)
def test_arguments_of_another_kind_are_refused(saved, change, error, message):
    f = aot.load_or_compile(saved, scaled(2.0), example())
    with pytest.raises(error, match=message):
        f(*change(*arguments()))


@pytest.mark.usefixtures("never_compiles")
def test_transforms_from_outside_are_refused(saved):
    f = aot.load_or_compile(saved, scaled(2.0), example())
    params, x = arguments()
    for transformed in (
        lambda: torch.func.grad(lambda x: f(params, x)["y"].sum())(x),
        lambda: torch.func.jvp(lambda x: f(params, x)["y"], (x,), (x,)),
        lambda: torch.func.vmap(lambda x: f(params, x)["y"])(x[None]),
    ):
        with pytest.raises(TypeError, match=r"args\[1\]: expected a tensor outside of torch.func's transforms"):
            transformed()


def test_a_stale_file_is_replaced(tmp_path):
    path = tmp_path / "f.aot"
    for scale in (2.0, 5.0):
        f = aot.load_or_compile(path, scaled(scale), arguments())
        assert torch.allclose(f(*arguments())["y"], 3.0 * scale * arguments()[1].sin())
    assert [file.name for file in tmp_path.iterdir()] == ["f.aot"]


def test_a_loss_with_its_gradient_is_that_of_eager(tmp_path, monkeypatch):
    grad = torch.func.grad_and_value(MODEL.loss_fn)
    args = (MODEL.init(KEY), random.randint(KEY, (5, 2), 0, 8), KEY)
    aot.load_or_compile(tmp_path / "f", grad, args)
    monkeypatch.delattr(torch, "compile")
    f = aot.load_or_compile(tmp_path / "f", grad, args)
    for seed in (0, 1):
        values = (args[0], args[1], random.key(seed))
        torch.testing.assert_close(f(*values), grad(*values), rtol=2e-5, atol=1e-6)


def test_damaged_and_foreign_files_are_refused(saved, tmp_path):
    data = saved.read_bytes()
    for content, message in (
        (data[:-1], "is damaged; delete it"),
        (b"", "something else"),
        (b"[1]\nabc", "something else"),
        (b"\x80\x04\x95", "something else"),
        (json.dumps({"format": 0}).encode() + b"\n", "something else"),
    ):
        path = tmp_path / "f.aot"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"path: .*{message}"):
            aot.load_or_compile(path, scaled(2.0), example())


def test_bad_input_is_refused_at_the_door(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="f: expected a function, got int"):
        aot.load_or_compile(tmp_path / "f", 1, ())
    with pytest.raises(TypeError, match="args: expected a tuple of arguments, got "):
        aot.load_or_compile(tmp_path / "f", torch.sin, torch.zeros(2))
    with pytest.raises(FileNotFoundError, match=r"path: expected a file in a folder that is there, got .*none.f"):
        aot.load_or_compile(tmp_path / "none" / "f", torch.sin, (torch.zeros(2),))
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.12.1+cpu"))
    with pytest.raises(RuntimeError, match=r"takes PyTorch 2\.13 or newer, this is 2\.12\.1"):
        aot.load_or_compile(tmp_path / "f", torch.sin, (torch.zeros(2),))
