"""Compiled functions in files: another process computes the same without compiling, and what does not fit is named."""

import functools
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from typing import NamedTuple

import optree
import perturb
import pytest
import torch
from compare import close, decoded_alike
from versions import since_2_13

import purevdm
from purevdm import artifact, networks, random, schedules, solvers, training
from purevdm.artifact import ArtifactError

MODEL = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(-8.0, 4.0), (2,), 16)
PARAMS = MODEL.init(random.key(0))
X, KEY = random.randint(random.key(1), (4, 2), 0, 16), random.key(2)
CALL = """
import sys, torch
from torch._dynamo.utils import counters
from purevdm import artifact
file, given, results = sys.argv[1:]
f = artifact.load(file)
torch.save([f(*args, **options) for args, options in torch.load(given)], results)
assert not counters["frames"]
"""

pytestmark = since_2_13


@pytest.fixture(autouse=True, scope="module")
def probed():
    """Inductor tries the processor's instruction sets, by kernels that are part of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHINDUCTOR_VEC_ISA_OK", raising=False)
        yield


def elsewhere(file, folder, calls):
    """Results of calls in another process, whose cache is empty, and which compiles nothing."""
    cache = folder / "cache"
    torch.save(calls, folder / "given")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", CALL, file, folder / "given", folder / "results"], env=environment, check=True)
    with zipfile.ZipFile(file) as archive:
        kernels = {name for name in archive.namelist() if name.endswith(".so")}
    assert kernels
    assert {path.relative_to(cache).as_posix() for path in cache.rglob("*.so")} == kernels
    return torch.load(folder / "results")


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A training step in a file."""
    file = tmp_path_factory.mktemp("step") / "step"
    artifact.save(file, training.gradients(MODEL), PARAMS, X, KEY)
    return file


