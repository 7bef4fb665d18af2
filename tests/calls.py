"""The outer doors of the package by name, each with the arguments of a valid call."""

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import optree
import torch

import purevdm
from purevdm import (
    bfn,
    codec,
    coded,
    codes,
    decoders,
    encoders,
    evaluation,
    importance,
    interop,
    likelihood,
    masked,
    networks,
    ode,
    parts,
    random,
    sampling,
    schedules,
    sizes,
    solvers,
    training,
)
from purevdm.bfn import bridge
from purevdm.module import Module
from purevdm.training import checkpoint, data


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([z, gamma[:, None]], 1))


NETWORK = networks.mlp(4, 1, fourier=(), cond_dim=1)
MODEL = purevdm.vdm(NETWORK, schedules.learned_linear(), (2,), 8)
REAL = purevdm.vdm(networks.mlp(4, 1, fourier=()), schedules.fixed_linear(-4.0, 4.0), (2,), decoder=decoders.gaussian())
KEY = random.key(0)
PARAMS, REAL_PARAMS = MODEL.init(KEY), REAL.init(KEY)
X = random.randint(random.key(1), (3, 2), 0, 8)
COND = torch.ones(3, 1)
Z = random.normal(random.key(2), (3, 2))
GAMMA = torch.zeros(3)
N, MASK = torch.tensor([1, 3, 2]), torch.ones(3, 2, dtype=torch.bool)
MODULE = networks.from_module(Net)
CODED = purevdm.vdm(
    networks.mlp(4, 1, fourier=(), cond_dim=4),
    schedules.polynomial((2,), 3, hidden=4),
    (2,),
    8,
    code=codes.one_hot(decoders.perceptron((2,), (), (3,)), 3),
)
CODED_PARAMS = CODED.init(KEY)
STATE = training.init(MODEL, KEY)
GRADIENTS = training.gradients(MODEL)
EULER = ode.heun(2)
SEEDS = MODEL.seeds(KEY, 3)
FLOW = bfn.discrete(networks.mlp(4, 1, fourier=(), cond_dim=1), (2,), 3, 1.0)
FLOW_PARAMS = FLOW.init(KEY)
MASKED = masked.diffusion(networks.mlp(4, 1, fourier=(), cond_dim=1), None, (2,), 3)
MASKED_PARAMS = MASKED.init(KEY)
DISCRETE, GAUSSIAN = decoders.discrete(8), decoders.gaussian()


class Door(NamedTuple):
    """A function, and the arguments of a valid call."""

    call: Callable[..., Any]
    arguments: dict[str, Any]


def _of(call: Callable[..., Any], /, **arguments: Any) -> Door:
    return Door(call, arguments)


