"""A file decodes under every setting of PyTorch: instruction sets, threads, pieces of a batch, eager and compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_codec import OTHERS, images, model_and_params

from purevdm import codec, interop, networks
from purevdm.codec import _arithmetic, _network


def made():
    """A U-Net that says a variance, too, and whose estimate the decoder takes."""
    network = networks.unet(8, (1, 2), 1, attention=(1,), heads=2, groups=4, fourier=(1, 2), outputs=2)
    return model_and_params(network, event_shape=(1, 4, 4), **OTHERS["estimate, learned range"][1])


READER = """
import sys, torch
from purevdm import codec, interop
from test_machines import made
folder, threads, lanes, compile = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
model, _ = made()
params = interop.load_params(folder + "/params.safetensors")
found = list(codec.read(folder + "/x", model, params, lanes=lanes, compile=bool(compile)))
torch.save(torch.cat(found), folder + "/found.pt")
"""


@pytest.mark.parametrize(
    ("capability", "threads", "lanes", "compile"),
    [
        ("default", 1, 1, 0),
        pytest.param("avx2", 2, 5, 0, marks=pytest.mark.slow),
        pytest.param("default", 2, 3, 1, marks=pytest.mark.slow),
    ],
)
def test_a_file_decodes_under_other_settings(tmp_path, capability, threads, lanes, compile):
    model, params = made()
    interop.save_params(tmp_path / "params.safetensors", params)
    x = images(model, 12)
    codec.write(tmp_path / "x", model, params, [x], timesteps=8, lanes=6)
    changes = {"ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    environment = os.environ | changes | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, "-c", READER, str(tmp_path), str(threads), str(lanes), str(compile)]
    subprocess.run(arguments, check=True, env=environment, cwd=Path(__file__).parent)
    assert torch.equal(torch.load(tmp_path / "found.pt"), x)


KINDS = {"posterior": (None, {})} | OTHERS


@pytest.mark.parametrize("kind", KINDS)
def test_noise_below_the_guard_changes_no_file(monkeypatch, kind):
    """A network off by a hundred thousand times the rounding of float64."""
    network, options = KINDS[kind]
    model, params = model_and_params(network, event_shape=(16,), **options)
    x = images(model, 20)
    data = codec.encode(model, params, x, timesteps=20, lanes=8)
    exact = _network.Denoiser.outputs

    def noisy(self, z, *others, **options):
        noise = 1e-11 * torch.sin(1e7 * torch.from_numpy(z)).numpy()
        return [part + noise for part in exact(self, z, *others, **options)]

    monkeypatch.setattr(_network.Denoiser, "outputs", noisy)
    assert torch.equal(codec.decode(model, params, data), x)
    assert codec.encode(model, params, x, timesteps=20, lanes=8) == data


@pytest.mark.parametrize("kind", KINDS)
def test_noise_above_the_guard_is_an_error(monkeypatch, kind):
    """In the last output: v, where there is one."""
    network, options = KINDS[kind]
    model, params = model_and_params(network, event_shape=(16,), **options)
    data = codec.encode(model, params, images(model, 20), timesteps=20)
    exact, much = _network.Denoiser.outputs, 1e4 * _arithmetic.GUARD
    monkeypatch.setattr(_network.Denoiser, "outputs", lambda *a, **b: [*exact(*a, **b)[:-1], exact(*a, **b)[-1] + much])
    with pytest.raises(codec.CodecError, match="block 0: "):
        codec.decode(model, params, data)
