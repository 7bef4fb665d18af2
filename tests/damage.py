"""A valid file of each kind that is read, and its damaged copies: single bytes changed, cuts, sizes that lie, other dtypes,
other versions, names twice, deep nesting, bombs.

Each must give what the whole file gives, or an error that names the file or what it holds.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random as dice
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import optree
import safetensors.torch
import torch
from PIL import Image

import purevdm
from purevdm import codec, interop, networks, random, schedules, training
from purevdm.training import checkpoint

sys.path.insert(1, str(Path(__file__).parents[1] / "examples" / "app"))

import readers

MODEL = purevdm.vdm(networks.mlp(4, 1, fourier=()), schedules.learned_linear(), (2,), 8)
PARAMS = MODEL.init(random.key(0))
STATE = training.init(MODEL, random.key(0))
RNG = np.random.default_rng(0)


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        name: for messages.
        files: valid content by name; the first is damaged.
        read: what a user gets of the folder that they are in.
        open: spans of bytes that no checksum and no size vouches for: whoever changes those changes the data.
        lies: further damaged copies by name.
        step: cuts at its multiples leave a valid file.
    """

    name: str
    files: dict[str, bytes]
    read: Callable[[Path], Any]
    open: tuple[range, ...] = ()
    lies: dict[str, bytes] = {}  # noqa: RUF012
    step: int | None = None


class Damage(NamedTuple):
    name: str
    content: bytes


FOREIGN = {
    "nothing": b"",
    "not UTF-8": b"\xff\xfe" * 40,
    "a zip's start": b"PK\x03\x04" + bytes(30),
    "noise": dice.Random(0).randbytes(3000),
}


def damages(form: Format, most: int) -> Iterator[Damage]:
    """Damaged copies of a format's first file: all that are made for it, and ``most`` changed bytes and cuts or so, drawn
    the same each time."""
    content, draw = next(iter(form.files.values())), dice.Random(0)
    yield from (Damage(name, other) for name, other in (FOREIGN | form.lies).items())
    edges = {*range(16), *range(len(content) - 16, len(content))} & {*range(len(content))}

    def chosen(sites: list[int]) -> list[int]:
        return sites if len(sites) <= most else sorted({*draw.sample(sites, most), *(edges & {*sites})})

    for i in chosen([i for i in range(len(content)) if not any(i in span for span in form.open)]):
        for to in sorted({content[i] ^ 1, content[i] ^ 32, 0, 255} - {content[i]}):
            yield Damage(f"byte {i} = {to}", content[:i] + bytes([to]) + content[i + 1 :])
    for i in chosen([i for i in range(len(content)) if form.step is None or i % form.step]):
        yield Damage(f"cut to {i}", content[:i])
    for name, more in (("a zero", b"\0"), ("a line", b"\n"), ("noise", b"?" * 77), ("itself", content)):
        if form.step is None or len(more) % form.step:
            yield Damage(f"with {name} behind", content + more)


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same, NaN and signs of zero too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        a, b = a.numpy(), b.numpy()
    if isinstance(a, np.ndarray):
        return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()
    return a == b


def tried(form: Format, folder: Path, damage: Damage, want: Any) -> tuple[str, str]:
    """The verdict on a damaged copy: "clear", "result", "silent" or "unclear"; and the message."""
    file = folder / next(iter(form.files))
    file.write_bytes(damage.content)
    try:
        found = form.read(folder)
    except (TypeError, ValueError, OSError) as error:
        text = f"{type(error).__name__}: {error}"
        named = str(folder) in text or str(error).startswith("params")
        return ("clear" if named or isinstance(error, codec.CodecError) else "unclear"), text
    except SystemExit as error:
        return ("clear" if isinstance(error.code, str) and file.name in error.code else "unclear"), str(error.code)
    except BaseException as error:
        return "unclear", f"{type(error).__name__}: {error}"
    return ("result", "") if same(found, want) else ("silent", f"{found!r:.200}")


def whole(form: Format, folder: Path) -> Any:
    """Writes the valid files, and what they give."""
    for name, content in form.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return form.read(folder)


