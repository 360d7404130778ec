"""Image folders, on disk and in tars: the images as they were written, and one clear error for anything hostile."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mcfhe import datasets
from mcfhe.datasets import folder
from mcfhe.errors import FormatError, ImageError, McfheError, ParameterError
from tests.dataset_support import encoded, message_id, pixels, tar_bytes

FILES = {
    f"{split}/{label}/{i}.png": encoded(pixels(6, 5, 3, seed=100 * (split == "test") + 10 * label_index + i))
    for split in ("train", "test")
    for label_index, label in enumerate(("zebra", "ant", "cow"))
    for i in range(3 if label != "cow" else 1)
}


def place(root: Path, files: dict[str, bytes], form: str) -> Path:
    """Lay the files out as a folder, or as a tar in one of its compressions."""
    if form == "folder":
        for name, data in files.items():
            (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "set" / name).write_bytes(data)
        return root / "set"
    suffix, mode = {
        "tar": (".tar", "w"),
        "gz": (".tar.gz", "w:gz"),
        "xz": (".tar.xz", "w:xz"),
        "bz2": (".tar.bz2", "w:bz2"),
    }[form]
    path = root / f"set{suffix}"
    path.write_bytes(tar_bytes(files, mode))
    return path


@pytest.mark.parametrize("form", ["folder", "tar", "gz", "xz", "bz2"])
def test_image_folder(tmp_path: Path, form: str) -> None:
    path = place(tmp_path, {**FILES, "README.md": b"hello", "train/cow/.DS_Store": b"\0"}, form)
    loaded = datasets.load(path, "train")
    assert loaded.class_names == ("ant", "cow", "zebra")
    assert loaded.name == "set"
    # round robin: first of every class, then second ...
    assert loaded.labels.tolist() == [0, 1, 2, 0, 2, 0, 2]
    names = ["ant/0", "cow/0", "zebra/0", "ant/1", "zebra/1", "ant/2", "zebra/2"]
    for image, name in zip(loaded.images.numpy(), names, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), np.array(Image.open(io.BytesIO(FILES[f"train/{name}.png"]))))
    few = datasets.load("set", "train", root=tmp_path, limit=4)
    assert torch.equal(few.images, loaded.images[:4])
    assert not torch.equal(datasets.load(path, "test").images, loaded.images)
    with pytest.raises(ParameterError, match="has test, train, not 'all'"):
        datasets.load(path, "all")


def test_image_folder_without_splits(tmp_path: Path) -> None:
    grey, colour = pixels(4, 4), pixels(4, 4, 3)
    path = place(tmp_path, {"b/x.png": encoded(colour), "a/y.png": encoded(grey)}, "folder")
    loaded = datasets.load(path, "all")
    assert np.array_equal(loaded.images.numpy()[0], np.stack([grey] * 3))
    assert np.array_equal(loaded.images.numpy()[1], colour.transpose(2, 0, 1))
    assert datasets.load(place(tmp_path, {"only/a/y.png": encoded(grey)}, "tar"), "all").image_shape == (1, 4, 4)
    with pytest.raises(ParameterError, match="not 'train'; move its classes into train/ and test/"):
        datasets.load(path, "train")


def test_jpeg_is_close_to_its_original(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    (tmp_path / "x.jpg").write_bytes(encoded(smooth, "JPEG"))
    read = datasets.read_image(tmp_path / "x.jpg")
    assert read.shape == (1, 32, 32)
    assert np.abs(read[0].astype(int) - smooth).max() <= 6


ONE = encoded(pixels(4, 4))


@pytest.mark.parametrize("form", ["folder", "xz"])
@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (
            {"train/a/0.png": ONE, "train/a/1.png": encoded(pixels(5, 4))},
            ImageError,
            "a/1.png is 4 x 5 pixels, but a/0.png is 4 x 4",
        ),
        ({"train/a/0.png": ONE[:-32]}, ImageError, "a/0.png: not a readable PNG or JPEG"),
        ({"train/a/0.png": b"GIF89a"}, ImageError, "a/0.png: not a readable PNG or JPEG"),
        ({"train/a/0.png": b""}, ImageError, "a/0.png: not a readable PNG or JPEG"),
        ({"train/a/0.png": ONE, "train/a/notes.txt": b"x"}, FormatError, "'train/a/notes.txt' is no PNG or JPEG"),
        ({"train/a/0.png": ONE, "train/a/deep/1.png": ONE}, FormatError, "different depths"),
        ({"train/a/0.png": ONE, "other/a/1.png": ONE}, FormatError, "different depths"),
        ({"0.png": ONE}, FormatError, "'0.png' lies outside any class folder"),
        ({"readme.txt": b"x"}, ParameterError, "has no images, not 'train'"),
        ({"test/a/0.png": ONE}, ParameterError, "has test, not 'train'"),
        ({"train/a\x1b[2J/0.png": ONE}, FormatError, "use printable names"),
    ],
    ids=message_id,
)
def test_odd_image_folders(
    tmp_path: Path, form: str, files: dict[str, bytes], error: type[McfheError], message: str
) -> None:
    path = place(tmp_path, files, form)
    with pytest.raises(error, match=message.replace("[", r"\[")) as caught:
        datasets.load(path, "train")
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_images_out_of_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for data, message in (
        (png_header(5000, 10) + ONE[33:], "5000 x 10 pixels; sides up to 4096"),
        (png_header(2**31 - 1, 2**31 - 1), "not a readable PNG or JPEG"),
        (encoded(pixels(4, 4).astype(np.uint16) * 257), "pixel mode 'I;16'; convert it to 8-bit"),
        (bytes(33 << 20), "larger than 33554432 bytes"),
    ):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=message):
            datasets.read_image(path)
    with pytest.raises(ImageError, match="cannot be read"):
        datasets.read_image(tmp_path / "none.png")


def member(name: str, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "tar damaged or truncated"),
        (b"no tar at all" * 100, "tar damaged or truncated"),
        (tar_bytes(FILES)[:700], "tar damaged or truncated"),
        (tar_bytes(FILES, "w:gz")[:300], "tar damaged or truncated"),
        (tar_bytes(FILES, "w:xz")[:300], "tar damaged or truncated"),
        (member("train/a/0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd") + bytes(1024), "is a link or a device"),
        (member("train/a/0.png", type=tarfile.LNKTYPE, linkname="x") + bytes(1024), "is a link or a device"),
        (member("train/a/0.png", type=tarfile.CHRTYPE) + bytes(1024), "is a link or a device"),
        (tar_bytes({"/train/a/0.png": ONE}), "leaves the archive"),
        (tar_bytes({"../train/a/0.png": ONE}), "leaves the archive"),
        (gzip.compress(member("train/a/0.png", size=40 << 20) + bytes(40 << 20)), "a member of more than"),
        (gzip.compress(member("skipped", size=40 << 20) + bytes(40 << 20)), "a member of more than"),
        # a header that tarfile itself would read whole
        (gzip.compress(member("x", type=tarfile.XHDTYPE, size=40 << 20) + bytes(40 << 20)), "a member of more than"),
        (
            gzip.compress(member("x", type=tarfile.GNUTYPE_LONGNAME, size=40 << 20) + bytes(40 << 20)),
            "a member of more",
        ),
    ],
    ids=message_id,
)
def test_hostile_tars(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        datasets.load(path, "train")
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]  # nothing was unpacked


def test_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(tmp_path, FILES, "tar")
    for name, limit, message in (
        ("MAX_FILES", 5, "more than 5 files"),
        ("MAX_CLASSES", 2, "3 classes; at most 2"),
        ("MAX_HELD_BYTES", 500, "more than 500 bytes of images"),
        ("MAX_BYTES", 7 * 6 * 5 * 3 - 1, "7 images need 630 bytes, at most 629; set a limit"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(folder, name, limit)
            with pytest.raises(FormatError, match=message):
                datasets.load(path, "train")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_damage_to_a_tar_is_an_mcfhe_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(tar_bytes(FILES, data.draw(st.sampled_from(["w", "w:gz", "w:xz"]))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("tar") / "set.tar"
    path.write_bytes(content)
    try:
        loaded = datasets.load(path, "train")
    except McfheError:
        return
    assert loaded.image_shape == (3, 6, 5)
