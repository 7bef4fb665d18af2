"""purevdm.random against jax.random, against itself in every mode, and against the laws its draws obey."""

import hashlib
import math
import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from goldens import random_arrays
from hypothesis import given
from torch._inductor.utils import run_and_get_code
from versions import since_2_13

from purevdm import random
from purevdm.module import Module
from purevdm.random import _draws, _threefry

SHAPES = {"scalar": (), "1": (1,), "7": (7,), "3x5": (3, 5), "2x3x4x5": (2, 3, 4, 5)}
SEEDS = (0, 42, 2147483647, 4294967295, 1099511627783)
DRAWS = {
    "bits": random.bits,
    "uniform": random.uniform,
    "uniform-2to3": lambda k, s: random.uniform(k, s, minval=-2.0, maxval=3.0),
    "normal": random.normal,
    "randint0-10": lambda k, s: random.randint(k, s, 0, 10),
    "randint-5-1000000": lambda k, s: random.randint(k, s, -5, 1000000),
    "bernoulli.3": lambda k, s: random.bernoulli(k, 0.3, s),
    "rademacher": random.rademacher,
    "gumbel": random.gumbel,
    "truncnorm": lambda k, s: random.truncated_normal(k, -2.0, 2.0, s),
}
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_are_jaxs(seed):
    g, k = random_arrays(), random.key(seed)
    words = {
        "key": k,
        "split2": random.split(k),
        "split5": random.split(k, 5),
        "split23": random.split(k, (2, 3)),
        **{f"fold_in{d}": random.fold_in(k, d) for d in (0, 1, 12345, 2147483648)},
    }
    for name, got in words.items():
        np.testing.assert_array_equal(got.view(torch.uint32), g[f"seed{seed}/{name}"], err_msg=name)
    wide = random.fold_in(k, torch.tensor(2147483648))
    np.testing.assert_array_equal(wide.view(torch.uint32), g[f"seed{seed}/fold_in2147483648"])


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("seed", SEEDS)
def test_draws_are_jaxs(seed, name):
    for label, shape in SHAPES.items():
        want = random_arrays()[f"seed{seed}/{name}/{label}"]
        got = DRAWS[name](random.key(seed), shape).numpy()
        assert got.shape == want.shape
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("seed", SEEDS)
def test_other_draws_are_jaxs(seed):
    g, k = random_arrays(), random.key(seed)
    want = {name.split("/")[1]: array for name, array in g.items() if name.startswith(f"seed{seed}/")}
    got = {
        "categorical": random.categorical(k, torch.tensor(want["categorical_logits"])),
        "perm10": random.permutation(k, 10),
        "perm1000": random.permutation(k, 1000),
        "bits16": random.bits(k, want["bits16"].shape, torch.uint16),
        "bits8": random.bits(k, want["bits8"].shape, torch.uint8),
        "normal_bf16": random.normal(k, want["normal_bf16"].shape, torch.bfloat16).float(),
        "uniform_bf16": random.uniform(k, want["uniform_bf16"].shape, torch.bfloat16).float(),
        "normal_f16": random.normal(k, want["normal_f16"].shape, torch.float16).float(),
    }
    for name, values in got.items():
        np.testing.assert_array_equal(values, want[name], err_msg=name)


def test_a_million_normals_are_jaxs():
    x, g = random.normal(random.key(3), (1000003,)), random_arrays()
    np.testing.assert_array_equal(x[:64], g["big/seed3_first"])
    np.testing.assert_array_equal(x[-64:], g["big/seed3_last"])
    # means and maxima of a million: the bounds are ten standard errors
    assert abs(x.mean()) < 0.01
    assert abs(x.var() - 1) < 0.015