# The formats


def formats(folder: Path) -> list[Format]:
    """All of them; the folder is for what libraries write."""
    return [
        *_checkpoints(folder / "checkpoints"),
        _params(folder / "params.safetensors"),
        _flax(),
        _codec(),
        *_idx(),
        *_cifar(),
        *_imagenet(),
        *_arrays(),
        _images(),
    ]


def _checkpoints(folder: Path) -> Iterator[Format]:
    path = checkpoint.save(folder, STATE, metric=2.5, extra={"gamma_min": -13.3, "deep": [1, [None]]})
    files = {f"{path.name}/{name}": (path / name).read_bytes() for name in ("state.json", "state.safetensors")}
    notes = json.loads(files[f"{path.name}/state.json"])

    def sealed(**fields: Any) -> bytes:
        changed = notes | fields
        return json.dumps(changed | {"notes_sha256": checkpoint._notes_digest(changed)}).encode()

    def read(at: Path) -> Any:
        return checkpoint.load(at / path.name, STATE), checkpoint.notes(at / path.name), checkpoint.latest(at).name

    lies = {
        "a step that is text": sealed(step="0"),
        "a metric that is a list": sealed(metric=[1.0]),
        "another digest": sealed(sha256="0" * 64),
        "a later format": sealed(format=4),
        "the format of several files": sealed(format=3),
        "a list": b"[]",
        "another step's entry twice": files[f"{path.name}/state.json"].replace(b'"step": 0', b'"step": 0, "step": 1'),
    }
    yield Format("checkpoint's notes", files, read, lies=lies)
    tensors = dict(reversed(files.items()))
    yield Format("checkpoint's tensors", tensors, read, lies=_tensor_lies(next(iter(tensors.values()))))


def _tensor_lies(content: bytes) -> dict[str, bytes]:
    """Safetensors whose header lies."""
    n = struct.unpack("<Q", content[:8])[0]
    head, data = json.loads(content[8 : 8 + n]), content[8 + n :]
    name = next(name for name in head if name != "__metadata__")

    def changed(**entry: Any) -> bytes:
        text = json.dumps(head | {name: head[name] | entry}).encode()
        return struct.pack("<Q", len(text)) + text + data

    text = json.dumps(head).encode()
    twice = text[:-1] + b", " + json.dumps(name).encode() + b": " + json.dumps(head[name]).encode() + b"}"
    return {
        "a header of 2**63 bytes": struct.pack("<Q", 2**63) + content[8:],
        "a shape that overflows": changed(shape=[2**40, 2**40]),
        "offsets beyond the end": changed(data_offsets=[0, 2**50]),
        "an unknown dtype": changed(dtype="Q8"),
        "another dtype of that size": changed(dtype="I32"),
        "a name twice": struct.pack("<Q", len(twice)) + twice + data,
    }


def _params(path: Path) -> Format:
    interop.save_params(path, PARAMS)
    content = path.read_bytes()
    like = {"a": torch.ones(2)}

    def forged(leaves: dict[str, torch.Tensor], empty: Any) -> bytes:
        """With a digest that is right."""
        digest = interop.files._digest(leaves, empty)
        metadata = {"purevdm": "parameters 1", "empty": json.dumps(empty), "sha256": digest}
        return safetensors.torch.save(leaves, metadata)

    lies = _tensor_lies(content) | {
        "a leaf that is a dict": forged({"a": torch.ones(1), "a.b": torch.ones(1)}, []),
        "a leaf that is empty": forged(like, ["a"]),
        "a leaf below a leaf": forged(like, ["a.b"]),
        "another model": forged(like, []),
        "no metadata": safetensors.torch.save(like),
    }
    return Format("parameters", {path.name: content}, lambda at: interop.load_params(at / path.name, PARAMS), lies=lies)


def packed(shape: Any, dtype: str, raw: Any) -> msgpack.ExtType:
    """An array as flax.serialization packs it."""
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, raw), use_bin_type=True))


def pack(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: pack(branch) for name, branch in tree.items()}
    return packed(tree.shape, tree.dtype.name, tree.tobytes())