def doors(folder: Path) -> dict[str, Door]:
    """The outer doors by name, each with a valid call."""
    saved = checkpoint.save(folder / "checkpoints", STATE)
    interop.save_params(folder / "params.safetensors", PARAMS)
    bound = dict(model=MODEL, params=PARAMS, x=X, key=KEY, cond=COND)
    measured = dict(model=MODEL, params=PARAMS, batches=[(X, COND)], key=KEY, passes=1, timesteps=None)
    flow = dict(dequantisation="uniform", samples=2, integrator=EULER, probes=1, chunk=None)
    made: dict[str, Door] = {
        "random.key": _of(random.key, seed=0, device=None),
        "random.split": _of(random.split, key=KEY, num=2),
        "random.fold_in": _of(random.fold_in, key=KEY, data=1),
        "random.bits": _of(random.bits, key=KEY, shape=(2,), dtype=torch.uint32),
        "random.uniform": _of(random.uniform, key=KEY, shape=(2,), dtype=torch.float32, minval=0.0, maxval=1.0),
        "random.normal": _of(random.normal, key=KEY, shape=(2,), dtype=torch.float32),
        "random.truncated_normal": _of(
            random.truncated_normal, key=KEY, lower=-1.0, upper=1.0, shape=(2,), dtype=torch.float32
        ),
        "random.gumbel": _of(random.gumbel, key=KEY, shape=(2,), dtype=torch.float32),
        "random.rademacher": _of(random.rademacher, key=KEY, shape=(2,), dtype=torch.int32),
        "random.randint": _of(random.randint, key=KEY, shape=(2,), minval=0, maxval=5, dtype=torch.int32),
        "random.bernoulli": _of(random.bernoulli, key=KEY, p=0.5, shape=(2,)),
        "random.categorical": _of(random.categorical, key=KEY, logits=torch.zeros(3), shape=()),
        "random.permutation": _of(random.permutation, key=KEY, n=4),
        "schedules.fixed_linear": _of(schedules.fixed_linear, gamma_min=-5.0, gamma_max=5.0),
        "schedules.learned_linear": _of(schedules.learned_linear, gamma_min=-5.0, gamma_max=5.0),
        "schedules.monotone_mlp": _of(schedules.monotone_mlp, gamma_min=-5.0, gamma_max=5.0, hidden=4, pin_endpoints=False),
        "schedules.constrained_monotone": _of(
            schedules.constrained_monotone, gamma_min=-5.0, gamma_max=5.0, hidden=(4,), activation="elu", weights=(7, 7, 2)
        ),
        "schedules.polynomial": _of(
            schedules.polynomial, event_shape=(2,), context=3, hidden=4, gamma_min=-5.0, gamma_max=5.0
        ),
        "schedules.multivariate_mlp": _of(schedules.multivariate_mlp, event_shape=(2,), context=3, hidden=4),
        "codes.gaussian": _of(codes.gaussian, encoder=CODED.code.encoder, size=3),
        "codes.one_hot": _of(codes.one_hot, encoder=CODED.code.encoder, size=3, temperature=1.0),
        "codes.k_hot": _of(codes.k_hot, encoder=CODED.code.encoder, size=3, k=2, penalty="bound", perturbation="gamma"),
        "encoders.learned": _of(encoders.learned, network=NETWORK),
        "networks.unet_encoder": _of(
            *(networks.unet_encoder,), event_shape=(1, 4, 4), out=3, embed=4, blocks=1, fourier=(), dropout=0.1, groups=2
        ),
        "coded.elbo": _of(CODED.nll_bound, params=CODED_PARAMS, x=X, key=KEY, cond=COND),
        "coded.sample": _of(CODED.sample, params=CODED_PARAMS, key=KEY, n=3, steps=2, cond=COND),
        "coded.posterior": _of(coded.posterior, model=CODED, params=CODED_PARAMS, x=X, key=KEY, cond=COND),
        "coded.conditional": _of(coded.conditional, model=CODED, params=CODED_PARAMS),
        "networks.mlp": _of(
            networks.mlp,
            hidden=4,
            layers=1,
            fourier=(0,),
            cond_dim=0,
            classes=0,
            cond_drop=0.0,
            self_condition=False,
            predicts="eps",
        ),
        "networks.unet": _of(
            networks.unet,
            embed=8,
            multipliers=(1,),
            blocks=1,
            attention=(),
            adapter="c h w -> (h w) c",
            heads=1,
            fourier=(),
            dropout=0.0,
            cond_dim=0,
            classes=0,
            ctrl_dim=0,
            cond_drop=0.0,
            self_condition=False,
            groups=4,
            remat=False,
            padding="zeros",
            predicts="eps",
            outputs=None,
            gamma_min=-5.0,
            gamma_max=5.0,
        ),
        "networks.vdm_unet": _of(networks.vdm_unet, embed=8, layers=1, attention=False, fourier=(), dropout=0.0, groups=4),
        "networks.transformer": _of(
            networks.transformer,
            width=16,
            layers=1,
            heads=1,
            positions=False,
            fourier=(),
            dropout=0.0,
            cond_dim=0,
            classes=0,
            cond_drop=0.0,
            self_condition=False,
            remat=False,
            predicts="eps",
            outputs=None,
        ),
        "networks.egnn": _of(
            networks.egnn,
            hidden=16,
            layers=1,
            coordinates=2,
            cond_dim=0,
            classes=0,
            cond_drop=0.0,
            time_scale=100.0,
            predicts="v",
        ),
        "sizes.counts": _of(sizes.counts, n=N, most=3, smoothing=1.0),
        "sizes.log_prob": _of(sizes.counts(N, 3).log_prob, n=N),
        "sizes.sample": _of(sizes.counts(N, 3).sample, key=KEY, n=3),
        "sizes.mask": _of(sizes.mask, n=N, event_shape=(3, 2)),
        "networks.mixed": _of(networks.mixed, network=NETWORK, dtype=torch.bfloat16),
        "networks.from_module": _of(
            networks.from_module, module=Net, call=None, time=None, predicts="eps", pretrained=False
        ),
        "networks.module_params": _of(networks.module_params, network=MODULE, module=Net()),
        "networks.load_module": _of(networks.load_module, network=MODULE, params=MODULE.init(KEY, (2,)), module=Net()),
        "decoders.discrete": _of(decoders.discrete, vocab_size=8, loc=0.0, scale=1.0),
        "decoders.reconstruction_bits": _of(decoders.reconstruction_bits, vocab_size=8, gamma_0=-5.0, scale=1.0),
        "schedules.gamma_min_for": _of(schedules.gamma_min_for, spacing=0.1),
        "decoders.gaussian": _of(decoders.gaussian, loc=0.0, scale=1.0, noise=0.1),
        "decoders.denoised": _of(decoders.denoised, loc=0.0, scale=1.0),
        "decoders.integers": _of(decoders.integers, least=0, most=8, loc=0.0, scale=1.0, floor=0.0),
        "decoders.one_hot": _of(decoders.one_hot, classes=3, form="bins", loc=0.0, scale=1.0, floor=0.0),
        "decoders.product": _of(decoders.product, part=GAUSSIAN),
        "zero_centre": _of(parts.zero_centre, axis=0, columns=3),
        "vdm": _of(
            purevdm.vdm,
            network=NETWORK,
            schedule=schedules.learned_linear(),
            event_shape=(2,),
            vocab_size=8,
            timesteps=0,
            antithetic=True,
            dtype=torch.float32,
        ),
        "init": _of(MODEL.init, key=KEY),
        "seeds": _of(MODEL.seeds, key=KEY, n=3),
        "loss_fn": _of(MODEL.loss_fn, params=PARAMS, x=X, key=KEY, cond=COND, mask=MASK, train=True),
        "loss_and_stats": _of(MODEL.loss_and_stats, params=PARAMS, x=X, key=KEY, cond=COND, train=True),
        "elbo": _of(MODEL.nll_bound, params=PARAMS, x=X, key=KEY, cond=COND),
        "vlb_and_variance_grads": _of(MODEL.vlb_and_variance_grads, params=PARAMS, x=X, key=KEY, cond=COND),
        "sample": _of(
            MODEL.sample,
            params=PARAMS,
            key=KEY,
            n=3,
            steps=2,
            cond=COND,
            guidance=1.0,
            solver=solvers.ddim(),
            grid="time",
            clip=False,
            trajectory=False,
            callback=None,
            z=Z,
            start=1.0,
            until=0.5,
            project=None,
            differentiable=False,
            mask=None,
        ),
        "sampling.inpaint": _of(sampling.inpaint, x=Z, known=Z > 0),
        "sampling.repaint": _of(sampling.repaint, x=Z, known=Z > 0, repeats=2, solver=None),
        "sampling.invert": _of(
            sampling.invert, model=MODEL, params=PARAMS, x=X, cond=COND, start=0.0, until=1.0, steps=2, mask=MASK
        ),
        "sampling.interpolate": _of(sampling.interpolate, z_a=Z[0], z_b=Z[1], weights=torch.linspace(0, 1, 3)),
        "ode.heun": _of(ode.heun, steps=2),
        "ode.rk4": _of(ode.rk4, steps=2),
        "importance.warped": _of(importance.warped, base=schedules.learned_linear(), bins=4, uniform=0.1, rate=0.9),
        "evaluation.of_method": _of(
            evaluation.per_example,
            model=REAL,
            params=REAL_PARAMS,
            batches=[Z],
            key=KEY,
            passes=2,
            method=partial(likelihood.importance_bound, REAL, timesteps=2),
            failures="raise",
            group=None,
            callback=None,
        ),
        "bfn.continuous": _of(bfn.continuous, network=NETWORK, event_shape=(2,), sigma_1=0.1, decoder=None, clip=True),
        "bfn.discretised": _of(
            bfn.discretised, network=networks.mlp(4, 1, outputs=2), event_shape=(2,), bins=8, sigma_1=0.1, std_bounds=None
        ),
        "bfn.discrete": _of(bfn.discrete, network=NETWORK, event_shape=(2,), classes=3, beta_1=1.0, classes_last=False),
        "bfn.init": _of(FLOW.init, key=KEY),
        "bfn.loss_fn": _of(FLOW.loss_fn, params=FLOW_PARAMS, x=X % 3, key=KEY, cond=COND, mask=MASK),
        "bfn.nll_bound": _of(FLOW.nll_bound, params=FLOW_PARAMS, x=X % 3, key=KEY, cond=COND),
        "bfn.sample": _of(
            FLOW.sample,
            params=FLOW_PARAMS,
            key=KEY,
            n=3,
            steps=2,
            solver=bfn.solvers.ode_2(),
            grid="time",
            cond=COND,
            guidance=1.0,
            decode="argmax",
            z=Z[:, :, None].expand(3, 2, 3).contiguous(),
            start=0.25,
            until=0.5,
            trajectory=False,
            callback=None,
            differentiable=False,
        ),
        "masked.diffusion": _of(
            masked.diffusion,
            network=NETWORK,
            schedule=None,
            event_shape=(2,),
            classes=3,
            corruption="masking",
            classes_last=False,
            timesteps=2,
            antithetic=True,
        ),
        "masked.init": _of(MASKED.init, key=KEY),
        "masked.seeds": _of(MASKED.seeds, key=KEY, n=3),
        "masked.draw": _of(MASKED.draw, key=KEY, n=3, train=True),
        "masked.loss_fn": _of(MASKED.loss_fn, params=MASKED_PARAMS, x=X % 3, key=KEY, cond=COND, mask=MASK),
        "masked.loss_and_stats": _of(MASKED.loss_and_stats, params=MASKED_PARAMS, x=X % 3, key=KEY, cond=COND),
        "masked.nll_bound": _of(MASKED.nll_bound, params=MASKED_PARAMS, x=X % 3, key=KEY, cond=COND),
        "masked.terms": _of(MASKED.terms, params=MASKED_PARAMS, x=X % 3, key=KEY, cond=COND, train=False),
        "masked.update": _of(MASKED.update, params=MASKED_PARAMS, x=X % 3, key=KEY, cond=COND),
        "masked.log_probs": _of(MASKED.log_probs, params=MASKED_PARAMS, z=X.long() % 4, gamma=GAMMA, cond=COND, mask=MASK),
        "masked.sample": _of(
            MASKED.sample,
            params=MASKED_PARAMS,
            key=KEY,
            n=3,
            steps=2,
            grid="time",
            cond=COND,
            guidance=1.0,
            known=torch.tensor([[True, False]] * 3),
            x=X % 3,
            trajectory=False,
            callback=None,
            mask=MASK,
        ),
        "masked.bound": _of(
            partial(masked.bound.bound, MASKED),
            params=MASKED_PARAMS,
            x=X % 3,
            noise=MASKED.draw(KEY, 3),
            cond=COND,
            mask=MASK,
        ),
        "order.nll_bound": _of(masked.order.nll_bound, model=MASKED, params=MASKED_PARAMS, x=X % 3, key=KEY, cond=COND),
        "codec.encode_tokens": _of(
            codec.encode_tokens,
            model=MASKED,
            params=MASKED_PARAMS,
            x=X % 3,
            cond=COND,
            steps=2,
            lanes=2,
            seed=0,
            callback=None,
        ),
        "codec.decode_tokens": _of(
            codec.decode_tokens,
            model=MASKED,
            params=MASKED_PARAMS,
            data=codec.encode_tokens(MASKED, MASKED_PARAMS, X % 3, COND),
            cond=COND,
        ),
        "schedules.power": _of(schedules.power, exponent=2.0, floor=0.01),
        "schedules.cosine": _of(schedules.cosine, floor=0.01),
        "codec.encode": _of(
            codec.encode,
            model=MODEL,
            params=PARAMS,
            x=X,
            cond=COND,
            timesteps=2,
            lanes=2,
            portable=True,
            compile=False,
            seed=0,
        ),
        "codec.decode": _of(
            codec.decode,
            model=MODEL,
            params=PARAMS,
            data=codec.encode(MODEL, PARAMS, X, COND, timesteps=2),
            cond=COND,
            lanes=None,
            compile=False,
        ),
        "codec.curve": _of(codec.curve, model=MODEL, params=PARAMS, batches=[(X, COND)], key=KEY, timesteps=2),
        "codec.info": _of(codec.info, file=codec.encode(MODEL, PARAMS, X, COND, timesteps=2)),
        "ode.dopri5": _of(ode.dopri5, rtol=1e-3, atol=1e-3, limit=100),
        "likelihood.log_prob": _of(likelihood.log_prob, **bound, **flow, mask=MASK),
        "likelihood.importance_bound": _of(likelihood.importance_bound, **bound, timesteps=2, samples=2, mask=MASK),
        "likelihood.to_noise": _of(likelihood.to_noise, model=MODEL, params=PARAMS, z_0=Z, cond=COND, integrator=EULER),
        "likelihood.to_data": _of(likelihood.to_data, model=MODEL, params=PARAMS, z_1=Z, cond=COND, integrator=EULER),
        "likelihood.log_prob_latent": _of(
            likelihood.log_prob_latent,
            model=MODEL,
            params=PARAMS,
            z_0=Z,
            cond=COND,
            probe_noise=Z[None],
            integrator=EULER,
            chunk=1,
        ),
        "evaluation.per_example": _of(evaluation.per_example, **measured, group=None, callback=None),
        "evaluation.evaluate": _of(evaluation.evaluate, **measured, method=None, group=None, callback=None),
        "evaluation.profile": _of(evaluation.profile, **measured, bound=None, bins=2),
        "training.init": _of(training.init, model=MODEL, key=KEY),
        "training.gradients": _of(training.gradients, model=MODEL, variance=False, compile=False, remat=False, accumulate=1),
        "training.learning_rate": _of(training.learning_rate, settings=training.AdamW(), step=3),
        "training.train_step": _of(
            training.train_step, settings=training.AdamW(), grad_fn=GRADIENTS, state=STATE, x=X, key=SEEDS, cond=COND
        ),
        "checkpoint.save": _of(checkpoint.save, folder=folder / "new", state=STATE, metric=1.0, extra=None, keep=3),
        "checkpoint.latest": _of(checkpoint.latest, folder=folder / "checkpoints"),
        "checkpoint.best": _of(checkpoint.best, folder=folder / "checkpoints"),
        "checkpoint.notes": _of(checkpoint.notes, path=saved),
        "checkpoint.load": _of(checkpoint.load, path=saved, like=STATE),
        "checkpoint.load_params": _of(checkpoint.load_params, path=saved, like=PARAMS, ema=True),
        "interop.save_params": _of(interop.save_params, path=folder / "p.safetensors", params=PARAMS),
        "interop.load_params": _of(interop.load_params, path=folder / "params.safetensors", like=PARAMS, device="cpu"),
        "module.Module": _of(Module, function=MODEL.loss_fn, params=PARAMS),
    }
    made |= _more(folder, saved)
    for name, decoder, x in (("discrete", DISCRETE, X), ("gaussian", GAUSSIAN, Z)):
        made |= {
            f"{name}.check": _of(decoder.check, x=x),
            f"{name}.encode": _of(functools.partial(decoder.encode, {}), x=x, dtype=torch.float32),
            f"{name}.mode": _of(functools.partial(decoder.mode, {}), z=Z),
            f"{name}.log_prob": _of(functools.partial(decoder.log_prob, {}), x=x, z=Z, gamma_0=torch.tensor(-4.0)),
            f"{name}.sample": _of(functools.partial(decoder.sample, {}), key=KEY, z=Z, gamma_0=torch.tensor(-4.0)),
        }
    real = dict(model=REAL, params=REAL_PARAMS, key=KEY)
    made |= {
        "real.loss_fn": _of(REAL.loss_fn, params=REAL_PARAMS, x=Z, key=KEY),
        "real.nll_bound": _of(REAL.nll_bound, params=REAL_PARAMS, x=Z, key=KEY),
        "real.log_prob": _of(likelihood.log_prob, **real, x=Z, dequantisation="variational", samples=2, integrator=EULER),
        "real.log_prob_and_grad": _of(likelihood.log_prob_and_grad, **real, x=Z, probes=1, chunk=None, integrator=EULER),
        "real.evaluate": _of(evaluation.evaluate, **real, batches=[Z]),
    }
    return made


