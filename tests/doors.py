"""A valid call of each outer door, and a zoo of wrong values to put in the place of one argument at a time.

``python tests/doors.py`` prints how many calls were tried, and those that neither gave a result nor named the argument.
"""

import inspect
import math
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optree
import torch

import purevdm
from purevdm import (
    bfn,
    codec,
    decoders,
    evaluation,
    importance,
    interop,
    inversion,
    likelihood,
    networks,
    ode,
    random,
    sampling,
    schedules,
    solvers,
    training,
)
from purevdm.module import Module
from purevdm.training import checkpoint

# The zoo


class Wrong(NamedTuple):
    name: str
    value: Any


ZOO = [
    Wrong("None", None),
    Wrong("True", True),
    Wrong("0", 0),
    Wrong("-1", -1),
    Wrong("3", 3),
    Wrong("1.5", 1.5),
    Wrong("nan", math.nan),
    Wrong("-inf", -math.inf),
    Wrong("10**400", 10**400),
    Wrong("2**40", 2**40),
    Wrong("1e300", 1e300),
    Wrong("'text'", "text"),
    Wrong("b'bytes'", b"bytes"),
    Wrong("()", ()),
    Wrong("[]", []),
    Wrong("{}", {}),
    Wrong("(1, 2)", (1, 2)),
    Wrong("(-1, 2.5)", (-1, 2.5)),
    Wrong("('a',)", ("a",)),
    Wrong("{'a': 1}", {"a": 1}),
    Wrong("object()", object()),
    Wrong("a function", lambda *args, **options: None),
    Wrong("a class", int),
    Wrong("a module", math),
    Wrong("a path", Path("/nonexistent/file")),
    Wrong("1j", 1j),
    Wrong("an array", np.zeros((3, 2))),
    Wrong("a number's tensor", torch.tensor(1.5)),
    Wrong("an integer's tensor", torch.tensor(3)),
    Wrong("a tensor of nothing", torch.zeros(0)),
    Wrong("a NaN", torch.full((3, 2), math.nan)),
    Wrong("an infinity", torch.full((3, 2), math.inf)),
    Wrong("a float64 tensor", torch.zeros(3, 2, dtype=torch.float64)),
    Wrong("a float16 tensor", torch.zeros(3, 2, dtype=torch.float16)),
    Wrong("a bool tensor", torch.zeros(3, 2, dtype=torch.bool)),
    Wrong("a complex tensor", torch.zeros(3, 2, dtype=torch.complex64)),
    Wrong("a uint16 tensor", torch.zeros(3, 2, dtype=torch.uint16)),
    Wrong("a tensor of rank 4", torch.zeros(3, 2, 2, 2)),
    Wrong("a sparse tensor", torch.eye(3).to_sparse()),
    Wrong("a key", random.key(1)),
    Wrong("a dtype", torch.float16),
    Wrong("a device", torch.device("cpu")),
]

# The doors


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
MODULE = networks.from_module(Net)
STATE = training.init(MODEL, KEY)
GRADIENTS = training.gradients(MODEL)
EULER = ode.heun(2)
SEEDS = MODEL.seeds(KEY, 3)
FLOW = bfn.discrete(networks.mlp(4, 1, fourier=(), cond_dim=1), (2,), 3, 1.0)
FLOW_PARAMS = FLOW.init(KEY)
DISCRETE, GAUSSIAN = decoders.discrete(8), decoders.gaussian()
FLAX = {"score_model": {}}


PATIENT = {"steps", "limit", "timesteps", "passes"}
"""Arguments of which a large number is valid, and takes as long as it says."""


