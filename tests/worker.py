"""One process of a group, which holds what it computes against what one process computes with the whole batch; the first
writes what the test reads. In float64: what differs is the order of sums."""

import sys
import weakref
from functools import partial
from pathlib import Path

import tiny
import torch
from compare import close
from optree import tree_leaves, tree_map

import purevdm
from purevdm import (
    _sharding,
    bfn,
    codec,
    evaluation,
    interop,
    likelihood,
    masked,
    networks,
    ode,
    parallel,
    random,
    schedules,
    training,
)
from purevdm.training import checkpoint

KEY = random.key(3)
N = 24  # examples of a batch
SETTINGS = tiny.SETTINGS._replace(eps=1e-4)  # a gradient near 0 moves a parameter by little, whatever its rounding
ENDS = dict(gamma_min=-9.0, gamma_max=3.0)


def unet(**options):
    network = networks.unet(8, (1, 1), 1, groups=4, dropout=0.1, **options)
    return purevdm.vdm(network, schedules.monotone_mlp(hidden=8, **ENDS), (1, 4, 4), 16, dtype=torch.float64)


def flow():
    return bfn.discrete(networks.mlp(9), (5,), 4, 2.0)


def tokens():
    network = networks.transformer(16, 1, heads=2, positions=True)
    return masked.diffusion(network, None, (5,), 4, classes_last=True, dtype=torch.float64)


def data(model, seed, n=N):
    return random.randint(random.key(seed), (n, *model.event_shape), 0, model.decoder.vocab_size)


