"""Files: whole or not at all, block by block, and nothing wrong is ever read from a damaged one."""

import base64
import contextlib
import io
import json
import os
import random as dice
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from parts import changed
from tiny_codec import images, model_and_params

from purevdm import codec, networks, random
from purevdm.codec import _container

N = 12
# What version 1 of the format made of 6 examples on an x86-64 CPU with AVX-512.
KEPT = (
    "k1BWRE0NChoBAQAABAAAABAAAAAAAAAAkNWy3msLCeTxMBkQhE8JIQEEAAAAAABz8fgLUFZEQgAAAAAGAAAAUQAAANtrD6e/eG4t"
    "CUIUu8Us4ZEFAwECA+Hnode3OVuQFWUhfPioPfYcrZtv3fSRVfszQnRkOgHVUyg16hmPW4nnPtlxfarUzJLsRbxjI8v6v30OWtgU"
    "tFAb8hMAUFZESQEAAAAzAAAAAAAAAKlIa3qcAAAAAAAAAFBWREU="
)


@pytest.fixture(scope="module")
def held():
    """A model, its parameters, and three batches of data."""
    model, params = model_and_params(event_shape=(4,))
    return model, params, [images(model, N, seed, torch.uint8) for seed in range(3)]


@pytest.fixture
def written(held, tmp_path):
    model, params, batches = held
    path = tmp_path / "data.pvdm"
    return path, codec.write(path, model, params, batches, timesteps=3, lanes=4)


def test_a_file_holds_its_batches_as_blocks(held, written):
    model, params, batches = held
    path, found = written
    assert found == codec.info(path) == codec.info(path.read_bytes())
    assert (found.examples, found.event_shape, found.vocab_size, found.dtype) == (3 * N, (4,), 16, torch.uint8)
    assert (found.timesteps, found.portable, found.complete, found.size) == (3, True, True, path.stat().st_size)
    assert [block.examples for block in found.blocks] == [N] * 3
    assert 0 < found.initial_bits < found.stack_bits < 8 * found.size
    assert found.rate == pytest.approx(8 * found.size / (3 * N * 4))
    for got, want in zip(codec.read(path, model, params), batches, strict=True):
        assert torch.equal(got, want)
        assert got.dtype == torch.uint8
    assert torch.equal(codec.decode(model, params, path.read_bytes()), torch.cat(batches))
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_another_time_and_machine_decodes():
    model, params = model_and_params(event_shape=(4,))
    x = images(model, 6, 3, torch.uint8)
    assert torch.equal(codec.decode(model, params, base64.b64decode(KEPT)), x)
    assert codec.encode(model, params, x, timesteps=4, lanes=4) == base64.b64decode(KEPT)


def test_a_block_decodes_alone_in_any_order(held, written):
    model, params, batches = held
    got = list(codec.read(written[0], model, params, blocks=[2, 0]))
    assert torch.equal(got[0], batches[2])
    assert torch.equal(got[1], batches[0])
    with pytest.raises(codec.CodecError, match="block 7: missing or damaged"):
        next(codec.read(written[0], model, params, blocks=[7]))


def test_writing_is_the_same_twice_and_depends_on_the_seed(held, written, tmp_path):
    model, params, batches = held
    codec.write(tmp_path / "again", model, params, batches, timesteps=3, lanes=4)
    assert (tmp_path / "again").read_bytes() == written[0].read_bytes()
    codec.write(tmp_path / "again", model, params, batches, timesteps=3, lanes=4, seed=1)
    assert (tmp_path / "again").read_bytes() != written[0].read_bytes()


def test_conditions_go_with_their_blocks(tmp_path):
    model, params = model_and_params(networks.mlp(8, fourier=(), classes=3), event_shape=(4,))
    batches = [(images(model, n, n), torch.arange(n) % 3) for n in (5, 8)]
    codec.write(tmp_path / "x", model, params, batches, timesteps=3)
    conds = [cond for _, cond in batches]
    for got, (want, _) in zip(codec.read(tmp_path / "x", model, params, conds), batches, strict=True):
        assert torch.equal(got, want)
    got = codec.read(tmp_path / "x", model, params, conds[1:], blocks=[1])
    assert torch.equal(next(got), batches[1][0])
    both = codec.decode(model, params, (tmp_path / "x").read_bytes(), torch.cat(conds))
    assert torch.equal(both, torch.cat([x for x, _ in batches]))


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
def test_a_file_that_cannot_be_written_leaves_the_old_one(held, written, second, error, word):
    model, params, batches = held
    path, before = written[0], written[0].read_bytes()
    more = second(batches[1])
    with pytest.raises(error, match=f"^{word}"):
        codec.write(path, model, params, [] if more is None else [batches[0], *more], timesteps=3)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Damage


