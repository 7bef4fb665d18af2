"""Readers, on small files of the published forms; what is missing or of another form is named, with where to get it."""

import os
import pickle
import shutil
import struct
import tarfile
from gzip import compress

import numpy as np
import pytest
import readers
import torch
from damage import png
from PIL import Image
from readers import DataError

from purevdm.training.data import batch

RNG = np.random.default_rng(0)
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
IMAGES = {name: RNG.integers(0, 256, (4, 3072), np.uint8) for name in NAMES}
LABELS = {name: RNG.integers(0, 10, 4).tolist() for name in NAMES}
X = IMAGES["test_batch"]


def write_cifar(folder, packed=False, binary=False, **changes):
    """CIFAR-10's python or binary version; a batch of other content, or left out where that is None."""
    entries = {name: {b"data": IMAGES[name], b"labels": LABELS[name], b"batch_label": b"x"} for name in NAMES} | changes
    files = {name: pickle.dumps(entry, protocol=2) for name, entry in entries.items() if entry is not None}
    if binary:
        rows = {name: np.concatenate([np.array(LABELS[name], np.uint8)[:, None], IMAGES[name]], 1) for name in NAMES}
        files = {f"{name}.bin": table.tobytes() for name, table in rows.items()}
    inner = folder / f"cifar-10-batches-{'bin' if binary else 'py'}"
    inner.mkdir(exist_ok=True)
    for name, content in files.items():
        (inner / name).write_bytes(content)
    if not packed:
        return inner
    archived = folder / f"cifar-10-{'binary' if binary else 'python'}.tar.gz"
    with tarfile.open(archived, "w:gz") as archive:
        archive.add(inner, inner.name)
    shutil.rmtree(inner)
    return archived


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_cifar(tmp_path, packed, binary):
    """By its path, and by the folder that holds it."""
    for path in (write_cifar(tmp_path, packed, binary), tmp_path):
        train, test = (readers.cifar10(path, split) for split in ("train", "test"))
        assert (train.size, train.event_shape, train.vocab_size, train.classes) == (20, (3, 32, 32), 256, 10)
        want = np.concatenate([IMAGES[name] for name in NAMES[:5]]).reshape(-1, 3, 32, 32)
        assert (train.take(np.arange(20)) == want).all()
        assert test.labels.tolist() == LABELS["test_batch"]


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


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({b"data": X.astype(np.int64), b"labels": [1] * 4}, r"expected data of uint8 .*\(n, 3072\), found int64"),
        ({b"data": X, b"labels": [1] * 3}, r"expected 4 integer labels, found int64 of shape \(3,\)"),
        ({b"data": X, b"labels": [1, 2, 3, 10]}, "expected labels from 0 to 9, found 1 to 10"),
        (print, "damaged.*print is not allowed"),
        (None, "no such file"),
    ],
)
def test_cifar_of_another_form(tmp_path, entries, words):
    write_cifar(tmp_path, test_batch=entries)
    with pytest.raises(DataError, match=rf"test_batch: {words}.*cs\.toronto\.edu"):
        readers.cifar10(tmp_path, "test")
    with pytest.raises(ValueError, match="split"):
        readers.cifar10(tmp_path, "validation")


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
    cache.write_bytes(cache.read_bytes()[:300])
    assert reread()


def test_imagenet_of_another_form(tmp_path):
    for entries, words in (
        (dict(labels=[0, 1]), "expected labels from 1 to 1000, found 0 to 1"),
        (dict(labels=[1]), r"expected a label of each of 2 images, found int64 of shape \(1,\)"),
        (dict(data=np.zeros((2, 48), np.uint8)), r"expected data of uint8 and shape \(n, 3072\)"),
    ):
        np.savez(tmp_path / "val_data.npz", **(dict(data=np.zeros((2, 3072), np.uint8), labels=[1, 2]) | entries))
        with pytest.raises(DataError, match=rf"val_data\.npz: {words}.*image-net\.org"):
            readers.imagenet(tmp_path, 32, "test")
    assert not list(tmp_path.glob("*.npy"))
    with pytest.raises(DataError, match=r"train_data_batch_1\.npz: no such file.*image-net\.org"):
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
    with pytest.raises(DataError, match="expected a folder of images"):
        readers.image_folder(tmp_path / "none")


def saved_as(kind):
    """Writes a grey picture of a kind of pixels as TIFF."""
    return lambda path: Image.fromarray(np.full((2, 2), 300, kind)).save(path, "TIFF")