@pytest.fixture
def loaded(step, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return artifact.load(step)


def test_a_step_in_another_process(step, tmp_path):
    calls = [((perturb.perturbed(PARAMS, i, 0.05), (X + i) % 16, random.key(i)), {}) for i in range(2)]
    for found, (args, _) in zip(elsewhere(step, tmp_path, calls), calls, strict=True):
        close(found, training.gradients(MODEL)(*args), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", [networks.mlp(8, fourier=(0,)), networks.vdm_unet(32, 1)], ids=lambda x: x.name)
def test_a_sampler_in_another_process(tmp_path, network):
    """Of a network without and with regions."""
    shape = (2,) if network == MODEL.network else (1, 4, 4)
    model = purevdm.vdm(network, MODEL.schedule, shape, 16)
    params, sample = model.init(random.key(0)), functools.partial(model.sample, solver=solvers.ancestral(), grid="time")
    artifact.save(tmp_path / "sampler", sample, params, KEY, 3, steps=torch.tensor(4))
    calls = [((perturb.perturbed(params, n, 0.05), random.key(n), 3), {"steps": torch.tensor(n)}) for n in (4, 7)]
    compiled = torch.compile(sample, fullgraph=True)
    for found, (args, options) in zip(elsewhere(tmp_path / "sampler", tmp_path, calls), calls, strict=True):
        decoded_alike(found, compiled(*args, **options))


def test_it_loads_where_it_was_made_and_trains(loaded):
    state = training.init(MODEL, random.key(0))
    settings = training.AdamW(lr=1e-2)
    found, want = (training.train_step(settings, f, state, X, KEY) for f in (loaded, training.gradients(MODEL)))
    assert found[1] == pytest.approx(want[1], rel=1e-4, abs=1e-5)
    close(loaded(PARAMS, X, key=KEY), loaded(PARAMS, X.T.contiguous().T, KEY), 0.0)


def test_arguments_that_do_not_fit_are_named(loaded):
    kernel, doubles = "params.network.dense1.kernel", optree.tree_map(torch.Tensor.double, PARAMS)
    network = {name: leaf for name, leaf in PARAMS["network"].items() if name != "dense1"}
    ints, floats = "expected a int32 tensor of shape", "expected a float32 tensor of shape (9, 8) on cpu"
    for args, message in (
        ((PARAMS, X[:3], KEY), f"x: {ints} (4, 2) on cpu, as in the example, got a int32 tensor of shape (3, 2) on cpu"),
        ((PARAMS, X.float(), KEY), f"x: {ints} (4, 2) on cpu, as in the example, got a float32 tensor"),
        ((doubles, X, KEY), f"{kernel}: {floats}, as in the example, got a float64 tensor"),
        (({**PARAMS, "network": network}, X, KEY), f"{kernel}: {floats}, as in the example, got nothing"),
        ((PARAMS, X), f"key: {ints} (2,) on cpu, as in the example, got nothing"),
        ((PARAMS, X, KEY, X), "cond: expected nothing, as in the example, got a int32 tensor"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            loaded(*args)
    with pytest.raises(TypeError, match="expected at most 4 arguments by position"):
        loaded(PARAMS, X, KEY, None, None)
    with pytest.raises(TypeError, match="x: expected one value"):
        loaded(PARAMS, X, KEY, x=X)
    with pytest.raises(TypeError, match="x: expected a dense tensor"):
        loaded(PARAMS, X.to_sparse(), KEY)
    with pytest.raises(RuntimeError, match=r"outside of torch\.func"):
        torch.func.vmap(lambda key: loaded(PARAMS, X, key)[1][0])(random.split(KEY))


def rewritten(file, to, **changes):
    """A copy with another head, and with a pickle that must not be read."""
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(to, "w") as copy:
        copy.writestr("head.json", json.dumps(json.loads(archive.read("head.json")) | changes))
        copy.writestr("graph.pickle", b"not a pickle")
    return to


def test_files_made_for_others_are_refused_before_they_are_unpickled(step, tmp_path):
    with zipfile.ZipFile(step) as archive:
        head = json.loads(archive.read("head.json"))
    for name in head["for"]:
        other = rewritten(step, tmp_path / "other", **{"for": head["for"] | {name: "0.0"}})
        with pytest.raises(ArtifactError, match=re.escape(f"other: made for {name} 0.0; here: {name} {head['for'][name]}.")):
            artifact.load(other)
    with pytest.raises(ArtifactError, match="made for a processor with sse9, which this one lacks"):
        artifact.load(rewritten(step, tmp_path / "other", instructions=[*head["instructions"], "sse9"]))
    with pytest.raises(ArtifactError, match="expected format 1, got 2"):
        artifact.load(rewritten(step, tmp_path / "other", format=2))
    with pytest.raises(pickle.UnpicklingError):
        artifact.load(rewritten(step, tmp_path / "other"))


def test_damaged_files_are_named(step, tmp_path):
    whole, damaged = step.read_bytes(), tmp_path / "damaged"
    flipped = [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in range(200, len(whole) // 2, len(whole) // 20)]
    for content in (b"", b"noise" * 100, whole[: len(whole) // 2], whole[:-1], *flipped):
        damaged.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"damaged: damaged, or no file of purevdm\.artifact"):
            artifact.load(damaged)
    with pytest.raises(FileNotFoundError, match="found none"):
        artifact.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        artifact.load(tmp_path)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def test_what_goes_in_and_comes_out(tmp_path, monkeypatch):
    """Trees, a tensor that is two arguments, one that f closes over, one that is returned as it is, a number, an option."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    own = torch.arange(3.0)

    def f(a, b, n, *, options):
        return {"pair": Pair(a["x"] - b[1] * n, a["x"]), "own": own + options["scale"]}

    x = torch.ones(3)
    artifact.save(tmp_path / "f", f, {"x": x}, (None, x), 2, options={"scale": 1.5})
    loaded = artifact.load(tmp_path / "f")
    found = loaded({"x": 5 * x}, (None, x), 2, options={"scale": 1.5})
    assert isinstance(found["pair"], Pair)
    close(found, {"pair": Pair(3 * x, 5 * x), "own": torch.tensor([1.5, 2.5, 3.5])}, 0.0)
    for wrong in (dict(n=3, options={"scale": 1.5}), dict(n=2.0, options={"scale": 1.5}), dict(n=2, options={"scale": 1.0})):
        with pytest.raises(
            ValueError, match=r"(n|options.scale): expected (2 \(int\)|1.5 \(float\)), as in the example, got"
        ):
            loaded({"x": x}, (None, x), **wrong)


def test_what_cannot_be_saved_is_refused(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=r"solver: expected a tensor, a number or text .*functools\.partial"):
        artifact.save(tmp_path / "f", MODEL.sample, PARAMS, KEY, 3, solver=solvers.ddim())
    with pytest.raises(TypeError, match=r"result\.1: expected a tensor, got 'text'"):
        artifact.save(tmp_path / "f", lambda x: (x + 1, "text"), X)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(artifact, "OLD", True)
    with pytest.raises(RuntimeError, match=r"expected PyTorch 2\.13 or newer, got"):
        artifact.save(tmp_path / "f", MODEL.loss_fn, PARAMS, X, KEY)