@pytest.mark.parametrize(
    ("draw", "step", "digest"),
    [
        (random.normal, 8, "bb464e03cd0e139b"),
        (random.gumbel, 8, "53cd7ad4458aada9"),
        pytest.param(random.normal, 1, "9ffa4612027d2782", marks=pytest.mark.slow),
        pytest.param(random.gumbel, 1, "786510a3e813248e", marks=pytest.mark.slow),
    ],
)
def test_all_normals_and_gumbels_are_jaxs(draw, step, digest, monkeypatch):
    """Of the words 0, step, 2 step, ... (draws differ for 2**23, by their top bits), by digests of what jax 0.10.2 makes of
    them on a CPU with fused multiply-adds."""
    words = (torch.arange(0, 2**23, step, dtype=torch.int32) << 9).split(2**18)
    left = iter(words)
    monkeypatch.setattr(_draws, "words", lambda *_: next(left))
    draws = torch.cat([draw(random.key(0), word.shape) for word in words])
    assert hashlib.sha256(draws.numpy()).hexdigest()[:16] == digest


PROGRAM = """
import hashlib, sys, torch
from purevdm import random

torch.set_num_threads(int(sys.argv[1]))
key = random.key(8)
draws = {
    "normal": lambda k: random.normal(k, (3, 16, 1025)),
    "gumbel": lambda k: random.gumbel(k, (50001,)),
    "truncated_normal": lambda k: random.truncated_normal(k, -1.0, 2.5, (50001,)),
    "uniform": lambda k: random.uniform(k, (50001,), minval=-0.3, maxval=1.9),
}
def digest(x):
    print(hashlib.sha256(x.numpy()).hexdigest())
for draw in draws.values():
    digest(draw(key))
keys = random.split(key, 3)
mapped = torch.func.vmap(draws["normal"])
digest(mapped(keys))
if sys.argv[2:]:
    digest(torch.compile(mapped, fullgraph=True)(keys))
"""


@pytest.mark.parametrize(
    "compiled", [(), pytest.param(("compiled",), marks=pytest.mark.slow)], ids=["one graph", "two graphs"]
)
def test_draws_are_the_same_on_every_cpu(tmp_path, compiled):
    """The same bits with the instructions of older CPUs, one thread or two, mapped, and compiled: by default without vector
    instructions, where ``test_compiled_draws_are_the_eager_ones`` has those of this CPU."""

    def digests(capability, threads, *compiled):
        env = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
        env |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        env |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(capability))}  # the cache does not know the capability
        command = [sys.executable, "-c", PROGRAM, str(threads), *compiled]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()

    want = digests(None, 2)
    for capability, threads, ways in (("default", 1, ("compiled",)), ("avx2", 2, compiled)):
        assert digests(capability, threads, *ways) == [*want, *want[-1:] * len(ways)]


def test_jax_draws_beyond_the_goldens():
    """A few numbers of jax.random 0.10.2 under x64: 64-bit words, narrow integers, spans that wrap,
    and infinite bounds."""
    k = random.key(0)
    assert random.randint(k, (8,), 3, 100, torch.int8).tolist() == [57, 16, 77, 64, 10, 24, 96, 64]
    assert random.randint(k, (8,), 3, 100, torch.int16).tolist() == [57, 16, 77, 64, 10, 24, 96, 64]
    assert random.randint(k, (8,), -128, 127, torch.int8).tolist() == [11, -23, -66, -40, -72, 79, -26, -120]
    above, below = (random.truncated_normal(k, *bounds, (4,)) for bounds in ((2.0, math.inf), (-math.inf, 1.5)))
    assert above.tolist() == [3.0380492210388184, 3.297760248184204, 2.165088415145874, 2.2543256282806396]
    assert below.tolist() == [1.1970478296279907, 1.3607503175735474, -0.49558961391448975, -0.1576709896326065]


