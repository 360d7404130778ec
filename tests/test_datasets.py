"""Data sets: every loader against an oracle, every kind of damage against one clear error."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe import datasets
from mcfhe.datasets import Dataset, idx, known
from mcfhe.errors import FormatError, ImageError, McfheError, ParameterError
from tests.dataset_support import Pixels, data_folder, message_id, pixels

FASHION = Path("/usr/share/datasets/fashion-mnist")
# SHA-256 of the first 1,000 images and labels in the publisher's unpacked test files
SAMPLE_IMAGES = "8d46efb2efae7259de048298adb99140d06082b91c430833a54d7ce30f21c9c9"
SAMPLE_LABELS = "86fea14d645de73ec2f8e0e859add59c557ccdf73e3e419692220b128c15ec47"


# --- IDX ---


def idx_bytes(array: Pixels) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root: Path, images: Pixels, labels: Pixels, prefix: str = "train", packed: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        data = idx_bytes(array)
        (root / f"{name}.gz" if packed else root / name).write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_folder(tmp_path: Path, packed: bool) -> None:
    images, labels = pixels(7, 5, 4), np.arange(7, dtype=np.uint8) % 3
    write_idx(tmp_path / "toy", images, labels, packed=packed)
    write_idx(tmp_path / "toy", images[:2], np.array([0, 5], dtype=np.uint8), "t10k", packed=packed)
    loaded = datasets.load(tmp_path / "toy", "train")
    assert loaded.images.dtype == torch.uint8
    assert loaded.labels.dtype == torch.int64
    assert np.array_equal(loaded.images.numpy(), images[:, None])
    assert loaded.labels.tolist() == labels.tolist()
    assert loaded.class_names == tuple("012345")  # of both splits
    assert (loaded.name, loaded.split, loaded.image_shape) == ("toy", "train", (1, 5, 4))
    few = datasets.load("toy", "train", root=tmp_path, limit=3)
    assert np.array_equal(few.images.numpy(), images[:3, None])
    assert len(datasets.load("toy", "train", root=tmp_path, limit=99)) == 7
    with pytest.raises(ParameterError, match="train and test, not 'val'"):
        datasets.load(tmp_path / "toy", "val")


GOOD = idx_bytes(pixels(3, 4, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic"),
        (b"\0\0\x09\x03" + GOOD[4:], "magic 00000903, expected 00000803"),
        (b"\0\0\x08\x01" + GOOD[4:], "not IDX of 3 dimensions"),
        (GOOD[:9], "truncated inside the header"),
        (GOOD[:-1], "truncated, 47 of 48 bytes"),
        (GOOD + b"\0", "more data than the 3 items"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 4, 4), "out of bounds"),
        (b"\0\0\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3), "out of bounds"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 4096, 4096), "out of bounds"),
        (gzip.compress(GOOD)[:-12], "gzip data damaged or truncated"),
        (b"\x1f\x8b" + b"\xff" * 40, "gzip data damaged or truncated"),
        (gzip.compress(GOOD + bytes(1 << 24)), "more data than the 3 items"),
    ],
    ids=message_id,
)
def test_damaged_idx_images(tmp_path: Path, data: bytes, message: str) -> None:
    write_idx(tmp_path, pixels(3, 4, 4), np.zeros(3, dtype=np.uint8))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        datasets.load(tmp_path, "train")
    assert "train-images-idx3-ubyte" in str(caught.value)


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_idx(tmp_path, pixels(3, 4, 4), np.zeros(4, dtype=np.uint8))
    with pytest.raises(FormatError, match="3 images, but train-labels-idx1-ubyte has 4 labels"):
        datasets.load(tmp_path, "train", limit=2)  # even where both would be cut to the same length
    with pytest.raises(FormatError, match=r"t10k-images-idx3-ubyte\(.gz\) is missing"):
        datasets.load(tmp_path, "test")
    write_idx(tmp_path, pixels(2, 4, 4), np.array([0, 10], dtype=np.uint8))
    with pytest.raises(FormatError, match="label 10, but mnist has 10 classes"):
        datasets.load("mnist", "train", root=tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_idx_is_a_format_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    for content in (GOOD, gzip.compress(GOOD)):
        damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
        for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged)
        try:
            array, count = idx.read_idx(path, 3)
        except FormatError:
            continue
        assert array.shape == (count, *array.shape[1:])
        assert idx_bytes(array) == (bytes(damaged) if content is GOOD else GOOD)  # gzip carries a checksum


# --- known sets ---


@pytest.mark.parametrize(
    ("name", "sub"), [("mnist", ""), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_known_sets_below_the_users_folder(tmp_path: Path, name: str, sub: str) -> None:
    write_idx(tmp_path / sub, pixels(3, 28, 28), np.arange(3, dtype=np.uint8), packed=True)
    loaded = datasets.load(name, "train", root=tmp_path)
    assert loaded.name == name
    assert loaded.class_names == known.KNOWN[name].class_names
    with pytest.raises(ParameterError, match=r"no train-images-idx3-ubyte\(.gz\) in .*--data"):
        datasets.load(name, "train", root=tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_checksums_are_those_of_the_data(name: str) -> None:
    where = FASHION if name == "fashion-mnist" else data_folder("mnist")
    if not where.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    for file, digest in known.KNOWN[name].sha256.items():
        data = (where / f"{file}.gz").read_bytes()
        assert hashlib.sha256(gzip.decompress(data)).hexdigest() == digest
        assert known._unpacked_sha256(data) == digest


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """A tiny known set "mnist" with two mirrors on this machine; gives the folder that a mirror serves."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    good = tmp_path / "www" / "second"
    for prefix, seed in (("train", 1), ("t10k", 2)):
        write_idx(good, pixels(4, 28, 28, seed=seed), np.arange(4, dtype=np.uint8), prefix, packed=True)
    toy = known.KnownSet(
        class_names=tuple("0123"),
        folders=(),
        subfolders=("",),
        mirrors=tuple(f"http://127.0.0.1:{server.server_port}/{name}/" for name in ("first", "second")),
        sha256={p.stem: hashlib.sha256(gzip.decompress(p.read_bytes())).hexdigest() for p in good.glob("*.gz")},
        hint="name a folder with --data",
    )
    monkeypatch.setattr(known, "KNOWN", {"mnist": toy})
    monkeypatch.setattr(datasets, "KNOWN", {"mnist": toy})
    monkeypatch.setenv("MCFHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield lambda mirror: tmp_path / "www" / mirror
    server.shutdown()
    server.server_close()


def test_download_takes_the_first_mirror_with_unaltered_data(tmp_path: Path, mirrors: Callable[[str], Path]) -> None:
    write_idx(mirrors("first"), pixels(4, 28, 28, seed=9), np.arange(4, dtype=np.uint8), packed=True)  # altered
    with pytest.raises(ParameterError, match="no train-images"):
        datasets.load("mnist", "train", download=False)
    loaded = datasets.load("mnist", "train")
    assert np.array_equal(loaded.images.numpy(), pixels(4, 1, 28, 28, seed=1))
    assert sorted(p.name for p in (tmp_path / "cache" / "mnist").iterdir()) == sorted(
        p.name for p in mirrors("second").iterdir()
    )
    for file in mirrors("second").iterdir():
        file.unlink()
    assert np.array_equal(datasets.load("mnist", "test").images.numpy(), pixels(4, 1, 28, 28, seed=2))  # from the cache


ALTERED = {
    "empty": b"",
    "page": b"<html>not here</html>",
    "other data": gzip.compress(b"else"),
    "bomb": gzip.compress(bytes(80 << 20)),
    "truncated": gzip.compress(GOOD)[:-3],
}


@pytest.mark.parametrize("content", ALTERED.values(), ids=ALTERED.keys())
def test_altered_downloads_leave_nothing_behind(tmp_path: Path, mirrors: Callable[[str], Path], content: bytes) -> None:
    for file in mirrors("second").iterdir():
        file.write_bytes(content)
    with pytest.raises(FormatError, match="SHA-256 of the unpacked data is not"):
        datasets.load("mnist", "train")
    assert not list((tmp_path / "cache").rglob("*"))


def test_unreachable_mirrors(mirrors: Callable[[str], Path]) -> None:
    for file in mirrors("second").iterdir():
        file.unlink()
    with pytest.raises(ParameterError, match=r"cannot be downloaded .*not found.*; name a folder with --data"):
        datasets.load("mnist", "train")


def test_the_sample_is_the_first_thousand_test_images() -> None:
    sample = datasets.load(datasets.SAMPLE, "test")
    assert sample.images.shape == (1000, 1, 28, 28)
    assert hashlib.sha256(sample.images.numpy().tobytes()).hexdigest() == SAMPLE_IMAGES
    assert hashlib.sha256(sample.labels.numpy().astype(np.uint8).tobytes()).hexdigest() == SAMPLE_LABELS
    assert sample.class_names[9] == "Ankle boot"
    assert len(datasets.load(datasets.SAMPLE, "test", limit=10)) == 10
    with pytest.raises(ParameterError, match="test split only"):
        datasets.load(datasets.SAMPLE, "train")
    assert "MIT" in (Path(datasets.__file__).parents[1] / "assets" / "fashion-mnist-LICENSE.txt").read_text()
    if FASHION.is_dir():
        whole = datasets.load("fashion-mnist", "test", limit=1000)
        assert torch.equal(whole.images, sample.images)
        assert torch.equal(whole.labels, sample.labels)


# --- npz ---


def npz_arrays(n: int = 5, **changes: Any) -> dict[str, Any]:
    arrays = {f"{split}_images": pixels(n, 6, 6, seed=i) for i, split in enumerate(("train", "val", "test"))}
    arrays |= {f"{split}_labels": np.arange(n, dtype=np.uint8)[:, None] % 3 for split in ("train", "val", "test")}
    return arrays | changes


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, compress: Callable[..., None]) -> None:
    arrays = npz_arrays(test_labels=np.array([7, 0, 0, 0, 0], dtype=np.int64))
    compress(tmp_path / "set.npz", **arrays)
    loaded = datasets.load(tmp_path / "set.npz", "val")
    assert np.array_equal(loaded.images.numpy(), arrays["val_images"][:, None])
    assert loaded.labels.tolist() == [0, 1, 2, 0, 1]
    assert loaded.class_names == tuple("01234567")  # of all splits
    assert loaded.name == "set"
    assert len(datasets.load("set", "train", root=tmp_path, limit=2)) == 2
    with pytest.raises(ParameterError, match="has train, val, test, not 'all'"):
        datasets.load(tmp_path / "set.npz", "all")


