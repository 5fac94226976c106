"""Images in memory are read as files with the same pixels are, and bad ones are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.errors import AnoscanError, InputError, UsageError
from anoscan.images.decode import Decoded, ImageRule, decode_all
from anoscan.images.files import find
from anoscan.images.in_memory import Held, gather

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (3, 20, 24), np.uint8)
COLOURS = RANDOM.integers(0, 256, (3, 20, 24, 3), np.uint8)
SHORTS = RANDOM.integers(0, 65536, (3, 20, 24), np.uint16)
SHORT_COLOURS = RANDOM.integers(0, 65536, (3, 20, 24, 3), np.uint16)
FLOATS = RANDOM.random((3, 20, 24), np.float32)
RULES = [
    ImageRule(size=size, channels=channels, window=window)
    for size, channels, window in (
        (16, 1, None),
        (16, 3, None),
        (20, 1, (0.2, 0.7)),
        (32, 3, (100.0, 50_000.0)),
    )
]


def held(images: Any, **options: Any) -> Held:
    found = gather(images, **options)
    assert isinstance(found, Held)
    return found


def written(images: NDArray[Any], folder: Path) -> list[Path]:
    """Files of images without loss: PNG where it can, else TIFF."""
    files = []
    for number, image in enumerate(images):
        short_or_float = image.dtype != np.uint8
        files.append(folder / f"{number}.{'tif' if short_or_float else 'png'}")
        if short_or_float:
            kind = "rgb" if image.ndim == 3 else "minisblack"
            tifffile.imwrite(files[-1], image, photometric=kind)
        else:
            Image.fromarray(image).save(files[-1])
    return files


def decoded(files: Any, rule: ImageRule) -> list[Decoded]:
    found = list(decode_all(files, rule, workers=1))
    assert all(isinstance(one, Decoded) for one in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "images", [BYTES, COLOURS, SHORTS, SHORTS.astype(">u2"), SHORT_COLOURS, FLOATS]
)
def test_an_array_is_seen_as_the_file_of_its_pixels(
    images: NDArray[Any], rule: ImageRule, tmp_path: Path
) -> None:
    of_files = decoded(find(written(images, tmp_path)), rule)
    of_arrays = decoded(held(images).images, rule)
    for file, array in zip(of_files, of_arrays, strict=True):
        assert np.array_equal(file.pixels, array.pixels)
        assert file.look == array.look
        assert file.shape == array.shape


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "F"])
def test_a_pillow_image_is_seen_as_its_file(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(SHORTS[0])
    elif mode == "F":
        image = Image.fromarray(FLOATS[0])
    else:
        image = Image.fromarray(COLOURS[0]).convert(mode)
    file = tmp_path / f"image.{'tif' if mode == 'F' else 'png'}"
    image.save(file)
    for rule in RULES:
        (expected,) = decoded(find([file]), rule)
        for given in (image, [image]):
            (found,) = decoded(held(given).images, rule)
            assert np.array_equal(expected.pixels, found.pixels)
    with Image.open(file) as lazy:
        (found,) = decoded(held([lazy]).images, RULES[0])
    assert np.array_equal(decoded(find([file]), RULES[0])[0].pixels, found.pixels)


def test_the_orientation_of_a_pillow_image_counts(tmp_path: Path) -> None:
    file, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(BYTES[0]).save(file, exif=exif, quality=95)
    with Image.open(file) as image:
        (found,) = decoded(held(image).images, RULES[0])
    (expected,) = decoded(find([file]), RULES[0])
    assert np.array_equal(expected.pixels, found.pixels)
    assert found.shape == (24, 20)


@pytest.mark.parametrize(
    ("images", "shape", "single"),
    [
        (BYTES, (3, 20, 24), False),
        (BYTES[0], (20, 24), True),
        (COLOURS, (3, 20, 24, 3), False),
        (COLOURS[0], (20, 24, 3), True),
        (BYTES[..., None], (3, 20, 24, 1), False),
        (FLOATS > 0.5, (3, 20, 24), False),
        (FLOATS.astype(np.float64), (3, 20, 24), False),
        (FLOATS.astype(np.float16), (3, 20, 24), False),
        (BYTES[:, ::-1, ::2], (3, 20, 12), False),
        (torch.from_numpy(BYTES), (3, 20, 24), False),
        (torch.from_numpy(BYTES)[:, None], (3, 1, 20, 24), False),
        (torch.from_numpy(COLOURS).permute(0, 3, 1, 2), (3, 3, 20, 24), False),
        (torch.from_numpy(COLOURS), (3, 20, 24, 3), False),
        (torch.from_numpy(FLOATS).bfloat16(), (3, 20, 24), False),
        (torch.from_numpy(FLOATS).requires_grad_(), (3, 20, 24), False),
        ([BYTES[0], BYTES[1]], (2, 20, 24), False),
        ([torch.from_numpy(COLOURS[0]).permute(2, 0, 1)], (1, 3, 20, 24), False),
        ((image for image in BYTES), (3, 20, 24), False),
    ],
)
def test_images_are_given_back_in_the_form_in_which_they_came(
    images: Any, shape: tuple[int, ...], single: bool
) -> None:
    found = held(images)
    assert found.single == single
    contents = [np.asarray(image.content) for image in found.images]
    back = found.like(contents)
    assert tuple(back.shape) == shape
    if hasattr(images, "dtype"):
        assert back.dtype == images.dtype
        assert bool((back == images).all())
    decoded(found.images, RULES[0])


def test_images_of_a_list_may_differ_in_size() -> None:
    found = held([BYTES[0], BYTES[1, :18], COLOURS[0]])
    assert [image.size for image in found.images] == [(20, 24), (18, 24), (20, 24)]
    assert isinstance(found.like([np.asarray(image.content) for image in found.images]), list)


def test_names_are_those_given() -> None:
    assert [image.path for image in held(BYTES).images] == ["array[0]", "array[1]", "array[2]"]
    assert [image.path for image in held(BYTES, names="abc").images] == ["a", "b", "c"]
    with pytest.raises(UsageError, match="2 names are given for 3 images"):
        gather(BYTES, names=["a", "b"])
    with pytest.raises(UsageError, match="files have their paths"):
        gather("x.png", names=["a"])


def test_paths_stay_paths(tmp_path: Path) -> None:
    assert gather("a.png") == ["a.png"]
    assert gather([tmp_path, "b"]) == [tmp_path, "b"]
    assert gather(np.array(["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (BYTES.astype(np.float64), InputError, r"array\[0\] has values from .* to 2.*Divide"),
        (FLOATS - 1, InputError, "has values from -"),
        (BYTES.astype(np.int64), InputError, "holds int64 values.*astype"),
        (FLOATS.astype(complex), InputError, "holds complex128 values"),
        (np.zeros(5), InputError, "shape .5,. is no image.*n, h, w"),
        (np.zeros((2, 3, 4, 5, 6)), InputError, "is no image"),
        (np.zeros((0, 20, 24)), InputError, "holds no pixels"),
        (np.zeros((2, 0, 24)), InputError, "holds no pixels"),
        (np.zeros((3, 20, 24, 4)), InputError, "has 4 channels.*opacity"),
        (np.zeros((20, 24, 4)), InputError, "has 4 channels"),
        (np.zeros((3, 20, 24, 17)), InputError, "has 17 channels"),
        (np.zeros((3, 3, 20, 24)), InputError, "colours first.*moveaxis"),
        (np.array([BYTES[0], None], object), InputError, "is no image|holds object"),
        ([BYTES[0], "a.png"], UsageError, "cannot be mixed"),
        ([], InputError, "no images given"),
        ([[1, 2], [3, 4]], UsageError, "Got list.*numpy.asarray"),
        (None, UsageError, "Got NoneType"),
        (b"abc", UsageError, "Got bytes"),
        ({"a": BYTES}, UsageError, "Got dict"),
        ([BYTES[0], 7], UsageError, "Got int"),
        ([np.zeros((0, 3))], InputError, "holds no pixels"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(
    images: Any, kind: type[AnoscanError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        gather(images)
    said = " ".join([caught.value.message, *getattr(caught.value, "__notes__", [])])
    assert "\n" not in said
    assert re.search(words, said), said


def test_a_tensor_that_may_be_one_image_or_three_is_refused_for_a_model_of_colours() -> None:
    given = held(torch.zeros(3, 20, 24))
    given.check_colours(1)
    with pytest.raises(UsageError, match="one image in colour or three grey"):
        given.check_colours(3)
    held(torch.zeros(4, 20, 24)).check_colours(3)
    held([torch.zeros(20, 24)] * 3).check_colours(3)


def test_pixels_that_are_no_numbers_are_skipped_as_in_files(tmp_path: Path) -> None:
    broken = FLOATS.copy()
    broken[1, 2, 3] = np.nan
    broken[2, 0, 0] = np.inf
    of_arrays = list(decode_all(held(broken).images, RULES[0], workers=1))
    of_files = list(decode_all(find(written(broken, tmp_path)), RULES[0], workers=1))
    reasons = [[getattr(one, "reason", None) for one in found] for found in (of_arrays, of_files)]
    assert reasons[0] == reasons[1] == [None, *["has NaN or infinite pixels"] * 2]


def test_arrays_are_never_sent_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from anoscan.images import pool

    def started(*arguments: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(pool, "_pool", started)
    many = held(np.zeros((6_000, 5, 5), np.uint16)).images
    assert len(decoded(many, RULES[0])) == 6_000
    patches = ImageRule(size=16, channels=1, window=None, patch=16)
    assert len(decoded(held(BYTES).images, patches)) == 3