def test_draws_depend_on_the_dtype_as_jaxs():
    """jax.random 0.10.2 under x64, with the key of the float32 goldens: other bits, other numbers."""
    k, f64 = random.key(0), torch.float64
    assert random.uniform(k, (3,), f64).tolist() == [0.41845711171638644, 0.21629545460551136, 0.9653214611189975]
    for got, numbers in (
        (random.normal(k, (3,), f64), [-0.2058421394796434, -0.7847657764467411, 1.8160866726679836]),
        (random.gumbel(k, (2,), f64), [0.13790565977540292, -0.4259929367942607]),
        (random.truncated_normal(k, -1.0, 2.0, (2,), f64), [0.00301295124756838, -0.4241902151456523]),
    ):
        torch.testing.assert_close(got, torch.tensor(numbers, dtype=f64), rtol=1e-12, atol=1e-14)
    draws = [random.uniform(k, (20,), dtype).double() for dtype in (f64, torch.float32, torch.float16, torch.bfloat16)]
    for i, draw in enumerate(draws):  # independent uniforms are 1/3 apart on average
        assert all((draw - other).abs().mean() > 0.1 for other in draws[:i])


def test_counters_go_beyond_32_bits():
    """The counters of elements beyond 2**31 and 2**32, which arrays that fit in memory here never reach."""
    for start in (2**31 - 2, 2**32 - 2, 2**33 + 5):
        high, low = _threefry._counters(start, 4, torch.device("cpu"))
        assert ((high.long() << 32) + (low.long() & 0xFFFFFFFF)).tolist() == list(range(start, start + 4))
    key = random.key(7)
    narrow = _threefry.encrypted(key, *_threefry._counters(5, 4, key.device))
    wide = _threefry.encrypted(key, torch.zeros(4, dtype=torch.int32), torch.arange(5, 9, dtype=torch.int32))
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize(("keys", "n"), [(1, 2**17 + 5), (3, 2**16 + 1), (50_000, 3), (2, 0)])
def test_blocks_of_eager_draws_are_the_cipher(keys, n):
    """Of one key and of many, whose numbers fill more than a block, against the rounds operation by operation."""
    key = random.split(random.key(5), keys)
    low = torch.arange(n, dtype=torch.int32)
    x0, x1 = torch.func.vmap(lambda k: _threefry.encrypted(k, 0, low))(key)
    got = torch.func.vmap(lambda k: (_threefry.pairs(k, n), _threefry.mixed(k, n), _threefry.below(k, n, 2**31)))(key)
    assert torch.equal(got[0], torch.stack([x0, x1], -1))
    assert torch.equal(got[1], x0 ^ x1)
    assert torch.equal(got[2], (x0 ^ x1) >= 0)


@pytest.mark.parametrize("p", [0.0, 2.0**-24, 2.0**-23, 0.3, 0.5, 1.0 - 2.0**-24, 1.0])
def test_bernoullis_are_uniforms_below_p(p):
    key = random.key(3)
    want = random.uniform(key, (4000,)) < torch.tensor(p, dtype=torch.float32)
    assert torch.equal(random.bernoulli(key, p, (4000,)), want)


ALL = {  # of one size, so that a compiler makes the cipher of few draws
    "bits": lambda k: random.bits(k, (5,)),
    "bits8": lambda k: random.bits(k, (5,), torch.uint8),
    "bits16": lambda k: random.bits(k, (5,), torch.uint16),
    "bits64": lambda k: random.bits(k, (5,), torch.uint64),
    "split": lambda k: random.split(k, 3),
    "fold_in": lambda k: random.fold_in(k, 9),
    "uniform": lambda k: random.uniform(k, (5,), minval=-1.0, maxval=2.0),
    "normal": lambda k: random.normal(k, (5003,)),
    "normal bf16": lambda k: random.normal(k, (5,), torch.bfloat16),
    "truncated_normal": lambda k: random.truncated_normal(k, -2.0, 2.0, (5,)),
    "randint": lambda k: random.randint(k, (5,), -5, 1000),
    "bernoulli": lambda k: random.bernoulli(k, 0.3, (5,)),
    "rademacher": lambda k: random.rademacher(k, (5,)),
    "gumbel": lambda k: random.gumbel(k, (5,)),
    "categorical": lambda k: random.categorical(k, torch.zeros(1, 5)),
    "permutation": lambda k: random.permutation(k, 5),
}


@pytest.mark.parametrize("name", ALL)
def test_vmap_over_keys_is_a_loop(name):
    keys = random.split(random.key(1), 4)
    looped = torch.stack([ALL[name](k).view(-1).to(torch.float64) for k in keys])
    mapped = torch.func.vmap(ALL[name])(keys)
    assert torch.equal(mapped.reshape(4, -1).to(torch.float64), looped)