def all_of(path_or_bytes, held, skip=None):
    model, params, _ = held
    return list(codec.read(path_or_bytes, model, params, skip=skip))


def test_another_model_is_named(held, written):
    model, params, _ = held
    other = params | {"network": model.init(random.key(9))["network"]}
    with pytest.raises(codec.CodecError, match="expected the parameters that the file was written with"):
        list(codec.read(written[0], model, other))
    wide, wide_params = model_and_params(event_shape=(5,))
    with pytest.raises(codec.CodecError, match=r"expected a model of events \(4,\) of 16 values, .* \(5,\) of 16"):
        list(codec.read(written[0], wide, wide_params))


def test_another_network_with_the_same_parameters_is_found_out(held, written):
    model, params, _ = held
    other = model._replace(network=changed(model.network, apply=lambda *a, **b: 1.01 * model.network.apply(*a, **b)))
    with pytest.raises(codec.CodecError, match="block 0: "):
        list(codec.read(written[0], other, params))


def test_a_later_format_and_other_files_are_named(held, written, tmp_path):
    data = bytearray(written[0].read_bytes())
    data[8] = 2
    (tmp_path / "later").write_bytes(data)
    with pytest.raises(codec.CodecError, match="expected format 1, got 2; a later purevdm wrote it"):
        all_of(tmp_path / "later", held)
    for other in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x93PVDM\r\n\x1a"):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(codec.CodecError, match=r"expected a file of purevdm.codec|damaged or cut short"):
            codec.info(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        codec.info(tmp_path / "missing")


def test_what_is_intact_can_be_read(held, written, tmp_path):
    _, _, batches = held
    path, found = written
    data = bytearray(path.read_bytes())
    data[found.blocks[1].offset + 40] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    lost = []
    got = all_of(tmp_path / "damaged", held, skip=lambda number, error: lost.append((number, str(error))))
    assert torch.equal(torch.cat(got), torch.cat([batches[0], batches[2]]))
    assert lost == [(1, "block 1: damaged")]
    reading = codec.read(tmp_path / "damaged", *held[:2])
    assert torch.equal(next(reading), batches[0])
    with pytest.raises(codec.CodecError, match="block 1: damaged"):
        next(reading)
    with pytest.raises(codec.CodecError, match="block 1: damaged"):
        codec.decode(*held[:2], bytes(data))


@pytest.mark.parametrize("part", ["head of a block", "index", "tail"])
def test_damage_between_blocks_costs_no_other_block(held, written, tmp_path, part):
    _, _, batches = held
    path, found = written
    data, last = bytearray(path.read_bytes()), found.blocks[-1]
    data[
        {"head of a block": found.blocks[1].offset + 5, "index": last.offset + last.size + 6, "tail": len(data) - 2}[part]
    ] ^= 8
    (tmp_path / "damaged").write_bytes(data)
    lost = []
    got = all_of(tmp_path / "damaged", held, skip=lambda number, error: lost.append(number))
    kept = [0, 2] if part == "head of a block" else [0, 1, 2]
    assert torch.equal(torch.cat(got), torch.cat([batches[i] for i in kept]))
    assert lost == ([1, 3] if part == "head of a block" else [3])
    assert not codec.info(tmp_path / "damaged").complete


def test_blocks_behind_a_lost_one_find_their_condition(tmp_path):
    model, params = model_and_params(networks.mlp(8, fourier=(), classes=9), event_shape=(4,))
    labels = random.randint(random.key(4), (40,), 0, 9)
    sizes, path = [5, 8, 3, 7], tmp_path / "x"
    batches = [(images(model, n, n), part) for n, part in zip(sizes, labels.split([*sizes, 17])[:4], strict=True)]
    found, lost = codec.write(path, model, params, batches, timesteps=1), []
    everything = torch.cat(list(codec.read(path, model, params, cond=labels)))
    assert torch.equal(everything, torch.cat([x for x, _ in batches]))
    data = bytearray(path.read_bytes())
    data[found.blocks[1].offset + 5] ^= 1
    path.write_bytes(data)
    got = list(codec.read(path, model, params, cond=labels, skip=lambda number, error: lost.append(number)))
    assert torch.equal(torch.cat(got), torch.cat([batches[i][0] for i in (0, 2, 3)]))
    assert lost == [1, 4]
    for other in (labels.flip(0), labels[:15]):
        with pytest.raises(codec.CodecError, match="block 2: cond: expected"):
            list(codec.read(path, model, params, cond=other, blocks=[2]))
    for cond in (torch.tensor(1), {"a": labels, "b": labels[:3]}):
        with pytest.raises(codec.CodecError, match="cond: expected one for each of"):
            codec.read(path, model, params, cond=cond)
    with pytest.raises(ValueError, match="cond: expected None where conds are given"):
        codec.read(path, model, params, [labels], cond=labels)


def test_a_truncated_file_gives_the_blocks_that_are_there(held, written, tmp_path):
    _, _, batches = held
    path, found = written
    data = path.read_bytes()
    for end in (found.blocks[2].offset, found.blocks[2].offset + 30, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(codec.CodecError, match="cut short"):
            codec.decode(*held[:2], data[:end])
        lost = []
        got = all_of(tmp_path / "cut", held, skip=lambda number, error, lost=lost: lost.append(number))
        assert torch.equal(torch.cat(got), torch.cat(batches[: len(got)]))
        assert len(got) >= 2
        assert lost
        with pytest.raises(codec.CodecError, match="cut short"):
            all_of(tmp_path / "cut", held)


def damaged_copies(data, n):
    """Copies that are cut, flipped, zeroed, shuffled, repeated, or lie about sizes with right checksums."""
    rng = dice.Random(0)
    for i in range(n):
        copy, at = bytearray(data), rng.randrange(len(data))
        match i % 7:
            case 0:
                copy[at] ^= 1 << rng.randrange(8)
            case 1:
                copy = copy[:at]
            case 2:
                copy[at : at + rng.randrange(1, 50)] = bytes(rng.randrange(1, 50))
            case 3:
                copy[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                del copy[at : at + rng.randrange(1, 50)]
            case 5:
                to = rng.randrange(len(copy))
                copy[at : at + 16], copy[to : to + 16] = copy[to : to + 16], copy[at : at + 16]
            case 6:
                for _ in range(rng.randrange(2, 20)):
                    copy[rng.randrange(len(copy))] = rng.randrange(256)
        yield bytes(copy)


def test_a_thousand_damaged_files_give_right_data_or_a_clear_error(held, tmp_path):
    """Whatever block comes back is one that was written."""
    model, params, batches = held
    batches = [batch[:3] for batch in batches]
    codec.write(tmp_path / "x", model, params, batches, timesteps=1)
    data, path = (tmp_path / "x").read_bytes(), tmp_path / "y"
    refused = partly = 0
    for i, copy in enumerate(damaged_copies(data, 1000)):
        path.write_bytes(copy)
        try:
            got = all_of(path, held, skip=lambda number, error: None)
        except codec.CodecError:
            refused += 1
        else:
            assert all(any(torch.equal(x, batch) for batch in batches) for x in got)
            partly += len(got) < 3
        if i % 5:
            continue
        with contextlib.suppress(codec.CodecError):
            assert torch.equal(codec.decode(model, params, copy), torch.cat(batches))
    assert refused > 20
    assert partly > 300


def test_lies_with_right_checksums_are_found_out(held, written):
    """By someone who repairs every checksum of a block: words, digests, rounds and sizes."""
    model, params, batches = held
    data, rng = written[0].read_bytes(), dice.Random(1)
    with io.BytesIO(data) as file:
        head = _container.read_head(file)
        blocks, _ = _container.read_blocks(file, head)
        payloads = [_container.read_payload(file, block, head) for block in blocks]
    for i in range(60):
        payload = payloads[0]
        words = payload.words.copy()
        match i % 4:
            case 0:
                words[rng.randrange(len(words))] ^= 1 << rng.randrange(32)
            case 1:
                words = words[: rng.randrange(len(words))]
            case 2:
                payload = payload._replace(rounds=(*payload.rounds[:-1], rng.choice([1, 100, 5000])))
            case 3:
                payload = payload._replace(initial=rng.choice([0, 1, 2**31]))
        body = _container.head_bytes(head)
        record = _container.block_bytes(0, payload._replace(words=words))
        lie = body + record + _container.end_bytes([len(body)], len(body) + len(record))
        try:
            found = codec.decode(model, params, lie)
        except codec.CodecError:
            continue
        assert torch.equal(found, batches[0])


def test_huge_sizes_allocate_nothing(held, written, tmp_path):
    data = written[0].read_bytes()
    with io.BytesIO(data) as file:
        head = _container.read_head(file)
    body = _container.head_bytes(head)
    record = bytearray(_container._BLOCK.pack(b"PVDB", 0, 2**32 - 1, 2**32 - 1, 0))
    record += zlib.crc32(record).to_bytes(4, "little") + bytes(100)
    index = b"PVDI" + (2**32 - 1).to_bytes(4, "little") + bytes(20)
    (tmp_path / "x").write_bytes(body + record + index + len(body + record).to_bytes(8, "little") + b"PVDE")
    tracemalloc.start()
    try:
        assert not codec.info(tmp_path / "x").complete
        with pytest.raises(codec.CodecError):
            all_of(tmp_path / "x", held)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(held, tmp_path):
    model, params, _ = held

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
import sys, time
from tiny_codec import images, model_and_params
from purevdm import codec
import torch
model, params = model_and_params(event_shape=(4,))
def batches():
    for i in range(3):
        yield images(model, 12, i, torch.uint8)
print("ready", flush=True)
while True:
    codec.write(sys.argv[1], model, params, batches(), timesteps=3, lanes=4)
    codec.write(sys.argv[1], model, params, batches(), timesteps=3, lanes=4, seed=1)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(held, tmp_path):
    model, params, batches = held
    path = tmp_path / "x"
    codec.write(path, model, params, batches, timesteps=3, lanes=4)
    wholes = [path.read_bytes()]
    codec.write(path, model, params, batches, timesteps=3, lanes=4, seed=1)
    wholes.append(path.read_bytes())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    for i in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parent
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3 + 0.11 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert path.read_bytes() in wholes
    codec.write(path, model, params, batches, timesteps=3, lanes=4)
    assert list(tmp_path.iterdir()) == [path]


def test_the_machine_of_a_file_is_json(held):
    model, params, batches = held
    data = codec.encode(model, params, batches[0], timesteps=2, portable=False, lanes=3)
    assert json.loads(codec.info(data).machine)["lanes"] == 3


def test_bad_paths_and_arguments_are_named_at_once(held, tmp_path):
    model, params, batches = held
    for path in (3, None, b"x"):
        with pytest.raises(TypeError, match="path: expected a path"):
            codec.write(path, model, params, batches)
        with pytest.raises(TypeError, match="path: expected a path"):
            codec.read(path, model, params)
    with pytest.raises(IsADirectoryError, match="path: expected a file"):
        codec.write(tmp_path, model, params, batches)
    os.mkfifo(tmp_path / "pipe")
    for use in (
        lambda: codec.write(tmp_path / "pipe", model, params, batches),
        lambda: list(codec.read(tmp_path / "pipe", model, params)),
        lambda: codec.info(tmp_path / "pipe"),
    ):
        with pytest.raises(ValueError, match="pipe: expected a regular file"):
            use()
    for options, error in (
        (dict(blocks=3), TypeError),
        (dict(blocks=[-1]), ValueError),
        (dict(lanes=0), ValueError),
        (dict(conds=torch.zeros(2)), TypeError),
        (dict(skip="all"), TypeError),
        (dict(compile=1), TypeError),
    ):
        with pytest.raises(error, match=rf"^{next(iter(options))}[:\[]"):
            codec.read(tmp_path / "x", model, params, **options)