CALLED = {"grad_fn", "project", "callback", "elbo", "estimate", "call", "function"}
"""Arguments that are called: what another function raises is its own."""


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
    flow = dict(dequantisation="uniform", samples=2, integrator=EULER, probes=1, probe="gaussian", chunk=None)
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
        "random.categorical": _of(random.categorical, key=KEY, logits=torch.zeros(3), axis=-1, shape=()),
        "random.permutation": _of(random.permutation, key=KEY, x=4, axis=0, independent=False),
        "schedules.fixed_linear": _of(schedules.fixed_linear, gamma_min=-5.0, gamma_max=5.0),
        "schedules.learned_linear": _of(schedules.learned_linear, gamma_min=-5.0, gamma_max=5.0),
        "schedules.monotone_mlp": _of(schedules.monotone_mlp, gamma_min=-5.0, gamma_max=5.0, hidden=4, pin_endpoints=False),
        "schedules.constrained_monotone": _of(
            schedules.constrained_monotone,
            gamma_min=-5.0,
            gamma_max=5.0,
            hidden=(4,),
            activation="elu",
            weights=(7, 7, 2),
        ),
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
            predicts="eps",
            outputs=None,
            gamma_min=-5.0,
            gamma_max=5.0,
        ),
        "networks.vdm_unet": _of(networks.vdm_unet, embed=8, layers=1, attention=False, fourier=(), dropout=0.0, groups=4),
        "networks.mixed": _of(networks.mixed, network=NETWORK, dtype=torch.bfloat16),
        "networks.from_module": _of(networks.from_module, module=Net, call=None, predicts="eps"),
        "networks.module_params": _of(networks.module_params, network=MODULE, module=Net()),
        "networks.load_module": _of(networks.load_module, network=MODULE, params=MODULE.init(KEY, (2,)), module=Net()),
        "decoders.discrete": _of(decoders.discrete, vocab_size=8, loc=0.0, scale=1.0),
        "decoders.gaussian": _of(decoders.gaussian, loc=0.0, scale=1.0),
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
        "loss_fn": _of(MODEL.loss_fn, params=PARAMS, x=X, key=KEY, cond=COND),
        "loss_and_stats": _of(MODEL.loss_and_stats, params=PARAMS, x=X, key=KEY, cond=COND),
        "elbo": _of(MODEL.elbo, params=PARAMS, x=X, key=KEY, cond=COND),
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
        ),
        "sampling.inpaint": _of(sampling.inpaint, x=Z, known=Z > 0),
        "inversion.invert": _of(inversion.invert, model=MODEL, params=PARAMS, x=X, cond=COND, start=0.0, until=1.0, steps=2),
        "inversion.interpolate": _of(inversion.interpolate, z_a=Z[0], z_b=Z[1], weights=torch.linspace(0, 1, 3)),
        "ode.heun": _of(ode.heun, steps=2),
        "ode.rk4": _of(ode.rk4, steps=2),
        "ode.dop853": _of(ode.dop853, rtol=1e-3, atol=1e-3, limit=100),
        "importance.warped": _of(importance.warped, base=schedules.learned_linear(), bins=4, uniform=0.1, rate=0.9),
        "evaluation.likelihoods": _of(
            evaluation.likelihoods,
            model=REAL,
            params=REAL_PARAMS,
            batches=[Z],
            key=KEY,
            passes=2,
            estimate=partial(likelihood.importance_bound, REAL, timesteps=2),
            group=None,
            callback=None,
        ),
        "bfn.continuous": _of(bfn.continuous, network=NETWORK, event_shape=(2,), sigma_1=0.1, decoder=None, clip=True),
        "bfn.discretised": _of(
            bfn.discretised, network=networks.mlp(4, 1, outputs=2), event_shape=(2,), bins=8, sigma_1=0.1, std_bounds=None
        ),
        "bfn.discrete": _of(bfn.discrete, network=NETWORK, event_shape=(2,), classes=3, beta_1=1.0, classes_last=False),
        "bfn.init": _of(FLOW.init, key=KEY),
        "bfn.loss_fn": _of(FLOW.loss_fn, params=FLOW_PARAMS, x=X % 3, key=KEY, cond=COND),
        "bfn.elbo": _of(FLOW.elbo, params=FLOW_PARAMS, x=X % 3, key=KEY, cond=COND),
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
            trajectory=False,
            callback=None,
            differentiable=False,
        ),
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
        "codec.info": _of(codec.info, file=codec.encode(MODEL, PARAMS, X, COND, timesteps=2)),
        "ode.dopri5": _of(ode.dopri5, rtol=1e-3, atol=1e-3, limit=100),
        "likelihood.log_prob": _of(likelihood.log_prob, **bound, **flow),
        "likelihood.importance_bound": _of(likelihood.importance_bound, **bound, timesteps=2, samples=2),
        "likelihood.encode": _of(likelihood.encode, model=MODEL, params=PARAMS, z_0=Z, cond=COND, integrator=EULER),
        "likelihood.decode": _of(likelihood.decode, model=MODEL, params=PARAMS, z_1=Z, cond=COND, integrator=EULER),
        "likelihood.log_prob_latent": _of(
            likelihood.log_prob_latent, model=MODEL, params=PARAMS, z_0=Z, cond=COND, integrator=EULER, probes=None, chunk=1
        ),
        "likelihood.log_weight": _of(
            likelihood.log_weight,
            model=MODEL,
            params=PARAMS,
            x=X,
            eps=Z,
            cond=COND,
            dequantisation="variational",
            integrator=EULER,
            probes=None,
            chunk=1,
        ),
        "evaluation.bounds": _of(evaluation.bounds, **measured, elbo=None, group=None, callback=None),
        "evaluation.evaluate": _of(evaluation.evaluate, **measured, elbo=None, group=None, callback=None),
        "evaluation.profile": _of(evaluation.profile, **measured, bins=2),
        "evaluation.compare": _of(
            evaluation.compare, a=(MODEL, PARAMS), b=(MODEL, PARAMS), batches=[(X, COND)], key=KEY, passes=1, timesteps=None
        ),
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
    for name, decoder, x in (("discrete", DISCRETE, X), ("gaussian", GAUSSIAN, Z)):
        made |= {
            f"{name}.check": _of(decoder.check, x=x),
            f"{name}.encode": _of(decoder.encode, x=x, dtype=torch.float32),
            f"{name}.mode": _of(decoder.mode, z=Z),
            f"{name}.log_prob": _of(decoder.log_prob, x=x, z=Z, gamma_0=torch.tensor(-4.0)),
            f"{name}.sample": _of(decoder.sample, key=KEY, z=Z, gamma_0=torch.tensor(-4.0)),
        }
    real = dict(model=REAL, params=REAL_PARAMS, key=KEY)
    made |= {
        "real.loss_fn": _of(REAL.loss_fn, params=REAL_PARAMS, x=Z, key=KEY),
        "real.elbo": _of(REAL.elbo, params=REAL_PARAMS, x=Z, key=KEY),
        "real.log_prob": _of(likelihood.log_prob, **real, x=Z, dequantisation="variational", samples=2, integrator=EULER),
        "real.evaluate": _of(evaluation.evaluate, **real, batches=[Z]),
    }
    return made


