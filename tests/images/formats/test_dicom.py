"""DICOM: values that mean something, and frames as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError
from anoscan.dataset.inspection import inspect
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile, find
from anoscan.images.formats import dicom

Samples = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(0)
STORED = RNG.integers(0, 4000, (32, 32)).astype(np.uint16)


def rule(window: tuple[float, float] | None = (0, 4000), channels: int = 1) -> ImageRule:
    return ImageRule(size=32, channels=channels, window=window)


def values(image: ImageFile, window: tuple[float, float] = (0, 4000)) -> Samples:
    """Pixels of an image on the scale of a window."""
    low, high = window
    pixels = decode(image, rule(window)).pixels[0].astype(np.float64)
    return (pixels + 1) / 2 * (high - low) + low


def only(file: Path, window: tuple[float, float] = (0, 4000)) -> Samples:
    (image,) = find([file])
    return values(image, window)


def reason(file: Path) -> str:
    (image,) = find([file])
    with pytest.raises(InputError) as caught:
        decode(image, rule())
    return caught.value.message


def write_dicom(file: Path, pixels: Samples, syntax: str | None = None, **fields: Any) -> Path:
    """A DICOM file of frames (rows, columns) or (n, rows, columns), or of RGB ones."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence

    def dataset(values: dict[str, Any]) -> Any:
        made = Dataset()
        for name, value in values.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                value = Sequence([dataset(item) for item in value])
            setattr(made, name, value)
        return made

    colours = 3 if pixels.shape[-1] == 3 else 1
    shape = pixels.shape[:-1] if colours == 3 else pixels.shape
    bits = 8 * pixels.dtype.itemsize
    whole = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": pydicom.uid.generate_uid(),
        "Modality": "OT",
        "Rows": shape[-2],
        "Columns": shape[-1],
        "SamplesPerPixel": colours,
        "PhotometricInterpretation": "RGB" if colours == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if colours == 3:
        whole["PlanarConfiguration"] = 0
    if len(shape) == 3:
        whole["NumberOfFrames"] = shape[0]
    made = dataset(whole | fields)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.PixelData = pixels.tobytes()
    if syntax == "rle":
        made.compress(pydicom.uid.RLELossless)
    elif syntax is not None:
        from pydicom.encaps import encapsulate

        made.PixelData = encapsulate([pixels.tobytes()[:100]])
        made["PixelData"].VR = "OB"
        made.file_meta.TransferSyntaxUID = syntax
    made.save_as(file, enforce_file_format=True)
    return file


def test_values_are_rescaled_to_their_unit_and_keep_it_whatever_the_window(tmp_path: Path) -> None:
    file = write_dicom(
        tmp_path / "x.dcm",
        STORED,
        Modality="CT",
        RescaleSlope=2,
        RescaleIntercept=-1024,
        WindowCenter=40,
        WindowWidth=400,
        BitsStored=12,
        HighBit=11,
    )
    np.testing.assert_allclose(only(file, (-1024, 7000)), STORED * 2.0 - 1024, atol=1e-2)
    found = inspect(find([file]), TrainConfig(), workers=1)
    assert found.bit_depths == {"16-bit grey": 1}
    assert found.rule.window is not None
    assert found.rule.window[0] < -1000


def test_signed_values_stay_signed(tmp_path: Path) -> None:
    stored = STORED.astype(np.int16) - 2000
    file = write_dicom(tmp_path / "x.dcm", stored, Modality="CT")
    np.testing.assert_allclose(only(file, (-2000, 2000)), stored, atol=1e-2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", lambda x: (x - 999.5) / 799 + 0.5),
        ("LINEAR_EXACT", lambda x: (x - 1000) / 800 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 1000) / 800))),
    ],
)
def test_exposures_without_a_unit_are_brought_to_their_window_and_not_cut_off(
    tmp_path: Path, function: str, expected: Any
) -> None:
    file = write_dicom(
        tmp_path / "x.dcm",
        STORED,
        Modality="DX",
        RescaleSlope=1,
        RescaleIntercept=0,
        RescaleType="US",
        WindowCenter=[1000, 5],
        WindowWidth=[800, 5],
        VOILUTFunction=function,
    )
    shown = expected(STORED.astype(np.float64))
    np.testing.assert_allclose(only(file, (-2, 5)), shown, atol=1e-4)
    # A model that never learned a window takes that of the file from -1 to 1.
    pixels = decode(find([file])[0], rule(None)).pixels[0]
    np.testing.assert_allclose(pixels, np.clip(shown * 2 - 1, -3, 3), atol=1e-4)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    common = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"}
    plain = write_dicom(tmp_path / "plain.dcm", STORED, **common)
    np.testing.assert_allclose(only(plain), 4095.0 - STORED, atol=1e-2)
    scaled = write_dicom(
        tmp_path / "scaled.dcm", STORED, RescaleSlope=0.5, RescaleIntercept=10, **common
    )
    np.testing.assert_allclose(only(scaled), 2047.5 + 20 - (STORED * 0.5 + 10), atol=1e-2)
    windowed = write_dicom(
        tmp_path / "windowed.dcm",
        STORED,
        WindowCenter=2000,
        WindowWidth=4000,
        VOILUTFunction="LINEAR_EXACT",
        **common,
    )
    np.testing.assert_allclose(only(windowed, (0, 1)), 1 - STORED / 4000, atol=1e-4)
    short = write_dicom(
        tmp_path / "short.dcm", STORED.astype(np.uint8), PhotometricInterpretation="MONOCHROME1"
    )
    pixels = decode(find([short])[0], rule()).pixels[0]
    np.testing.assert_allclose(pixels, 1 - STORED.astype(np.uint8) / 127.5, atol=1e-6)


