"""Files of many images: arrays of .npz and HDF5, and frames of videos."""

from __future__ import annotations

import random
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from anoscan.core.errors import InputError
from anoscan.images import formats
from anoscan.images.decode import ImageRule, decode_all
from anoscan.images.files import ImageFile, every_nth, find, page_of
from anoscan.images.formats import video
from anoscan.images.layout import query_paths
from anoscan.report.pictures import output_path
from tests.cli.test_cli import Run, run

__all__ = ["run"]  # a fixture

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (5, 8, 9), np.uint8)
NAMES = [f"{number:03d}" for number in range(5)]
COLOUR = RNG.integers(0, 256, (8, 9, 3), np.uint8)
DEEP = RNG.integers(0, 4000, (8, 9), np.uint16)


def read(image: ImageFile) -> np.ndarray[Any, Any]:
    return np.asarray(formats.read(image.file, image.page, draft_side=16, deep=True).picture)


def by_name(file: Path) -> dict[str, ImageFile]:
    return {image.inside.removeprefix(f"{file.name}/"): image for image in find([file])}


# --- arrays -------------------------------------------------------------------------------------


def npz(file: Path, arrays: dict[str, Any]) -> Path:
    np.savez_compressed(file, **arrays)
    return file


def hdf5(file: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(file, "w") as target:
        for name, array in arrays.items():
            target.create_dataset(name, data=array, compression="gzip")
    return file


@pytest.mark.parametrize(("write", "name"), [(npz, "a.npz"), (hdf5, "a.h5"), (hdf5, "a.hdf5")])
def test_each_array_is_an_image_or_a_stack_by_its_name(
    tmp_path: Path, write: Any, name: str
) -> None:
    file = write(tmp_path / name, {"parts/x": STACK, "colour": COLOUR, "deep": DEEP})
    found = by_name(file)
    assert set(found) == {*(f"parts/x/{number}" for number in NAMES), "colour", "deep"}
    for number, samples in zip(NAMES, STACK, strict=True):
        np.testing.assert_array_equal(read(found[f"parts/x/{number}"]), samples)
    np.testing.assert_array_equal(read(found["colour"]), COLOUR)
    np.testing.assert_array_equal(read(found["deep"]), DEEP)
    one = found["parts/x/001"]
    assert page_of(file / "parts/x/001") == (file, one.page)
    (again,) = find([file / "parts/x/001"])
    assert (again.file, again.page) == (one.file, one.page)
    assert page_of(file / "2") == (file, 2)  # a number alone is one too
    assert page_of(file / "parts/x/009") is None
    in_folder = [image.inside for image in find([tmp_path])]
    assert in_folder == [image.inside for image in found.values()]


@pytest.mark.parametrize(("write", "name"), [(npz, "a.npz"), (hdf5, "a.h5")])
def test_a_file_of_one_image_keeps_its_name(tmp_path: Path, write: Any, name: str) -> None:
    file = write(tmp_path / name, {"x": DEEP})
    (image,) = find([file])
    assert (image.inside, image.page) == (name, None)
    np.testing.assert_array_equal(read(image), DEEP)


def test_names_of_arrays_cannot_leave_the_folder_of_pictures(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    buffer = tmp_path / "x.npy"
    np.save(buffer, STACK[0])
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("../../up.npy", "/etc/abs.npy", "a\x1b[31m?.npy", "x" * 300 + ".npy", "..npy"):
            archive.write(buffer, name)
    images = find([file])
    assert len(images) == 5
    for image in images:
        target = output_path(tmp_path / "out", image.inside)
        assert (tmp_path / "out").resolve() in target.resolve().parents
        assert image.inside.isprintable()
        assert max(map(len, image.inside.split("/"))) <= 100
        np.testing.assert_array_equal(read(image), STACK[0])


def test_names_that_would_be_the_same_become_numbers(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", {"a b": STACK[0], "a_b": STACK[1]})
    assert list(by_name(file)) == ["1", "2"]


def test_objects_of_python_are_never_unpickled_from_a_zip_file(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    file = tmp_path / "a.npz"
    trap = np.empty((4, 4), object)
    trap[:] = Trap()
    np.savez(file, trap=trap, fine=STACK)
    reasons = {}
    for image in find([file]):
        try:
            read(image)
        except InputError as error:
            reasons[image.inside] = error.message
    assert reasons == {"a.npz/trap": "trap.npy: holds Python objects, which are never read"}
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_image_in_hdf5_is_passed_over_or_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = STACK
    with h5py.File(file, "w") as target:
        target["labels"] = np.arange(3)
        target["words"] = np.array([[b"a", b"b"]])
        target["images"] = STACK
        target["colours_first"] = STACK[:3]
        target["link"] = h5py.ExternalLink("other.h5", "x")
        target["soft"] = h5py.SoftLink("/images")
        target["loop"] = target["/"]
        layout = h5py.VirtualLayout((5, 8, 9), np.uint8)
        layout[:] = h5py.VirtualSource("other.h5", "x", (5, 8, 9))
        target.create_virtual_dataset("virtual", layout)
        target.create_dataset(
            "outside", (8, 9), np.uint8, external=[(str(tmp_path / "raw"), 0, 72)]
        )
    found = by_name(file)
    assert set(found) >= {*(f"images/{number}" for number in NAMES), "virtual", "outside"}
    assert not {"labels", "words", "link", "soft", "loop"} & {name.split("/")[0] for name in found}
    with pytest.raises(
        InputError, match=r"colours_first: is an array of 3x8x9: colours, or a stack"
    ):
        read(found["colours_first"])
    for name in ("virtual", "outside"):
        with pytest.raises(InputError, match=f"{name}: is kept in other files"):
            read(found[name])


def test_hdf5_without_an_image_says_so(tmp_path: Path) -> None:
    file = hdf5(tmp_path / "a.h5", {"labels": np.arange(3)})
    (image,) = find([file])
    with pytest.raises(InputError, match="holds no arrays of two axes"):
        read(image)


def test_a_chunk_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as target:
        target.create_dataset(
            "bomb", (2, 40_000, 60_000), np.uint8, chunks=(1, 40_000, 60_000), compression="gzip"
        )
    images = find([file])
    with pytest.raises(InputError, match="bomb: unpacks to more than 2 GiB"):
        read(images[0])


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the video that a test has read in this process."""
    yield
    while video._playing:
        video._playing.pop().close()


# --- videos -------------------------------------------------------------------------------------

FRAMES, SIDE = 60, 48


def striped(number: int) -> np.ndarray[Any, Any]:
    """A frame whose six stripes are the bits of its number, which no codec blurs away."""
    bits = [255 * (number >> place & 1) for place in range(6)]
    row = np.repeat(np.array(bits, np.uint8), SIDE // 6)
    return np.broadcast_to(row[None, :, None], (SIDE, SIDE, 3)).copy()


def number_of(samples: np.ndarray[Any, Any]) -> int:
    stripes = samples.reshape(samples.shape[0], 6, -1).mean((0, 2)) > samples.max() / 2
    return int(sum(1 << place for place, bit in enumerate(stripes) if bit))


def clip(file: Path, codec: str, *, frames: int = FRAMES, b_frames: int = 0, gop: int = 12) -> Path:
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(striped(number), format="rgb24")
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


CLIPS = [
    ("a.mp4", "mpeg4", 0),
    ("a.mp4", "mpeg4", 2),
    ("a.avi", "mpeg4", 0),
    ("a.avi", "mpeg4", 2),
    ("a.mov", "mjpeg", 0),
    ("a.mkv", "mpeg4", 2),
]


@pytest.mark.parametrize(("name", "codec", "b_frames"), CLIPS)
def test_every_frame_is_an_image_in_any_order(
    tmp_path: Path, name: str, codec: str, b_frames: int
) -> None:
    images = find([clip(tmp_path / name, codec, b_frames=b_frames)])
    assert [image.inside for image in images] == [f"{name}/{n:06d}" for n in range(FRAMES)]
    shuffled = list(range(FRAMES))
    random.Random(1).shuffle(shuffled)
    for order in (range(FRAMES), range(0, FRAMES, 7), shuffled):
        for number in order:
            assert number_of(read(images[number])) == number, order
    assert page_of(tmp_path / name / "000012") == (tmp_path / name, 13)


def test_frames_in_order_are_decoded_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = clip(tmp_path / "a.mp4", "mpeg4", gop=60)
    opened, decoded = [], []
    once = video._opened
    monkeypatch.setattr(video, "_opened", lambda file: opened.append(file) or once(file))
    start = video._Player._open

    def counting(self: Any) -> None:
        start(self)
        frames = self._frames
        self._frames = (decoded.append(1) or frame for frame in frames)

    monkeypatch.setattr(video._Player, "_open", counting)
    for image in find([file]):
        read(image)
    assert len(decoded) == FRAMES
    assert len(opened) <= 2  # to list the frames, and to decode them


def test_videos_go_through_processes_of_their_own(tmp_path: Path) -> None:
    images = every_nth(find([clip(tmp_path / "a.mkv", "mpeg4")]), 5)
    assert [image.page for image in images] == list(range(1, FRAMES, 5))
    rule = ImageRule(size=SIDE, channels=1, window=None)
    found = list(decode_all(images, rule, workers=2))
    numbers = [number_of(one.pixels[0] + 1) for one in found]  # type: ignore[union-attr]
    assert numbers == list(range(0, FRAMES, 5))
    assert not video._playing  # nothing was decoded in this process


def test_every_nth_is_of_videos_only(tmp_path: Path) -> None:
    stack = npz(tmp_path / "a.npz", {"x": STACK})
    images = find([stack, clip(tmp_path / "b.mp4", "mpeg4", frames=10)])
    kept = every_nth(images, 4)
    assert [image.inside.rsplit("/", 1)[1] for image in kept] == [
        *NAMES,
        *("000000", "000004", "000008"),
    ]
    assert every_nth(images, 1) is images


def test_damaged_videos_and_hdf5_give_one_line(tmp_path: Path) -> None:
    chance = random.Random(0)
    for name, whole in (
        ("a.mp4", clip(tmp_path / "a.mp4", "mpeg4").read_bytes()),
        ("a.mkv", clip(tmp_path / "a.mkv", "mpeg4").read_bytes()),
        ("a.h5", hdf5(tmp_path / "a.h5", {"x": STACK}).read_bytes()),
    ):
        for trial in range(12):
            data = bytearray(whole[: chance.randrange(16, len(whole))] if trial % 2 else whole)
            for _ in range(20):
                data[chance.randrange(12, len(data))] = chance.randrange(256)
            file = tmp_path / f"{trial}{name}"
            file.write_bytes(data)
            images = find([file])
            rule = ImageRule(size=16, channels=1, window=None)
            for outcome in decode_all(images[:3], rule, workers=1):
                reason = getattr(outcome, "reason", "")
                assert "\n" not in reason
                assert len(reason) < 200


@pytest.mark.parametrize(
    ("module", "name", "extra"), [("av", "a.mp4", "video"), ("h5py", "a.h5", "hdf5")]
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    file = tmp_path / name
    if module == "av":
        clip(file, "mpeg4", frames=3)
    else:
        hdf5(file, {"x": STACK})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'anoscan\[{extra}\]'"):
        formats.read(file, None, draft_side=16, deep=True)
    assert formats.page_names(file) == ()


def test_pictures_in_the_same_boxes_are_no_videos() -> None:
    assert not video.begins(b"\0\0\0\x1cftypavif\0\0\0\0", "a.avif")
    assert not video.begins(b"RIFF\0\0\0\0WEBPVP8 ", "a.webp")
    assert video.begins(b"\0\0\0\x1cftypisom\0\0\0\0", "a.mp4")


def test_paths_without_a_container_cost_no_look_into_files(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/folders/a.png"
    begun = time.perf_counter()
    for _ in range(2000):
        page_of(path)
    assert time.perf_counter() - begun < 1
    assert query_paths([tmp_path / "a.npz"])[0] == [str(tmp_path / "a.npz")]


def test_commands_take_every_nth_frame(run: Run, model_file: Path, tmp_path: Path) -> None:
    file = clip(tmp_path / "a.mp4", "mpeg4")
    dry = run("train", file, "--every", 2, "--dry-run")
    assert dry.json["images_found"] == FRAMES // 2
    result = run("score", file, "--every", 20, "--model", model_file, "--json")
    assert result.code == 0, result.err
    paths = {image["path"] for image in result.json["images"]}
    assert paths == {f"{file.as_posix()}/{number:06d}" for number in (0, 20, 40)}
    one = run("score", file / "000041", "--model", model_file, "--json")
    assert [image["path"] for image in one.json["images"]] == [f"{file.as_posix()}/000041"]
