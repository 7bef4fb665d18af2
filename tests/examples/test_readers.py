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
    with pytest.raises(DataError, match=r"9\.png: expected \(3, 6, 5\).*give size"):
        readers.image_folder(tmp_path).take(np.array([4]))
    (tmp_path / "b" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png: damaged"):
        readers.image_folder(tmp_path).take(np.array([4]))
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


def test_images_are_shown_as_their_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera turned by 90 degrees
    image = Image.fromarray(RNG.integers(0, 256, (2, 3, 3), np.uint8))
    image.save(tmp_path / "1.png", exif=exif)
    (tmp_path / "._1.png").write_bytes(b"what a Mac leaves")
    data = readers.image_folder(tmp_path)
    assert data.size == 1
    assert (data.take(np.array([0]))[0] == np.rot90(np.asarray(image), -1).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("shape", "layout", "event"),
    [
        ((5, 3, 8, 9), None, (3, 8, 9)),
        ((5, 8, 9, 3), None, (3, 8, 9)),
        ((5, 3, 8, 3), "channels_first", (3, 8, 3)),
        ((5, 8, 9), None, (1, 8, 9)),
        ((5, 7), None, (7,)),
        ((5, 2, 3, 4, 5), None, (2, 3, 4, 5)),
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


def test_bad_arrays_are_named(tmp_path):
    def saved(x, name="x.npy"):
        np.save(tmp_path / name, x)
        return tmp_path / name

    with pytest.raises(DataError, match="no such file"):
        readers.array(tmp_path / "none.npy")
    for x, word in [
        (np.zeros((5, 3), np.float16), "expected uint8, float32 or float64"),
        (np.zeros((5, 3), ">f8"), "expected uint8, float32 or float64"),
        (np.zeros((5, 3), np.int64), "expected uint8, float32 or float64"),
        (np.zeros((0, 3), np.uint8), "expected uint8"),
        (np.array([[1.0, np.nan]]), "expected finite numbers, found NaN"),
        (np.array([[1.0, np.inf]], np.float32), "expected finite numbers, found an infinity"),
        (np.zeros((5, 3, 8, 3), np.uint8), "channels_first or channels_last"),
    ]:
        with pytest.raises(DataError, match=word):
            readers.array(saved(x))
    with pytest.raises(DataError, match=r"expected values in \[0, 15\], found 16"):
        readers.array(saved(np.full((5, 3), 16, np.uint8)), vocab_size=16)
    with pytest.raises(DataError, match="expected uint8 for a vocab_size of 16, found float64"):
        readers.array(saved(np.zeros((5, 3))), vocab_size=16)
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
    for labels in ([0.5, 1.0], [0], [-1, 2]):
        np.savez(tmp_path / "labels.npz", x=np.zeros((2, 2), np.uint8), labels=labels)
        with pytest.raises(DataError, match=r"labels\.npz: expected .*labels"):
            readers.array(tmp_path / "labels.npz")


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
    with pytest.raises(DataError, match="expected labels of at least 0, found -1"):
        readers.huggingface(saved(colour, label=(classes, -1)))
    with pytest.raises(DataError, match="image 0: expected 8 bits a channel, found more"):
        readers.huggingface(saved(Image.fromarray(np.full((2, 2), 300, np.uint16))))
    for image in ({"bytes": b"nothing of the kind", "path": None}, None):
        with pytest.raises(DataError, match="image 0: damaged, not an image"):
            readers.huggingface(saved(image))


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
    with pytest.raises(DataError, match="expected a regular file"):
        read(path)
