"""Anomaly maps: where an image is odd, calibrated, and as files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from anoscan import cli
from anoscan.core.config import SMALLEST_SIZE
from anoscan.core.errors import UsageError
from anoscan.detector import Detector
from anoscan.evaluation import drift
from anoscan.images import tiles
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, ImageRule, decode
from anoscan.images.files import ImageFile, find
from anoscan.model import file as modelfile
from anoscan.model import regions
from anoscan.model.judge import Judge, Wanted
from anoscan.model.regions import Finder
from anoscan.networks.architectures import EvenPad
from anoscan.report import map_files
from anoscan.report.map_files import MapFiles, Rows
from anoscan.report.views import own_canvas
from anoscan.scoring import grid, maps
from anoscan.scoring.choices import MAP_FORMS, ScoreRequest, map_forms
from anoscan.scoring.maps import Maps
from anoscan.scoring.terms import Evidence
from tests.conftest import Digits


def image(height: int, width: int, orientation: int = 1) -> Decoded:
    samples = np.zeros((height, width), np.uint8)
    stored = (width, height) if orientation < 5 else (height, width)
    file = ImageFile("folder/a.png", Path("a.png"), "folder/a.png")
    return Decoded(file, Canvas(samples, 1, None), *stored, orientation, b"", None)  # type: ignore[arg-type]


def spotted(digits: Digits, folder: Path, n: int) -> list[tuple[Path, tuple[int, int]]]:
    """Normal scans with a bright square of 3x3 pixels in the corner of each that is darkest."""
    folder.mkdir()
    found = []
    for path in sorted(digits.normal.iterdir())[:n]:
        pixels = np.array(Image.open(path))
        corners = {(y, x): pixels[y : y + 3, x : x + 3].sum() for y in (0, 5) for x in (0, 5)}
        y, x = min(corners, key=lambda corner: corners[corner])
        pixels[y : y + 3, x : x + 3] = 255
        Image.fromarray(pixels).save(folder / path.name)
        found.append((folder / path.name, (x, y)))
    return found


# --- what a map says ----------------------------------------------------------------------------


def test_a_planted_spot_is_the_highest_place_of_the_map_of_most_images(
    trained: Detector, digits: Digits, tmp_path: Path
) -> None:
    places = spotted(digits, tmp_path / "spots", 20)
    out = tmp_path / "maps"
    trained.score(tmp_path / "spots", maps=MapFiles(out, ("npy",)))
    hits = 0
    for path, (x, y) in places:
        found = np.load(out / f"{path.name}.map.npy")
        assert found.shape == (8, 8)
        row, column = np.unravel_index(found.argmax(), found.shape)
        hits += y - 1 <= row <= y + 3 and x - 1 <= column <= x + 3
    assert hits >= 14


def test_maps_of_normal_images_are_calm(trained: Detector, digits: Digits, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    trained.score(digits.queries, maps=MapFiles(out, ("npy",)))
    normal = digits.labels.read_text(encoding="utf-8").splitlines()[1:]
    values = np.concatenate(
        [
            np.load(out / f"{Path(line[:-2]).name}.map.npy").ravel()
            for line in normal
            if line.endswith(",0")
        ]
    )
    assert abs(np.median(values)) < 0.5
    assert (values > trained.model.maps.scale.level).mean() < 0.03
    assert (values > trained.model.maps.scale.brightest).mean() < 0.002


def test_a_loaded_model_gives_the_same_maps_in_any_company(
    trained: Detector, model_file: Path, digits: Digits
) -> None:
    loaded = Detector.load(model_file, workers=1)
    together = trained.score(digits.queries, false_alarm_rate=0.3)
    alone = loaded.score(digits.queries, false_alarm_rate=0.3, batch_size=1)
    one_image = 1.01 / (len(trained.model.calibration.region_peaks) + 1)
    for one, other in zip(together.images, alone.images, strict=True):
        assert one.path == other.path
        # Reconstructions differ in the last bit where a batch is multiplied at once.
        # So a place at the very edge of a region may be inside or outside, and its peak may be
        # above or below that of one more calibration image.
        for a, b in zip(one.regions, other.regions, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
            for name in ("x", "y", "width", "height"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1)
            assert a.p_value == pytest.approx(b.p_value, abs=one_image)
            same = {"x": 0, "y": 0, "width": 1, "height": 1, "area": 1, "score": 0, "p_value": 1}
            assert dataclasses.replace(a, **same) == dataclasses.replace(b, **same)
    assert any(r.regions for r in alone.images)


def test_whether_images_are_aligned_is_decided_by_held_out_ones(trained: Detector) -> None:
    model = trained.model
    rng = np.random.default_rng(0)
    # A texture without any place: every image is another part of the same noise.
    noise = rng.normal(0, 0.5, (160, 1, 32, 32)).astype(np.float32).clip(-1, 1)
    whole = np.repeat(np.repeat(noise, 2, 2), 2, 3)[:, :, : model.rule.size, : model.rule.size]
    parts = torch.from_numpy(np.ascontiguousarray(whole))
    fitted = maps.fit(
        model.networks,
        terms_of(model.networks, parts[:120]),
        lambda: [parts[:120]],
        lambda: [parts[120:]],
        align=None,
    )
    assert not fitted.aligned
    assert trained.model.maps.aligned


def terms_of(networks: object, x: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    from anoscan.scoring.measure import fit_terms

    return fit_terms(networks, ["local", "subspace"], [x])  # type: ignore[arg-type]


def seen_by(detector: Detector, folder: Path, n: int) -> np.ndarray:
    """The first images of a folder as the networks see them, (n, c, s, s)."""
    rule = detector.model.rule
    return np.stack([decode(file, rule).pixels for file in find([folder])[:n]])


def test_what_sets_the_level_of_regions_had_no_part_in_the_maps(
    trained: Detector, digits: Digits
) -> None:
    """A new normal image is as likely to have the highest peak as one that maps were made with."""
    model = trained.model
    pixels = seen_by(trained, digits.normal, 300)
    p: list[np.ndarray] = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(pixels))
        own, new = (torch.from_numpy(pixels[rows]) for rows in (order[:40], order[40:140]))
        found = maps.calibrated(model.networks, model.maps, lambda x=own: [x])  # type: ignore[misc]
        assert found.peaks is not None
        highest = found.measure(Evidence(model.networks, new)).max((1, 2))
        p.append((1 + (found.peaks >= highest[:, None]).sum(1)) / (len(own) + 1))
    for rate in (0.1, 0.2, 0.5):
        assert np.mean(np.concatenate(p) <= rate) == pytest.approx(rate, rel=0.35)


def test_only_what_is_inside_a_region_of_interest_sets_levels(
    trained: Detector, digits: Digits
) -> None:
    model = trained.model
    x = torch.from_numpy(seen_by(trained, digits.normal, 60))
    side = model.rule.size
    inside = np.zeros((side, side), np.bool_)
    inside[side // 4 : -side // 4, side // 4 : -side // 4] = True
    whole = maps.calibrated(model.networks, model.maps, lambda: [x])
    part = maps.calibrated(model.networks, model.maps, lambda: [x], inside)
    assert part.peaks is not None
    assert whole.peaks is not None
    assert (part.peaks <= whole.peaks).all()
    assert part.peaks.mean() < whole.peaks.mean()
    assert part.scale.level != whole.scale.level


@pytest.mark.parametrize("size", [28, 33, 60, 64, 100])
def test_layers_are_not_shifted_where_sides_are_odd_on_the_way_down(size: int) -> None:
    """The first block's cells lie over the pixels that they were made of."""
    rows = np.arange(size, dtype=np.float64)
    x = torch.from_numpy(np.tile(rows, (size, 1)))[None, None]
    while x.shape[-1] > 5:
        x = torch.nn.functional.avg_pool2d(EvenPad()(x), 2)
        grown = grid.enlarging(x.shape[-1], size)(x[0, 0]).numpy()
        step = 2 ** round(np.log2(size / x.shape[-1]))
        middle = slice(step, size - 2 * step)
        np.testing.assert_allclose(grown[0, middle], rows[middle], atol=0.01)


