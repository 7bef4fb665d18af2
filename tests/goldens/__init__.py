"""The official numbers, as computed by google-research/vdm and by jax.random (see README.md beside this file)."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optree
import torch

import purevdm
from purevdm import Noise, interop, networks, schedules
from purevdm.noise import discretise

HERE = Path(__file__).parent


class Case(NamedTuple):
    """One official run, its arrays channels first, and the same model here."""

    arrays: dict[str, np.ndarray]
    model: purevdm.VDM
    params: Any
    grads: Any
    x: torch.Tensor
    cond: torch.Tensor
    noise: Noise


CASES = {
    "scalar_t0": dict(schedule=schedules.learned_linear, timesteps=0),
    "fixed_t0": dict(schedule=schedules.fixed_linear, timesteps=0, fourier=()),
    "nnet_t0_attn": dict(schedule=schedules.monotone_mlp, timesteps=0, attention=True),
    "scalar_t10": dict(schedule=schedules.learned_linear, timesteps=10),
    "nnet_t10_naive_time": dict(schedule=schedules.monotone_mlp, timesteps=10, antithetic=False),
}


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array).permute(0, 3, 1, 2).contiguous()


def tree(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The nested dict under a prefix."""
    out: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(prefix + "/"):
            branch, (*path, leaf) = out, name.split("/")[1:]
            for part in path:
                branch = branch.setdefault(part, {})
            branch[leaf] = array
    return out


@cache
def random_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / "jax_random.npz"))


@cache
def flow_case(name: str) -> dict[str, np.ndarray]:
    """The probability flow of the model of a case, float64."""
    return dict(np.load(HERE / f"flow_{name}.npz"))


@cache
def case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    arrays = dict(np.load(HERE / f"{name}.npz"))
    setting = dict(CASES[name])
    schedule, timesteps = setting.pop("schedule"), setting.pop("timesteps")
    antithetic = setting.pop("antithetic", True)
    network = networks.vdm_unet(32, 2, cond_dim=1, dropout=0.0, **setting)
    model = purevdm.vdm(network, schedule(), (3, 8, 8), timesteps=timesteps, antithetic=antithetic, dtype=dtype)
    t = torch.tensor(arrays["draw/t_raw"])
    if antithetic:
        t = (t + torch.arange(4) / 4) % 1.0
    noise = Noise(discretise(t, timesteps), nchw(arrays["draw/eps_0"]), nchw(arrays["draw/eps"]))
    noise = noise._replace(t=noise.t.to(dtype), eps_0=noise.eps_0.to(dtype), eps=noise.eps.to(dtype))

    def params(prefix: str) -> Any:
        return optree.tree_map(lambda leaf: leaf.to(dtype), interop.from_flax(tree(arrays, prefix)))

    return Case(
        arrays,
        model,
        params("params"),
        params("grad"),
        nchw(arrays["images"]),
        torch.tensor(arrays["conditioning"]),
        noise,
    )


@cache
def bfn_case(name: str) -> dict[str, torch.Tensor]:
    """The official Bayesian Flow Networks' numbers, float64."""
    arrays = np.load(HERE / "bfn.npz")
    return {key.split("/")[1]: torch.tensor(arrays[key]) for key in arrays if key.startswith(name + "/")}


@cache
def point_cloud_case(name: str) -> dict[str, torch.Tensor]:
    """Variational diffusion of masked sets, float64; the names without the case."""
    arrays = np.load(HERE / "point_cloud.npz")
    found = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
    return {key: torch.tensor(array) for key, array in found.items() if array.dtype.kind != "U"}


@cache
def masked_case(name: str, case: str | None = None) -> dict[str, torch.Tensor]:
    """Discrete diffusion (MD4, MDLM, DUO) and the chain, float64; the names without the case. Texts stay texts."""
    arrays, prefix = np.load(HERE / f"{name}.npz"), "" if case is None else f"{case}/"
    found = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
    return {key: str(array) if array.dtype.kind == "U" else torch.tensor(array) for key, array in found.items()}