def test_folding_in_is_a_loop_under_two_maps():
    """As many keys as numbers: mixing up the two maps would fit the shapes."""
    keys, data = random.split(random.key(3), 3), torch.arange(3)
    want = torch.stack([torch.stack([random.fold_in(k, n) for n in data]) for k in keys])
    one = torch.func.vmap(random.fold_in, in_dims=(None, 0))
    assert torch.equal(torch.func.vmap(one, in_dims=(0, None))(keys, data), want)
    assert torch.equal(torch.func.vmap(one, in_dims=(0, 0))(keys, data.expand(3, 3)), want)
    other = torch.func.vmap(random.fold_in, in_dims=(0, None))
    assert torch.equal(torch.func.vmap(other, in_dims=(None, 0))(keys, data), want.transpose(0, 1))
    assert torch.equal(torch.func.vmap(other, in_dims=(0, 0))(keys.expand(3, 3, 2), data), want.transpose(0, 1))


def test_compiled_draws_are_the_eager_ones():
    """One graph with every draw, bit for bit: also under vmap, and with a tensor to fold in."""

    def everything(key, index):
        key = random.fold_in(key, index)
        normals = torch.func.vmap(lambda k: random.normal(k, (3, 16, 16)))(random.split(key, 4))
        return normals, *(draw(key) for draw in ALL.values())

    key, index = random.key(11), torch.tensor(3, dtype=torch.int32)
    compiled, code = run_and_get_code(torch.compile(everything, fullgraph=True), key, index)
    assert code
    assert "ops.purevdm" not in "".join(code)  # inductor knows the rounds of each operator
    for name, got, want in zip(("vmap", *ALL), compiled, everything(key, index), strict=True):
        # inductor rounds chains of bfloat16 only once
        tolerance = 2**-6 if name == "normal bf16" else 0
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@since_2_13
def test_a_graph_holds_each_draw_in_few_operators_and_an_exported_program_holds_no_operator_of_ours():
    found = []

    def names(graph):
        targets = (str(node.target).removesuffix(".default") for node in graph.graph.nodes)
        return [name for name in targets if "purevdm" in name]

    def backend(graph, inputs):
        found.extend(names(graph))
        return graph.forward

    def draws(key):
        keys = random.split(random.fold_in(key, 3))
        return torch.func.vmap(random.normal, (0, None))(keys, (5,)), random.bernoulli(key, 0.3, (9,))

    key = random.key(0)
    program = torch.export.export(Module(lambda params, key: draws(key), {"w": torch.ones(1)}), (key,))
    for way in (torch.compile(draws, fullgraph=True, dynamic=True, backend=backend), program.module()):
        assert all(map(torch.equal, way(key), draws(key)))
    ciphers = (f"threefry_{name}" for name in ("folded", "pairs", "mixed"))
    assert found == [f"purevdm.{name}" for name in (*ciphers, "normals", "threefry_below")]
    assert not names(program)


@given(seeds, st.integers(1, 60), st.integers(1, 60))
def test_a_longer_draw_begins_with_the_shorter(seed, a, b):
    k = random.key(seed)
    assert torch.equal(random.normal(k, (a,)), random.normal(k, (a + b,))[:a])
    assert torch.equal(random.split(k, a), random.split(k, a + b)[:a])


@given(seeds, dtypes)
def test_unit_uniforms_and_normals_stay_in_range(seed, dtype):
    k = random.key(seed)
    u, z = random.uniform(k, (257,), dtype), random.normal(k, (257,), dtype)
    assert u.dtype == z.dtype == dtype
    assert ((u >= 0) & (u < 1)).all()
    assert z.isfinite().all()


@given(seeds, st.floats(-50, 50), st.floats(0.1, 50))
def test_bounds_hold(seed, low, width):
    k = random.key(seed)
    u = random.uniform(k, (100,), minval=low, maxval=low + width)
    assert (u >= torch.tensor(low)).all()
    assert (u <= torch.tensor(low + width)).all()
    if abs(low) < 3:
        z = random.truncated_normal(k, low, low + width, (100,))
        assert ((z > low) & (z < low + width)).all()


