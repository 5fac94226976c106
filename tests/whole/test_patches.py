"""Models of patches: trained on parts of larger images, applied to all of one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from anoscan import cli
from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError, UsageError
from anoscan.core.results import ScoreReport
from anoscan.dataset.material import Material
from anoscan.detector import Detector
from anoscan.evaluation import drift
from anoscan.images import decode as decode_module
from anoscan.images.decode import ImageRule, decode, decode_all
from anoscan.images.files import ImageFile, find
from anoscan.model import file as modelfile
from anoscan.model.judge import Judge
from anoscan.model.patch_test import term_weights
from anoscan.report.map_files import MapFiles
from anoscan.scoring.choices import Inversion
from anoscan.scoring.tiled import measure_tiled

SIDE, PIECE, PLANT = 32, 128, 44
QUICK: dict[str, Any] = {
    "patches": 40, "patch_size": 16, "images_shown": 64, "encoder_images_shown": 32,
    "rotation_images_shown": 32, "batch_size": 16, "width": 4, "latent_dim": 4, "workers": 2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Texture:
    """Pieces of a brick wall, and the same with gravel in some place."""

    normal: Path
    queries: Path
    plants: dict[str, tuple[int, int]]  # left, top by the name of the query


@pytest.fixture(scope="module")
def texture(tmp_path_factory: pytest.TempPathFactory) -> Texture:
    folder = tmp_path_factory.mktemp("texture")
    brick, gravel = data.brick(), data.gravel()
    places = [(y, x) for y in range(0, 512, PIECE) for x in range(0, 512, PIECE)]
    pieces = [brick[y : y + PIECE, x : x + PIECE] for y, x in places]
    found = Texture(folder / "normal", folder / "queries", {})
    found.normal.mkdir()
    found.queries.mkdir()
    for number, piece in enumerate(pieces[:12]):
        Image.fromarray(piece).save(found.normal / f"{number:02}.png")
    corners = [(0, 0), (60, 30), (10, 84), (84, 40)]
    for number, (piece, (left, top)) in enumerate(zip(pieces[12:], corners, strict=True)):
        Image.fromarray(piece).save(found.queries / f"clean{number}.png")
        planted, start = piece.copy(), 100 * number
        planted[top : top + PLANT, left : left + PLANT] = gravel[
            start : start + PLANT, start : start + PLANT
        ]
        name = f"planted{number}.png"
        Image.fromarray(planted).save(found.queries / name)
        found.plants[name] = (left, top)
    return found


@pytest.fixture(scope="module")
def detector(texture: Texture, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("patches") / "brick.safetensors"
    return Detector.train(
        texture.normal, path=path, patches=1000, patch_size=SIDE, images_shown=1600, width=12
    )


def noise(folder: Path, n: int, shape: tuple[int, ...], *, deep: bool = False) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(n):
        high, dtype = (65536, np.uint16) if deep else (256, np.uint8)
        samples = rng.integers(0, high, shape).astype(dtype)
        Image.fromarray(samples).save(folder / f"{number:02}.png")
    return folder


def by_name(report: ScoreReport) -> dict[str, Any]:
    return {Path(image.path).name: image for image in report.images}


def lies_in_plant(region: Any, left: int, top: int) -> bool:
    x, y = region.x + region.width / 2, region.y + region.height / 2
    return left <= x <= left + PLANT and top <= y <= top + PLANT


# --- the whole way ------------------------------------------------------------------------------


def test_a_foreign_patch_is_found_first_and_so_is_its_place(
    detector: Detector, texture: Texture
) -> None:
    report = detector.score(texture.queries, false_alarm_rate=0.25)
    assert [Path(image.path).name[:5] for image in report.images] == ["plant"] * 4 + ["clean"] * 4
    for name, (left, top) in texture.plants.items():
        worst = by_name(report)[name].regions[0]
        assert lies_in_plant(worst, left, top), name
        assert worst.width * worst.height < 0.75 * PIECE**2


def test_parts_of_held_out_images_decide_how_much_a_term_counts(
    detector: Detector, texture: Texture
) -> None:
    model = detector.model
    material = Material.load(
        find([texture.normal]), model.rule, model.config, workers=1, on_progress=lambda *_: None
    )
    views = material.pixels[material.unseen]
    clean = model.measurer.measure(torch.from_numpy(views)).terms
    found = term_weights(model.measurer, views, clean, clean, model.config.seed)
    place = list(model.fitted).index("local")
    assert 0 < model.calibration.weights[place] < 1
    assert model.calibration.weights[place] == pytest.approx(found[place])


def test_turns_that_cannot_be_told_in_parts_of_held_out_images_leave_no_term(
    tmp_path: Path,
) -> None:
    folder = noise(tmp_path / "n", 10, (40, 30))
    detector = Detector.train(folder, path=tmp_path / "m.safetensors", **QUICK)
    none_of_patches = {"rotation", "subspace", "prototype", "mixture", "nearest"}
    assert not none_of_patches & set(detector.model.fitted)
    assert "rotation" not in detector.score(folder).images[0].terms


@pytest.mark.parametrize("mapping", ["search", "refine"])
def test_latents_are_searched_for_each_tile_and_change_no_default_score(
    detector: Detector, texture: Texture, tmp_path: Path, mapping: str
) -> None:
    query = texture.queries / "clean0.png"
    how = Inversion(mapping, steps=2)
    encoded = detector.score(query, score="anogan", residuals=tmp_path / "encoder").images[0]
    found = detector.score(query, score="anogan", mapping=how, residuals=tmp_path / "other")
    again = detector.score(query, score="anogan", mapping=how, batch_size=1)
    assert found.images[0].score == again.images[0].score != encoded.score
    assert found.threshold.warning is not None
    assert f"--mapping {mapping}" in found.threshold.warning
    drawn = [Path(str(image.residual)).read_bytes() for image in (encoded, found.images[0])]
    assert drawn[0] != drawn[1]
    default = [detector.score(query, mapping=way).images[0].score for way in ("encoder", how)]
    assert default[0] == default[1]


def test_the_model_knows_that_it_is_one_of_patches(detector: Detector) -> None:
    report = detector.report
    assert report is not None
    assert (report.model.size, report.model.patch_size) == (SIDE, SIDE)
    assert (report.images.trained, report.images.held_out, report.images.patches) == (9, 3, 1000)
    metadata = modelfile.read_metadata(Path(detector.reference.path))
    assert metadata["image_rule"]["patch"] == SIDE
    assert metadata["training_data"]["patches"] == 1000
    assert metadata["config"]["patch_size"] == SIDE
    assert "1,000 training patches" in json.dumps(metadata["health"])


def test_a_score_is_exactly_the_same_in_any_company_and_batch_and_from_a_loaded_model(
    detector: Detector, texture: Texture
) -> None:
    whole = by_name(detector.score(texture.queries))
    loaded = Detector.load(detector.reference.path, workers=1)
    for other in (detector.score(texture.queries, batch_size=1), loaded.score(texture.queries)):
        assert by_name(other) == whole
    alone = loaded.score(texture.queries / "planted2.png").images[0]
    assert alone.score == whole["planted2.png"].score
    assert alone.regions == whole["planted2.png"].regions


def test_held_out_images_were_measured_just_as_queries_are(
    detector: Detector, texture: Texture
) -> None:
    rule = detector.model.rule
    stored = detector.model.calibration.terms
    found = [
        measure_tiled(
            detector.model.measurer, decode(file, rule), picture=False, mapped=False
        ).measured.terms[0]
        for file in find([texture.normal])
    ]
    for row in stored:
        assert min(np.abs(row - terms).max() for terms in found) == 0
    report = detector.score(texture.normal)
    p_values = {image.p_value for image in report.images}
    assert p_values <= {0.25, 0.5, 0.75, 1.0}


def test_regions_are_in_pixels_of_the_file_as_stored(
    detector: Detector, texture: Texture, tmp_path: Path
) -> None:
    name, (left, top) = next(iter(texture.plants.items()))
    upright = Image.open(texture.queries / name)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    turned = detector.score(tmp_path / "turned.png", false_alarm_rate=0.25).images[0]
    straight = detector.score(texture.queries / name, false_alarm_rate=0.25).images[0]
    assert turned.score == straight.score
    assert lies_in_plant(turned.regions[0], top, PIECE - left - PLANT)


def test_the_picture_shows_the_whole_image_at_its_own_size(
    detector: Detector, texture: Texture, tmp_path: Path
) -> None:
    wide = np.concatenate([np.asarray(Image.open(f.file)) for f in find([texture.normal])[:2]], 1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    report = detector.score(tmp_path / "wide.png", residuals=tmp_path / "out")
    with Image.open(report.images[0].residual or "") as picture:
        assert picture.width == 3 * wide.shape[1] + 4 * 10
        shown = np.asarray(picture.convert("L"))[:, 10 : 10 + wide.shape[1]]
    tops = range(len(shown) - len(wide))
    same = max((shown[top : top + len(wide)] == wide).mean() for top in tops)
    assert same > 0.9  # but for the boxes of regions


def test_the_map_of_a_normal_image_has_no_period_at_the_distance_of_tiles(tmp_path: Path) -> None:
    folder = noise(tmp_path / "n", 10, (40, 40))
    detector = Detector.train(folder, path=tmp_path / "m.safetensors", **QUICK)
    side, pitch = 512, 8
    query = noise(tmp_path / "q", 1, (side, side))
    written = detector.score(query, maps=MapFiles(tmp_path / "o", ("npy",))).images[0].maps
    assert written is not None
    found = np.load(written["npy"])
    for turned in (found, found.T):
        # Means down parts of the columns: what lies in columns adds up, what is chance does not.
        profiles = turned.reshape(8, side // 8, side).mean(1)
        power = np.square(np.abs(np.fft.rfft(profiles - profiles.mean(1, keepdims=True)))).mean(0)
        for harmonic in (1, 2, 3):
            at = harmonic * side // pitch
            beside = np.r_[power[at - 12 : at - 2], power[at + 3 : at + 13]]
            assert power[at] < 5 * beside.mean()


def walls(folder: Path, *, factor: float = 1, offset: int = 0) -> Path:
    """Two dozen other pieces of the wall, perhaps as another lamp shows them."""
    folder.mkdir()
    brick = data.brick()
    for number in range(24):
        y, x = 16 + 64 * (number // 6), 16 + 64 * (number % 6)
        piece = brick[y : y + 96, x : x + 96] * factor + offset
        Image.fromarray(piece.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def test_a_model_of_patches_is_calibrated_on_large_images(
    detector: Detector, texture: Texture, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    shutil.copy(detector.reference.path, path)
    own = Detector.load(path, workers=1)
    dark = walls(tmp_path / "dark", factor=0.4)
    before = own.score(dark, false_alarm_rate=0.25)
    assert before.counts["anomalous"] > 12
    report = own.calibrate([dark])
    assert report.images == 24
    loaded = Detector.load(path, workers=1)
    calibration = loaded.model.calibration
    assert calibration.tiles is not None
    assert len(calibration.tiles) == len(calibration.terms) == len(calibration.region_peaks) == 24
    after = loaded.score(dark, false_alarm_rate=0.25)
    assert after.counts["anomalous"] <= 8
    for terms in (calibration.terms, loaded.calibration_scores()):
        assert np.isfinite(terms).all()


def test_drift_of_large_images_is_found_and_their_size_is_none_of_it(
    detector: Detector, tmp_path: Path
) -> None:
    own = Detector.load(detector.reference.path, workers=1)
    own.save(tmp_path / "own.safetensors")
    own.calibrate([walls(tmp_path / "walls")])
    same = drift.compare(
        Judge(own.model, own.runtime), own.reference, [tmp_path / "walls"], lambda progress: None
    )
    assert same.fits, same.advice
    assert same.counts == {"compared": 24, "mismatch": 0, "skipped": 0}
    dark = walls(tmp_path / "dark", factor=0.4)
    found = drift.compare(
        Judge(own.model, own.runtime), own.reference, [dark], lambda progress: None
    )
    assert not found.fits
    assert {"score", "brightness"} <= {check.name for check in found.checks if check.drifted}


def test_an_image_of_another_kind_is_a_mismatch_to_a_model_of_patches(
    detector: Detector, texture: Texture, tmp_path: Path
) -> None:
    shutil.copy(texture.queries / "clean0.png", tmp_path)
    Image.new("RGB", (PIECE, PIECE), (255, 250, 240)).save(tmp_path / "white.png")
    Image.fromarray(data.brick()).save(tmp_path / "whole.png")
    found = by_name(detector.score(tmp_path))
    assert found["clean0.png"].mismatch is None
    assert any("in colour" in reason for reason in found["white.png"].mismatch)
    assert any("bright" in reason for reason in found["white.png"].mismatch)
    # Larger than any piece that it learned from.
    assert found["whole.png"].mismatch


def test_eval_and_sample_work_with_a_model_of_patches(
    detector: Detector, texture: Texture, tmp_path: Path
) -> None:
    names = [file.path for file in find([texture.queries])]
    rows = [f"{Path(name).name},{int('planted' in name)}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    report = detector.evaluate(tmp_path / "labels.csv", texture.queries)
    assert report.auroc == 1
    assert report.baselines["pca"]["auroc"] is not None
    pair = names[:2]
    sampled = detector.sample(tmp_path / "s", n=8, between=pair, turing=texture.queries)
    assert sampled.turing is not None
    assert sampled.turing.real == 4
    with Image.open(sampled.between or "") as picture:
        assert picture.height == 64


# --- training -----------------------------------------------------------------------------------


def marked(folder: Path, n: int, side: int) -> Path:
    """Images that can be told by their grey levels: image i has levels 8 i and 8 i + 5."""
    folder.mkdir()
    for number in range(n):
        pattern = np.random.default_rng(number).integers(0, 2, (side, side)) * 5 + 8 * number
        Image.fromarray(pattern.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def load(folder: Path, patches: int, workers: int = 2, size: int = 16) -> Material:
    config = TrainConfig(patches=patches, patch_size=16, size=size)
    rule = ImageRule(size=size, channels=1, window=None, patch=16)
    return Material.load(
        find([folder]), rule, config, workers=workers, on_progress=lambda done, total: None
    )


def source_of(patch: np.ndarray) -> int:
    return round((float(patch.min()) + 1) * 127.5) // 8


def test_held_out_images_give_no_patches_to_train_on_and_all_others_as_many(
    tmp_path: Path,
) -> None:
    material = load(marked(tmp_path / "marked", 20, 40), patches=100)
    assert material.pixels[material.rows].shape == (100, 1, 16, 16)
    sources = [source_of(patch) for patch in material.pixels[material.rows]]
    assert {row: sources.count(row) for row in set(sources)} == {
        row: pytest.approx(100 / len(material.trained), abs=1) for row in material.trained.tolist()
    }
    unseen = [source_of(patch) for patch in material.pixels[material.unseen]]
    assert {row: unseen.count(row) for row in set(unseen)} == dict.fromkeys(
        material.held_out.tolist(), 512 // 5
    )
    assert len(material.held_out) == 5
    middles = material.some_held_out(3)
    assert [source_of(middle) for middle in middles] == material.held_out[[0, 1, 3]].tolist()


def test_patches_depend_on_content_and_seed_not_on_names_or_workers(tmp_path: Path) -> None:
    folder = marked(tmp_path / "marked", 12, 40)
    before = load(folder, patches=63).pixels
    assert np.array_equal(before, load(folder, patches=63, workers=1).pixels)
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"{99 - int(file.stem)}.png")
    after = load(folder, patches=63).pixels
    assert {patch.tobytes() for patch in before} == {patch.tobytes() for patch in after}


def test_the_same_images_and_seed_give_the_same_model_of_patches(tmp_path: Path) -> None:
    folder = noise(tmp_path / "n", 10, (40, 30))
    digests = [
        Detector.train(folder, path=tmp_path / name, **QUICK | {"workers": workers})
        for name, workers in (("a.safetensors", 1), ("b.safetensors", 3))
    ]
    assert digests[0].reference.sha256 == digests[1].reference.sha256


@pytest.mark.parametrize(("shape", "deep"), [((40, 30, 3), False), ((30, 45), True)])
def test_colour_and_deep_images_are_trained_on_and_scored(
    tmp_path: Path, shape: tuple[int, ...], deep: bool
) -> None:
    folder = noise(tmp_path / "n", 10, shape, deep=deep)
    detector = Detector.train(folder, path=tmp_path / "m.safetensors", **QUICK)
    assert detector.model.rule.channels == (1 if deep else 3)
    assert (detector.model.rule.window is not None) == deep
    report = detector.score(folder, residuals=tmp_path / "out")
    assert len({image.score for image in report.images}) == 10
    assert all(np.isfinite(image.score) for image in report.images)


def test_a_lower_size_makes_patches_smaller_and_regions_stay_in_pixels_of_the_image(
    tmp_path: Path,
) -> None:
    folder = noise(tmp_path / "n", 10, (80, 100))
    settings = QUICK | {"patch_size": 32, "size": 16}
    detector = Detector.train(folder, path=tmp_path / "m.safetensors", **settings)
    rule = detector.model.rule
    assert (rule.size, rule.patch) == (16, 32)
    decoded = decode(find([folder])[0], rule)
    assert (decoded.canvas.height, decoded.canvas.width) == (40, 50)
    assert (decoded.width, decoded.height) == (100, 80)
    report = detector.score(folder, false_alarm_rate=0.9)
    boxes = [box for image in report.images for box in image.regions]
    assert max(box.x + box.width for box in boxes) > 50
    assert all(box.x + box.width <= 100 and box.y + box.height <= 80 for box in boxes)


def test_images_smaller_than_a_patch_are_skipped_with_the_reason(tmp_path: Path) -> None:
    folder = noise(tmp_path / "n", 9, (20, 20))
    Image.new("L", (40, 10), 7).save(folder / "flat.png")
    detector = Detector.train(folder, path=tmp_path / "m.safetensors", **QUICK)
    assert detector.report is not None
    (skipped,) = detector.report.images.skipped
    assert skipped.reason == "is 40x10 pixels: smaller than the model's patches of 16x16"
    report = detector.score(folder)
    assert [item.reason for item in report.skipped] == [skipped.reason]
    assert len(report.images) == 9
    with pytest.raises(InputError, match="can be used"):
        Detector.train(folder, path=tmp_path / "x", **QUICK | {"patch_size": 32})


def test_a_jpeg_is_not_reduced_while_it_is_decoded(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 640).astype(np.uint8)
    Image.fromarray(np.tile(smooth, (600, 1))).save(tmp_path / "x.jpg", quality=95)
    rule = ImageRule(size=16, channels=1, window=None, patch=16)
    decoded = decode(ImageFile("x", tmp_path / "x.jpg", "x"), rule)
    assert decoded.canvas.samples.shape == (600, 640)
    assert decoded.canvas.samples.dtype == np.uint8


def test_few_large_images_are_decoded_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = noise(tmp_path / "n", 20, (20, 20))
    begun: list[str] = []

    def counting(image: ImageFile, rule: ImageRule, *more: Any) -> Any:
        begun.append(image.path)
        return decode(image, rule, *more)

    monkeypatch.setattr(decode_module, "decode", counting)
    rule = ImageRule(size=16, channels=1, window=None, patch=16)
    for taken, _ in enumerate(decode_all(find([folder]), rule, workers=8), start=1):
        assert len(begun) <= taken + 2


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"patch_size": 32}, "--patches"),
        ({"patches": 2}, "--patches"),
        ({"patches": 100, "patch_size": 8}, "--patch-size"),
        ({"patches": 100, "patch_size": 1024}, "--size"),
        ({"patches": 100, "patch_size": 16, "size": 32}, "--size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert word in f"{error.value.message} {error.value.hint}"


def test_the_side_of_a_patch_defaults_to_what_the_networks_see() -> None:
    assert TrainConfig().patch is None
    assert TrainConfig(patches=100).patch == 64
    assert TrainConfig(patches=100, size=32).patch == 32
    assert TrainConfig(patches=100, size=32, patch_size=48).patch == 48


def test_the_command_trains_on_patches_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = noise(tmp_path / "walls", 10, (40, 30))

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["anoscan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    options = [
        "--patches", 40, "--patch-size", 16, "--images-shown", 32, "--encoder-images-shown", 32,
        "--rotation-images-shown", 0, "--width", 4,
    ]  # fmt: skip
    code, text = run("train", folder, *options, "--dry-run")
    config = json.loads(text)["config"]
    assert (code, config["size"], config["patch_size"], config["patches"]) == (0, 16, 16, 40)
    code, text = run("train", folder, *options)
    assert code == 0
    assert "trained on in 40 patches" in text
    code, text = run("score", folder, "--json")
    assert code == 0
    assert len(json.loads(text)["images"]) == 10
    assert run("train", folder, "--patch-size", 16)[0] == 2
