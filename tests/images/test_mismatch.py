from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data

from anoscan.cli import tables
from anoscan.cli.app import main
from anoscan.core.errors import ModelError
from anoscan.core.results import ImageScore, Region, Verdict
from anoscan.detector import Detector
from anoscan.images import mismatch
from anoscan.images.canvas import Canvas
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.images.mismatch import Look, Looks
from anoscan.model import judge
from anoscan.scoring import neighbours
from anoscan.scoring.neighbours import Neighbours
from tests.conftest import Digits

RULE = ImageRule(size=16, channels=1, window=None)
WIDE = ImageRule(size=64, channels=1, window=None)


def picture(seed: int, side: int = 20) -> Image.Image:
    """A smooth grey picture of middling brightness."""
    noise = np.random.default_rng(seed).uniform(60, 190, size=(side, side))
    return Image.fromarray(noise.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))


def look(image: Image.Image, folder: Path, rule: ImageRule = RULE) -> Look:
    file = folder / "image.png"
    image.save(file)
    return decode(ImageFile("image.png", file, "image.png"), rule).look


@pytest.fixture
def normals(tmp_path: Path) -> Looks:
    return Looks.of([look(picture(seed), tmp_path) for seed in range(40)])


def words(reasons: tuple[str, ...] | None) -> list[str]:
    return [reason.partition(":")[0] for reason in reasons or ()]


def test_another_normal_image_is_no_mismatch(normals: Looks, tmp_path: Path) -> None:
    for seed in range(100, 130):
        assert normals.reasons(look(picture(seed), tmp_path)) is None


def disc(seed: int, blur: float = 0) -> Image.Image:
    """One bright object on a ground of little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    inside = np.hypot(y - 32 - random.normal(), x - 32 - random.normal()) < 16 + random.normal()
    pixels = 60 + 120 * inside + random.normal(0, 3, (64, 64))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur else image


def marked(seed: int) -> Image.Image:
    image = picture(seed, 64)
    image.paste(255, (4 * (seed % 10), 3 * (seed % 10), 4 * (seed % 10) + 16, 3 * (seed % 10) + 12))
    return image


def test_what_is_due_to_one_part_is_an_anomaly_and_no_mismatch(tmp_path: Path) -> None:
    normals = Looks.of([look(picture(seed, 64), tmp_path, WIDE) for seed in range(40)])
    unknown = np.full((40, 4), 1e9)  # as if parts of normal images changed it as much
    of_whole = Looks(np.hstack([normals.values[:, :4], unknown]), normals.kinds)
    for seed in range(100, 110):
        found = look(marked(seed), tmp_path, WIDE)
        assert "sharpness" in words(of_whole.reasons(found)), "the whole image would be"
        assert normals.reasons(found) is None
    for change in (ImageFilter.GaussianBlur(2), ImageFilter.UnsharpMask(3, 300)):
        changed = look(picture(100, 64).filter(change), tmp_path, WIDE)
        assert words(normals.reasons(changed)) == ["sharpness"]


def test_a_blurred_object_is_not_excused_by_its_ground(tmp_path: Path) -> None:
    normals = Looks.of([look(disc(seed), tmp_path, WIDE) for seed in range(40)])
    for seed in range(100, 110):
        assert normals.reasons(look(disc(seed), tmp_path, WIDE)) is None
        assert words(normals.reasons(look(disc(seed, blur=1), tmp_path, WIDE))) == ["sharpness"]


def test_each_way_of_being_unlike_is_named(normals: Looks, tmp_path: Path) -> None:
    usual = picture(100)
    bright = usual.point(lambda value: min(255, value + 100))
    colour = Image.merge("RGB", (usual, usual.point(lambda v: v // 2), usual))
    deep = Image.fromarray(np.asarray(usual).astype(np.uint16) * 257)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint8))
    assert words(normals.reasons(look(picture(100, side=40), tmp_path))) == ["size"]
    assert words(normals.reasons(look(bright, tmp_path))) == ["brightness"]
    assert "channels" in words(normals.reasons(look(colour, tmp_path)))
    assert words(normals.reasons(look(deep, tmp_path))) == ["bit depth"]
    blurred = usual.filter(ImageFilter.GaussianBlur(4))
    assert "sharpness" in words(normals.reasons(look(blurred, tmp_path)))
    assert "sharpness" in words(normals.reasons(look(noisy, tmp_path)))


def test_a_grey_image_among_colour_photographs_is_a_mismatch(tmp_path: Path) -> None:
    rule = ImageRule(size=16, channels=3, window=None)
    bands = [(picture(seed), picture(seed + 50), picture(seed + 90)) for seed in range(20)]
    colours = Looks.of([look(Image.merge("RGB", three), tmp_path, rule) for three in bands])
    grey = look(picture(7).convert("RGB"), tmp_path, rule)
    assert "channels" in words(colours.reasons(grey))


def test_large_images_are_looked_at_in_a_bounded_number_of_lines(tmp_path: Path) -> None:
    rule = ImageRule(size=16, channels=1, window=None, patch=16)
    found = look(picture(3, side=300), tmp_path, rule)
    assert (found.width, found.height) == (300, 300)
    assert found.brightness == pytest.approx(np.asarray(picture(3, 300)).mean() / 255, abs=0.02)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    monkeypatch.setattr("sys.argv", ["anoscan", *args])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


def test_score_names_a_mismatch_beside_the_score_and_judges_as_before(
    trained: Detector,
    digits: Digits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = sorted(digits.queries.iterdir())[:60]
    for file in some:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with Image.open(some[0]) as image:
        image.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    model = trained.reference.path
    document = json.loads(
        run(capsys, monkeypatch, "score", str(tmp_path), "--model", model, "--json")
    )
    threshold = document["threshold"]["score"]
    by_name = {Path(image["path"]).name: image for image in document["images"]}
    assert words(by_name["large.png"]["mismatch"]) == ["size"]
    assert sum(image["mismatch"] is not None for image in document["images"]) <= 3
    for image in document["images"]:
        assert (image["verdict"] == "anomalous") == (image["score"] > threshold)
    rows = list(
        csv.DictReader(
            io.StringIO(run(capsys, monkeypatch, "score", str(tmp_path), "--model", model, "--csv"))
        )
    )
    in_csv = {Path(row["path"]).name: row["mismatch"] for row in rows}
    assert in_csv["large.png"] == "size: 64x64, normal images are 8x8"
    assert list(in_csv.values()).count("") >= 58
    table = run(capsys, monkeypatch, "score", str(tmp_path / "large.png"), "--model", model)
    assert "size" in table.splitlines()[1]
    assert "mismatch: as a whole unlike every normal image" in table


@pytest.fixture(scope="module")
def gravel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of gravel: normal ones, some with defects, and blurred ones; and their model."""
    folder, rng = tmp_path_factory.mktemp("gravel"), np.random.default_rng(0)

    def crop() -> np.ndarray:
        top, left = rng.integers(0, 512 - 64, 2)
        found: np.ndarray = data.gravel()[top : top + 64, left : left + 64].copy()
        return found

    def scratched() -> np.ndarray:
        image = crop()
        image[rng.integers(4, 60, 3)] = 255
        return image

    def splashed() -> np.ndarray:
        image = crop()
        for row, column in rng.integers(0, 62, (40, 2)):
            image[row : row + 2, column : column + 2] = 255
        return image

    for kind, make, n in (
        ("normal", crop, 240),
        ("scratch", scratched, 8),
        ("splash", splashed, 8),
    ):
        (folder / kind).mkdir()
        for index in range(n):
            Image.fromarray(make()).save(folder / kind / f"{index}.png")
    (folder / "blurred").mkdir()
    for index in range(4):
        blurred = Image.fromarray(crop()).filter(ImageFilter.GaussianBlur(2))
        blurred.save(folder / "blurred" / f"{index}.png")
    sizes = {"images_shown": 640, "encoder_images_shown": 320, "batch_size": 32, "width": 8}
    Detector.train(folder / "normal", path=folder / "m.safetensors", workers=1, **sizes)
    return folder


