"""Readers, on small files of the published forms; what is missing or damaged is named, with where to get it."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from purevdm.training import sources
from purevdm.training.sources import DataError

RNG = np.random.default_rng(0)
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
IMAGES = {name: RNG.integers(0, 256, (4, 3072), np.uint8) for name in NAMES}
LABELS = {name: RNG.integers(0, 10, 4).tolist() for name in NAMES}


def python_batch(name):
    return pickle.dumps({b"data": IMAGES[name], b"labels": LABELS[name], b"batch_label": b"x"}, protocol=2)


def binary_batch(name):
    return np.concatenate([np.array(LABELS[name], np.uint8)[:, None], IMAGES[name]], 1).tobytes()


KINDS = {
    "python": ("cifar-10-python.tar.gz", "cifar-10-batches-py", "", python_batch),
    "binary": ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", binary_batch),
}


def write_cifar(folder, kind, packed, leave_out=()):
    archive, inner, suffix, content = KINDS[kind]
    files = {f"{inner}/{name}{suffix}": content(name) for name in NAMES if name not in leave_out}
    if packed:
        with tarfile.open(folder / archive, "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return folder / archive
    (folder / inner).mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / inner


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("above", [True, False])
def test_cifar(tmp_path, kind, packed, above):
    path = write_cifar(tmp_path, kind, packed)
    path = tmp_path if above else path
    train, test = (sources.cifar10(path, split) for split in ("train", "test"))
    assert (train.size, train.event_shape, train.vocab_size, train.classes) == (20, (3, 32, 32), 256, max(train.labels) + 1)
    want = np.concatenate([IMAGES[name] for name in NAMES[:5]]).reshape(-1, 3, 32, 32)
    assert (train.take(np.arange(20)) == want).all()
    assert test.labels.tolist() == LABELS["test_batch"]


def test_cifar_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file.*cs\.toronto\.edu"):
        sources.cifar10(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither.*cs\.toronto\.edu"):
        sources.cifar10(tmp_path)
    path = write_cifar(tmp_path, "python", False, leave_out=["data_batch_3"])
    with pytest.raises(DataError, match=r"data_batch_3: missing.*cs\.toronto\.edu"):
        sources.cifar10(path)
    (path / "data_batch_3").write_bytes(python_batch("data_batch_3")[:500])
    with pytest.raises(DataError, match=r"data_batch_3: damaged.*cs\.toronto\.edu"):
        sources.cifar10(path)


def test_cifar_damaged_archives_and_code(tmp_path):
    path = write_cifar(tmp_path, "binary", True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"binary\.tar\.gz: damaged"):
        sources.cifar10(path)
    path.write_bytes(gzip.compress(b"nothing of the kind"))
    with pytest.raises(DataError, match="damaged"):
        sources.cifar10(path)
    folder = write_cifar(tmp_path, "python", False)

    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    (folder / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"test_batch: damaged.*builtins\.print is not allowed"):
        sources.cifar10(folder, "test")


def write_imagenet(folder, size, batches=(1, 2)):
    x = {i: RNG.integers(0, 256, (3, 3 * size * size), np.uint8) for i in (*batches, 0)}
    for i in batches:
        np.savez(folder / f"train_data_batch_{i}.npz", data=x[i], labels=np.array([1, 500, 1000]), mean=x[i][0])
    np.savez(folder / "val_data.npz", data=x[0], labels=[7, 8, 9])
    return x


@pytest.mark.parametrize("size", [32, 64])
def test_imagenet_is_mapped_from_a_file_of_its_own(tmp_path, size):
    x = write_imagenet(tmp_path, size)
    for _ in range(2):  # the second call reads what the first wrote
        train = sources.imagenet(tmp_path, size)
        assert (train.size, train.event_shape, train.classes) == (6, (3, size, size), 1000)
        assert (train.take(np.array([4])) == x[2][1].reshape(3, size, size)).all()
        assert train.labels.tolist() == [0, 499, 999] * 2
    assert sources.imagenet(tmp_path, size, "test").labels.tolist() == [6, 7, 8]
    written = sorted(p.name for p in tmp_path.glob("purevdm_train*"))
    assert written == [f"purevdm_train_{size}.npy", f"purevdm_train_{size}_labels.npy"]


def test_imagenet_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"expected train_data_batch_1\.npz.*image-net\.org"):
        sources.imagenet(tmp_path, 32)
    with pytest.raises(DataError, match=r"expected val_data\.npz"):
        sources.imagenet(tmp_path, 32, "test")
    write_imagenet(tmp_path, 32, batches=(1, 3))
    with pytest.raises(DataError, match="and those after it"):
        sources.imagenet(tmp_path, 32)
    write_imagenet(tmp_path, 32)
    whole = (tmp_path / "train_data_batch_2.npz").read_bytes()
    (tmp_path / "train_data_batch_2.npz").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"train_data_batch_2\.npz: damaged.*image-net\.org"):
        sources.imagenet(tmp_path, 32)
    with pytest.raises(DataError, match=r"damaged, no batch of 64x64"):
        sources.imagenet(tmp_path, 64, "test")
    with pytest.raises(ValueError, match="size"):
        sources.imagenet(tmp_path, 16)


def test_folders_of_images(tmp_path):
    x = RNG.integers(0, 256, (4, 6, 5, 3), np.uint8)
    for i, (folder, image) in enumerate(zip(("b", "a", "a", "b"), x, strict=True)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    data = sources.image_folder(tmp_path)
    assert (data.size, data.event_shape, data.classes, data.labels.tolist()) == (4, (3, 6, 5), 2, [0, 0, 1, 1])
    assert (data.take(np.array([2, 0])) == x[[0, 1]].transpose(0, 3, 1, 2)).all()
    assert sources.image_folder(tmp_path, size=2, channels=1).take(np.array([1])).shape == (1, 1, 2, 2)
    Image.fromarray(x[0][:3]).save(tmp_path / "b" / "9.png")
    with pytest.raises(DataError, match=r"9\.png: expected \(3, 6, 5\).*give a size"):
        sources.image_folder(tmp_path).take(np.array([4]))
    (tmp_path / "b" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png: damaged"):
        sources.image_folder(tmp_path).take(np.array([4]))
    with pytest.raises(DataError, match="expected a folder of images"):
        sources.image_folder(tmp_path / "none")


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
        data = sources.array(tmp_path / name, layout, vocab_size=16)
        assert (data.event_shape, data.size, data.vocab_size, data.classes) == (event, 5, 16, classes)
        first = data.take(np.array([1]))[0]
        assert sorted(first.ravel()) == sorted(x[1].ravel())


def test_bad_arrays_are_named(tmp_path):
    def saved(x, name="x.npy"):
        np.save(tmp_path / name, x)
        return tmp_path / name

    with pytest.raises(DataError, match="no such file"):
        sources.array(tmp_path / "none.npy")
    for x, word in [
        (np.zeros((5, 3), np.float32), "expected uint8"),
        (np.zeros((0, 3), np.uint8), "expected uint8"),
        (np.zeros((5, 3, 8, 3), np.uint8), "channels_first or channels_last"),
    ]:
        with pytest.raises(DataError, match=word):
            sources.array(saved(x))
    with pytest.raises(DataError, match=r"expected values in \[0, 15\], found 16"):
        sources.array(saved(np.full((5, 3), 16, np.uint8)), vocab_size=16)
    path = saved(np.zeros((500, 30), np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        sources.array(path)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2), np.uint8), b=np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="expected one array or a key"):
        sources.array(tmp_path / "two.npz")
    assert sources.array(tmp_path / "two.npz", key="b").size == 2


def test_hugging_face_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(RNG.integers(0, 256, (4, 4), np.uint8)) for _ in range(3)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"img": images, "label": [0, 2, 1]}, features=features)
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "set"))
    data = sources.huggingface(str(tmp_path / "set"))
    assert (data.size, data.event_shape, data.classes) == (3, (1, 4, 4), 3)
    assert (data.take(np.array([1]))[0, 0] == np.asarray(images[1])).all()
    with pytest.raises(DataError, match=r"expected a split 'test', found \['train'\]"):
        sources.huggingface(str(tmp_path / "set"), "test")
    with pytest.raises(DataError, match="expected a column of images"):
        sources.huggingface(str(tmp_path / "set"), image="picture")


def test_digits():
    data = sources.digits()
    assert (data.size, data.event_shape, data.vocab_size, data.classes) == (1797, (1, 8, 8), 17, 10)
    assert data.take(np.arange(1797)).max() == 16