def _flax() -> Format:
    official = interop.to_flax(PARAMS)
    state = {"step": 7, "params": pack(official), "ema_params": pack(official)}
    content = msgpack.packb(state)
    open_: list[range] = [range(content.index(b"\xa4step\x07") + 5, content.index(b"\xa4step\x07") + 6)]
    for leaf in optree.tree_leaves(official):
        at = -1
        while (at := content.find(leaf.tobytes(), at + 1)) >= 0:
            open_.append(range(at, at + leaf.nbytes))

    def with_leaf(leaf: Any) -> bytes:
        return msgpack.packb(state | {"params": pack(official) | {"noise_schedule": {"w": leaf, "b": leaf}}})

    def read(at: Path) -> Any:
        state = interop.load_flax(at / "checkpoint.flax")
        for params in (state.params, state.ema_params):
            MODEL.nll_bound(params, torch.zeros(1, 2, dtype=torch.int64), random.key(0))
        return state

    one = bytes(4)
    entries = [msgpack.packb(name) + msgpack.packb(entry) for name, entry in state.items()]
    lies = {
        "a name twice": bytes([0x84]) + b"".join(entries) + entries[0],
        "a name that is no UTF-8": content.replace(b"\xa1w", b"\xa1\xff"),
        "an unknown name": content.replace(b"\xa1w", b"\xa1v"),
        "two numbers for one": with_leaf(packed((2,), "float32", bytes(8))),
        "a list of 2**32 - 1": b"\xdd" + struct.pack(">I", 2**32 - 1),
        **{f"dtype {name}": with_leaf(packed((1,), name, one)) for name in ("qint8", "complex64", "", "f4")},
        **{f"shape {n}": with_leaf(packed(n, "float32", one)) for n in ((-1,), (2,), (2**40,), (1.0,), "1", (0,))},
    }
    return Format("official checkpoint", {"checkpoint.flax": content}, read, tuple(open_), lies)


def _codec() -> Format:
    x = random.randint(random.key(1), (3, 2), 0, 8)
    content = codec.encode(MODEL, PARAMS, x, timesteps=1)
    return Format("compressed data", {"x": content}, lambda at: codec.decode(MODEL, PARAMS, (at / "x").read_bytes()))


def _taken(data: Any) -> Any:
    return data.take(np.arange(data.size)), None if data.labels is None else np.asarray(data.labels), data.vocab_size


def _idx() -> Iterator[Format]:
    x = RNG.integers(0, 256, (3, 4, 5), np.uint8)
    images = struct.pack(">HBBIII", 0, 8, 3, *x.shape) + x.tobytes()
    labels = struct.pack(">HBBI", 0, 8, 1, 3) + bytes([2, 0, 1])
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    lies = {
        "three axes of 2**32 - 1": struct.pack(">HBBIII", 0, 8, 3, *[2**32 - 1] * 3) + bytes(100),
        "an axis of 0": struct.pack(">HBBIII", 0, 8, 3, 0, 4, 5),
    }

    def read(at: Path) -> Any:
        return _taken(readers.idx(at))

    yield Format("IDX", dict(zip(names, (images, labels), strict=True)), read, (range(16, len(images)),), lies)
    yield Format("IDX labels", dict(zip(names[::-1], (labels, images), strict=True)), read, (range(8, len(labels)),))
    bombs = {name: gzip.compress(content) for name, content in lies.items()}
    bombs |= {"a bomb": gzip.compress(images + bytes(50_000_000)), "other lengths": gzip.compress(images[:-1])}
    bombs |= {"two members": gzip.compress(images[:30]) + gzip.compress(images[30:])}
    bombs |= {"an LZMA file": lzma.compress(images), "a bzip2 file": bz2.compress(images)}
    files = {f"{names[0]}.gz": gzip.compress(images, mtime=0), f"{names[1]}.gz": gzip.compress(labels, mtime=0)}
    yield Format("IDX, gzipped", files, read, lies=bombs)


