"""Readers, on small files of the published forms; what is missing or damaged is named, with where to get it."""

import gzip
import os
import pickle
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
import readers
import torch
from PIL import Image
from readers import DataError

from purevdm.training.data import batch

RNG = np.random.default_rng(0)
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
IMAGES = {name: RNG.integers(0, 256, (4, 3072), np.uint8) for name in NAMES}
LABELS = {name: RNG.integers(0, 10, 4).tolist() for name in NAMES}


def write_cifar(folder, packed=False, binary=False, **changes):
    """CIFAR-10's python or binary version; a batch of other content, or left out where that is None."""
    entries = {name: {b"data": IMAGES[name], b"labels": LABELS[name], b"batch_label": b"x"} for name in NAMES}
    files = {name: pickle.dumps(found, protocol=2) for name, found in (entries | changes).items() if found is not None}
    inner, archived = folder / "cifar-10-batches-py", folder / "cifar-10-python.tar.gz"
    if binary:
        rows = {name: np.concatenate([np.array(LABELS[name], np.uint8)[:, None], IMAGES[name]], 1) for name in NAMES}
        files = {f"{name}.bin": table.tobytes() for name, table in rows.items()}
        inner, archived = folder / "cifar-10-batches-bin", folder / "cifar-10-binary.tar.gz"
    inner.mkdir(exist_ok=True)
    for name, content in files.items():
        (inner / name).write_bytes(content)
    if not packed:
        return inner
    with tarfile.open(archived, "w:gz") as archive:
        archive.add(inner, inner.name)
    shutil.rmtree(inner)
    return archived


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("above", [True, False])
def test_cifar(tmp_path, packed, binary, above):
    path = write_cifar(tmp_path, packed, binary)
    path = tmp_path if above else path
    train, test = (readers.cifar10(path, split) for split in ("train", "test"))
    assert (train.size, train.event_shape, train.vocab_size, train.classes) == (20, (3, 32, 32), 256, 10)
    want = np.concatenate([IMAGES[name] for name in NAMES[:5]]).reshape(-1, 3, 32, 32)
    assert (train.take(np.arange(20)) == want).all()
    assert test.labels.tolist() == LABELS["test_batch"]


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


X = IMAGES["test_batch"]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            {b"data": X.astype(np.float32), b"labels": [1] * 4},
            r"expected data of uint8 .*\(n, 3072\), found float32",
        ),
        ({b"data": X.astype(np.int64), b"labels": [1] * 4}, "expected data of uint8 .* found int64"),
        ({b"data": X[:, 1:], b"labels": [1] * 4}, r"expected data .* of shape \(4, 3071\)"),
        ({b"data": X, b"labels": [1] * 3}, r"expected 4 integer labels, found int64 of shape \(3,\)"),
        ({b"data": X, b"labels": [0.5] * 4}, "expected 4 integer labels, found float64"),
        ({b"data": X, b"labels": [1, 2, 3, 10]}, "expected labels from 0 to 9, found 1 to 10"),
        ({b"data": X, b"fine_labels": [1] * 4}, "damaged, not a batch of CIFAR-10 .*labels"),
        (Evil(), "damaged.*print is not allowed"),
    ],
)
def test_cifar_of_another_form(tmp_path, batch, words):
    write_cifar(tmp_path, test_batch=batch)
    with pytest.raises(DataError, match=rf"test_batch: {words}.*cs\.toronto\.edu"):
        readers.cifar10(tmp_path, "test")


# What Python 2 wrote of a dict of an array of uint8 and a list, as the published batches are.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01bq\x06\x87"
    b"q\x07Rq\x08(K\x01K\x04M\x00\x0c\x86q\tcnumpy\ndtype\nq\nU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01|q\x0eNNNJ\xff\xff"
    b"\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89T\x00\x30\x00\x00%btq\x10bU\x06labelsq\x11]q\x12(K\x03K\x01K\x04K\x01eu."
)


