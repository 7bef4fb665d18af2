"""Files: whole or not at all, block by block, and nothing wrong is ever read from a damaged one."""

import base64
import contextlib
import io
import os
import random as dice
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from parts import changed
from tiny_codec import OTHERS, images, model_and_params

from purevdm import codec, networks, random
from purevdm.codec import _container, _model, _writing

N = 12
# What version 1 of the format made of 6 examples on an x86-64 CPU with AVX-512.
KEPT = (
    "k1BWRE0NChoBAQAABAAAABAAAAAAAAAAkNWy3msLCeTxMBkQhE8JIQEEAAAAAABz8fgLUFZEQgAAAAAGAAAAUQAAANtrD6e/eG4t"
    "CUIUu8Us4ZEFAwECA+Hnode3OVuQFWUhfPioPfYcrZtv3fSRVfszQnRkOgHVUyg16hmPW4nnPtlxfarUzJLsRbxjI8v6v30OWtgU"
    "tFAb8hMAUFZESQEAAAAzAAAAAAAAAKlIa3qcAAAAAAAAAFBWREU="
)


@pytest.fixture(scope="module")
def made():
    """A model, its parameters, and three batches of data."""
    model, params = model_and_params(event_shape=(4,))
    return model, params, [images(model, N, seed, torch.uint8) for seed in range(3)]


@pytest.fixture
def written(made, tmp_path):
    path = tmp_path / "data.pvdm"
    return path, codec.write(path, *made, timesteps=3, lanes=4)


@pytest.fixture
def salvaged(made):
    """Reads bytes as a file: what is intact, and the errors of the rest."""

    def read(data):
        lost = {}
        return list(codec.read(bytes(data), *made[:2], skip=lost.__setitem__)), lost

    return read


def test_a_file_holds_its_batches_as_blocks(made, written):
    model, params, batches = made
    path, info = written
    assert info == codec.info(path) == codec.info(path.read_bytes())
    assert (info.examples, info.event_shape, info.vocab_size, info.dtype) == (3 * N, (4,), 16, torch.uint8)
    assert (info.timesteps, info.portable, info.complete, info.size) == (3, True, True, path.stat().st_size)
    assert [block.examples for block in info.blocks] == [N] * 3
    assert 0 < info.initial_bits < info.stack_bits < 8 * info.size
    assert info.rate == pytest.approx(8 * info.size / (3 * N * 4))
    for got, want in zip(codec.read(path, model, params), batches, strict=True):
        assert torch.equal(got, want)
        assert got.dtype == torch.uint8
    assert torch.equal(codec.decode(model, params, path.read_bytes()), torch.cat(batches))
    got = codec.read(path, model, params, blocks=[2, 0, 7])
    assert torch.equal(next(got), batches[2])
    assert torch.equal(next(got), batches[0])
    with pytest.raises(codec.CodecError, match="block 7: missing or damaged"):
        next(got)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_another_time_and_machine_decodes():
    model, params = model_and_params(event_shape=(4,))
    x = images(model, 6, 3, torch.uint8)
    assert torch.equal(codec.decode(model, params, base64.b64decode(KEPT)), x)
    assert codec.encode(model, params, x, timesteps=4, lanes=4) == base64.b64decode(KEPT)


@pytest.mark.parametrize(
    ("second", "error", "word"),
    [
        (lambda x: [x.long()], TypeError, r"batches\[1\]: expected torch\..*, as the first"),
        (lambda x: [torch.full_like(x, 99)], ValueError, "x: expected integers in"),
        (lambda x: [(x, torch.zeros(N))], ValueError, r"batches\[1\]: expected a condition with all|cond: expected None"),
        (lambda x: None, ValueError, "batches: expected at least one, got none"),
    ],
    ids=["dtype", "values", "condition", "nothing"],
)
def test_a_file_that_cannot_be_written_leaves_the_old_one(made, written, second, error, word):
    model, params, batches = made
    path, before = written[0], written[0].read_bytes()
    more = second(batches[1])
    with pytest.raises(error, match=f"^{word}"):
        codec.write(path, model, params, [] if more is None else [batches[0], *more], timesteps=3)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Damage


def test_another_model_is_named(made, written):
    model, params, _ = made
    other = params | {"network": model.init(random.key(9))["network"]}
    with pytest.raises(codec.CodecError, match="expected the parameters that the file was written with"):
        list(codec.read(written[0], model, other))
    wide, wide_params = model_and_params(event_shape=(5,))
    with pytest.raises(codec.CodecError, match=r"expected a model of events \(4,\) of 16 values, .* \(5,\) of 16"):
        list(codec.read(written[0], wide, wide_params))


def test_another_network_with_the_same_parameters_is_found_out(made, written):
    model, params, _ = made
    other = model._replace(network=changed(model.network, apply=lambda *a, **b: 1.01 * model.network.apply(*a, **b)))
    with pytest.raises(codec.CodecError, match="block 0: "):
        list(codec.read(written[0], other, params))