@pytest.mark.parametrize("align", ["on", "off"])
def test_alignment_can_be_chosen_and_is_kept(
    few: Digits, tmp_path: Path, quick: dict[str, int], align: str
) -> None:
    path = tmp_path / "m.safetensors"
    Detector.train(few.normal, path=path, align=align, rotation_images_shown=0, **quick)
    metadata = modelfile.read_metadata(path)
    assert metadata["maps"]["aligned"] is (align == "on")
    assert Detector.load(path).score(few.queries).images


def test_patches_are_never_aligned() -> None:
    from anoscan.core.config import TrainConfig

    with pytest.raises(UsageError, match="never aligned"):
        TrainConfig(patches=100, align="on")
    with pytest.raises(UsageError, match="--align"):
        TrainConfig(align="maybe")


# --- regions ------------------------------------------------------------------------------------


def test_a_region_has_a_box_an_area_a_peak_and_a_p_value_in_pixels_of_the_image() -> None:
    anomaly_map = np.zeros((10, 20), np.float32)
    anomaly_map[2:4, 3:8] = 2
    anomaly_map[3, 7] = 5
    anomaly_map[8, 18] = 1  # not above the level
    decoded = dataclasses.replace(image(10, 20), width=40, height=20)
    (region,) = regions.find(decoded, anomaly_map, 1.0, np.array([1.0, 4.5, 6.0]))
    assert (region.x, region.y, region.width, region.height) == (6, 4, 10, 4)
    assert (region.area, region.score, region.p_value) == (40, 5.0, 0.5)