def test_cifar_as_python_2_wrote_it(tmp_path):
    folder = write_cifar(tmp_path)
    (folder / "test_batch").write_bytes(PYTHON_2 % X.tobytes())
    test = readers.cifar10(tmp_path, "test")
    assert (test.take(np.arange(4)) == X.reshape(4, 3, 32, 32)).all()
    assert test.labels.tolist() == [3, 1, 4, 1]


def test_cifar_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file.*cs\.toronto\.edu"):
        readers.cifar10(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data_batch_1: no such file.*cs\.toronto\.edu"):
        readers.cifar10(tmp_path)
    with pytest.raises(ValueError, match="split"):
        readers.cifar10(tmp_path, "validation")
    path = write_cifar(tmp_path, data_batch_3=None)
    with pytest.raises(DataError, match=r"data_batch_3: no such file.*cs\.toronto\.edu"):
        readers.cifar10(path)
    (path / "data_batch_3").write_bytes((path / "data_batch_2").read_bytes()[:500])
    with pytest.raises(DataError, match=r"data_batch_3: damaged.*cs\.toronto\.edu"):
        readers.cifar10(path)


def test_cifar_damaged_archives(tmp_path):
    path = write_cifar(tmp_path, packed=True, data_batch_2=None)
    with pytest.raises(DataError, match=r"python\.tar\.gz: damaged.*data_batch_2"):
        readers.cifar10(path)
    for content in (path.read_bytes()[:5000], gzip.compress(b"nothing of the kind")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"python\.tar\.gz: damaged"):
            readers.cifar10(path)


def write_imagenet(folder, size, n=3):
    x = {i: RNG.integers(0, 256, (n, 3 * size * size), np.uint8) for i in range(11)}
    for i, name in enumerate(["val_data", *(f"train_data_batch_{i}" for i in range(1, 11))]):
        np.savez(folder / f"{name}.npz", data=x[i], labels=np.linspace(1, 1000, n).astype(int), mean=x[i][0])
    return x


@pytest.mark.parametrize("size", [32, 64])
def test_imagenet_is_mapped_from_a_file_of_its_own(tmp_path, size):
    x = write_imagenet(tmp_path, size)
    for _ in range(2):  # the second call reads what the first wrote
        train = readers.imagenet(tmp_path, size)
        assert (train.size, train.event_shape, train.classes) == (30, (3, size, size), 1000)
        assert (train.take(np.array([4])) == x[2][1].reshape(3, size, size)).all()
        assert (train.take(np.array([29])) == x[10][2].reshape(3, size, size)).all()
        assert train.labels.tolist() == [0, 499, 999] * 10
    assert readers.imagenet(tmp_path, size, "test").labels.tolist() == [0, 499, 999]
    assert sorted(p.name for p in tmp_path.glob("*.npy")) == [f"imagenet{size}_test.npy", f"imagenet{size}_train.npy"]


def test_an_imagenet_cache_is_kept_while_it_fits_its_batches(tmp_path):
    write_imagenet(tmp_path, 32)
    readers.imagenet(tmp_path, 32, "test")
    cache = tmp_path / "imagenet32_test.npy"
    written = cache.stat()
    readers.imagenet(tmp_path, 32, "test")
    assert cache.stat().st_ino == written.st_ino

    def reread():
        return (readers.imagenet(tmp_path, 32, "test").take(np.arange(x.shape[0])) == x.reshape(-1, 3, 32, 32)).all()

    x = write_imagenet(tmp_path, 32)[0]
    os.utime(cache, ns=(0, 0))
    assert reread()  # newer batches
    x = write_imagenet(tmp_path, 32, n=4)[0]
    os.utime(tmp_path / "val_data.npz", ns=(0, 0))
    assert reread()  # another number of images, older than the cache
    np.save(cache, x.reshape(-1, 3, 32, 32).astype(np.float32))
    assert reread()
    cache.write_bytes(cache.read_bytes()[:300])
    assert reread()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (dict(labels=[1, 1001]), "expected labels from 1 to 1000, found 1 to 1001"),
        (dict(labels=[0, 1]), "expected labels from 1 to 1000, found 0 to 1"),
        (dict(labels=[1.5, 2.0]), "expected 2 integer labels, found float64"),
        (dict(labels=[1]), r"expected a label of each of 2 images, found int64 of shape \(1,\)"),
        (dict(data=np.zeros((2, 3072), np.float32)), "expected data of uint8"),
        (dict(data=np.zeros((2, 48), np.uint8)), r"expected data of uint8 and shape \(n, 3072\)"),
    ],
)
def test_imagenet_of_another_form(tmp_path, entries, words):
    np.savez(tmp_path / "val_data.npz", **(dict(data=np.zeros((2, 3072), np.uint8), labels=[1, 2]) | entries))
    with pytest.raises(DataError, match=rf"val_data\.npz: {words}.*image-net\.org"):
        readers.imagenet(tmp_path, 32, "test")
    assert not list(tmp_path.glob("*.npy"))