def test_a_later_format_and_other_files_are_named(made, written):
    data = bytearray(written[0].read_bytes())
    data[8] = 2
    with pytest.raises(codec.CodecError, match="expected format 1, got 2; a later purevdm wrote it"):
        codec.decode(*made[:2], bytes(data))
    for other in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x93PVDM\r\n\x1a"):
        with pytest.raises(codec.CodecError, match=r"expected a file of purevdm.codec|damaged or cut short"):
            codec.info(other)


@pytest.mark.parametrize("part", ["payload", "head of a block", "index", "tail"])
def test_damage_costs_no_other_block(made, written, salvaged, part):
    path, info = written
    data, end = bytearray(path.read_bytes()), info.blocks[2].offset + info.blocks[2].size
    at = info.blocks[1].offset
    data[{"payload": at + 40, "head of a block": at + 5, "index": end + 6, "tail": len(data) - 2}[part]] ^= 8
    got, lost = salvaged(data)
    kept = [0, 2] if part in ("payload", "head of a block") else [0, 1, 2]
    assert torch.equal(torch.cat(got), torch.cat([made[2][i] for i in kept]))
    assert list(lost) == {"payload": [1], "head of a block": [1, 3]}.get(part, [3])
    assert str(lost[min(lost)]).startswith("block 1: " if 1 in lost else "cut short or damaged")
    assert not codec.info(bytes(data)).complete
    with pytest.raises(codec.CodecError, match="block 1: damaged" if part == "payload" else "cut short or damaged"):
        codec.decode(*made[:2], bytes(data))
    path.write_bytes(data)
    assert torch.equal(next(codec.read(path, *made[:2], blocks=[2])), made[2][2])


def test_a_truncated_file_gives_the_blocks_that_are_there(made, written, salvaged):
    path, info = written
    data = path.read_bytes()
    for end in (info.blocks[2].offset, info.blocks[2].offset + 30, len(data) - 1):
        got, lost = salvaged(data[:end])
        assert torch.equal(torch.cat(got), torch.cat(made[2][: len(got)]))
        assert len(got) >= 2
        assert list(lost) == [len(got)]
        with pytest.raises(codec.CodecError, match="cut short"):
            codec.decode(*made[:2], data[:end])


def test_blocks_find_their_condition(tmp_path):
    """In that of all examples, of more, of their own, and behind lost blocks."""
    model, params = model_and_params(networks.mlp(8, fourier=(), classes=9), event_shape=(4,))
    labels = random.randint(random.key(4), (40,), 0, 9)
    sizes, path = [5, 8, 3, 7], tmp_path / "x"
    batches = [(images(model, n, n), part) for n, part in zip(sizes, labels.split([*sizes, 17])[:4], strict=True)]
    info, lost = codec.write(path, model, params, batches, timesteps=1), []
    for cond in (labels, labels[:23]):
        assert torch.equal(torch.cat(list(codec.read(path, model, params, cond))), torch.cat([x for x, _ in batches]))
    assert torch.equal(codec.decode(model, params, path.read_bytes(), labels), torch.cat([x for x, _ in batches]))
    assert torch.equal(next(codec.read(path, model, params, labels[5:13], blocks=[1])), batches[1][0])
    data = bytearray(path.read_bytes())
    data[info.blocks[1].offset + 5] ^= 1
    path.write_bytes(data)
    got = list(codec.read(path, model, params, labels, skip=lambda number, error: lost.append(number)))
    assert torch.equal(torch.cat(got), torch.cat([batches[i][0] for i in (0, 2, 3)]))
    assert lost == [1, 4]
    for other in (torch.zeros_like(labels), labels[:2]):
        with pytest.raises(codec.CodecError, match="block 2: cond: expected"):
            list(codec.read(path, model, params, other, blocks=[2]))
    for cond in (torch.tensor(1), {"a": labels, "b": labels[:3]}):
        with pytest.raises(ValueError, match="cond: expected a condition for each"):
            codec.read(path, model, params, cond)


def damaged_copies(data, n):
    """Copies that are cut, flipped, zeroed, shuffled or repeated."""
    rng = dice.Random(0)
    for i in range(n):
        copy, at, to, size = bytearray(data), rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(1, 50)
        match i % 7:
            case 0:
                copy[at] ^= 1 << rng.randrange(8)
            case 1:
                del copy[at:]
            case 2:
                copy[at : at + size] = bytes(rng.randrange(1, 50))
            case 3:
                copy[at:at] = rng.randbytes(size)
            case 4:
                del copy[at : at + size]
            case 5:
                copy[at : at + 16], copy[to : to + 16] = copy[to : to + 16], copy[at : at + 16]
            case 6:
                for _ in range(rng.randrange(2, 20)):
                    copy[rng.randrange(len(copy))] = rng.randrange(256)
        yield bytes(copy)