def _more(folder: Path, saved: Path) -> dict[str, Door]:
    """Doors of the rooms that are entered less often."""
    written = folder / "x.pvdm"
    codec.write(written, MODEL, PARAMS, [(X, COND)], timesteps=1)
    official = interop.to_flax(REAL_PARAMS)
    packed = {part: _packed(tree) for part, tree in official.items()}
    flax = folder / "checkpoint.flax"
    flax.write_bytes(msgpack.packb({"step": 1, "params": packed, "ema_params": packed}))
    noise = MODEL.draw(KEY, 3)
    each = evaluation.per_example(REAL, REAL_PARAMS, [Z], KEY)
    of_tokens = evaluation.per_example(MASKED, MASKED_PARAMS, [(X % 3, COND)], KEY)
    examples = data.Dataset("x", 20, (2,), 8, lambda i: np.zeros((len(i), 2), np.uint8), np.zeros(20, np.int64), 1)
    module = Module(MODEL.loss_fn, PARAMS)
    of_flow = dict(params=FLOW_PARAMS, x=X % 3, key=KEY, cond=COND)
    points = bfn.continuous(networks.mlp(4, 1, fourier=()), (2,), sigma_1=0.1, clip=False)
    return {
        "draw": _of(MODEL.draw, key=KEY, n=3, train=True),
        "update": _of(MODEL.update, params=PARAMS, x=X, key=KEY, cond=COND),
        "gamma": _of(MODEL.gamma, params=PARAMS, t=torch.tensor([0.0, 0.5]), cond=None),
        "eps_hat": _of(MODEL.eps_hat, params=PARAMS, z=Z, gamma=GAMMA, cond=COND, x_hat=None),
        "nll_bound_of_one": _of(
            MODEL.nll_bound_of_one,
            params=PARAMS,
            x=X[0],
            noise=optree.tree_map(lambda leaf: None if leaf is None else leaf[0], noise, none_is_leaf=True),
            cond=COND[0],
        ),
        "bfn.seeds": _of(FLOW.seeds, key=KEY, n=3),
        "bfn.draw": _of(FLOW.draw, key=KEY, n=3, train=True),
        "bfn.loss_and_stats": _of(FLOW.loss_and_stats, **of_flow),
        "bfn.update": _of(FLOW.update, **of_flow),
        "bfn.binned": _of(bfn.binned, bins=8),
        "bridge.as_vdm": _of(bridge.as_vdm, model=points, t_min=1e-6),
        "bridge.schedule": _of(bridge.schedule, sigma_1=0.1, t_min=1e-6),
        "codec.write": _of(
            codec.write,
            path=folder / "new.pvdm",
            model=MODEL,
            params=PARAMS,
            batches=[(X, COND)],
            timesteps=1,
            lanes=2,
            portable=True,
            compile=False,
            seed=0,
            callback=None,
        ),
        "codec.read": _of(
            _read,
            path=written,
            model=MODEL,
            params=PARAMS,
            cond=COND,
            blocks=[0],
            lanes=2,
            compile=False,
            skip=None,
            callback=None,
        ),
        "evaluation.compare": _of(evaluation.compare, a=each, b=each),
        "evaluation.bits_per": _of(evaluation.bits_per, each=of_tokens, count=torch.ones(3)),
        "interop.from_flax": _of(interop.from_flax, tree=official),
        "interop.to_flax": _of(interop.to_flax, params=REAL_PARAMS),
        "interop.load_flax": _of(interop.load_flax, path=flax),
        "module.load": _of(module.load, params=PARAMS),
        "data.rows": _of(data.rows, key=KEY, n=20, step=3, batch=4),
        "data.split": _of(data.split, data=examples, key=KEY, held_out=5),
        "data.batch": _of(data.batch, data=examples, indices=np.arange(3), device="cpu"),
        "data.augment": _of(data.augment, keys=random.split(KEY, 3), x=torch.zeros(3, 1, 2, 2)),
    }


def _read(**arguments: Any) -> list[torch.Tensor]:
    return list(codec.read(**arguments))


def _packed(tree: Any) -> Any:
    """Arrays as flax.serialization packs them."""
    if isinstance(tree, dict):
        return {name: _packed(branch) for name, branch in tree.items()}
    return msgpack.ExtType(1, msgpack.packb((tree.shape, tree.dtype.name, tree.tobytes()), use_bin_type=True))