def test_imagenet_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"train_data_batch_1\.npz: no such file.*image-net\.org"):
        readers.imagenet(tmp_path, 32)
    with pytest.raises(DataError, match=r"val_data\.npz: no such file"):
        readers.imagenet(tmp_path, 32, "test")
    write_imagenet(tmp_path, 32)
    (tmp_path / "train_data_batch_10.npz").rename(tmp_path / "kept")
    with pytest.raises(DataError, match=r"train_data_batch_10\.npz: no such file"):
        readers.imagenet(tmp_path, 32)
    (tmp_path / "train_data_batch_10.npz").write_bytes((tmp_path / "kept").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"train_data_batch_10\.npz: damaged.*image-net\.org"):
        readers.imagenet(tmp_path, 32)
    with pytest.raises(ValueError, match="size"):
        readers.imagenet(tmp_path, 16)


def test_folders_of_images(tmp_path):
    x = RNG.integers(0, 256, (4, 6, 5, 3), np.uint8)
    for i, (folder, image) in enumerate(zip(("b", "a", "a", "b"), x, strict=True)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    data = readers.image_folder(tmp_path)
    assert (data.size, data.event_shape, data.classes, data.labels.tolist()) == (4, (3, 6, 5), 2, [0, 0, 1, 1])
    assert (data.take(np.array([2, 0])) == x[[0, 1]].transpose(0, 3, 1, 2)).all()
    assert readers.image_folder(tmp_path, size=2, channels=1).take(np.array([1])).shape == (1, 1, 2, 2)
    Image.fromarray(x[0][:3]).save(tmp_path / "b" / "9.png")
    with pytest.raises(DataError, match=r"9\.png: expected \(3, 6, 5\).*give size"):  # before any is taken
        readers.image_folder(tmp_path)
    (tmp_path / "b" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png: damaged"):
        readers.image_folder(tmp_path)
    with pytest.raises(DataError, match="expected a folder of images"):
        readers.image_folder(tmp_path / "none")


def deep_png(colour, channels):
    """A PNG of 2x2 pixels of 16 bits a channel, which Pillow writes for grey alone."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(range(4 * channels)) for _ in range(2)))
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32", (0, 1), (2, 3), (4, 2), (6, 4)])
def test_images_of_more_than_eight_bits_are_refused(tmp_path, kind):
    """As TIFF by its dtype, as PNG by its type of colour and channels."""
    if isinstance(kind, str):
        Image.fromarray(np.full((2, 2), 300, kind)).save(tmp_path / "deep.tif")
    else:
        (tmp_path / "deep.png").write_bytes(deep_png(*kind))
    with pytest.raises(DataError, match=r"deep\.\w+: expected 8 bits a channel, found more \(mode"):
        readers.image_folder(tmp_path)


def ppm(kind, largest):
    """A PPM of 2x2 pixels."""
    values = (np.arange(12) * largest // 11).astype(int)
    plain = " ".join(map(str, values)).encode()
    return b"P%d # a comment\n2 2\n%d\n" % (kind, largest) + (
        plain if kind == 3 else values.astype("u1" if largest < 256 else ">u2").tobytes()
    )


def sgi(largest):
    x = np.linspace(0, largest, 12)
    head = struct.pack(">hBBHHHH", 474, 0, 1 if largest < 256 else 2, 3, 2, 2, 3) + bytes(500)
    return head + x.astype("u1" if largest < 256 else ">u2").tobytes()


def packed(kind, bits):
    """Grey ramps by imagecodecs, in so many bits."""
    imagecodecs = pytest.importorskip("imagecodecs")
    x = (np.arange(3 * 64 * 64).reshape(64, 64, 3) * (2**bits - 1) // (3 * 64 * 64)).astype("u1" if bits == 8 else "u2")
    if kind == "avif":
        return imagecodecs.avif_encode(x, bitspersample=bits)
    return imagecodecs.jpeg2k_encode(x, bitspersample=bits, codecformat=kind)


DEPTHS = {
    ("ppm", 6): lambda deep: ppm(6, 1023 if deep else 255),
    ("ppm", 3): lambda deep: ppm(3, 65535 if deep else 200),
    ("sgi", 2): lambda deep: sgi(65535 if deep else 255),
    ("jp2", 16): lambda deep: packed("jp2", 16 if deep else 8),
    ("jp2", 12): lambda deep: packed("jp2", 12 if deep else 8),
    ("j2k", 10): lambda deep: packed("j2k", 10 if deep else 8),
    ("avif", 10): lambda deep: packed("avif", 10 if deep else 8),
    ("avif", 12): lambda deep: packed("avif", 12 if deep else 8),
}


@pytest.mark.parametrize("kind", DEPTHS)
def test_formats_that_pillow_cuts_to_eight_bits(tmp_path, kind):
    """Its modes do not tell; the files' own headers do."""
    file = tmp_path / f"x.{kind[0]}"
    file.write_bytes(DEPTHS[kind](False))
    with Image.open(file) as image:
        want = np.asarray(image).transpose(2, 0, 1)
    assert (readers.image_folder(tmp_path).take(np.array([0]))[0] == want).all()
    file.write_bytes(DEPTHS[kind](True))
    with Image.open(file) as image:
        assert image.mode == "RGB"
    with pytest.raises(DataError, match=r"x\.\w+: expected 8 bits a channel, found more \(mode RGB"):
        readers.image_folder(tmp_path)


def test_pictures_of_a_format_without_a_known_depth_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", "DDS")
    with pytest.raises(DataError, match=r"x\.png: expected a format whose depth is known, found DDS"):
        readers.image_folder(tmp_path)


@pytest.mark.parametrize(
    ("mode", "tags", "words"), [("RGBX", {}, "3 channels, found 4"), ("L", {339: 2}, "unsigned integers")]
)
def test_what_pillow_leaves_out_of_a_tiff_is_refused(tmp_path, mode, tags, words):
    """A fourth channel that is no opacity; signs."""
    Image.new(mode, (2, 2)).save(tmp_path / "x.tif", tiffinfo=tags)
    with pytest.raises(DataError, match=rf"x\.tif: expected {words}"):
        readers.image_folder(tmp_path, channels=3)


def test_transparent_pixels_are_refused_kept_or_filled(tmp_path):
    opaque, hidden = (np.full((2, 2, 4), value, np.uint8) for value in (255, 40))
    hidden[0, 0, 3] = 0
    Image.fromarray(opaque).save(tmp_path / "0.png")
    assert (readers.image_folder(tmp_path).take(np.array([0])) == 255).all()
    Image.fromarray(hidden).save(tmp_path / "1.png")
    palette = Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P")
    palette.save(tmp_path / "2.png", transparency=0)
    with pytest.raises(DataError, match=r"1\.png: expected an opaque picture.*give a background .* or 2 or 4 channels"):
        readers.image_folder(tmp_path)
    data = readers.image_folder(tmp_path, channels=4)
    assert (data.take(np.array([1]))[0] == hidden.transpose(2, 0, 1)).all()
    assert readers.image_folder(tmp_path, channels=2, size=1).event_shape == (2, 1, 1)
    for channels in (1, 3):
        x = readers.image_folder(tmp_path, channels=channels, background=200).take(np.array([0, 1, 2]))
        assert (x[:, 0, 0, 0] == [255, 200, 200]).all()
        assert x[1, 0, 1, 1] == round(200 + (40 - 200) * 40 / 255)
    for options in (dict(background=256), dict(channels=5), dict(background=1.0)):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            readers.image_folder(tmp_path, **options)


def test_images_are_shown_as_their_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera turned by 90 degrees
    image = Image.fromarray(RNG.integers(0, 256, (2, 3, 3), np.uint8))
    image.save(tmp_path / "1.png", exif=exif)
    (tmp_path / "._1.png").write_bytes(b"what a Mac leaves")
    Image.fromarray(np.rot90(np.asarray(image), -1).copy()).save(tmp_path / "2.png")
    exif[0x0112] = 8
    Image.fromarray(np.asarray(image)[::-1, ::-1].copy()).save(tmp_path / "3.tif", exif=exif)
    data = readers.image_folder(tmp_path)
    assert data.size == 3
    assert (data.take(np.arange(3)) == np.rot90(np.asarray(image), -1).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("shape", "layout", "event"),
    [
        ((5, 3, 8, 9), None, (3, 8, 9)),
        ((5, 8, 9, 3), None, (3, 8, 9)),
        ((5, 3, 8, 3), "channels_first", (3, 8, 3)),
        ((5, 8, 9), None, (1, 8, 9)),
        ((5, 7), None, (7,)),
        ((5, 2, 3, 4, 5), None, (2, 3, 4, 5)),
        ((5, 6, 7, 8, 1), None, (1, 6, 7, 8)),
        ((5, 6, 7, 8), "none", (1, 6, 7, 8)),
        ((5, 3, 7, 8), "none", (1, 3, 7, 8)),
    ],
)
def test_arrays(tmp_path, shape, layout, event):
    x = RNG.integers(0, 16, shape, np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, labels=np.arange(5))
    for name, classes in (("x.npy", 0), ("x.npz", 5)):
        data = readers.array(tmp_path / name, layout, vocab_size=16)
        assert (data.event_shape, data.size, data.vocab_size, data.classes) == (event, 5, 16, classes)
        first = data.take(np.array([1]))[0]
        assert sorted(first.ravel()) == sorted(x[1].ravel())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_real_numbers_keep_their_dtype(tmp_path, dtype):
    x = RNG.normal(size=(5, 8, 9, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    data = readers.array(tmp_path / "x.npy")
    assert (data.event_shape, data.size, data.vocab_size) == ((3, 8, 9), 5, None)
    found, _ = batch(data, np.array([3, 1]))
    assert found.numpy().dtype == dtype
    assert (found.numpy() == x[[3, 1]].transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize("dtype", ["bool", "int8", ">u2", "<u4", "int64", ">i8", ">f4", ">f8"])
def test_arrays_of_every_dtype_and_byte_order(tmp_path, dtype):
    x = (np.arange(12).reshape(4, 3) % (2 if dtype == "bool" else 12)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, labels=np.array([2, 0, 1, 1], ">u8"))
    for name, labels in (("x.npy", None), ("x.npz", [0, 1])):
        data = readers.array(tmp_path / name, vocab_size=256)
        found, classes = batch(data, np.array([1, 3]))
        assert found.tolist() == x[[1, 3]].tolist()
        assert found.dtype == {"b": torch.uint8, "f": torch.from_numpy(x.astype(dtype.lstrip(">"))).dtype}.get(
            x.dtype.kind, torch.int64
        )
        assert data.vocab_size == {"b": 2, "f": None}.get(x.dtype.kind, 256)
        assert (classes if labels is None else classes.tolist()) == labels
    if x.dtype.kind in "iu":
        assert readers.array(tmp_path / "x.npy", vocab_size=12).vocab_size == 12


def test_labels_that_are_all_minus_one_stand_for_none(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 2), np.uint8), labels=[-1, -1])
    data = readers.array(tmp_path / "x.npz")
    assert (data.labels, data.classes) == (None, 0)


def test_bad_arrays_are_named(tmp_path):
    def saved(x, name="x.npy"):
        np.save(tmp_path / name, x)
        return tmp_path / name

    with pytest.raises(DataError, match="no such file"):
        readers.array(tmp_path / "none.npy")
    for x, word in [
        (np.zeros((5, 3), np.float16), "expected integers, float32 or float64"),
        (np.zeros((5, 3), np.complex64), "expected integers, float32 or float64"),
        (np.zeros((0, 3), np.uint8), "expected integers"),
        (np.full((5, 3), 256, np.uint16), r"expected values in \[0, 255\], found 256; vocab_size says"),
        (np.full((5, 3), -1, np.int64), r"expected values in \[0, 255\], found -1"),
        (np.full((5, 3), 2**64 - 1, np.uint64), r"expected values in \[0, 255\], found 18446744073709551615"),
        (np.zeros((5, 8, 8, 8), np.uint8), "give the layout .'none' for data without channels"),
        (np.array([[1.0, np.nan]]), "expected finite numbers, found NaN"),
        (np.array([[1.0, np.inf]], np.float32), "expected finite numbers, found an infinity"),
        (np.zeros((5, 3, 8, 3), np.uint8), "channels_first or channels_last"),
    ]:
        with pytest.raises(DataError, match=word):
            readers.array(saved(x))
    with pytest.raises(DataError, match=r"expected values in \[0, 15\], found 16"):
        readers.array(saved(np.full((5, 3), 16, np.uint8)), vocab_size=16)
    for dtype in ("float64", "bool"):
        with pytest.raises(DataError, match=f"expected integers for a vocab_size of 16, found {dtype}"):
            readers.array(saved(np.zeros((5, 3), dtype)), vocab_size=16)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match=r"pipe\.npy: expected a regular file, got a pipe"):
        readers.array(tmp_path / "pipe.npy")
    path = saved(np.zeros((500, 30), np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        readers.array(path)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2), np.uint8), b=np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="expected one array or a key"):
        readers.array(tmp_path / "two.npz")
    assert readers.array(tmp_path / "two.npz", key="b").size == 2
    with pytest.raises(DataError, match="expected one array or a key"):
        readers.array(tmp_path / "two.npz", key="c")
    for labels in ([0.5, 1.0], [0], [-1, 2], np.array([2**63, 1], np.uint64)):
        np.savez(tmp_path / "labels.npz", x=np.zeros((2, 2), np.uint8), labels=labels)
        with pytest.raises(DataError, match=r"labels\.npz: expected .*labels"):
            readers.array(tmp_path / "labels.npz")
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"x\.csv: expected a \.npy or \.npz file, which numpy\.save writes"):
        readers.array(tmp_path / "x.csv")


