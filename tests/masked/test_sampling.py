"""Samples: their law, what is known of them, conditions, trajectories, one graph."""

import chains
import pytest
import torch
from chains import EVERY, F64, FLAT, LENGTH, LOG_P, START, TRANSITION
from chains import ideal_model as ideal
from perturb import perturbed

from purevdm import masked, networks, random, schedules

N = 10_000


def departs(drawn, p):
    """Pearson's statistic of draws of sequences, (n, LENGTH), from their law over EVERY, in its standard deviations."""
    index = (drawn * torch.tensor([9, 3, 1])).sum(-1)
    found, want = torch.bincount(index, minlength=len(p)).double(), len(drawn) * p
    assert found[want == 0].sum() == 0
    kept = want > 0
    excess = ((found - want)[kept].square() / want[kept]).sum() - (kept.sum() - 1)
    return excess / (2 * (kept.sum() - 1)) ** 0.5


@pytest.mark.parametrize("corruption", ["masking", "uniform"])
def test_many_steps_draw_from_the_chain(corruption):
    model = ideal(schedules.power(floor=1e-9), corruption)
    drawn = model.sample(FLAT, random.key(0), N, steps=100)
    assert departs(drawn, LOG_P.exp()) < 5
    few = model.sample(FLAT, random.key(0), N, steps=1)  # tokens by themselves
    assert departs(few, LOG_P.exp()) > 20


def test_one_step_draws_tokens_by_themselves():
    """By their marginals, exactly: the law of the bound in one step."""
    model = ideal(schedules.power(floor=1e-9))
    p = torch.stack([START, START @ TRANSITION, START @ TRANSITION @ TRANSITION])
    drawn = model.sample(FLAT, random.key(1), N, steps=1)
    assert abs(departs(drawn, p[torch.arange(3), EVERY].prod(-1))) < 5


def test_two_steps_draw_from_the_law_of_two_steps():
    """Summed over what shows in the middle, where half of the tokens do."""
    model, law = ideal(schedules.power(floor=1e-9), timesteps=2), torch.zeros(27, dtype=F64)
    for shows in chains.masks(LENGTH):
        for first in chains.every(3, LENGTH):
            if (first[~shows] != 0).any():
                continue  # one for each of what shows
            z = torch.where(shows, first, 3)
            blank = torch.full_like(z, 3)
            now, then = (model.log_probs(FLAT, v[None], torch.zeros(1, dtype=F64))[0] for v in (blank, z))
            p = 0.5**LENGTH * now[torch.arange(3), first][shows].exp().prod()
            rest = torch.where(shows, first == EVERY, then[torch.arange(3), EVERY].exp())
            law += p * rest.prod(-1)
    torch.testing.assert_close(law.sum(), torch.ones((), dtype=F64))
    assert abs(departs(model.sample(FLAT, random.key(2), N, steps=2), law)) < 5
    assert departs(model.sample(FLAT, random.key(2), N, steps=2), LOG_P.exp()) > 20


def test_what_is_known_stays_and_the_rest_follows_its_law():
    model = ideal(schedules.power(floor=1e-9))
    known, x = torch.tensor([[True, False, True]]), torch.tensor([[2, 99, 1]]).expand(N, 3)
    drawn = model.sample(FLAT, random.key(3), N, steps=50, known=known, x=x)
    p = LOG_P.exp() * ((EVERY[:, 0] == 2) & (EVERY[:, 2] == 1))
    assert abs(departs(drawn, p / p.sum())) < 5


@pytest.mark.parametrize("grid", ["time", "cosine"])
def test_trajectories_show_more_and_more(grid):
    model, heard = ideal(), []
    found = model.sample(FLAT, random.key(4), 8, steps=6, grid=grid, trajectory=True, callback=lambda i, z: heard.append(i))
    hidden = (found.z == 3).sum((1, 2))
    assert found.z.shape == (7, 8, 3)
    assert (hidden.diff() <= 0).all()
    assert hidden[0] == 24
    assert torch.equal(found.x, model.sample(FLAT, random.key(4), 8, steps=6, grid=grid))
    assert heard == list(range(6))
    assert (found.z[1:] == torch.where(found.z[:-1] == 3, found.z[1:], found.z[:-1])).all()


def test_wide_ends_start_and_finish_as_the_bound_says():
    """At ends of 0.2 a token shows at once, or is guessed at last, with that probability."""
    with pytest.warns(UserWarning, match="ends alone"):
        model = ideal(schedules.power(floor=0.2))
    found = model.sample(FLAT, random.key(5), N, steps=1, trajectory=True)
    for share, of in ((0.2, found.z[0] < 3), (0.2, found.z[1] == 3)):
        assert abs(of.double().mean() - share) < 5 * (0.2 * 0.8 / (3 * N)) ** 0.5


def test_guidance_goes_from_none_through_the_condition_and_past_it():
    model = masked.diffusion(networks.mlp(8, fourier=(), classes=3, cond_drop=0.5), None, (3,), 5)
    params, label = perturbed(model.init(random.key(0)), 1, 0.5), torch.tensor([0, 1, 2]).repeat(40)
    options = dict(steps=4, trajectory=True)
    free, plain = (model.sample(params, random.key(1), 120, cond=c, **options).z for c in (None, label))
    weighed = {w: model.sample(params, random.key(1), 120, cond=label, guidance=w, **options).z for w in (0.0, 1.0, 3.0)}
    assert (weighed[0.0] == free).float().mean() > 0.999
    assert torch.equal(weighed[1.0], plain)
    assert (weighed[3.0] != plain).any()
    each = torch.tensor([0.0, 1.0, 3.0]).repeat(40)
    rows = model.sample(params, random.key(1), 120, cond=label, guidance=each, **options).z
    assert (rows[:, 2::3] == weighed[3.0][:, 2::3]).float().mean() > 0.999


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("corruption", ["masking", pytest.param("uniform", marks=pytest.mark.slow)])
def test_one_graph_of_samples_for_every_number_of_steps(corruption, backend):
    model = masked.diffusion(networks.mlp(8, fourier=()), None, (3,), 5, corruption=corruption, dtype=F64)
    params = perturbed(model.init(random.key(0)), 1, 0.2)
    params = {"network": {k: {n: v.double() for n, v in d.items()} for k, d in params["network"].items()}, "schedule": {}}
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model.sample, fullgraph=True, backend=backend)
        for steps in (2, 5):
            got, want = (f(params, random.key(steps), 4, steps=torch.tensor(steps)) for f in (compiled, model.sample))
            assert torch.equal(got, want)