def tarred(files: dict[str, bytes], mode: str = "w", **fields: Any) -> bytes:
    """A tar archive; the fields are set in every entry."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            for field, value in ({"size": len(content)} | fields).items():
                setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(content) if content else None)
    return out.getvalue()


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code ran')",)


def _cifar() -> Iterator[Format]:
    x, y = RNG.integers(0, 256, (2, 3072), np.uint8), [3, 7]
    python = pickle.dumps({b"data": x, b"labels": y}, protocol=2)
    rows = np.concatenate([np.array(y, np.uint8)[:, None], x], 1).tobytes()
    raw = _spans(python, x.tobytes().decode("latin1").encode()) + _spans(python, b"K\x03K\x07")

    def read(at: Path) -> Any:
        return _taken(readers.cifar10(at, "test"))

    def of(entries: Any) -> bytes:
        return pickle.dumps(entries, protocol=2)

    batches = {
        "floats": of({b"data": x.astype(np.float32), b"labels": y}),
        "float labels": of({b"data": x, b"labels": [0.5, 1.0]}),
        "another class": of({b"data": x, b"labels": [3, 10]}),
        "code": of(Evil()),
        "no labels": of({b"data": x}),
        "an index of 2**31 - 1": b"\x80\x02}r\xff\xff\xff\x7f.",
        "2**40 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    }
    yield Format("CIFAR batch", {"test_batch": python}, read, raw, batches)
    yield Format("CIFAR binary batch", {"test_batch.bin": rows}, read, (range(len(rows)),), step=3073)
    inner = "cifar-10-batches-py/test_batch"
    lies = {
        "a member that says 10**10 bytes": gzip.compress(tarred({"PaxHeader": b""}, type=tarfile.XHDTYPE, size=10**10)),
        "a batch of a gigabyte": gzip.compress(tarred({inner: bytes(80_000_000)})),
        "a batch twice": tarred({inner: python, "./" + inner: python}),
        "a link for a batch": tarred({inner: b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "plain": tarred({inner: python}),
    }
    plain = {inner: python}, {"cifar-10-batches-bin/test_batch.bin": rows}
    python_gz, binary_gz = (gzip.compress(tarred(files), mtime=0) for files in plain)
    yield Format("CIFAR archive", {"cifar-10-python.tar.gz": python_gz}, read, lies=lies)
    yield Format("CIFAR binary archive", {"cifar-10-binary.tar.gz": binary_gz}, read)


def _spans(content: bytes, part: bytes) -> tuple[range, ...]:
    at = content.index(part)
    return (range(at, at + len(part)),)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED, twice: str | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in (*files, twice) if twice else files:
            archive.NameToInfo.clear()  # it would warn
            archive.writestr(zipfile.ZipInfo(name), files[name], compress_type=method)
    return out.getvalue()


def npy(x: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def npy_of(shape: Any, descr: Any = "|u1", data: bytes = b"") -> bytes:
    """A .npy file whose header says what it likes."""
    text = shape if isinstance(shape, str) else repr({"descr": descr, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def _headers() -> dict[str, bytes]:
    """.npy files whose headers lie."""
    six = bytes(6)
    return {
        "10**12 rows": npy_of((10**12, 2), data=six),
        "axes that overflow": npy_of((2**40, 2**40), data=six),
        "a negative axis": npy_of((-3, 2), data=six),
        "one row less": npy_of((2, 2), data=six),
        "one row more": npy_of((4, 2), data=six),
        "objects": npy_of((1, 1), "|O", pickle.dumps([Evil()])),
        "integers of 16 bits": npy_of((3, 2), "<u2", b"\xff" * 12),
        "numbers below 0": npy_of((3, 2), "|i1", b"\xff" * 6),
        "a header of 2**32 - 1 bytes": b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100),
        "a header that is code": npy_of("__import__('os').abort()", data=six),
    }


def _archives(good: dict[str, np.ndarray], first: str) -> dict[str, bytes]:
    """.npz files that are damaged as archives, by name of the fault."""
    files = {f"{name}.npy": npy(x) for name, x in good.items()}
    stored, deflated = zipped(files), zipped(files, zipfile.ZIP_DEFLATED)
    at = stored.index(b"PK\x01\x02")

    def entry(offset: int, form: str, value: int, local: int) -> bytes:
        changed = bytearray(stored)
        struct.pack_into(form, changed, at + offset, value)
        struct.pack_into(form, changed, local, value)
        return bytes(changed)

    lies = {
        "a method that nobody knows": entry(10, "<H", 99, 8),
        "a size of 2**32 - 2": entry(24, "<I", 2**32 - 2, 22),
        "another checksum": entry(16, "<I", 1, 14),
        "an array twice": zipped(files, twice=f"{first}.npy"),
        "damaged deflate": deflated[:60] + bytes(20) + deflated[80:],
        "an archive in it": zipped(files | {f"{first}.npy": stored}),
        "no arrays": zipped({"readme": b"x"}),
        "a bomb": zipped(files | {f"{first}.npy": npy_of((3, 2), data=bytes(50_000_000))}, zipfile.ZIP_DEFLATED),
    }
    headers = {name: zipped(files | {f"{first}.npy": header}, zipfile.ZIP_DEFLATED) for name, header in _headers().items()}
    return lies | {f"{first}: {name}": content for name, content in headers.items()}


def _imagenet() -> Iterator[Format]:
    arrays = {"data": RNG.integers(0, 256, (2, 3072), np.uint8), "labels": np.array([1, 1000])}

    def read(at: Path) -> Any:
        return _taken(readers.imagenet(at, 32, "test"))

    def of(**changes: np.ndarray) -> bytes:
        return zipped({f"{name}.npy": npy(x) for name, x in (arrays | changes).items()})

    lies = _archives(arrays, "data") | {
        "class 1001": of(labels=np.array([1, 1001])),
        "one label": of(labels=np.array([1])),
        "floats": of(data=arrays["data"].astype(np.float32)),
    }
    yield Format("ImageNet batch", {"val_data.npz": of()}, read, lies=lies)
    cache = npy(arrays["data"].reshape(-1, 3, 32, 32))
    yield Format("ImageNet cache", {"imagenet32_test.npy": cache, "val_data.npz": of()}, read, (range(128, len(cache)),))


def _arrays() -> Iterator[Format]:
    x = RNG.integers(0, 256, (5, 6), np.uint8)
    real = RNG.normal(size=(5, 3)).astype(np.float32)

    def read(at: Path) -> Any:
        return _taken(readers.array(next(at.glob("x.np?"))))

    for order, values in (("uint8", x), ("float32", real), ("float32 by columns", np.asfortranarray(real))):
        content = npy(values)
        yield Format(f"array of {order}", {"x.npy": content}, read, (range(128, len(content)),), _headers())
    good = {"x": x, "labels": np.arange(5)}
    content = zipped({f"{name}.npy": npy(values) for name, values in good.items()}, zipfile.ZIP_DEFLATED)
    yield Format("arrays, zipped", {"x.npz": content}, read, lies=_archives(good, "x") | _archives(good, "labels"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, bits: int = 8, colour: int = 2, *more: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _images() -> Format:
    rows = [RNG.integers(0, 256, (4, 3, 3), np.uint8) for _ in range(2)]
    frames = [Image.fromarray(image) for image in rows]

    def saved(kind: str, frame: Image.Image, **options: Any) -> bytes:
        out = io.BytesIO()
        frame.save(out, kind, **options)
        return out.getvalue()

    bomb = zlib.compress(bytes(50_000_000))
    lies = {
        "a picture of 10**10 pixels": png(100_000, 100_000, bomb),
        "a text of 50 megabytes": png(3, 4, zlib.compress(bytes(40)), 8, 2, _chunk(b"zTXt", b"a\0\0" + bomb)),
        "16 bits": png(3, 4, zlib.compress(bytes(4 * 19)), 16),
        "an animation": saved("GIF", frames[0], save_all=True, append_images=frames[1:]),
    }
    files = {f"{i}.png": saved("PNG", frame) for i, frame in enumerate(frames)}
    return Format("PNG images", files, lambda at: _taken(readers.image_folder(at)), lies=lies)