def test_padding_is_as_dark_as_the_darkest_of_the_image(tmp_path: Path) -> None:
    stored = STORED.astype(np.int16) + 100
    stored[:4] = -2000
    file = write_dicom(tmp_path / "x.dcm", stored, Modality="CT", PixelPaddingValue=-2000)
    expected = stored.copy()
    expected[:4] = stored[4:].min()
    np.testing.assert_allclose(only(file, (0, 5000)), expected, atol=1e-2)


@pytest.mark.parametrize("syntax", [None, "rle"])
def test_frames_are_pages_with_values_of_their_own(tmp_path: Path, syntax: str | None) -> None:
    frames = np.stack([STORED, STORED // 2, STORED // 4])
    own = [
        {"PixelValueTransformationSequence": [{"RescaleSlope": s, "RescaleIntercept": 7}]}
        for s in (1, 2, 4)
    ]
    file = write_dicom(
        tmp_path / "x.dcm",
        frames,
        syntax,
        Modality="CT",
        SharedFunctionalGroupsSequence=[{"FrameVOILUTSequence": [{"WindowCenter": 1}]}],
        PerFrameFunctionalGroupsSequence=own,
    )
    found = find([file])
    assert [image.page for image in found] == [1, 2, 3]
    for image, frame, slope in zip(found, frames, (1, 2, 4), strict=True):
        np.testing.assert_allclose(values(image, (0, 5000)), frame * slope + 7.0, atol=1e-2)


def test_colours_are_read_as_they_are(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    file = write_dicom(tmp_path / "x.dcm", colours)
    pixels = decode(find([file])[0], rule(None, 3)).pixels
    np.testing.assert_allclose((pixels + 1) * 127.5, np.moveaxis(colours, 2, 0), atol=1e-4)


def test_files_that_scanners_name_without_an_ending_are_found(tmp_path: Path) -> None:
    for name in ("IM000001", "1.2.840.113619.2"):
        write_dicom(tmp_path / name, STORED)
    write_dicom(tmp_path / "DICOMDIR", STORED)
    (tmp_path / "README").write_text("no image", encoding="utf-8")
    assert [image.inside for image in find([tmp_path])] == ["1.2.840.113619.2", "IM000001"]


def test_a_file_without_a_preamble_is_read(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    whole = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", STORED))
    del whole.file_meta
    whole.preamble = None
    bare = tmp_path / "bare.dcm"
    pydicom.dcmwrite(bare, whole, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert bare.read_bytes()[:2] == b"\x08\0"
    np.testing.assert_allclose(only(bare), STORED, atol=1e-2)


def test_what_cannot_be_read_says_what_is_missing(tmp_path: Path) -> None:
    lossless = write_dicom(tmp_path / "a.dcm", STORED, "1.2.840.10008.1.2.4.70")
    assert reason(lossless) == (
        "is DICOM in lossless JPEG, which needs: pip install 'pylibjpeg[libjpeg]'"
    )
    video = write_dicom(tmp_path / "b.dcm", STORED, "1.2.840.10008.1.2.4.102")
    assert reason(video) == "is DICOM in an encoding that is not read"
    bomb = write_dicom(tmp_path / "c.dcm", STORED)
    data = bomb.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20])
    bomb.write_bytes(data.replace(b"1.2.840.10008.1.2.1.", b"1.2.840.10008.1.2.1.99", 1))
    assert reason(bomb).startswith("is deflated DICOM")
    lying = write_dicom(tmp_path / "d.dcm", STORED, Rows=60_000, Columns=60_000)
    assert reason(lying) == "has too many pixels to be decoded safely"
    empty = write_dicom(tmp_path / "e.dcm", STORED, NumberOfFrames=10**9)
    assert reason(empty) == "claims 1000000000 slices or frames: at most 100000 are read"
    holed = write_dicom(tmp_path / "f.dcm", STORED)
    holed.write_bytes(holed.read_bytes()[:-100])
    assert reason(holed) == "damaged image"


def test_a_dicom_file_that_begins_as_a_tiff_is_read(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "x.dcm", STORED)
    file.write_bytes(b"II*\0" + file.read_bytes()[4:])
    np.testing.assert_allclose(only(file), STORED, atol=1e-2)
    assert not dicom.begins(file.read_bytes(), "x.tif")