UNFIT = {
    "uint16": (saved_as("uint16"), "8 bits a channel, found more"),
    "float32": (saved_as("float32"), "8 bits a channel, found more"),
    "grey PNG": (lambda path: path.write_bytes(png(2, 2, b"", 16, 0)), "8 bits a channel, found more"),
    "colour PNG": (lambda path: path.write_bytes(png(2, 2, b"", 16, 2)), "8 bits a channel, found more"),
    "PNG with opacity": (lambda path: path.write_bytes(png(2, 2, b"", 16, 6)), "8 bits a channel, found more"),
    "PPM": (lambda path: path.write_bytes(b"P6 # a comment\n2 2\n1023\n" + bytes(24)), "8 bits a channel, found more"),
    "plain PPM": (lambda path: path.write_bytes(b"P3\n1 1\n65535\n1 2 3"), "8 bits a channel, found more"),
    "DDS": (lambda path: Image.new("RGB", (4, 4)).save(path, "DDS"), "a format whose depth is known, found DDS"),
    "a fourth channel": (lambda path: Image.new("RGBX", (2, 2)).save(path, "TIFF"), "3 channels, found 4"),
    "signs": (lambda path: Image.new("L", (2, 2)).save(path, "TIFF", tiffinfo={339: 2}), "unsigned integers"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_images_that_pillow_would_cut_are_refused(tmp_path, kind):
    """To eight bits, to three channels, to no signs; its modes do not say so, but headers do."""
    write, words = UNFIT[kind]
    write(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: expected {words}"):
        readers.image_folder(tmp_path)


def test_images_of_eight_bits_are_read(tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (4, 3, 3), np.uint8))
    for kind in ("PNG", "PPM", "TIFF", "BMP"):
        image.save(tmp_path / "x.tif", kind)
        assert (readers.image_folder(tmp_path).take(np.array([0]))[0] == np.asarray(image).transpose(2, 0, 1)).all()


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
        assert sorted(data.take(np.array([1]))[0].ravel()) == sorted(x[1].ravel())


@pytest.mark.parametrize("dtype", ["bool", "int8", ">u2", "int64", ">i8", "<f4", ">f8"])
def test_arrays_of_every_dtype_and_byte_order(tmp_path, dtype):
    """Real numbers keep theirs."""
    x = (np.arange(12).reshape(4, 3) % (2 if dtype == "bool" else 12)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, labels=np.array([2, 0, 1, 1], ">u8"))
    for name, labels in (("x.npy", None), ("x.npz", [0, 1])):
        data = readers.array(tmp_path / name)
        rows, classes = batch(data, np.array([1, 3]))
        assert rows.tolist() == x[[1, 3]].tolist()
        assert rows.dtype == {"bool": torch.uint8, "<f4": torch.float32, ">f8": torch.float64}.get(dtype, torch.int64)
        assert data.vocab_size == {"b": 2, "f": None}.get(x.dtype.kind, 256)
        assert (classes if labels is None else classes.tolist()) == labels


def test_bad_arrays_are_named(tmp_path):
    path = tmp_path / "x.npy"
    for x, word in [
        (np.zeros((5, 3), np.float16), "expected integers, float32 or float64"),
        (np.zeros((0, 3), np.uint8), "expected integers"),
        (np.full((5, 3), -1, np.int64), r"expected values in \[0, 255\], found -1"),
        (np.full((5, 3), 2**64 - 1, np.uint64), r"expected values in \[0, 255\], found 18446744073709551615; vocab_size"),
        (np.zeros((5, 8, 8, 8), np.uint8), "give the layout .'none' for data without channels"),
        (np.zeros((5, 3, 8, 3), np.uint8), "channels_first or channels_last"),
        (np.array([[1.0, np.nan]]), "expected finite numbers, found NaN"),
        (np.array([[1.0, np.inf]], np.float32), "expected finite numbers, found an infinity"),
    ]:
        np.save(path, x)
        with pytest.raises(DataError, match=rf"x\.npy: .*{word}"):
            readers.array(path)
    for x, word in (
        (np.full((5, 3), 16, np.uint8), r"expected values in \[0, 15\], found 16"),
        (np.zeros((5, 3)), "expected integers for a vocab_size of 16, found float64"),
        (np.zeros((5, 3), bool), "expected integers for a vocab_size of 16, found bool"),
    ):
        np.save(path, x)
        with pytest.raises(DataError, match=word):
            readers.array(path, vocab_size=16)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2), np.uint8), b=np.zeros((2, 2), np.uint8))
    assert readers.array(tmp_path / "two.npz", key="b").size == 2
    for key in (None, "c"):
        with pytest.raises(DataError, match="expected one array or a key"):
            readers.array(tmp_path / "two.npz", key=key)
    for labels in ([0.5, 1.0], [0], [-1, 2], np.array([2**63, 1], np.uint64)):
        np.savez(tmp_path / "labels.npz", x=np.zeros((2, 2), np.uint8), labels=labels)
        with pytest.raises(DataError, match=r"labels\.npz: expected .*labels"):
            readers.array(tmp_path / "labels.npz")
    np.savez(tmp_path / "labels.npz", x=np.zeros((2, 2), np.uint8), labels=[-1, -1])
    assert readers.array(tmp_path / "labels.npz").labels is None  # of a split without labels
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"x\.csv: expected a \.npy or \.npz file, which numpy\.save writes"):
        readers.array(tmp_path / "x.csv")