def test_a_thousand_damaged_files_give_right_data_or_a_clear_error(made, salvaged):
    """Whatever block comes back is one that was written."""
    batches, file = [batch[:3] for batch in made[2]], io.BytesIO()
    file.writelines(_writing._pieces(*made[:2], batches, 1, _model.LANES, True, False, 0, None))
    refused = partly = 0
    for i, copy in enumerate(damaged_copies(file.getvalue(), 1000)):
        try:
            got, _ = salvaged(copy)
        except codec.CodecError:
            refused += 1
        else:
            assert all(any(torch.equal(x, batch) for batch in batches) for x in got)
            partly += len(got) < 3
        if i % 5 == 0:
            with contextlib.suppress(codec.CodecError):
                assert torch.equal(codec.decode(*made[:2], copy), torch.cat(batches))
    assert refused > 20
    assert partly > 300


@pytest.mark.parametrize("kind", ["posterior", "estimate, learned range"])
def test_lies_with_right_checksums_are_found_out(made, kind):
    """By someone who repairs every checksum of a block: words, digests, rounds and sizes."""
    network, options = OTHERS.get(kind, (None, {}))
    (model, params), batches, rng = model_and_params(network, event_shape=(4,), **options), made[2], dice.Random(1)
    with _container.opened(codec.encode(model, params, batches[0], timesteps=3, lanes=4)) as (file, head, blocks, _):
        payload = _container.read_payload(file, blocks[0], head)
    for i in range(60):
        words, at = payload.words.copy(), rng.randrange(len(payload.words))
        words[at] ^= 1 << rng.randrange(32)
        lie = payload._replace(
            **[
                {"words": words},
                {"words": payload.words[:at]},
                {"rounds": (*payload.rounds[:-1], rng.choice([1, 100, 5000]))},
                {"initial": rng.choice([0, 1, 2**31])},
            ][i % 4]
        )
        body, record = _container.head_bytes(head), _container.block_bytes(0, lie)
        with contextlib.suppress(codec.CodecError):
            content = body + record + _container.end_bytes([len(body), len(body + record)])
            assert torch.equal(codec.decode(model, params, content), batches[0])


def test_huge_sizes_allocate_nothing(made, written, salvaged):
    with _container.opened(written[0]) as (_, head, _, _):
        body = _container.head_bytes(head)
    record = _container.sealed(_container._BLOCK.pack(b"PVDB", 0, 2**32 - 1, 2**32 - 1, 0)) + bytes(100)
    index = b"PVDI" + (2**32 - 1).to_bytes(4, "little") + bytes(20)
    tracemalloc.start()
    try:
        got, lost = salvaged(body + record + index + len(body + record).to_bytes(8, "little") + b"PVDE")
        assert (got, list(lost)) == ([], [0])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(made, tmp_path):
    model, params, _ = made

    def peak(n):
        tracemalloc.start()
        try:
            codec.write(tmp_path / "x", model, params, (images(model, 300, i, torch.uint8) for i in range(n)), timesteps=1)
            for _ in codec.read(tmp_path / "x", model, params):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(20)  # caches fill
    assert peak(20) < 2 * peak(3)  # of 40 kB a block


WRITER = """
import sys
from test_files import N, codec, images, model_and_params, torch
model, params = model_and_params(event_shape=(4,))
print("ready", flush=True)
for seed in range(10**9):
    batches = (images(model, N, i, torch.uint8) for i in range(3))
    codec.write(sys.argv[1], model, params, batches, timesteps=3, lanes=4, seed=seed % 2)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(made, tmp_path):
    path, wholes = tmp_path / "x", []
    for seed in (0, 1):
        codec.write(path, *made, timesteps=3, lanes=4, seed=seed)
        wholes.append(path.read_bytes())
    assert wholes[0] != wholes[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    for i in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parent
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3 + 0.11 * i)
        process.kill()
        process.wait()
        process.stdout.close()
        assert path.read_bytes() in wholes
    codec.write(path, *made, timesteps=3, lanes=4)
    assert list(tmp_path.iterdir()) == [path]


def test_bad_paths_and_arguments_are_named_at_once(made, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for use in (
        lambda: codec.write(tmp_path / "pipe", *made),
        lambda: list(codec.read(tmp_path / "pipe", *made[:2])),
        lambda: codec.info(tmp_path / "pipe"),
    ):
        with pytest.raises(ValueError, match="pipe: expected a regular file"):
            use()
    with pytest.raises(IsADirectoryError, match="path: expected a file"):
        codec.write(tmp_path, *made)
    with pytest.raises(ValueError, match="blocks"):
        codec.read(tmp_path / "missing", *made[:2], blocks=[-1])
