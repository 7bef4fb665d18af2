"""What other people do, at the benchmark's settings: a training step and a sample of their VDMs, from checkouts of their
code, and the probability flow as public code of score models integrates it.

Both networks are the paper's U-Net with attention in the middle and a learned linear schedule, as ours is there.
"""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

Calls = dict[str, Callable[[], Any]]


class Absent(ModuleType):
    """Stands for a package that a checkout imports for its training alone, and that is not installed."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


def load(path: Path, names: list[str], absent: bool = False) -> list[ModuleType]:
    """Imports modules of a checkout; with ``absent``, others stand meanwhile for packages that they import and that are
    missing."""
    missing: list[str] = []
    sys.path.insert(0, str(path))
    try:
        while True:
            try:
                return [importlib.import_module(name) for name in names]
            except ModuleNotFoundError as error:
                if error.name is None or not absent or error.name in names:
                    raise SystemExit(f"{path}: importing {', '.join(names)} from this checkout: {error}") from None
                missing.append(error.name)
                sys.modules[error.name] = Absent(error.name)
    finally:
        sys.path.remove(str(path))
        for name in missing:
            del sys.modules[name]


def official(path: Path, embed: int, layers: int, size: int, batch: int, samples: int, steps: int) -> dict[str, Calls]:
    """Times the official code (github.com/google-research/vdm), each call one jitted function on JAX's default device."""
    (code,) = load(path, ["model_vdm"])
    import jax
    import jax.numpy as jnp

    settings = dict(vocab_size=256, sample_softmax=False, antithetic_time_sampling=True, sm_n_timesteps=0)
    settings |= dict(gamma_type="learnable_scalar", gamma_min=-13.3, gamma_max=5.0)
    settings |= dict(with_fourier_features=True, with_attention=False, sm_n_embd=embed, sm_n_layer=layers, sm_pdrop=0.1)
    model = code.VDM(code.VDMConfig(**settings))
    key = jax.random.PRNGKey(0)
    shape = (batch, size, size, 3)
    images, conditioning = jax.random.randint(key, shape, 0, 256), jnp.zeros(batch)
    params = model.init({"params": key, "sample": key}, images, conditioning)["params"]

    def loss(params: Any, key: Any) -> Any:
        noise, dropout = jax.random.split(key)
        rngs = {"sample": noise, "dropout": dropout}
        out = model.apply({"params": params}, images, conditioning, deterministic=False, rngs=rngs)
        return (out.loss_recon + out.loss_klz + out.loss_diff).mean() / (size * size * 3 * jnp.log(2.0))

    def sample(params: Any, key: Any) -> Any:
        k_start, k_steps = jax.random.split(key)
        none = jnp.zeros(samples)

        def body(i: Any, z: Any) -> Any:
            return model.apply({"params": params}, i, steps, z, none, k_steps, method=model.sample)

        z = jax.lax.fori_loop(0, steps, body, jax.random.normal(k_start, (samples, *shape[1:])))
        return model.apply({"params": params}, z, method=model.generate_x)

    step, draw = jax.jit(jax.value_and_grad(loss)), jax.jit(sample)
    return {
        "step": {"official JAX, jit": lambda: jax.block_until_ready(step(params, key))},
        "sample": {"official JAX, jit": lambda: jax.block_until_ready(draw(params, key))},
    }


def port(
    path: Path, embed: int, layers: int, size: int, batch: int, samples: int, steps: int, device: str
) -> dict[str, Calls]:
    """Times the nn.Module port github.com/addtt/variational-diffusion-models: in eager, and with its U-Net compiled.

    Its whole loss cannot be compiled: it differentiates the schedule by a second backward pass.
    """
    vdm, unet = load(path, ["vdm", "vdm_unet"], absent=True)
    vdm.trange = lambda n, **_: range(n)  # no progress bar
    settings = dict(embedding_dim=embed, n_blocks=layers, n_attention_heads=1, dropout_prob=0.1, norm_groups=32)
    settings |= dict(input_channels=3, use_fourier_features=True, attention_everywhere=False)
    settings |= dict(noise_schedule="learned_linear", gamma_min=-13.3, gamma_max=5.0, antithetic_time_sampling=True)
    config = SimpleNamespace(**settings)
    x = torch.randint(0, 256, (batch, 3, size, size), device=device) / 255.0
    calls: dict[str, Calls] = {"step": {}, "sample": {}}
    for name, compiled in (("nn.Module port, eager", False), ("nn.Module port, U-Net compiled", True)):
        network = unet.UNetVDM(config).to(device)
        model = vdm.VDM(torch.compile(network) if compiled else network, config, (3, size, size)).to(device)

        def step(model: Any = model) -> None:
            model.zero_grad()
            model(x)[0].backward()

        def sample(model: Any = model) -> Any:
            return model.sample(samples, steps, clip_samples=False)

        calls["step"][name], calls["sample"][name] = step, sample
    return calls


def score_sde(
    velocity: Callable[..., torch.Tensor], z: torch.Tensor, probe: torch.Tensor, start: float, stop: float, tolerance: float
) -> tuple[torch.Tensor, int]:
    """Computes log p(z) by SciPy's RK45, driven as github.com/yang-song/score_sde_pytorch drives it (``likelihood.py``).

    The whole batch is one vector, whose steps are common to all, and stays in NumPy's float64. The velocity and its
    divergence are computed apart in PyTorch, the latter by one probe and a backward pass.

    Returns:
        log p(z), (B,), and the number of evaluations.
    """
    from scipy.integrate import solve_ivp

    n = len(z)

    def slopes(gamma: float, state: np.ndarray) -> np.ndarray:
        latents = torch.from_numpy(state[:-n].reshape(z.shape)).to(z)
        at = torch.full((n,), gamma).to(z)
        with torch.no_grad():
            drift = velocity(latents, at)
        latents.requires_grad_(True)
        with torch.enable_grad():
            (product,) = torch.autograd.grad((velocity(latents, at) * probe).sum(), latents)
        divergence = (product * probe).flatten(1).sum(1)
        return np.concatenate([part.cpu().numpy().reshape(-1) for part in (drift, divergence)])

    state = np.concatenate([z.cpu().numpy().reshape(-1), np.zeros(n)])
    done = solve_ivp(slopes, (start, stop), state, rtol=tolerance, atol=tolerance, method="RK45")
    end = torch.from_numpy(done.y[:, -1])
    prior = -0.5 * (end[:-n].reshape(n, -1).square() + math.log(2.0 * math.pi)).sum(1)
    return prior + end[-n:], done.nfev