@given(seeds, st.integers(-(2**31), 2**31 - 2), st.integers(1, 2**31))
def test_randint_stays_in_its_span(seed, low, span):
    high = min(low + span, 2**31)
    x = random.randint(random.key(seed), (64,), low, high)
    assert x.dtype == torch.int32
    assert ((x.long() >= low) & (x.long() < high)).all()


def test_keys_carry_the_device():
    k = random.key(0, device="meta")
    assert random.normal(k, (3,)).device.type == "meta"
    assert random.split(k).device.type == "meta"


BAD = [
    (lambda k: random.normal(3), TypeError, r"random\.key\(3\)"),
    (lambda k: random.normal(torch.zeros(2)), TypeError, "key: .* float32"),
    (lambda k: random.normal(random.split(k, 3)), ValueError, "vmap"),
    (lambda k: random.normal(k, (-1,)), ValueError, r"shape\[0\]"),
    (lambda k: random.fold_in(k, 2**32), ValueError, "data"),
    (lambda k: random.fold_in(k, torch.tensor(-1)), ValueError, "data"),
    (lambda k: random.uniform(k, (), minval=1.0, maxval=1.0), ValueError, "minval, maxval: expected minval < maxval"),
    (lambda k: random.uniform(k, (), minval=-3e38, maxval=3e38), ValueError, "minval, maxval: expected bounds"),
    (lambda k: random.uniform(k, (), torch.float16, 0.0, 1e5), ValueError, "minval, maxval: expected bounds"),
    (lambda k: random.truncated_normal(k, 1.0, -1.0), ValueError, "lower, upper"),
    (lambda k: random.truncated_normal(k, torch.ones(2), torch.tensor([2.0, 1.0]), (2,)), ValueError, "lower, upper"),
    (lambda k: random.truncated_normal(k, torch.ones(2), 2.0), ValueError, "lower: expected a tensor that broadcasts"),
    (lambda k: random.randint(k, (), 5, 5), ValueError, "minval, maxval"),
    (lambda k: random.randint(k, (), 0, 257, torch.uint8), ValueError, "maxval"),
    (lambda k: random.randint(k, (), -(2**62), 2**62, torch.int64), ValueError, r"a span below 2\*\*63"),
    (lambda k: random.bernoulli(k, 1.5), ValueError, "p: expected"),
    (lambda k: random.bernoulli(k, torch.tensor([0.5, math.nan])), ValueError, "p: expected probabilities"),
    (lambda k: random.bernoulli(k, torch.zeros(3), (2,)), ValueError, "p: expected a tensor that broadcasts"),
    (lambda k: random.rademacher(k, (), torch.uint8), TypeError, "dtype"),
    (lambda k: random.categorical(k, torch.zeros(3, 4), shape=(4,)), ValueError, "shape"),
    (lambda k: random.categorical(k, torch.tensor([0.0, math.nan])), ValueError, "logits: expected numbers or -infinity"),
    (lambda k: random.categorical(k, torch.tensor([[0.0, 1.0], [0.0, math.inf]])), ValueError, "logits"),
    (lambda k: random.categorical(k, torch.full((2, 3), -math.inf)), ValueError, "logits"),
]


@pytest.mark.parametrize(("draw", "error", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_drawn_is_named(draw, error, words):
    with pytest.raises(error, match=words):
        draw(random.key(0))


def test_a_truncated_normal_is_drawn_where_its_distribution_function_is_1():
    for bounds in ((7.0, 8.0), (torch.tensor(7.0), torch.tensor(8.0))):
        assert 7.0 < random.truncated_normal(random.key(0), *bounds) < 8.0


def test_impossible_categories_are_never_drawn():
    logits = torch.tensor([-math.inf, 0.0, -math.inf])
    assert (random.categorical(random.key(0), logits, shape=(100,)) == 1).all()