def test_regions_come_worst_first_and_touching_corners_are_one() -> None:
    anomaly_map = np.zeros((8, 8), np.float32)
    anomaly_map[0, 0], anomaly_map[1, 1], anomaly_map[5, 5] = 2, 3, 4
    found = regions.find(image(8, 8), anomaly_map, 1.0, np.array([1.0]))
    assert [region.score for region in found] == [4, 3]
    assert (found[1].width, found[1].height, found[1].area) == (2, 2, 2)
    assert regions.find(image(8, 8), anomaly_map, 9.0, np.array([1.0])) == ()


def test_regions_of_a_reduced_map_are_in_full_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LARGEST_MAP", 4)
    full = np.zeros((10, 10), np.float32)
    full[9, 4] = 7
    reduced = tiles.Reduced(1, 10, 10)
    reduced.add(0, full[None, :7])
    reduced.add(7, full[None, 7:])
    assert reduced.picture.shape == (1, 4, 4)
    assert reduced.picture[0, 3, 1] == 7
    assert reduced.picture.sum() == 7
    (region,) = regions.find(image(10, 10), reduced.picture[0], 1.0, np.array([1.0]))
    assert (region.x, region.y, region.width, region.height) == (3, 9, 3, 1)


@pytest.mark.parametrize("orientation", [1, 6])
def test_regions_of_a_map_that_comes_in_rows_are_those_of_the_whole(orientation: int) -> None:
    rng = np.random.default_rng(3)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=(60, 47)), 1.2).astype(np.float32)
    decoded, peaks = image(60, 47, orientation), np.linspace(0, 2, 9)
    for level in (0.0, 0.2, anomaly_map.max() + 1):
        finder = Finder(level)
        for top in range(0, 60, 7):
            finder.add(top, anomaly_map[top : top + 7])
        whole = regions.find(decoded, anomaly_map, level, peaks)
        assert finder.found(decoded, (60, 47), peaks) == whole
        labels, count = ndimage.label(anomaly_map > level, np.ones((3, 3)))
        assert sum(region.area or 0 for region in whole) == (labels > 0).sum()
        assert len(whole) == count


def test_means_of_blocks_are_those_of_what_is_there() -> None:
    full = np.random.default_rng(0).normal(size=(3, 10, 13)).astype(np.float32)
    reduced = tiles.Reduced(3, 10, 13, 4, mean=True)
    for top in range(0, 10, 3):
        reduced.add(top, full[:, top : top + 3])
    assert reduced.picture.shape == (3, 3, 4)
    assert np.allclose(reduced.picture[:, 0, 0], full[:, :4, :4].mean((1, 2)), atol=1e-6)
    assert np.allclose(reduced.picture[:, 2, 3], full[:, 8:, 12:].mean((1, 2)), atol=1e-6)


# --- files --------------------------------------------------------------------------------------


def test_all_forms_are_written_and_agree(trained: Detector, digits: Digits, tmp_path: Path) -> None:
    for path, _ in spotted(digits, tmp_path / "spots", 3):
        with Image.open(path) as small:
            small.resize((16, 16)).save(path)
    report = trained.score(
        tmp_path / "spots", maps=MapFiles(tmp_path / "maps", tuple(MAP_FORMS)), false_alarm_rate=0.3
    )
    for found in report.images:
        assert found.maps is not None
        assert list(found.maps) == list(MAP_FORMS)
        array = np.load(found.maps["npy"])
        assert array.dtype == np.float32
        assert np.array_equal(array, tifffile.imread(found.maps["tiff"]))
        with Image.open(found.maps["mask"]) as drawn:
            mask = np.asarray(drawn)
        assert set(np.unique(mask)) <= {0, 255}
        above = [region.area for region in found.regions if not region.below_level]
        assert (mask == 255).sum() == sum(above)  # a region below the level is black
        with Image.open(found.maps["overlay"]) as drawn:
            assert drawn.width == 400 + 2 * 10
        with Image.open(found.maps["side-by-side"]) as drawn:
            assert drawn.width == 3 * 320 + 4 * 10


