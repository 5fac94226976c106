"""A model of images of five channels, from the files to the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from anoscan import Detector, MapFiles
from anoscan.report.pictures import picture

QUICK: Any = {"images_shown": 160, "encoder_images_shown": 64, "width": 4, "size": 16}


def of_five(images: NDArray[Any]) -> NDArray[np.uint16]:
    """Images (n, 24, 24, 5) of digits (n, 8, 8): the digit, its inverse, turned, and its edges."""
    large = np.kron(images, np.ones((1, 3, 3))) * 250
    down, across = (np.abs(np.diff(large, axis=axis, prepend=0)) for axis in (1, 2))
    many = [large, 4000 - large, large[:, ::-1], down, across]
    return np.stack(many, 3).astype(np.uint16)


DIGITS = load_digits()
NORMALS, ODD = (
    of_five(DIGITS.images[chosen]) for chosen in (DIGITS.target != 0, DIGITS.target == 0)
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five")
    for number, image in enumerate(NORMALS[:60]):
        name = folder / "normal" / f"{number:03d}"
        name.parent.mkdir(exist_ok=True)
        if number % 2:
            np.save(name.with_suffix(".npy"), image)
        else:
            tifffile.imwrite(name.with_suffix(".tif"), image, planarconfig="contig")
    np.save(folder / "queries.npy", np.concatenate([NORMALS[60:64], ODD[:2]]))
    Image.new("RGB", (24, 24)).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def detector(files: Path) -> Detector:
    return Detector.train(
        files / "normal",
        path=files / "m.safetensors",
        **QUICK,
        keep_thumbnails=True,
        show_channels="3,2,1",
    )


def test_files_are_scored_and_drawn_and_other_images_skipped(
    detector: Detector, files: Path, tmp_path: Path
) -> None:
    assert detector.model.rule.channels == 5
    assert detector.model.config.channels == 5
    assert detector.model.rule.shown == (2, 1, 0)
    loaded = Detector.load(files / "m.safetensors")
    report = loaded.score(
        [files / "queries.npy", files / "photo.png"],
        residuals=tmp_path / "residuals",
        maps=MapFiles(tmp_path / "maps", ("overlay", "side-by-side", "npy")),
        nearest=1,
    )
    (skipped,) = report.skipped
    said = "is grey or in colour, and the images of the model are of 5 channels"
    assert (skipped.path.rpartition("/")[2], skipped.reason) == ("photo.png", said)
    assert len(report.images) == 6
    assert len(list(tmp_path.rglob("*.png"))) == 18
    assert all(image.mismatch is None or "channels" not in str(image.mismatch)
               for image in report.images)  # fmt: skip


def test_arrays_have_the_scores_of_files_and_reconstructions_of_their_form(
    detector: Detector, files: Path
) -> None:
    queries = np.load(files / "queries.npy")
    found = detector.predict(queries, maps=True, reconstructions=True)
    of_files = detector.predict(files / "queries.npy", reconstructions=True)
    np.testing.assert_array_equal(found.scores, of_files.scores)
    assert found.maps.shape == (6, 24, 24)
    assert found.reconstructions.shape == queries.shape
    assert found.reconstructions.dtype == np.uint16
    assert of_files.reconstructions.shape == queries.shape
    (alone,) = detector.predict(queries[0]).scores
    assert alone == pytest.approx(found.scores[0], abs=1e-5)


def test_the_channels_that_pictures_show_change_no_score(files: Path, tmp_path: Path) -> None:
    detector = Detector.load(files / "m.safetensors")
    before = detector.predict(files / "queries.npy").scores
    x = np.linspace(-1, 1, 5 * 24 * 24, dtype=np.float32).reshape(5, 24, 24)
    drawn = []
    for shown in ("1,2,3", "5,4,2", "4"):
        detector.show_channels(shown)
        image = np.asarray(picture(detector.model.rule.picture(x)))
        expected = ((x[[int(n) - 1 for n in shown.split(",")]] + 1) * 127.5).round()
        np.testing.assert_array_equal(
            image, np.broadcast_to(expected, (3, 24, 24)).transpose(1, 2, 0)
        )
        detector.score([files / "queries.npy"], residuals=tmp_path / shown)
        drawn.append(sorted((tmp_path / shown).rglob("*.png"))[0].read_bytes())
    assert len(set(drawn)) == 3
    np.testing.assert_array_equal(detector.predict(files / "queries.npy").scores, before)


def test_samples_are_drawn_in_the_channels_to_show(detector: Detector, tmp_path: Path) -> None:
    report = detector.sample(tmp_path, n=4)
    with Image.open(report.grid) as grid:
        assert grid.mode == "RGB"
