"""Images of two to sixteen channels: TIFFs, arrays and images in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.channels import AS_STORED, channels_named
from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError, UsageError
from anoscan.dataset.inspection import Inspection, inspect
from anoscan.images.decode import Decoded, ImageRule, decode_all, decode_one
from anoscan.images.files import find
from anoscan.images.formats.picture import Opened
from anoscan.images.in_memory import Held, gather
from anoscan.images.mismatch import Looks
from anoscan.images.roi import Roi

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (24, 32, 16), np.uint8)
SHORTS = RNG.integers(0, 4000, (24, 32, 16), np.uint16)
FLOATS = RNG.random((24, 32, 16), np.float32)


def opened(file: Path, channels: int = AS_STORED) -> Opened:
    (image,) = find([file])
    return image.read(draft_side=64, deep=True, channels=channels)


def samples(file: Path, channels: int = AS_STORED) -> NDArray[Any]:
    return np.asarray(opened(file, channels).picture)


def inspected(folder: Path, **settings: Any) -> Inspection:
    return inspect(find([folder]), TrainConfig(**settings), workers=1)


@pytest.mark.parametrize("count", [2, 4, 5, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("image", [BYTES, SHORTS, FLOATS, SHORTS.astype(np.int32)])
def test_a_tiff_of_many_samples_keeps_them_all(
    tmp_path: Path, image: NDArray[Any], planar: str, count: int
) -> None:
    file, image = tmp_path / "x.tif", image[..., :count]
    stored = image if planar == "contig" else np.moveaxis(image, 2, 0)
    tifffile.imwrite(file, stored, photometric="minisblack", planarconfig=planar)
    for channels in (AS_STORED, count):
        found = opened(file, channels)
        np.testing.assert_array_equal(np.asarray(found.picture), image)
        assert found.many == count
        assert found.depth.startswith(f"{8 * image.itemsize}-bit {count}-channel")


@pytest.mark.parametrize("image", [BYTES, SHORTS])
@pytest.mark.parametrize(
    ("count", "kind", "as_stored"),
    [
        (4, "unassalpha", "colours"),
        (4, "unspecified", "colours"),
        (6, "unspecified", "channels"),
        (5, "unassalpha", "colours"),
    ],
)
def test_colours_with_more_samples_are_colours_unless_asked_for(
    tmp_path: Path, image: NDArray[Any], count: int, kind: str, as_stored: str
) -> None:
    file, image = tmp_path / "x.tif", image[..., :count].copy()
    image[..., 3] = np.iinfo(image.dtype).max  # opaque, where it is an opacity
    tifffile.imwrite(file, image, photometric="rgb", extrasamples=[kind] * (count - 3))
    np.testing.assert_array_equal(samples(file, count), image)
    assert opened(file).many == (count if as_stored == "channels" else None)
    as_colours = samples(file, 3)
    np.testing.assert_array_equal(as_colours[..., :3], image[..., :3])
    assert as_colours.shape[2] in (3, 4)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((24, 32, 2), (1, 24, 32, 2)),
        ((24, 32, 5), (1, 24, 32, 5)),
        ((24, 32, 16), (1, 24, 32, 16)),
        ((3, 24, 32, 5), (3, 24, 32, 5)),
        ((3, 5, 24, 32), (3, 24, 32, 5)),
        ((1, 4, 24, 32), (1, 24, 32, 4)),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz", "h5"])
def test_the_short_axis_of_an_array_counts_channels(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...], ending: str
) -> None:
    array, file = RNG.integers(0, 4000, shape).astype(np.uint16), tmp_path / f"x.{ending}"
    if ending == "npy":
        np.save(file, array)
    elif ending == "npz":
        np.savez(file, array=array)
    else:
        with h5py.File(file, "w") as target:
            target["array"] = array
    found = [
        np.asarray(image.read(draft_side=64, deep=True, channels=expected[3]).picture)
        for image in find([file])
    ]
    last = array if shape[-1] == expected[3] else np.moveaxis(array, -3, -1)
    np.testing.assert_array_equal(np.stack(found), last.reshape(expected))


@pytest.mark.parametrize("shape", [(5, 24, 32), (40, 9, 12), (7, 40, 12), (20, 17, 30)])
def test_an_array_of_three_axes_without_a_short_last_one_stays_a_stack(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    assert len(find([tmp_path])) == shape[0]


@pytest.mark.parametrize(
    ("image", "window", "low", "high"),
    [(BYTES, None, 0, 255), (SHORTS, (0.0, 4000.0), 0, 4000), (SHORTS, None, 0, 65535)],
)
def test_grey_levels_are_those_of_grey_images(
    tmp_path: Path, image: NDArray[Any], window: Any, low: float, high: float
) -> None:
    np.save(tmp_path / "x.npy", image[..., :5])
    np.save(tmp_path / "grey.npy", image[..., 3])
    many, grey = (ImageRule(size=24, channels=n, window=window) for n in (5, 1))
    found = decode_one(find([tmp_path / "x.npy"])[0], many)
    alone = decode_one(find([tmp_path / "grey.npy"])[0], grey)
    assert found.pixels.shape == (5, 24, 24)
    np.testing.assert_array_equal(found.pixels[3], alone.pixels[0])


@pytest.mark.parametrize("image", [BYTES, SHORTS])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_regions_of_interest_and_fits_work_on_every_channel(
    tmp_path: Path, image: NDArray[Any], fit: str
) -> None:
    np.save(tmp_path / "x.npy", image[..., :5])
    inside = np.zeros((24, 32), bool)
    inside[6:18, 8:24] = True
    window = None if image is BYTES else (0.0, 4000.0)
    rule = ImageRule(size=24, channels=5, window=window, fit=fit, roi=Roi.of(inside))
    pixels = decode_one(find([tmp_path])[0], rule).pixels
    assert pixels.shape == (5, 24, 24)
    assert np.ptp(pixels[:, 10:14, 10:14], axis=(1, 2)).min() > 0.1
    assert np.abs(pixels[:, :4]).max() < 0.6


@pytest.mark.parametrize(
    ("image", "channels", "said"),
    [
        (BYTES[..., :5], 6, "has 5 channels, and the images of the model are of 6 channels"),
        (BYTES[..., :5], 3, "has 5 channels, and the images of the model are grey or in colour"),
        (BYTES[..., :2], 1, "is an array of"),
        (BYTES[..., :3], 5, "is grey or in colour, and the images of the model are of 5 channels"),
        (BYTES[..., :4], 5, "is grey or in colour, and"),
        (BYTES[..., 0], 5, "is grey or in colour, and"),
    ],
)
def test_another_number_of_channels_is_skipped_with_one_line(
    tmp_path: Path, image: NDArray[Any], channels: int, said: str
) -> None:
    np.save(tmp_path / "x.npy", image)
    (skipped,) = decode_all(
        find([tmp_path]), ImageRule(size=24, channels=channels, window=None), workers=1
    )
    if said == "is an array of":  # grey with an opacity, as in other formats
        assert isinstance(skipped, Decoded)
    else:
        assert not isinstance(skipped, Decoded)
        assert skipped.reason.startswith(said)


# --- training -----------------------------------------------------------------------------------


def test_the_channels_of_most_images_are_recognised(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", SHORTS[..., :5])
    Image.fromarray(BYTES[..., :3]).save(tmp_path / "x.png")
    found = inspected(tmp_path)
    assert (found.rule.channels, found.inspected) == (5, 3)
    assert found.bit_depths == {"16-bit 5-channel": 3}
    assert found.rule.window is not None


def test_where_no_number_is_that_of_most_images_they_are_grey_or_in_colour(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", SHORTS[..., :5])
    Image.fromarray(BYTES[..., :3]).save(tmp_path / "x.png")
    found = inspected(tmp_path)
    assert (found.rule.channels, found.inspected, found.rule.window) == (3, 1, None)


def test_four_samples_are_channels_only_where_they_are_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES[..., :4])
    assert inspected(tmp_path).rule.channels == 3
    found = inspected(tmp_path, channels=4, show_channels="4,2,1")
    assert (found.rule.channels, found.rule.shown) == (4, (3, 1, 0))
    with pytest.raises(UsageError, match="from 1 to 4"):
        inspected(tmp_path, channels=4, show_channels="5")


def test_no_image_of_the_channels_that_are_asked_for_says_which_arrays_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 24, 32), np.uint8))
    with pytest.raises(InputError, match="is grey or in colour") as caught:
        inspected(tmp_path, channels=5)
    assert caught.value.hint == "Arrays of 5 channels are HxWx5 or Nx5xHxW."


def test_a_pretrained_network_of_photographs_refuses_many_channels() -> None:
    with pytest.raises(UsageError, match="--backbone resnet18 does not go with images of 5"):
        TrainConfig(channels=5, backbone="resnet18")


@pytest.mark.parametrize("text", ["", "1,2", "0", "6", "a", "1,2,3,4", "1,,3", "-1"])
def test_channels_to_show_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="one or three numbers from 1 to 5"):
        channels_named(text, 5)


def test_pictures_show_the_first_three_channels_or_those_that_are_named() -> None:
    x = np.moveaxis(FLOATS, 2, 0)
    rule = ImageRule(size=24, channels=5, window=None)
    np.testing.assert_array_equal(rule.picture(x[:5]), x[:3])
    named = ImageRule(size=24, channels=5, window=None, shown=(4, 0, 2))
    np.testing.assert_array_equal(named.picture(x[None, :5]), x[None, [4, 0, 2]])
    assert ImageRule.from_dict(named.to_dict()) == named
    two = ImageRule(size=24, channels=2, window=None)
    np.testing.assert_array_equal(two.picture(x[:2]), x[[0, 1, 1]])
    for shown in ([5, 0, 0], [0, 1], [True], "012"):
        with pytest.raises(ValueError, match="shown must"):
            ImageRule.from_dict(rule.to_dict() | {"shown": shown})


def test_another_depth_is_a_mismatch_and_channels_are_not(tmp_path: Path) -> None:
    for name, image in (("bytes", BYTES), ("shorts", SHORTS)):
        np.save(tmp_path / f"{name}.npy", image[..., :5])
    rule = ImageRule(size=24, channels=5, window=(0.0, 4000.0))
    shallow, deep = (decode_one(image, rule).look for image in find([tmp_path]))
    normal = Looks.of([deep] * 4)
    assert normal.reasons(deep) is None
    assert any("bit depth: 8-bit" in said for said in normal.reasons(shallow) or ())


# --- in memory ----------------------------------------------------------------------------------


def test_arrays_in_memory_have_the_pixels_of_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", SHORTS[..., :5])
    rule = ImageRule(size=24, channels=5, window=(0.0, 4000.0))
    given = gather(SHORTS[None, ..., :5])
    assert isinstance(given, Held)
    assert not given.single
    found = decode_one(given.images[0], rule)
    expected = decode_one(find([tmp_path])[0], rule)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert given.like([SHORTS[..., :5]]).shape == (1, 24, 32, 5)


def test_a_model_says_whether_an_array_is_one_image_of_its_channels() -> None:
    one = gather(SHORTS[..., :5], channels=5)
    assert isinstance(one, Held)
    assert one.single
    four = gather(SHORTS[None, ..., :4], channels=4)
    assert isinstance(four, Held)
    with pytest.raises(InputError, match="has 4 channels, not 1 or 3"):
        gather(SHORTS[None, ..., :4])
    with pytest.raises(InputError, match="has 6 channels, not 5"):
        gather(SHORTS[None, ..., :6], channels=5)


def test_channels_of_tensors_may_come_first() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.moveaxis(FLOATS[..., :5], 2, 0).copy())
    for given in (gather(x[None]), gather(x, channels=5), gather(x[None], channels=5)):
        assert isinstance(given, Held)
        (image,) = given.images
        np.testing.assert_array_equal(image.content, FLOATS[..., :5])
        back = given.like([FLOATS[..., :5]])
        assert back.shape[-3:] == (5, 24, 32)
