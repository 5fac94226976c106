"""NIfTI: slices as pages; and what DICOM and NIfTI have in common."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.images.decode import ImageRule, decode, decode_all
from anoscan.images.files import find, in_file
from anoscan.images.formats import dicom, nifti
from tests.images.formats.test_dicom import RNG, STORED, Samples, only, reason, rule, write_dicom


def write_nifti(file: Path, voxels: Samples, form: int = 1, **scaling: float) -> Path:
    nibabel = pytest.importorskip("nibabel")
    kind = nibabel.Nifti1Image if form == 1 else nibabel.Nifti2Image
    image = kind(voxels, np.eye(4), dtype=voxels.dtype)
    if scaling:
        image.header.set_slope_inter(scaling["slope"], scaling["inter"])
    image.to_filename(file)
    return file


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("kind", ["int16", "uint8", "float32", ">f8"])
def test_slices_along_the_last_axis_are_pages(
    tmp_path: Path, form: int, name: str, kind: str
) -> None:
    voxels = RNG.integers(0, 200, (20, 30, 5)).astype(kind)
    file = write_nifti(tmp_path / name, voxels, form)

    found = find([tmp_path])

    assert [image.inside for image in found] == [f"{name}/{n}" for n in range(1, 6)]
    for image, index in zip(found, range(5), strict=True):
        decoded = decode(image, ImageRule(size=32, channels=1, window=(0, 200)))
        # The first axis runs to the right, the second down.
        assert (decoded.width, decoded.height) == (20, 30)
        patch = ImageRule(size=16, channels=1, window=(0, 200), patch=16)
        whole = decode(image, patch).pixels[0]
        expected = voxels[:, :, index].T.astype(np.float64)
        scale = 127.5 if kind == "uint8" else 100
        np.testing.assert_allclose((whole + 1) * scale, expected, atol=1e-3)
    assert nifti.count(file) == 5


def test_scaled_voxels_have_their_values(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(STORED.astype(np.int16)[..., None], np.eye(4))
    image.header.set_slope_inter(2, -1000)
    image.to_filename(tmp_path / "x.nii")
    truth = nibabel.load(tmp_path / "x.nii").get_fdata()[..., 0].T
    np.testing.assert_allclose(only(tmp_path / "x.nii", (-1000, 9000)), truth, atol=1e-2)


def test_one_slice_is_an_image_and_four_axes_are_refused(tmp_path: Path) -> None:
    flat = write_nifti(tmp_path / "flat.nii", STORED)
    np.testing.assert_allclose(only(flat), STORED.T, atol=1e-2)
    film = write_nifti(tmp_path / "film.nii", np.zeros((8, 8, 4, 3), np.int16))
    assert reason(film) == "is a volume of 8x8x4x3: save one of two or three axes"
    holed = write_nifti(tmp_path / "holed.nii", np.full((8, 8), np.nan, np.float32))
    assert reason(holed) == "has NaN or infinite pixels"
    unreal = write_nifti(tmp_path / "unreal.nii", np.zeros((8, 8), np.complex64))
    assert reason(unreal).startswith("holds complex64 samples")


def test_volumes_that_are_cut_off_or_lie_are_refused(tmp_path: Path) -> None:
    for name in ("x.nii", "x.nii.gz"):
        file = write_nifti(tmp_path / name, RNG.integers(0, 999, (32, 32, 4)).astype(np.int16))
        file.write_bytes(file.read_bytes()[:-2000])
        last = find([file])[-1]
        with pytest.raises(InputError, match=r"truncated image|damaged image"):
            decode(last, rule())
    lying = bytearray(write_nifti(tmp_path / "y.nii", STORED).read_bytes())
    lying[40:48] = np.array([3, 30_000, 30_000, 1000], "<i2").tobytes()
    (tmp_path / "y.nii").write_bytes(lying)
    assert reason(tmp_path / "y.nii") == "truncated image"  # 2 TB are claimed
    lying[40:48] = np.array([3, 9000, 9000, 15], "<i2").tobytes()
    (tmp_path / "y.nii.gz").write_bytes(gzip.compress(bytes(lying) + RNG.bytes(2**22)))
    with pytest.raises(InputError, match="unpacks to more than 2 GiB"):
        decode(find([tmp_path / "y.nii.gz"])[0], rule())


def test_packed_slices_are_right_whatever_the_workers(tmp_path: Path) -> None:
    volumes = [RNG.integers(0, 999, (16, 16, 20)).astype(np.int16) for _ in range(3)]
    for index, voxels in enumerate(volumes):
        write_nifti(tmp_path / f"{index}.nii.gz", voxels)
    files = find([tmp_path])
    random.Random(0).shuffle(files)
    small = ImageRule(size=16, channels=1, window=(0, 999))
    for image, result in zip(files, decode_all(files, small, workers=4), strict=True):
        assert not isinstance(result, Skipped), result
        voxels = volumes[int(image.inside[0])][:, :, (image.page or 1) - 1]
        np.testing.assert_allclose((result.pixels[0] + 1) * 499.5, voxels.T, atol=1e-2)


@pytest.mark.parametrize("name", ["x.dcm", "x.nii", "x.nii.gz"])
def test_damaged_files_are_decoded_or_refused_with_a_plain_reason(
    tmp_path: Path, name: str
) -> None:
    volume = RNG.integers(0, 999, (3, 16, 16)).astype(np.int16)
    source = tmp_path / name
    whole = (write_dicom if name == "x.dcm" else write_nifti)(source, volume).read_bytes()
    generator = random.Random(0)
    reasons = []
    for attempt in range(100):
        broken = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            broken[generator.randrange(min(len(broken), 700))] = generator.randrange(256)
        if attempt % 5 == 0:
            del broken[generator.randrange(len(broken)) :]
        file = tmp_path / f"{attempt}-{name}"
        file.write_bytes(broken)
        for result in decode_all(in_file(name, file, name)[:2], rule(), workers=1):
            if isinstance(result, Skipped):
                reasons.append(result.reason)
    assert reasons
    assert all(text.isprintable() and len(text) < 100 for text in reasons)
    assert all(str(tmp_path) not in text for text in reasons)


@pytest.mark.parametrize(("name", "package"), [("x.dcm", "pydicom"), ("x.nii", "nibabel")])
def test_without_the_extra_the_reason_says_how_to_get_it(
    tmp_path: Path, name: str, package: str
) -> None:
    (write_dicom if name == "x.dcm" else write_nifti)(tmp_path / name, STORED)
    program = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from anoscan.images.decode import ImageRule, decode\n"
        "from anoscan.images.files import find\n"
        "rule = ImageRule(size=32, channels=1, window=None)\n"
        "try:\n"
        "    decode(find([sys.argv[1]])[0], rule)\n"
        "except Exception as wrong:\n"
        "    print(wrong)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    extra = "dicom" if package == "pydicom" else "nifti"
    assert done.stdout.strip().endswith(f"which needs: pip install 'anoscan[{extra}]'")
    assert not done.stderr


def test_first_bytes_and_names_decide() -> None:
    assert dicom.begins(bytes(128) + b"DICM", "image")
    assert not dicom.begins(b"\x89PNG\r\n\x1a\n", "image.dcm")
    assert nifti.begins(b"\x1f\x8b\x08", "brain.nii.gz")
    assert not nifti.begins(b"\x1f\x8b\x08", "brain.tar.gz")
