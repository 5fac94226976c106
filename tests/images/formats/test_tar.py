"""Tar files are folders: the shards of WebDataset, here and remote."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from anoscan.core.errors import InputError
from anoscan.dataset.split import together
from anoscan.images import formats
from anoscan.images.decode import Decoded, ImageRule, decode_all
from anoscan.images.files import find, page_of

RULE = ImageRule(size=8, channels=1, window=None)


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def shard(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


MEMBERS = {
    "0001.png": png(10),
    "0001.json": b"{}",
    "0001.cls": b"3",
    "./0000.png": png(20),
    "sub/0002.jpg": b"no picture",
    "._0003.png": b"of a Mac",
    "../0004.png": png(30),
    "inner.tar": shard({"a.png": png(1)}),
}


@pytest.mark.parametrize("remote", [False, True])
def test_a_shard_is_a_folder_of_its_images(tmp_path: Path, remote: bool) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(shard(MEMBERS))
    root = str(tmp_path)
    if remote:
        MemoryFileSystem().pipe("/shards/shard-000000.tar", shard(MEMBERS))
        root = "memory://shards"
    files = find([root])
    assert [image.inside.removeprefix("shard-000000.tar/") for image in files] == [
        "0001.png",
        "0000.png",
        "sub/0002.jpg",
    ]
    assert files[0].path == f"{root}/shard-000000.tar/0001.png"
    found = list(decode_all(files, RULE, workers=1))
    assert [outcome.path for outcome in found if not isinstance(outcome, Decoded)] == [
        files[2].path
    ]
    first = next(outcome for outcome in found if isinstance(outcome, Decoded))
    assert first.image == files[0]
    assert first.canvas.samples.max() == 10
    # Copies are found among other files, and members are images of their own.
    (tmp_path / "same.png").write_bytes(MEMBERS["0001.png"])
    (same,) = decode_all(find([tmp_path / "same.png"]), RULE, workers=1)
    assert isinstance(same, Decoded)
    assert first.digest == same.digest
    assert together(files[:2], [b"a", b"b"]) == [b"a", b"b"]
    (one,) = find([files[0].path])  # as results name it
    assert (one.file.name, one.page) == ("shard-000000.tar", 1)


def test_a_tar_file_that_is_cut_short_or_holds_no_image_is_one_skipped_file(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(shard(MEMBERS)[:700])
    (tmp_path / "none.tar").write_bytes(shard({"a.txt": b"text"}))
    files = find([tmp_path])
    assert [image.path for image in files] == [f"{tmp_path}/cut.tar", f"{tmp_path}/none.tar"]
    reasons = [getattr(found, "reason", None) for found in decode_all(files, RULE, workers=1)]
    assert reasons == ["damaged image", "is a tar file without images"]


def test_stacks_inside_a_tar_file_are_refused_by_name(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((5, 8, 8), np.uint8))
    (tmp_path / "a.tar").write_bytes(shard({"stack.npy": stream.getvalue()}))
    with pytest.raises(InputError, match="several images, which are not read inside a tar"):
        formats.read(tmp_path / "a.tar", 1, draft_side=8, deep=False)
    assert page_of(tmp_path / "a.tar" / "stack.npy") == (tmp_path / "a.tar", 1)