GREY, COLOUR = (Image.fromarray(RNG.integers(0, 256, shape, np.uint8)) for shape in ((2, 2), (2, 2, 3)))


@pytest.fixture
def saved(tmp_path):
    """Saves images and labels as Hugging Face's library does."""
    datasets = pytest.importorskip("datasets")

    def saved(images, labels, mode=None, form=None, label=None, split=False):
        features = datasets.Features({"img": datasets.Image(mode=mode), "label": label or datasets.Value("int64")})
        table = datasets.Dataset.from_dict({"img": list(images), "label": list(labels)}, features=features)
        table = table.with_format(form, columns=["label"] if form else None)
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (datasets.DatasetDict({"train": table}) if split else table).save_to_disk(path)
        return path

    return saved


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_hugging_face_from_disk(saved, form):
    """As its columns are declared, in whatever format they were saved."""
    path = saved([GREY, COLOUR], [2, 0], "RGB", form, split=True)
    data = readers.huggingface(path)
    assert (data.size, data.event_shape, data.classes) == (2, (3, 2, 2), 3)
    x, labels = batch(data, np.array([0, 1]))
    assert (x.numpy() == [np.asarray(i.convert("RGB")).transpose(2, 0, 1) for i in (GREY, COLOUR)]).all()
    assert labels.tolist() == [2, 0]
    with pytest.raises(DataError, match=r"expected a split 'test', found \['train'\]"):
        readers.huggingface(path, "test")
    with pytest.raises(DataError, match="expected columns of images and labels, got 'picture'"):
        readers.huggingface(path, image="picture")


def test_hugging_face_with_other_modes_and_labels(saved, tmp_path):
    import datasets

    path = saved([GREY, COLOUR], [1, 0], "L")
    assert (readers.huggingface(path).take(np.array([1]))[0, 0] == np.asarray(COLOUR.convert("L"))).all()
    assert readers.huggingface(path, channels=3).event_shape == (3, 2, 2)
    assert readers.huggingface(saved([GREY], [0], "RGBA")).event_shape == (4, 2, 2)
    assert readers.huggingface(saved([GREY], [1], label=datasets.ClassLabel(names=["a", "b", "c"]))).classes == 3
    for labels in ((-1, -1), (None, None)):
        data = readers.huggingface(saved([GREY, GREY], labels))
        assert (data.labels, data.classes) == (None, 0)
    below = saved([GREY, GREY], (-1, 2))
    assert readers.huggingface(below, label="").labels is None
    for path, words in (
        (below, "column 'label': expected labels of at least 0, found -1"),
        (saved([GREY], [0.5], label=datasets.Value("float64")), "column 'label': expected 1 integer labels, found float64"),
        (saved([GREY, COLOUR], [0, 0]), r"image 1: expected \(1, 2, 2\) as the first image, found \(3, 2, 2\)"),
        (saved([GREY], [0], "CMYK"), "found 'CMYK'; give the channels"),
        (saved([Image.fromarray(np.full((2, 2), 300, np.uint16))], [0]), "image 0: expected 8 bits a channel, found more"),
        (saved([{"bytes": b"nothing of the kind", "path": None}], [0]), "image 0: damaged, not an image"),
        (saved([None], [0]), "image 0: damaged, not an image"),
        (str(tmp_path), "neither a `Dataset` directory"),
    ):
        with pytest.raises(DataError, match=words):
            readers.huggingface(path)