def rows(group, n=N):
    return slice(group.rank * n // group.size, (group.rank + 1) * n // group.size)


def step(model, grad_fn, state, number, mine, **options):
    seeds = model.seeds(random.fold_in(KEY, number), N).rows(mine)
    return training.train_step(SETTINGS, grad_fn, state, data(model, number)[mine], seeds, **options)


def main(path: Path, shards: int) -> None:
    torch.set_num_threads(1)
    group = parallel.join("cpu", timeout=300.0)
    mesh, mine = parallel.mesh(group, shards), rows(group)
    state, share = trained(group, mesh, mine)
    gradients(mesh, mine, group)
    statistics(mesh, mine, group)
    use(mesh, group)
    if mesh is not None:
        refusals(mesh, group, path)
        freed(mesh)
    evaluate(tiny.model(), tiny.state().params, group)
    saved(path, state, mesh)
    state = parallel.whole(state)
    if group.rank == 0:
        torch.save([tree_leaves(state), share, group], path / "out.pt")
    parallel.barrier()
    if not (path / "out.pt").exists():
        sys.exit(f"rank {group.rank}: passed the barrier before the first has written")
    parallel.leave()
    left = [thread for thread in threads() if "gloo" in thread]
    if left:
        sys.exit(f"rank {group.rank}: threads that outlive the group may abort the exit: {left}")


def trained(group, mesh, mine):
    """Ten steps; the state, and which part of its numbers this process holds."""
    model = unet()
    grad_fn = training.gradients(model)
    state, logged = training.init(model, random.key(0), mesh), []
    for number in range(10):
        state, metrics = step(model, grad_fn, state, number, mine)
        logged.append(metrics)
    whole = parallel.whole(state)
    if group.rank == 0:
        alone = training.init(model, random.key(0))
        for number, metrics in enumerate(logged):
            alone, expected = step(model, grad_fn, alone, number, slice(None))
            for name, value in expected.items():
                if abs(metrics[name] - value) > 1e-9 * abs(value) + 1e-12:
                    sys.exit(f"step {number}: {name} {metrics[name]}, alone {value}")
        for name in ("params", "ema_params", "moments"):
            close(getattr(whole, name), getattr(alone, name), 1e-8)
    count = sum(leaf.numel() for leaf in tree_leaves(whole) if isinstance(leaf, torch.Tensor))
    held = sum(local(leaf).numel() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
    return state, held / count


def gradients(mesh, mine, group):
    """All ways to gradients, of networks with blocks and without."""
    again = unet(remat=True)
    line, schedule = networks.transformer(16, 1, heads=2), schedules.learned_linear(**ENDS)
    words = purevdm.vdm(line, schedule, (1, 6), 16, dtype=torch.float64)
    ways = [
        (unet(), torch.func.grad_and_value(unet().loss_and_stats, has_aux=True)),
        (unet(), training.gradients(unet(), variance=True)),
        (unet(), training.gradients(unet(), accumulate=2)),
        (again, training.gradients(again, remat=True)),
        (words, training.gradients(words)),
        (flow(), training.gradients(flow())),
        (tokens(), training.gradients(tokens())),
    ]
    for model, grad_fn in ways:
        params = perturbed(model.init(random.key(1)))
        x, seeds = data(model, 1), model.seeds(KEY, N)
        together, (part, _) = grad_fn(parallel.shard(params, mesh), x[mine], seeds.rows(mine))
        together, losses = parallel.whole(together), parallel.gather(part.item())
        if group.rank == 0:
            alone, (loss, _) = grad_fn(params, x, seeds)
            close(together, alone, 1e-5 if loss.dtype == torch.float32 else 1e-12)
            close([torch.tensor(sum(losses) / len(losses))], [loss], 1e-6)


def statistics(mesh, mine, group):
    """What a batch norm keeps moves by the mean over the processes, and what a network does not keep stays."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))

        def forward(self, z, gamma):
            return self.body(z)

    model = purevdm.vdm(networks.from_module(Net), schedules.learned_linear(**ENDS), (3,), 16)
    params = model.init(random.key(0))
    x, seeds = data(model, 2), model.seeds(KEY, N)
    moved = model.update(parallel.shard(params, mesh), x[mine], seeds.rows(mine))
    each = [model.update(params, x[rows(other)], seeds.rows(rows(other))) for other in members(group)]
    expected = tree_map(lambda *leaves: torch.stack(leaves).double().mean(0), *each)
    close(parallel.whole(moved), expected, 1e-6)


def members(group):
    return [group._replace(rank=rank) for rank in range(group.size)]


def use(mesh, group):
    """Samples, likelihoods, bounds and files of sharded parameters are those of whole ones, bit for bit."""
    model = unet()
    params, x, seeds = perturbed(model.init(random.key(1))), data(model, 5, 3), model.seeds(KEY, 3)
    for f in (
        lambda p: model.sample(p, KEY, 3, steps=3, until=0.0),
        lambda p: model.nll_bound(p, x, seeds),
        lambda p: model.denoiser(p, n=3)(seeds.t[:, None, None, None] * torch.ones(3, 1, 4, 4), model.gamma(p, seeds.t)),
        lambda p: likelihood.log_prob(model, p, x, KEY, integrator=ode.dopri5(1e-2, 1e-2)).log_weights,
        lambda p: likelihood.importance_bound(model, p, x, KEY, timesteps=2).log_weights,
        lambda p: torch.frombuffer(bytearray(codec.encode(model, p, x, timesteps=3)), dtype=torch.uint8),
    ):
        got = f(parallel.shard(params, mesh))
        expected = f(params) if group.rank == 0 else got
        if not all(map(torch.equal, tree_leaves(got), tree_leaves(expected))):
            sys.exit(f"sharded parameters give {got}, whole ones {expected}")


def refusals(mesh, group, path):
    """Bad input raises in every process."""
    model = tiny.model()
    params, x, state = model.init(random.key(0)), tiny.data(), training.init(model, random.key(0), mesh)
    parts, refused = parallel.shard(params, mesh), 0
    bad = tree_map(lambda leaf: leaf * torch.nan if leaf.ndim == 1 else leaf, parts)
    of_each = torch.func.vmap(torch.func.grad(lambda p, x, k: model.loss_fn(p, x[None], model.seeds(k, 1))), (None, 0, 0))
    for f, error, words in (
        (lambda: model.loss_fn(parts | {"schedule": params["schedule"]}, x, KEY), ValueError, "all whole or all sharded"),
        (lambda: model.loss_fn(bad, x, KEY), ValueError, "expected finite numbers"),
        (lambda: parallel.shard(parts, mesh), ValueError, "tree: expected whole leaves"),
        (lambda: parallel.shard(params, 2), TypeError, "mesh: expected a DeviceMesh"),
        (
            lambda: parallel.mesh(group, group.size + 1),
            ValueError,
            f"shards: expected a divisor of the group's {group.size}",
        ),
        (lambda: of_each(parts, x, random.split(KEY, 8)), NotImplementedError, "sharded parameters"),
        (
            lambda: training.gradients(model, compile=True, variance=True)(parts, x, KEY),
            ValueError,
            "variance: expected whole",
        ),
        (lambda: training.gradients(model, accumulate=3)(parts, x, KEY), ValueError, "accumulate: expected a divisor"),
        (lambda: interop.save_params(path / "params.safetensors", parts), ValueError, "params: expected whole leaves"),
        (lambda: checkpoint.save(path, state._replace(params=params)), ValueError, "state: expected leaves that are all"),
        (lambda: uneven(model, state, x[group.rank % 2 :]), ValueError, "x: expected as many examples in every process"),
    ):
        try:
            f()
        except error as raised:
            refused += words in str(raised)
            if words not in str(raised):
                sys.exit(f"expected {words!r}, got {raised}")
        else:
            sys.exit(f"expected an error about {words!r}, got none")


def freed(mesh):
    """Blocks are whole one by one, in the backward pass, too."""
    model, whole, most = unet(), [], 0

    def fetched(leaves):
        nonlocal most
        made = own(leaves)
        whole.extend((weakref.ref(leaf), leaf.numel()) for leaf in made)
        most = max(most, sum(n for leaf, n in whole if leaf() is not None))
        return made

    params = parallel.shard(model.init(random.key(0)), mesh)
    own, _sharding.fetched = _sharding.fetched, fetched
    grads, _ = training.gradients(model)(params, data(model, 1), KEY)
    _sharding.fetched, again = own, len(whole) - len(tree_leaves(params))
    parallel.whole(grads)
    count = sum(leaf.numel() for leaf in tree_leaves(params))
    if not (0 < most < 0.5 * count and again > 0):
        sys.exit(f"{most} of {count} parameters were whole at once")


def uneven(model, state, x):
    training.train_step(SETTINGS, training.gradients(model), state, x, KEY)


def saved(path, state, mesh):
    """Saved in the background, and loaded to the bit."""
    with checkpoint.Saver() as saver:
        for _ in range(2):
            saver.save(path / "checkpoints", state, metric=1.0, extra={"by": "a group"})
        folder = saver.wait()
    empty = parallel.shard(training.init(unet(), random.key(1)), mesh)
    loaded = checkpoint.load(folder, empty)
    averaged = checkpoint.load_params(folder, training.init(unet(), random.key(1)).params)
    pairs = [(loaded, state), (averaged, parallel.whole(state.ema_params))]
    for a, b in (pair for trees in pairs for pair in zip(*map(tree_leaves, trees), strict=True)):
        if a != b if isinstance(a, int) else not torch.equal(local(a), local(b)):
            sys.exit("loaded another state than was saved")


def perturbed(params):
    return tree_map(lambda leaf: leaf + 0.1 * torch.sin(torch.arange(leaf.numel()).to(leaf)).view(leaf.shape), params)


def local(leaf):
    return leaf.to_local() if hasattr(leaf, "to_local") else leaf


def evaluate(model, params, group) -> None:
    """Together, with fewer batches than processes and with more, they find exactly what each finds alone."""
    lengths = [len(part) for part in parallel.gather(torch.arange(group.rank))]
    if lengths != list(range(group.size)):
        sys.exit(f"rank {group.rank}: gathered tensors of lengths {lengths}")
    done = []
    add = parallel.counted(lambda *amounts: done.append(amounts))
    for _ in range(3):
        add(1, group.rank)
    parallel.barrier()
    add(0, 0)
    parts = [sum(column) for column in zip(*done, strict=True)]
    if parts and group.rank == 0 and parts != [3 * group.size, 3 * sum(range(group.size))]:
        sys.exit(f"counted {parts}")
    if parallel.anywhere(False) or not parallel.anywhere(group.rank == group.size - 1):
        sys.exit("a flag that is set somewhere is set anywhere")
    x, key, weighted = (
        tiny.data(50, seed=5),
        random.key(6),
        partial(likelihood.importance_bound, model, timesteps=3, samples=2),
    )
    for size, passes in ((50, 1), (50, 3), (9, 2)):
        shared, alone = (
            (
                evaluation.evaluate(model, params, x.split(size), key, passes=passes, group=g),
                evaluation.evaluate(model, params, x.split(size), key, passes=passes, method=weighted, group=g),
                evaluation.profile(model, params, x.split(size), key, passes=passes, bins=2, group=g).t.mean.tolist(),
            )
            for g in (group, None)
        )
        if shared != alone:
            sys.exit(f"rank {group.rank}: found {shared} together and {alone} alone")
    try:
        evaluation.evaluate(model, params, [tiny.data(8, seed=group.rank)], key, group=group)
    except ValueError as error:
        if "the same data in the same order" not in str(error):
            raise
    else:
        if group.size > 1:
            sys.exit(f"rank {group.rank}: evaluated other data than the rest, unnoticed")


def threads() -> list[str]:
    """The names of this process's threads, where Linux tells them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