def test_hugging_face_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(RNG.integers(0, 256, (4, 4), np.uint8)) for _ in range(3)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"img": images, "label": [0, 2, 1]}, features=features)
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "set"))
    data = readers.huggingface(str(tmp_path / "set"))
    assert (data.size, data.event_shape, data.classes) == (3, (1, 4, 4), 3)
    assert (data.take(np.array([1]))[0, 0] == np.asarray(images[1])).all()
    with pytest.raises(DataError, match=r"expected a split 'test', found \['train'\]"):
        readers.huggingface(str(tmp_path / "set"), "test")
    with pytest.raises(DataError, match="expected columns of images and labels, got 'picture'"):
        readers.huggingface(str(tmp_path / "set"), image="picture")
    with pytest.raises(DataError, match="neither a `Dataset` directory"):
        readers.huggingface(str(tmp_path))


def test_hugging_face_of_another_form(tmp_path):
    datasets = pytest.importorskip("datasets")

    def saved(image, **columns):
        features = datasets.Features({"img": datasets.Image()} | {name: kind for name, (kind, _) in columns.items()})
        rows = {"img": [image]} | {name: [value] for name, (_, value) in columns.items()}
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
        return path

    colour = Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    classes = datasets.ClassLabel(names=["a", "b", "c"])
    assert readers.huggingface(saved(colour, label=(classes, 1))).classes == 3
    with pytest.raises(DataError, match="column 'label': expected 1 integer labels, found float64"):
        readers.huggingface(saved(colour, label=(datasets.Value("float64"), 0.5)))
    with pytest.raises(DataError, match="image 0: expected 8 bits a channel, found more"):
        readers.huggingface(saved(Image.fromarray(np.full((2, 2), 300, np.uint16))))
    for image in ({"bytes": b"nothing of the kind", "path": None}, None):
        with pytest.raises(DataError, match="image 0: damaged, not an image"):
            readers.huggingface(saved(image))