@pytest.mark.parametrize("shape", [(40, 24), (16, 20), (32, 24), (28, 28)])
def test_a_map_has_the_resolution_of_its_image(
    trained: Detector, tmp_path: Path, shape: tuple[int, int]
) -> None:
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "a.png")
    report = trained.score(tmp_path / "a.png", maps=MapFiles(tmp_path / "maps", ("npy",)))
    written = report.images[0].maps
    assert written is not None
    assert np.load(written["npy"]).shape == shape


@pytest.mark.parametrize("size", [(20, 28), (32, 20), (32, 32), (64, 48), (12, 40)])
def test_pictures_are_drawn_at_the_image_s_own_resolution_where_it_can_be_decoded(
    size: tuple[int, int], tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    Image.new("L", size).save(file)
    rule = ImageRule(size=32, channels=1, window=None)
    canvas = own_canvas(decode(ImageFile("a.png", file, "a.png"), rule), rule)
    drawn = (canvas.width, canvas.height)
    assert drawn == (size if min(size) >= SMALLEST_SIZE else (32, 32))


def test_enlarged_strips_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    rows = Rows(lambda top, end: small[top:end], small.shape, (50, 33))
    whole = np.concatenate([strip for _, strip in rows.strips(50)])
    cut = np.concatenate([strip for _, strip in rows.strips(3)])
    assert np.abs(whole - cut).max() < 1e-5
    expected = Image.fromarray(small).resize((33, 50), Image.Resampling.BILINEAR)
    assert np.abs(whole - np.asarray(expected)).max() < 1e-5


def test_rows_of_a_large_image_wait_on_disk_and_are_written_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LARGEST_MAP", 8)
    monkeypatch.setattr(map_files, "STRIP", 60)
    full = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    decoded, reduced = image(30, 20), tiles.Reduced(1, 30, 20)
    book = MapFiles(tmp_path, ("npy", "tiff", "mask"))
    take = book.spool(decoded.canvas)
    assert take is not None
    for top in range(0, 30, 7):
        reduced.add(top, full[None, top : top + 7])
        take(top, full[top : top + 7])
    found = book.write(decoded, reduced.picture[0], 0.5, lambda form: Image.new("L", (1, 1)))
    assert np.array_equal(np.load(found["npy"]), full)
    assert np.array_equal(tifffile.imread(found["tiff"]), full)
    assert np.array_equal(np.asarray(Image.open(found["mask"])) == 255, full > 0.5)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "a.png.map.npy", "a.png.map.tiff", "a.png.mask.png",
    ]  # fmt: skip


def test_forms_are_checked_before_anything_is_scored() -> None:
    assert map_forms("npy, overlay,npy") == ("npy", "overlay")
    for wrong in ("", "png", "npy;mask"):
        with pytest.raises(UsageError, match="--maps-format"):
            map_forms(wrong)


def test_the_command_writes_maps_and_names_them(
    model_file: Path,
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    query = sorted(digits.queries.iterdir())[0]
    command = ["anoscan", "score", str(query), "--model", str(model_file), "--json"]
    monkeypatch.setattr("sys.argv", [*command, "--maps", str(tmp_path / "m")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    assert list(found["maps"]) == ["overlay"]
    assert all(Path(path).is_file() for path in found["maps"].values())
    monkeypatch.setattr("sys.argv", [*command, "--maps-format", "npy"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2


def test_regions_are_those_of_the_map(trained: Detector) -> None:
    judge = Judge(trained.model, trained.runtime)
    levels = judge.levels(ScoreRequest(false_alarm_rate=0.1))
    assert len(trained.model.calibration.region_peaks) == len(trained.model.calibration.terms)
    assert levels.region in trained.model.calibration.region_peaks


# --- maps that nobody asked for -----------------------------------------------------------------


def test_scores_are_the_same_bit_for_bit_without_maps_which_are_then_not_made(
    trained: Detector, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(trained.model, trained.runtime)
    files = find([digits.queries])[:80]

    def outcomes(mapped: bool) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        batches = judge.measured(files, 64, wanted=Wanted(pictures=False, mapped=mapped))
        rows = [row for batch in batches for row in batch]
        return np.stack([row.terms for row in rows]), [row.anomaly_map.shape for row in rows]

    with_maps, shapes = outcomes(mapped=True)
    assert (0, 0) not in shapes
    monkeypatch.setattr(Maps, "measure", None)
    without, shapes = outcomes(mapped=False)
    assert set(shapes) == {(0, 0)}
    assert without.tobytes() == with_maps.tobytes()


def test_labels_without_masks_ask_for_no_maps(
    trained: Detector, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Maps, "measure", None)
    report = trained.evaluate(digits.labels)
    assert report.pixel is None
    assert report.auroc is not None
    assert drift.compare(
        Judge(trained.model, trained.runtime),
        trained.reference,
        [digits.queries],
        lambda progress: None,
    ).checks