def test_digits():
    data = readers.digits()
    assert (data.size, data.event_shape, data.vocab_size, data.classes) == (1797, (1, 8, 8), 17, 10)
    assert data.take(np.arange(1797)).max() == 16


def idx_images(split):
    return np.random.default_rng(len(split)).integers(0, 256, (5, 6, 4), np.uint8)


def write_idx(folder, packed=False, **changes):
    """MNIST's four files; one of other content, or left out where that is None."""
    folder.mkdir(exist_ok=True)
    content = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        content[f"{name}-images-idx3-ubyte"] = struct.pack(">HBBIII", 0, 8, 3, 5, 6, 4) + idx_images(split).tobytes()
        content[f"{name}-labels-idx1-ubyte"] = struct.pack(">HBBI", 0, 8, 1, 5) + bytes(range(5))
    for name, own in (content | changes).items():
        if own is not None:
            (folder / (f"{name}.gz" if packed else name)).write_bytes(compress(own) if packed else own)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("prefix", "test", "dot"), [("", "t10k", "-"), ("", "t10k", "."), ("emnist-letters-", "test", "-")])
def test_idx(tmp_path, prefix, test, dot, packed):
    """MNIST's files; Kaggle's, with folders named like them; EMNIST's, several sets in a folder."""
    folder = write_idx(tmp_path / "gzip", packed)
    if (prefix, dot) != ("", "-"):
        for file in list(folder.iterdir()):
            name = file.name.replace("t10k", test).replace("-idx", f"{dot}idx")
            for each in {prefix, prefix and "emnist-byclass-"}:
                shutil.copy(file, folder / (each + name))
            file.unlink()
            file.mkdir()
    path = folder / prefix[:-1] if prefix else folder
    for split in ("train", "test"):
        data = readers.idx(path, split)
        assert (data.name, data.size, data.event_shape, data.vocab_size) == (f"{path.name} {split}", 5, (1, 6, 4), 256)
        assert (data.labels.tolist(), data.classes) == ([0, 1, 2, 3, 4], 5)
        assert (data.take(np.array([4, 0])) == idx_images(split)[[4, 0], None]).all()
    if prefix:
        with pytest.raises(DataError, match=f"gzip: expected one set, found emnist-byclass, {prefix[:-1]}; give the path"):
            readers.idx(folder)
        with pytest.raises(DataError, match="gzip/emnist-digits-train-images-idx3-ubyte: no such file"):
            readers.idx(folder / "emnist-digits")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("images-idx3", None, "no such file"),
        ("images-idx3", bytes(9), "expected a header of 16 bytes, found 9"),
        ("images-idx3", struct.pack(">HBBIII", 0, 8, 3, 5, 6, 4) + bytes(119), r"expected 120 bytes of shape .*, found 119"),
        (
            "images-idx3",
            struct.pack(">HBBIII", 0, 8, 3, 5, 6, 4) + bytes(121),
            r"expected 120 bytes of shape .*, found more",
        ),
        ("images-idx3", struct.pack(">HBBIII", 0, 13, 3, 5, 6, 4) + bytes(480), "expected unsigned bytes in 3 axes"),
        ("labels-idx1", struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4), "expected 5 integer labels"),
    ],
)
def test_idx_of_another_form(tmp_path, name, content, words):
    name = f"train-{name}-ubyte"
    folder = write_idx(tmp_path / "mnist", **{name: content})
    with pytest.raises(DataError, match=f"{name}.*{words}.*dataset-fashion-mnist"):
        readers.idx(folder)
    assert readers.idx(folder, "test").size == 5


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.npy", readers.array),
        ("x.npz", readers.array),
        ("cifar-10-python.tar.gz", lambda path: readers.cifar10(path.parent)),
        ("cifar-10-batches-py/data_batch_1", lambda path: readers.cifar10(path.parent.parent)),
        ("train_data_batch_1.npz", lambda path: readers.imagenet(path.parent, 32)),
        ("train-images-idx3-ubyte", lambda path: readers.idx(path.parent)),
        ("x.png", lambda path: readers.image_folder(path.parent)),
    ],
)
def test_pipes_are_refused(tmp_path, name, read):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"expected a regular file|no such file|found none"):
        read(path)
