"""Characters: a text in parts that share no phrase, n-grams, and models that start from what a character says alone."""

import math
import statistics

import characters
import pytest
import torch

from purevdm import evaluation, random


@pytest.fixture(scope="module")
def parts():
    return characters.split(random.key(0))


def test_the_text_is_letters_and_single_spaces():
    text = characters.read()
    assert len(text) > 200_000
    assert set(text) == set(characters.ALPHABET)
    assert "  " not in text
    assert text.count("the following paragraph") < 3


def test_what_is_held_out_is_new(parts):
    assert parts.test.shape == (characters.TEST, characters.LENGTH)
    size = sum(map(len, parts.pieces))
    assert 0.89 < size / len(characters.read()) < 0.91
    assert len(parts.train) == size - len(parts.pieces) * (characters.LENGTH - 1)
    known = [characters.texts(piece[None])[0] for piece in parts.pieces]
    window = characters.texts(parts.train[:1])[0]
    assert any(window in piece for piece in known)
    for window in characters.texts(parts.test):
        runs = [window[i : i + characters.RUN] for i in range(characters.LENGTH - characters.RUN + 1)]
        assert not any(run in piece for run in runs[::8] for piece in known)


@pytest.mark.slow
def test_the_key_draws_what_is_held_out(parts):
    assert not torch.equal(characters.split(random.key(1)).test, parts.test)


def test_ngrams_are_distributions_and_longer_ones_know_more():
    piece = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    # every character that may follow "0 1": the probabilities add up to one
    bits = [characters.ngram_bits([piece], torch.tensor([[0, 1, c]]), 3) * 3 for c in range(27)]
    before = characters.ngram_bits([piece], torch.tensor([[0, 1]]), 3) * 2
    assert sum(2 ** (before - b).item() for b in bits) == pytest.approx(1.0, rel=1e-5)
    assert characters.ngram_bits([], torch.tensor([[3, 4]]), 2).item() == pytest.approx(math.log2(27))
    test = torch.tensor([[0, 1, 2, 0, 1, 2]])
    found = [characters.ngram_bits([piece], test, n).item() for n in (1, 2, 3)]
    assert found == sorted(found, reverse=True)


def test_bits_stand_for_characters():
    codes = torch.arange(27, dtype=torch.uint8).reshape(3, 9)
    bits = characters.as_bits(codes)
    assert bits.shape == (3, 9, 5)
    assert bits.dtype == torch.uint8
    assert torch.equal(characters.from_bits(bits), codes)
    assert len({tuple(row) for row in bits.reshape(-1, 5).tolist()}) == 27
    assert characters.from_bits(torch.ones(2, 5, dtype=torch.long)).tolist() == [0, 0]


def cost(model, x, key) -> tuple[float, float]:
    """What an untrained model spends, bits/dim: the mean over independent batches of times and noise, and its error."""
    params = model.init(random.key(1))
    found = [evaluation.evaluate(model, params, [x], k).nll.mean for k in random.split(key, 16)]
    return statistics.mean(found), statistics.stdev(found) / 4.0


@torch.no_grad()
def test_untrained_models_know_what_a_character_says_alone():
    """Their outputs are the posteriors of uniform characters, and of uniform bits: so the bounds cost the entropy."""
    x = random.randint(random.key(0), (48, characters.LENGTH), 0, 27)
    theta = torch.softmax(random.normal(random.key(2), (*x.shape, 27)), -1)
    found = characters.logits(lambda seen, t: 0.0 * seen, 2.0 * theta - 1.0, torch.rand(48), None)
    torch.testing.assert_close(torch.softmax(found, -1), theta, rtol=1e-5, atol=1e-6)
    bits, error = cost(characters.flow(32, 1), x, random.key(3))
    assert error < 0.05
    assert abs(bits - math.log2(27)) < 4 * error
    bits, error = cost(characters.diffusion(32, 1), characters.as_bits(x), random.key(4))
    assert error < 0.02
    assert abs(bits - 1.0) < 4 * error + 0.001  # the prior's loss
