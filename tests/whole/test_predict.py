"""`Detector.train` and `Detector.predict` with images in memory."""

from __future__ import annotations

import html
import io
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

import anoscan
from anoscan import Detector, MapFiles, Predictions
from anoscan.core.errors import AnoscanWarning, InputError, TrainingInterrupted, UsageError
from anoscan.core.results import ImageScore, Skipped
from anoscan.report.rows import COLUMNS
from tests.conftest import Digits

QUICK: Any = {"images_shown": 640, "encoder_images_shown": 320, "batch_size": 32, "width": 8}


def of_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Normal digits and zeros, (n, 8, 8)."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return images[digits.target != 0], images[digits.target == 0]


NORMALS, ZEROS = of_digits()
QUERIES = np.concatenate([NORMALS[200:206], ZEROS[:4]])


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.train(NORMALS[:120], **QUICK)


@pytest.fixture(scope="module")
def coloured() -> Detector:
    """A model of colours, of arrays of floats."""
    tints = np.random.default_rng(1).random((120, 1, 1, 3))
    return Detector.train((NORMALS[:120, ..., None] / 255 * tints).astype(np.float32), **QUICK)


def saved(images: NDArray[Any], folder: Path) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    return files


# --- training -----------------------------------------------------------------------------------


def test_a_model_of_arrays_is_saved_only_where_it_has_a_name(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (detector.reference.name, detector.reference.path) == ("", "")
    assert detector.report is not None
    assert detector.report.images.found == 120
    assert detector.report.tracking is None
    detector.save(tmp_path / "saved.safetensors")
    again = Detector.load(tmp_path / "saved.safetensors")
    assert np.array_equal(again.predict(QUERIES).scores, detector.predict(QUERIES).scores)

    home = tmp_path / "home"
    monkeypatch.setenv("ANOSCAN_HOME", str(home))
    few = {**QUICK, "images_shown": 32, "encoder_images_shown": 32}
    Detector.train(NORMALS[:30], **few)
    assert not home.exists()
    named = Detector.train(NORMALS[:30], name="digits", **few)
    assert Path(named.reference.path) == home / "models" / "digits.safetensors"
    by_path = Detector.train(NORMALS[:30], path=tmp_path / "here.safetensors", **few)
    assert by_path.reference.sha256 == named.reference.sha256
    assert Detector.load("digits").reference == named.reference


def test_training_takes_pictures_tensors_and_lists(tmp_path: Path) -> None:
    few = {**QUICK, "images_shown": 32, "encoder_images_shown": 32}
    given = NORMALS[:30]
    models = [
        Detector.train(images, path=tmp_path / f"{number}.safetensors", **few).reference.sha256
        for number, images in enumerate(
            (given, torch.from_numpy(given)[:, None], [Image.fromarray(x) for x in given])
        )
    ]
    assert len(set(models)) == 1
    mixed = Detector.train([*given, given[0, :7], given[1, 1:]], **few)
    assert mixed.report is not None
    assert mixed.report.images.found == 32


def test_training_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(InputError, match="one image is too few") as caught:
        Detector.train(np.zeros((1797, 64)))
    assert "reshape" in str(caught.value.hint)
    with pytest.raises(UsageError, match="resume and redo need the name"):
        Detector.train(NORMALS, resume=True)
    with pytest.raises(UsageError, match="unknown setting 'imagesshown'"):
        Detector.train(NORMALS, imagesshown=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"can be read\. array\[0\]: has NaN"):
        Detector.train(np.full((20, 8, 8), np.nan))


def test_an_interrupted_training_of_arrays_says_that_it_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from anoscan import trainer

    def interrupted(*arguments: Any) -> None:
        raise TrainingInterrupted("training was stopped; a checkpoint is kept.")

    monkeypatch.setattr(trainer, "learn", interrupted)
    with pytest.raises(TrainingInterrupted, match="no checkpoint is kept"):
        Detector.train(NORMALS)
    with pytest.raises(TrainingInterrupted, match="a checkpoint is kept"):
        Detector.train(NORMALS, name="digits")


# --- scores -------------------------------------------------------------------------------------


def test_arrays_score_exactly_as_files(detector: Detector, tmp_path: Path) -> None:
    files = saved(QUERIES, tmp_path)
    report = {image.path: image for image in detector.score(files).images}
    of_files, of_arrays = detector.predict(files), detector.predict(QUERIES)
    assert np.array_equal(of_files.scores, of_arrays.scores)
    assert np.array_equal(of_files.p_values, of_arrays.p_values)
    for place, file in enumerate(files):
        expected = report[str(file)]
        assert of_files[place] == expected
        assert of_arrays.scores[place] == expected.score
        assert of_arrays.anomalous[place] == (expected.verdict == "anomalous")
    assert of_arrays.threshold == detector.threshold()
    assert np.array_equal(of_arrays.scores > of_arrays.threshold.score, of_arrays.anomalous)


@pytest.mark.parametrize(
    "images",
    [
        torch.from_numpy(QUERIES),
        torch.from_numpy(QUERIES)[:, None],
        QUERIES[..., None],
        np.repeat(QUERIES[..., None], 3, 3),
        [Image.fromarray(image) for image in QUERIES],
        list(QUERIES),
    ],
)
def test_all_kinds_of_images_have_the_same_scores(detector: Detector, images: Any) -> None:
    expected = detector.predict(QUERIES).scores
    assert np.array_equal(detector.predict(images).scores, expected)


def test_floats_and_deep_integers_have_nearly_the_scores_of_bytes(detector: Detector) -> None:
    expected = detector.predict(QUERIES).scores
    for images in (QUERIES / 255, QUERIES.astype(np.uint16) * np.uint16(257)):
        np.testing.assert_allclose(detector.predict(images).scores, expected, atol=0.05)


def test_a_single_image_is_one_of_many(detector: Detector) -> None:
    whole = detector.predict(QUERIES, maps=True, reconstructions=True)
    for one in (QUERIES[7], Image.fromarray(QUERIES[7]), torch.from_numpy(QUERIES[7])):
        found = detector.predict(one, maps=True, reconstructions=True)
        assert len(found) == 1
        np.testing.assert_allclose(found.scores, whole.scores[7:8], atol=1e-5)
        assert found.maps.shape == (1, 8, 8)
        assert tuple(found.reconstructions.shape) == (8, 8)


def test_options_are_those_of_score(detector: Detector) -> None:
    assert not np.array_equal(
        detector.predict(QUERIES, score="pca").scores, detector.predict(QUERIES).scores
    )
    strict = detector.predict(QUERIES, false_alarm_rate=0.3)
    assert strict.threshold.false_alarm_rate == 0.3
    with pytest.raises(UsageError, match="--score must be one of"):
        detector.predict(QUERIES, score="nix")


def test_predictions_are_a_sequence_in_the_order_given(detector: Detector) -> None:
    found = detector.predict(QUERIES, names=[f"n{number}" for number in range(10)])
    assert len(found) == 10
    assert isinstance(found[0], ImageScore)
    assert [image.path for image in found] == [f"n{number}" for number in range(10)]
    assert [image.path for image in found[2:4]] == ["n2", "n3"]
    assert found.scores.shape == found.p_values.shape == found.anomalous.shape == (10,)
    assert (found.scores.dtype, found.anomalous.dtype) == (np.float64, np.bool_)
    ranked = found.ranked()
    assert [image.rank for image in ranked] == list(range(1, 11))
    assert [image.score for image in ranked] == sorted(found.scores, reverse=True)
    assert (found.maps, found.reconstructions) == (None, None)


# --- maps and reconstructions -------------------------------------------------------------------


def test_maps_are_those_of_files(detector: Detector, tmp_path: Path) -> None:
    large = np.repeat(np.repeat(QUERIES, 3, 1), 2, 2)
    files = saved(large, tmp_path)
    detector.score(files, maps=MapFiles(tmp_path / "maps", ("npy",)))
    found = detector.predict(large, maps=True).maps
    assert (found.shape, found.dtype) == ((10, 24, 16), np.float32)
    for place, file in enumerate(files):
        (kept,) = (tmp_path / "maps").rglob(f"{file.name}.map.npy")
        assert np.array_equal(found[place], np.load(kept))
    peaks = [image.regions[0].score for image in detector.predict(QUERIES[9:]) if image.regions]  # type: ignore[union-attr]
    own = detector.predict(QUERIES[9:], maps=True).maps
    assert not peaks or own.max() == pytest.approx(peaks[0], rel=0.5)


def test_maps_and_reconstructions_of_mixed_sizes_are_lists(detector: Detector) -> None:
    found = detector.predict([QUERIES[0], QUERIES[1, :6]], maps=True, reconstructions=True)
    assert [x.shape for x in found.maps] == [(8, 8), (6, 8)]
    assert [x.shape for x in found.reconstructions] == [(8, 8), (6, 8)]


def test_a_map_of_patches_has_every_row(tmp_path: Path) -> None:
    stripes = np.random.default_rng(0).integers(0, 255, (40, 48, 40), np.uint8)
    model = Detector.train(stripes, patches=60, patch_size=16, **QUICK)
    (file,) = saved(stripes[:1], tmp_path)
    model.score(file, maps=MapFiles(tmp_path / "maps", ("npy",)))
    found = model.predict(stripes[:1], maps=True, reconstructions=True)
    assert np.array_equal(found.maps[0], np.load(tmp_path / "maps" / "0.png.map.npy"))
    assert found.reconstructions.shape == (1, 48, 40)
    assert model.predict(stripes[:9])._repr_html_().count("<img") == 3  # they take long to draw


def test_the_rows_of_a_map_that_is_reduced_are_kept(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anoscan.images import tiles

    stripes = np.random.default_rng(0).integers(0, 255, (40, 48, 40), np.uint8)
    model = Detector.train(stripes, patches=60, patch_size=16, **QUICK)
    whole = model.predict(stripes[:2], maps=True).maps
    monkeypatch.setattr(tiles, "LARGEST_MAP", 16)
    assert np.array_equal(model.predict(stripes[:2], maps=True).maps, whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
def test_reconstructions_are_like_the_images(detector: Detector, dtype: type) -> None:
    images = {
        np.uint8: QUERIES,
        np.uint16: QUERIES.astype(np.uint16) * np.uint16(257),
        np.bool_: QUERIES > 127,
    }.get(dtype, (QUERIES / 255).astype(dtype))
    found = detector.predict(images, reconstructions=True).reconstructions
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    white = 1 if np.dtype(dtype).kind in "fb" else np.iinfo(dtype).max
    assert found.min() >= 0
    assert found.max() <= white
    apart = np.abs(found.astype(float) - images.astype(float))[:6].mean() / white
    other = np.abs(found.astype(float)[::-1] - images.astype(float))[:6].mean() / white
    assert apart < other
    detector.predict(found)  # is an image again


def test_reconstructions_have_the_axes_and_colours_of_the_images(
    detector: Detector, coloured: Detector
) -> None:
    rgb = np.repeat(QUERIES[..., None], 3, 3)
    for model in (detector, coloured):
        for images in (rgb, QUERIES, QUERIES[..., None]):
            found = model.predict(images, reconstructions=True).reconstructions
            assert (found.shape, found.dtype) == (images.shape, np.uint8)
        tensor = torch.from_numpy(rgb).permute(0, 3, 1, 2)
        found = model.predict(tensor, reconstructions=True).reconstructions
        assert isinstance(found, torch.Tensor)
        assert (found.shape, found.dtype) == (tensor.shape, torch.uint8)


def test_a_model_of_colours_asks_what_a_tensor_of_three_is(coloured: Detector) -> None:
    with pytest.raises(UsageError, match="one image in colour or three grey"):
        coloured.predict(torch.zeros(3, 8, 8))
    assert len(coloured.predict(torch.zeros(1, 3, 8, 8))) == 1


def test_reconstructions_of_files_have_their_levels(detector: Detector, tmp_path: Path) -> None:
    files = saved(QUERIES, tmp_path)
    found = detector.predict(files, reconstructions=True).reconstructions
    assert np.array_equal(found, detector.predict(QUERIES, reconstructions=True).reconstructions)


# --- what cannot be used ------------------------------------------------------------------------


def test_skipped_images_keep_their_place(detector: Detector) -> None:
    images = (QUERIES / 255).astype(np.float32)
    images[3, 0, 0] = np.nan
    said = r"1 of 10 images are skipped.*array\[3\]: has NaN"
    with pytest.warns(AnoscanWarning, match=said) as caught:
        found = detector.predict(images, maps=True, reconstructions=True)
    assert caught[0].filename == __file__
    assert isinstance(found[3], Skipped)
    assert np.flatnonzero(np.isnan(found.scores)).tolist() == [3]
    assert np.isnan(found.p_values[3])
    assert not found.anomalous[3]
    assert np.isnan(found.maps[3]).all()
    assert np.isnan(found.reconstructions[3]).all()
    assert "1 skipped" in repr(found)
    assert found.to_frame().loc[3, "reason"] == "has NaN or infinite pixels"
    assert [image.rank for image in found.ranked()] == list(range(1, 10))


def test_a_skipped_file_has_no_map(detector: Detector, tmp_path: Path) -> None:
    files = [*saved(QUERIES[:2], tmp_path), tmp_path / "text.png"]
    files[2].write_text("no image", encoding="utf-8")
    with pytest.warns(AnoscanWarning):
        found = detector.predict(files, maps=True, reconstructions=True)
    assert found.maps[2] is None
    assert found.reconstructions[2] is None
    assert found.maps[0].shape == (8, 8)


def test_nothing_readable_is_an_error(detector: Detector) -> None:
    with pytest.raises(InputError, match="none of the 2 images can be read") as caught:
        detector.predict(np.full((2, 8, 8), np.inf))
    assert "array[0]" in str(caught.value.hint)
    with pytest.raises(UsageError) as refused:
        detector.score(QUERIES)  # type: ignore[arg-type]
    assert "predict" in str(refused.value.hint)


# --- forms --------------------------------------------------------------------------------------


def test_short_forms_are_short(detector: Detector, few: Digits) -> None:
    found = detector.predict(np.repeat(QUERIES, 30, 0), maps=True, reconstructions=True)
    assert len(repr(found)) < 400
    assert len(repr(found).splitlines()) == 3
    assert "300 images" in repr(found)
    report = detector.score(few.queries)
    for result in (report, report.images[0], detector.report, detector.evaluate(few.labels)):
        assert len(repr(result)) < 2_000, result
    assert "images=<40 ImageScore>" in repr(report)


def test_a_table_has_a_row_an_image(detector: Detector) -> None:
    found = detector.predict(QUERIES)
    table = found.to_frame()
    assert len(table) == 10
    assert np.array_equal(table["score"], found.scores)
    assert table["path"][0] == "array[0]"
    assert set(table["verdict"]) == {"normal", "anomalous"}
    place = int(found.scores.argmax())
    assert table["rank"][place] == 1
    assert table["region_width"][place] >= 1
    assert list(table.columns) == list(COLUMNS)
    assert set(table["nearest_term"]) <= set(detector.score_terms())
    assert table["page"].isna().all()


def test_without_pandas_or_matplotlib_the_error_says_what_to_install(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anoscan.report import predictions

    monkeypatch.setattr(predictions, "find_spec", lambda name: None)
    found = detector.predict(QUERIES[:1])
    for call, extra in ((found.to_frame, "frames"), (found.plot, "plots")):
        with pytest.raises(UsageError, match="is not installed") as caught:
            call()
        assert f"anoscan[{extra}]" in str(caught.value.hint)


def test_a_plot_shows_the_most_anomalous_images(detector: Detector) -> None:
    names = [f"${number}_{{x^" for number in range(10)]  # which is no formula
    figure = detector.predict(QUERIES, names=names).plot(3)
    figure.savefig(io.BytesIO(), format="png")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 3
    assert any("anomalous" in title for title in titles)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="at least 1"):
        detector.predict(QUERIES).plot(0)


def test_a_notebook_shows_a_table_with_at_most_a_dozen_pictures(detector: Detector) -> None:
    name = "<script>alert(1)</script>"
    found = detector.predict(np.repeat(QUERIES, 2, 0), names=[name] * 20)._repr_html_()
    assert found.count("<img") == 12
    assert "<script" not in found
    assert html.escape(name) in found
    assert len(found) < 500_000


def test_files_that_are_gone_are_left_out_of_pictures(detector: Detector, tmp_path: Path) -> None:
    files = saved(QUERIES[:2], tmp_path)
    found = detector.predict(files)
    files[0].unlink()
    assert found._repr_html_().count("<img") == 1


def test_predictions_can_be_pickled_without_their_images(detector: Detector) -> None:
    found = detector.predict(QUERIES, maps=True)
    again: Predictions = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again.scores, found.scores)
    assert np.array_equal(again.maps, found.maps)
    assert "<table>" not in again._repr_html_()
    with pytest.raises(UsageError, match="were pickled"):
        again.plot()


# --- progress and types -------------------------------------------------------------------------


def test_progress_is_shown_on_stderr_only_where_it_is_asked_for(
    detector: Detector, few: Digits, capfd: pytest.CaptureFixture[str]
) -> None:
    few_shown: Any = {**QUICK, "images_shown": 32, "encoder_images_shown": 32}
    Detector.train(NORMALS[:30], **few_shown)
    detector.predict(QUERIES)
    detector.score(few.queries)
    assert capfd.readouterr() == ("", "")
    Detector.train(NORMALS[:30], progress=True, **few_shown)
    trained = capfd.readouterr()
    assert trained.out == ""
    assert "learning normal" in trained.err
    assert "calibrating" in trained.err
    detector.predict(QUERIES, progress=True)
    detector.score(few.queries, progress=True)
    scored = capfd.readouterr()
    assert scored.out == ""
    assert re.search(r"scoring.*10/10", scored.err)
    assert re.search(r"scoring.*40/40", scored.err)


SNIPPET = """
from anoscan import Detector
Detector.train("folder", images_shown=3, width=4)
Detector.train("folder", {})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("imagesshown=3", 'Unexpected keyword argument "imagesshown"'),
        ("width='wide'", "incompatible type"),
    ],
)
def test_a_type_checker_sees_a_misspelt_setting(
    settings: str, complaint: str, tmp_path: Path
) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET.replace("{}", settings), encoding="utf-8")
    source = Path(anoscan.__file__).parent.parent
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(f"[mypy]\nmypy_path = {source}\nfollow_imports = silent\n")
    command = ["-m", "mypy", "--config-file", str(configuration), str(snippet)]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert "snippet.py:4:" in errors[0]
    assert complaint in errors[0]


def test_public_names_are_listed() -> None:
    assert {"Detector", "Predictions", "TrainConfig", "__version__"} <= set(dir(anoscan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in dir(anoscan):
            assert getattr(anoscan, name) is not None