def test_a_defect_with_a_place_is_not_doubted_for_being_sharp(
    gravel: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = gravel / "m.safetensors"
    how: Any = {"false_alarm_rate": 0.05}
    detector = Detector.load(model)
    found = detector.score([gravel / "scratch", gravel / "splash"], **how).images
    sharp = [image for image in found if "sharpness" in words(image.mismatch)]
    placed = [image for image in sharp if image.located]
    assert len(placed) >= 5
    for image in placed:
        assert image.mismatch == (
            "sharpness: more than any normal image has; its anomalous region may be why",
        )
    for image in detector.score(gravel / "blurred", **how).images:
        assert image.verdict == "normal"
        assert image.mismatch == (
            "sharpness: less than any normal image has, as if blurred or empty",
        )
    rate = ["--false-alarm-rate", "0.05", "--model", str(model)]
    table = run(capsys, monkeypatch, "score", *(image.path for image in placed), *rate)
    assert "mismatch: as a whole unlike every normal image in this" in table
    for doubt in ("says little", "may be why the image is anomalous", "as if"):
        assert doubt not in table
    table = run(capsys, monkeypatch, "score", str(gravel / "blurred"), *rate)
    assert "a normal verdict on it says little" in table
    assert "may be why the image is anomalous" not in table


def test_only_an_anomalous_image_without_a_place_may_owe_its_verdict_to_a_mismatch() -> None:
    region = Region(x=0, y=0, width=1, height=1, score=9.0, area=1, p_value=0.1)

    def image(verdict: Verdict, *regions: Region) -> ImageScore:
        return ImageScore(
            rank=1, path="a.png", score=1.0, p_value=0.1, q_value=0.1, verdict=verdict,
            terms={}, regions=regions, residual=None, mismatch=("size: 2x2",),
        )  # fmt: skip

    assert image("anomalous", region).located
    assert not image("anomalous").located
    assert not image("normal", region).located
    may = "it may be why the image is anomalous"
    assert may in tables._of_mismatches([image("anomalous", region), image("anomalous")])
    assert may not in tables._of_mismatches([image("anomalous", region), image("normal")])


def test_a_mismatch_that_a_region_cannot_cause_is_named_as_it_is(
    normals: Looks, tmp_path: Path
) -> None:
    large = look(picture(100, side=40), tmp_path)
    assert normals.reasons(large, located=True) == normals.reasons(large) is not None
    bright = look(picture(100).point(lambda value: min(255, value + 100)), tmp_path)
    (reason,) = normals.reasons(bright, located=True) or ()
    assert reason.startswith("brightness: 0.")
    assert reason.endswith("; its anomalous region may be why")


def test_percentiles_count_the_calibration_images_below(trained: Detector, digits: Digits) -> None:
    report = trained.score(digits.queries)
    names = list(trained.model.fitted)
    for image in report.images[:5]:
        assert set(image.percentiles) == set(image.terms)
        assert all(0 <= value <= 100 for value in image.percentiles.values())
    oddest = max(report.images, key=lambda image: image.terms["density"])
    calmest = min(report.images, key=lambda image: image.terms["density"])
    assert oddest.percentiles["density"] == 100 > calmest.percentiles["density"]
    column = trained.model.calibration.terms[:, names.index("density")]
    middle = np.median(column)
    row = trained.model.calibration.terms.mean(0)
    row[names.index("density")] = middle
    scorer = trained._judge.scorer
    place = scorer.terms("calibrated").index("density")
    assert scorer.percentiles(row[None], "calibrated")[0, place] == pytest.approx(50, abs=1)


@pytest.fixture(scope="module")
def keeper(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector.train(
        few.normal,
        path=tmp_path_factory.mktemp("kept") / "kept.safetensors",
        images_shown=640,
        encoder_images_shown=1280,
        rotation_images_shown=64,
        width=8,
        keep_thumbnails=True,
        workers=1,
    )


def test_a_training_image_is_its_own_nearest_neighbour(keeper: Detector, few: Digits) -> None:
    loaded = Detector.load(keeper.reference.path)
    kept = loaded.model.neighbours
    assert kept is not None
    assert len(kept.paths) == keeper.model.metadata["training_data"]["trained"]
    report = loaded.score(list(kept.paths[:4]), nearest=3)
    for image in report.images:
        assert image.nearest is not None
        assert [n.distance for n in image.nearest] == sorted(n.distance for n in image.nearest)
        assert image.nearest[0].path == image.path
        assert image.nearest[0].distance == pytest.approx(0, abs=1e-4)
        assert image.nearest[1].distance > 0.01
        with Image.open(image.path) as stored:
            shown = kept.thumbnails[kept.paths.index(image.path), 0]
            assert shown.shape == (16, 16)
            middle = np.asarray(stored.resize((16, 16), Image.Resampling.BILINEAR), float)
            assert np.abs(shown - middle).mean() < 2


def test_pictures_show_the_nearest_training_images_which_are_looked_for_once(
    keeper: Detector, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def latent(*given: Any) -> np.ndarray:
        asked.append(given)
        return neighbours.latent(*given)

    monkeypatch.setattr(judge, "latent", latent)
    query = sorted(few.queries.iterdir())[0]
    plain = keeper.score([query], residuals=tmp_path / "plain").images[0].residual
    more = keeper.score([query], residuals=tmp_path / "more", nearest=2).images[0].residual
    assert plain is not None
    assert more is not None
    with Image.open(plain) as first, Image.open(more) as second:
        assert second.width > first.width * 1.5
    assert len(asked) == 1


def test_nothing_of_training_images_is_kept_unasked(trained: Detector, digits: Digits) -> None:
    assert trained.model.neighbours is None
    assert b".png" not in Path(trained.reference.path).read_bytes()
    with pytest.raises(ModelError, match="keeps nothing"):
        trained.score(digits.queries, nearest=1)


@pytest.mark.parametrize(
    "paths",
    [b'["a"]', b'{"a": 1, "b": 2}', b'["a", 2]', b'"ab"', b"not json", b"\xff", b"[" * 10**6],
)
def test_a_bad_list_of_neighbours_is_refused(paths: bytes) -> None:
    good = Neighbours(np.zeros((2, 3), np.float32), np.zeros((2, 1, 4, 4), np.uint8), ("a", "b"))
    tensors = good.tensors()
    assert Neighbours.of_tensors(tensors).paths == ("a", "b")
    listed = torch.from_numpy(np.frombuffer(paths, np.uint8).copy())
    with pytest.raises(ValueError, match="do not fit"):
        Neighbours.of_tensors(tensors | {"neighbours/paths": listed})


def test_very_long_lines_are_measured_in_stretches_from_all_over() -> None:
    samples = np.zeros((32, 200_000), np.uint8)
    samples[:, 100_000:] = 255
    for canvas in (Canvas(samples, 1, None), Canvas(samples.T, 1, None)):
        assert max(part.size for part in mismatch._lines(canvas)) <= mismatch.LINES * 2**16
        assert Look.of("8-bit grey", canvas, (32, 200_000)).brightness == pytest.approx(
            0.5, abs=0.02
        )