def test_hugging_face_as_its_columns_are_declared(tmp_path):
    """Formats, modes and labels of a saved set."""
    datasets = pytest.importorskip("datasets")
    grey, colour = (Image.fromarray(RNG.integers(0, 256, shape, np.uint8)) for shape in ((2, 2), (2, 2, 3)))

    def saved(mode=None, labels=(1, 0), form=None, images=(grey, colour)):
        features = datasets.Features({"img": datasets.Image(mode=mode), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict({"img": list(images), "label": list(labels)}, features=features)
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        table.with_format(form, columns=["label"] if form else None).save_to_disk(path)
        return path

    for form in (None, "torch", "numpy"):
        data = readers.huggingface(saved("RGB", form=form))
        x, labels = batch(data, np.array([0, 1]))
        assert (x.numpy() == [np.asarray(i.convert("RGB")).transpose(2, 0, 1) for i in (grey, colour)]).all()
        assert labels.tolist() == [1, 0]
    data = readers.huggingface(saved("L"))
    assert (data.take(np.array([1]))[0, 0] == np.asarray(colour.convert("L"))).all()
    assert readers.huggingface(saved("L"), channels=3).event_shape == (3, 2, 2)
    assert readers.huggingface(saved("RGBA")).event_shape == (4, 2, 2)
    with pytest.raises(DataError, match=r"image 1: expected \(1, 2, 2\) as the first image, found \(3, 2, 2\)"):
        readers.huggingface(saved())
    with pytest.raises(DataError, match="found 'CMYK'; give the channels"):
        readers.huggingface(saved("CMYK"))
    for labels in ((-1, -1), (None, None)):
        data = readers.huggingface(saved("L", labels))
        assert (data.labels, data.classes) == (None, 0)
    path = saved("L", (-1, 2))
    with pytest.raises(DataError, match="expected labels of at least 0, found -1"):
        readers.huggingface(path)
    assert readers.huggingface(path, label="").labels is None


def test_digits():
    data = readers.digits()
    assert (data.size, data.event_shape, data.vocab_size, data.classes) == (1797, (1, 8, 8), 17, 10)
    assert data.take(np.arange(1797)).max() == 16


KINDS = {"train": "train", "test": "t10k"}


def write_idx(folder, packed=False, n=5, **changes):
    """MNIST's four files; one of other content, or left out where that is None."""
    folder.mkdir(exist_ok=True)
    content = {}
    for split, name in KINDS.items():
        x = np.random.default_rng(len(split)).integers(0, 256, (n, 6, 4), np.uint8)
        content[f"{name}-images-idx3-ubyte"] = struct.pack(">HBBIII", 0, 8, 3, *x.shape) + x.tobytes()
        content[f"{name}-labels-idx1-ubyte"] = struct.pack(">HBBI", 0, 8, 1, n) + bytes(range(n))
    for name, found in (content | changes).items():
        if found is not None:
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(found) if packed else found)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx(tmp_path, packed, split):
    data = readers.idx(write_idx(tmp_path / "mnist", packed), split)
    assert (data.name, data.size, data.event_shape, data.vocab_size) == (f"mnist {split}", 5, (1, 6, 4), 256)
    assert (data.labels.tolist(), data.classes) == ([0, 1, 2, 3, 4], 5)
    x = np.random.default_rng(len(split)).integers(0, 256, (5, 6, 4), np.uint8)
    assert (data.take(np.array([4, 0])) == x[[4, 0], None]).all()


@pytest.mark.parametrize(
    ("prefix", "test", "dot"), [("", "t10k", "."), ("emnist-letters-", "test", "-"), ("emnist-mnist-", "test", "-")]
)
@pytest.mark.parametrize("packed", [True, False])
def test_idx_under_other_names(tmp_path, prefix, test, dot, packed):
    """Kaggle's, with folders named like the files of MNIST; EMNIST's, several sets in a folder."""
    folder = write_idx(tmp_path / "gzip", packed)
    for file in list(folder.iterdir()):
        name = file.name.replace("t10k", test).replace("-idx", f"{dot}idx")
        for each in {prefix, prefix and "emnist-byclass-"}:
            shutil.copy(file, folder / (each + name))
        file.unlink()
        file.mkdir()
    path = folder / prefix[:-1] if prefix else folder
    for split in ("train", "test"):
        data = readers.idx(path, split)
        assert (data.name, data.size, data.classes) == (f"{path.name} {split}", 5, 5)
        assert (
            data.take(np.arange(5))[:, 0] == np.random.default_rng(len(split)).integers(0, 256, (5, 6, 4), np.uint8)
        ).all()
    if prefix:
        with pytest.raises(
            DataError, match=f"gzip: expected one set, found emnist-byclass, {prefix[:-1]}; give the path of one"
        ):
            readers.idx(folder)
        with pytest.raises(DataError, match="gzip/emnist-digits-train-images-idx3-ubyte: no such file"):
            readers.idx(folder / "emnist-digits")


IMAGES_HEADER = struct.pack(">HBBIII", 0, 8, 3, 5, 6, 4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("images-idx3", None, "no such file"),
        ("images-idx3", b"", "expected a header of 16 bytes, found 0"),
        ("images-idx3", IMAGES_HEADER[:9], "expected a header of 16 bytes, found 9"),
        ("images-idx3", IMAGES_HEADER + bytes(119), r"expected 120 bytes of shape \(5, 6, 4\), found 119"),
        ("images-idx3", IMAGES_HEADER + bytes(121), r"expected 120 bytes of shape \(5, 6, 4\), found more"),
        ("images-idx3", struct.pack(">HBBIII", 0, 8, 3, *[2**32 - 1] * 3) + bytes(9), "found 9"),
        ("images-idx3", struct.pack(">HBBIII", 0, 8, 3, 0, 6, 4), "expected unsigned bytes in 3 axes"),
        ("images-idx3", struct.pack(">HBBIII", 0, 13, 3, 5, 6, 4) + bytes(480), "expected unsigned bytes in 3 axes"),
        ("labels-idx1", IMAGES_HEADER + bytes(120), "expected unsigned bytes in 1 axes"),
        ("labels-idx1", struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4), "expected 5 integer labels"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_idx_of_another_form(tmp_path, packed, name, content, words):
    name = f"train-{name}-ubyte"
    folder = write_idx(tmp_path / "mnist", packed, **{name: content})
    with pytest.raises(DataError, match=f"{name}.*{words}.*dataset-fashion-mnist"):
        readers.idx(folder)
    assert readers.idx(folder, "test").size == 5


def test_idx_damaged(tmp_path):
    folder = write_idx(tmp_path / "mnist", packed=True)
    file = folder / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for content in (whole[:-9], whole[:20] + b"?" + whole[21:], b"plain"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: damaged, not an IDX file"):
            readers.idx(folder)
    with pytest.raises(ValueError, match="split"):
        readers.idx(folder, "validation")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.npy", lambda path: readers.array(path)),
        ("x.npz", lambda path: readers.array(path)),
        ("cifar-10-python.tar.gz", lambda path: readers.cifar10(path.parent)),
        ("cifar-10-batches-py/data_batch_1", lambda path: readers.cifar10(path.parent.parent)),
        ("train_data_batch_1.npz", lambda path: readers.imagenet(path.parent, 32)),
        ("train-images-idx3-ubyte", lambda path: readers.idx(path.parent)),
        ("train-images-idx3-ubyte.gz", lambda path: readers.idx(path.parent)),
        ("x.png", lambda path: readers.image_folder(path.parent)),
    ],
)
def test_pipes_are_refused(tmp_path, name, read):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"expected a regular file|no such file|found none"):
        read(path)
