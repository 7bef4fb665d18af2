"""The comparison of weightings: Fréchet's distance, and that each row is the same model but for its weighting."""

import numpy as np
import torch
import weightings


def test_the_distance_of_normal_samples_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200_000, 2)), rng.normal((1.0, 0.0), (1.0, 3.0), (200_000, 2))
    assert abs(weightings.frechet(a, a)) < 1e-9
    assert abs(weightings.frechet(a, b) - (1.0 + (3.0 - 1.0) ** 2)) < 0.05


def test_rows_differ_only_in_the_weighting():
    models = [make().model for make in weightings.ROWS.values()]
    assert len({repr(model.weighting) for model in models}) == len(models)
    assert len({repr(model._replace(weighting=None)) for model in models}) == 1


def test_features_tell_digits_from_noise():
    x, test = weightings.common.data()
    noise = torch.randint(0, weightings.LEVELS, test.shape, generator=torch.Generator().manual_seed(0))
    real, wrong = (weightings.frechet(weightings.features(part), weightings.features(x)) for part in (test, noise))
    assert real < 1.0 < 10.0 < wrong