def test_npz_in_colour_with_names_and_without_splits(tmp_path: Path) -> None:
    images = np.asfortranarray(pixels(4, 3, 5, 3))
    np.savez(tmp_path / "c.npz", images=images, labels=[0, 1, 1, 0], class_names=np.array(["cat", "dog"]))
    loaded = datasets.load(tmp_path / "c.npz", "all")
    assert loaded.image_shape == (3, 3, 5)
    assert np.array_equal(loaded.images.numpy(), images.transpose(0, 3, 1, 2))
    assert loaded.class_names == ("cat", "dog")


class Payload:
    """Raises if anything unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.array([Payload()], dtype=object)}, "train_images' holds Python objects"),
        ({"val_labels": np.array([Payload()], dtype=object)}, "val_labels' holds Python objects"),
        ({"train_images": pixels(5, 6, 6).astype(np.float32)}, r"float32 \[5, 6, 6\], expected uint8"),
        ({"train_images": pixels(5, 6)}, r"uint8 \[5, 6\], expected uint8 \[n, H, W"),
        ({"train_images": pixels(5, 6, 6, 4)}, "4 channels"),
        ({"train_images": pixels(1, 1, 5000)}, "up to 4096 are read"),
        ({"train_images": pixels(0, 6, 6)}, "0 bytes"),
        ({"train_labels": np.zeros((5, 14), dtype=np.uint8)}, "one class per image"),
        ({"train_labels": np.zeros(5)}, "float64"),
        ({"train_labels": np.array([0, 0, 0, 0, -1])}, r"labels -1..0 outside"),
        ({"train_labels": np.array([0, 0, 0, 0, 2**40])}, "outside 0..9999"),
        ({"train_labels": np.zeros(4, dtype=np.uint8)}, "5 train images, but 4 labels"),
    ],
    ids=message_id,
)
def test_npz_with_wrong_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **npz_arrays(**changes))
    with pytest.raises(FormatError, match=message) as caught:
        datasets.load(tmp_path / "bad.npz", "train")
    assert "bad.npz" in str(caught.value)


def test_npz_that_lies_about_its_content(tmp_path: Path) -> None:
    path = tmp_path / "lie.npz"

    def write(header: str) -> None:
        text = header.encode().ljust(117) + b"\n"
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 64
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train_images.npy", array)
            archive.writestr("train_labels.npy", array)

    for shape, message in (
        ("(65537, 256, 256)", "bytes; 1.."),
        ("(-8, -8, 1)", "bytes; 1.."),
        ("(8, 8, 2)", "truncated, 64 of 128 bytes"),
        ("(__import__('os'),)", "no readable header"),
    ):
        write(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")
        with pytest.raises(FormatError, match=message):
            datasets.load(path, "train")
    path.write_bytes(pickle.dumps({"train_images": 1}))
    with pytest.raises(FormatError, match=r"not a readable .npz"):
        datasets.load(path, "train")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"nothing")
    with pytest.raises(FormatError, match="no readable header"):
        datasets.load(path, "train")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_npz_is_an_mcfhe_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **npz_arrays())
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npz") / "set.npz"
    path.write_bytes(content)
    try:
        loaded = datasets.load(path, "train")
    except McfheError:
        return
    assert np.array_equal(loaded.images.numpy(), npz_arrays()["train_images"][:, None])  # zip carries checksums


# --- the rest ---


def test_bad_arguments(tmp_path: Path) -> None:
    for arguments, message in (
        (("mnist", "training"), "split: 'training'; choose one of train, val, test, all"),
        ((tmp_path / "nothing", "train"), "nothing' is no folder, nor a file"),
        (("", "train", tmp_path / "nothing"), "is no folder"),
    ):
        with pytest.raises(ParameterError, match=message):
            datasets.load(*arguments)
    with pytest.raises(ParameterError, match="limit: 0"):
        datasets.load(datasets.SAMPLE, "test", limit=0)


def test_dataset_refuses_what_does_not_fit() -> None:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1])
    assert len(Dataset(images, labels, ("a", "b"), "x")) == 3
    for bad_images in (images.float(), images[0], images[:0]):
        with pytest.raises(ImageError, match=r"expected a non-empty uint8 \[n, C, H, W\]"):
            Dataset(bad_images, labels, ("a", "b"), "x")
    for bad_labels in (labels.int(), labels[:2], labels[:, None], labels + 1, labels - 1):
        with pytest.raises(ParameterError, match="x: labels"):
            Dataset(images, bad_labels, ("a", "b"), "x")


def test_hold_out_partitions_by_seed() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    whole = Dataset(images, torch.arange(10), tuple("abcdefghij"), "x", "train")
    rest, held = whole.hold_out(3, seed=5)
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(10))
    assert len(held) == 3
    assert torch.equal(held.images.flatten().long(), held.labels)
    assert torch.equal(whole.hold_out(3, seed=5)[1].labels, held.labels)
    assert any(not torch.equal(whole.hold_out(3, seed=s)[1].labels, held.labels) for s in range(4))
    for count in (0, 10):
        with pytest.raises(ParameterError, match=r"use 1\.\.9"):
            whole.hold_out(count, seed=0)


def test_real_sets_outside_the_repository() -> None:
    mnist = datasets.load("mnist", "test", root=data_folder("mnist"))
    assert mnist.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert torch.bincount(mnist.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    chest = datasets.load(data_folder("pneumoniamnist.npz"), "test")
    assert chest.images.shape == (624, 1, 28, 28)
    assert chest.class_names == ("normal", "pneumonia")
    cifar = datasets.load(data_folder("cifar10") / "cifar10-jpeg.tar.xz", "test", limit=30)
    assert cifar.images.shape == (30, 3, 32, 32)
    assert cifar.labels.tolist() == [*range(10)] * 3
    assert cifar.class_names[::9] == ("airplane", "truck")