# The verdict


class Verdict(NamedTuple):
    kind: str  # "clear", "result", "silent", "unclear"
    told: str


def tried(door: Door, name: str, value: Any) -> Verdict:
    """What a door says of a wrong value for one argument."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = door.call(**(door.arguments | {name: value}))
    except (TypeError, ValueError) as error:
        told = str(error)
        head = re.sub(r"^block \d+: ", "", told).split(":", 1)[0]
        # Where two arguments do not fit together, either may be named; none that the caller does not know.
        names = "|".join(map(re.escape, {name, *door.arguments}))
        named = re.search(rf"(^|[\s,])({names})([\s,.\[]|$)", head) is not None
        # What a file holds is named by the file.
        file = re.match(r"\S*(safetensors|json): ", told) is not None or isinstance(error, codec.CodecError)
        return Verdict("clear" if file or (named and ":" in told) else "unclear", f"{type(error).__name__}: {told}")
    except OSError as error:
        # A path that cannot be opened, as open() says it.
        return Verdict("clear" if isinstance(value, (str, Path)) else "unclear", f"{type(error).__name__}: {error}")
    except Exception as error:
        if "can't allocate memory" in str(error):  # what was asked for is valid, and more than this machine has
            return Verdict("result", "")
        return Verdict("unclear", f"{type(error).__name__}: {error}")
    floats = [leaf for leaf in optree.tree_leaves(found) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    # Numbers as they are; errors of bins with a single draw.
    passing = door.call in (GAUSSIAN.encode, random.permutation, evaluation.profile)
    if any(leaf.isnan().any() for leaf in floats) and not passing:
        return Verdict("silent", "NaN")
    return Verdict("result", "")


def cases(folder: Path) -> Iterator[tuple[str, Door, str, Wrong]]:
    """Each door with each of its arguments replaced by each wrong value."""
    for name, door in doors(folder).items():
        for argument in door.arguments:
            for wrong in ZOO:
                endless = argument in PATIENT and wrong.name == "2**40"
                called = argument in CALLED and callable(wrong.value)
                if not endless and not called:
                    yield name, door, argument, wrong


def main() -> None:
    torch.set_num_threads(1)
    only = sys.argv[1:]
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, door, argument, wrong in cases(Path(folder)):
            if only and not any(part in name for part in only):
                continue
            verdict = tried(door, argument, wrong.value)
            count[verdict.kind] += 1
            if verdict.kind in ("silent", "unclear"):
                print(f"{verdict.kind:8} {name}({argument}={wrong.name}): {verdict.told[:160]!r}", flush=True)
    print(f"{sum(count.values())} tried: " + ", ".join(f"{n} {kind}" for kind, n in count.most_common()))


if __name__ == "__main__":
    assert inspect.getdoc(doors)
    main()
