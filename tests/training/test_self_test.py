"""The self-test on synthetic defects: what is put in, what is measured, what is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import ndimage
from torch import Tensor

from anoscan.cli import tables
from anoscan.core.results import SelfTest, SelfTestCell, to_json
from anoscan.detector import Detector
from anoscan.model import file as modelfile
from anoscan.model.model import Model
from anoscan.scoring.measure import Measured, Measurer
from anoscan.training.defects import KINDS, bent, defect
from anoscan.training.self_test import _Counts, _findings, run_self_test, sizes_for, smallest_seen
from tests.conftest import Digits


def texture(channels: int, side: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(channels, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 1, 1), mode="wrap")
    return np.clip(smooth / smooth.std() / 2, -1, 1).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_changes_what_its_mask_says_and_nothing_far_from_it(
    kind: str, channels: int
) -> None:
    image, donor = texture(channels, 64, 1), texture(channels, 64, 2)
    before, changes = image.copy(), 0
    for seed in range(10):
        found = defect(kind, image, donor, 12, 0.5, 64, np.random.default_rng(seed))
        if found is None:
            continue
        changed, mask = found
        changes += 1
        assert changed.dtype == np.float32
        assert np.abs(changed).max() <= 1
        far = ~ndimage.binary_dilation(mask, iterations=2)
        assert np.array_equal(changed[:, far], image[:, far])
        assert np.abs(changed - image)[:, mask].mean() > 0.05
        down, across = (np.ptp(places) + 1 for places in np.nonzero(mask))
        assert max(down, across) <= 13
    assert changes > 5
    assert np.array_equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_bent_image_is_the_same_stuff_elsewhere(channels: int) -> None:
    rows, columns = np.mgrid[:64, :64] / 64
    # A picture that says where each of its pixels comes from.
    ramps = np.stack([rows, columns, rows][:channels]).astype(np.float32)
    found = bent(ramps, 64, np.random.default_rng(0))
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= ramps.max()
    moved = (found - ramps)[:, 16:48, 16:48]
    assert 0.02 < moved.std() < 0.1
    assert np.abs(np.diff(moved)).max() < 0.02  # neighbours move together
    again, other = (bent(ramps, 64, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(found, again)
    assert not np.allclose(found, other, atol=0.01)
    flat = np.full((channels, 64, 64), 0.25, np.float32)
    np.testing.assert_allclose(bent(flat, 64, np.random.default_rng(0)), flat, rtol=1e-6)


def test_an_enlarged_image_is_bent_without_finer_detail() -> None:
    image = texture(1, 32, 1)
    fine, coarse = (bent(image, native, np.random.default_rng(0)) - image for native in (32, 8))
    assert np.abs(coarse).max() > 0.1
    roughness = [
        np.abs(np.diff(change)).mean() / np.abs(change).mean() for change in (fine, coarse)
    ]
    assert roughness[1] < 0.6 * roughness[0]


def test_the_same_chance_gives_the_same_defect() -> None:
    image, donor = texture(1, 32, 1), texture(1, 32, 2)
    first, second, other = (
        defect("scratch", image, donor, 8, 0.5, 32, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    assert first is not None
    assert second is not None
    assert other is not None
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


def test_what_cannot_be_seen_is_no_defect() -> None:
    flat = np.zeros((1, 32, 32), np.float32)
    assert defect("blur", flat, flat, 8, 0.5, 32, np.random.default_rng(0)) is None


def test_a_defect_in_an_enlarged_image_is_as_coarse_as_the_image() -> None:
    flat = np.zeros((1, 32, 32), np.float32)

    def steepest(native: int) -> float:
        found = defect("blob", flat, flat, 16, 0.5, native, np.random.default_rng(0))
        assert found is not None
        return float(np.abs(np.diff(found[0])).max() / np.abs(found[0]).max())

    assert steepest(8) < 0.5 < steepest(32)


def test_sizes_follow_the_side() -> None:
    assert sizes_for(64) == [2, 4, 8, 16, 32]
    assert sizes_for(16) == [2, 4, 8]


def cells(**means: float) -> list[SelfTestCell]:
    """Cells of one kind; `s4=0.6` is an AUROC of 0.6 at 4 pixels."""
    return [
        SelfTestCell(
            kind="blob",
            size=int(name[1:]),
            images=10,
            auroc={"anoscan": auroc, "pca": 0.6, "mean_image": 0.5},
            pixel_auroc={"anoscan": auroc, "pca": 0.6, "mean_image": 0.5},
        )
        for name, auroc in means.items()
    ]


def test_the_smallest_size_seen_lies_between_those_that_were_tried() -> None:
    assert smallest_seen(cells(s2=0.9, s4=0.95)) == 2
    assert smallest_seen(cells(s2=0.5, s4=0.6)) is None
    assert smallest_seen(cells(s4=0.65, s8=0.85)) == pytest.approx(4 * 2**0.5)
    # Seen by luck at a small size, and not at a larger one: not seen.
    assert smallest_seen(cells(s2=0.8, s4=0.6, s8=0.75)) == 8


@pytest.fixture(scope="module")
def tested(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("tested") / "tested.safetensors"
    sizes = {"images_shown": 640, "encoder_images_shown": 320, "batch_size": 32, "width": 8}
    return Detector.train(few.normal, path=path, workers=1, **sizes)


def report_of(detector: Detector) -> SelfTest:
    assert detector.report is not None
    assert detector.report.self_test is not None
    return detector.report.self_test


def test_every_training_ends_with_a_self_test_that_the_model_keeps(tested: Detector) -> None:
    found = report_of(tested)
    assert found.defects == "synthetic"
    assert {cell.size for cell in found.cells} == {2, 4, 8}
    assert len({cell.kind for cell in found.cells}) >= 4
    for cell in found.cells:
        assert set(cell.auroc) == set(cell.pixel_auroc) == {"anoscan", "pca", "mean_image"}
        assert cell.images <= found.normals
    means = [cell.auroc["anoscan"] for cell in found.cells]
    assert found.auroc["anoscan"] == pytest.approx(np.mean(means))
    assert set(found.whole_auroc) == {"anoscan", "pca", "mean_image"}
    assert found.whole_auroc["pca"] > 0.9  # 0.5 if none was bent
    assert found.whole_auroc["anoscan"] > 0.55
    kept = modelfile.load(Path(tested.reference.path))[1]["self_test"]
    assert kept == to_json(found)


def test_a_self_test_costs_little_and_says_the_same_again(
    tested: Detector, few: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anoscan.dataset.material import Material
    from anoscan.images.files import find

    model = tested.model
    material = Material.load(
        find([few.normal]),
        model.rule,
        model.config,
        workers=1,
        on_progress=lambda done, total: None,
    )
    measured: list[int] = []

    measure = Measurer.measure

    def count(measurer: Measurer, x: Tensor, **how: Any) -> Measured:
        measured.append(len(x))
        return measure(measurer, x, **how)

    monkeypatch.setattr(Measurer, "measure", count)
    assert run_self_test(model, material) == report_of(tested)
    # Trained on 640 + 640 + 320 images, each seen forwards and backwards by several networks.
    assert sum(measured) <= 160


def test_a_few_coloured_images_are_enough_for_a_self_test(
    tmp_path: Path, quick: dict[str, int]
) -> None:
    folder = tmp_path / "colours"
    folder.mkdir()
    for seed in range(12):
        pixels = np.round(texture(3, 16, seed) * 127 + 128).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{seed}.png")
    detector = Detector.train(
        folder, path=tmp_path / "m.safetensors", workers=1, **{**quick, "images_shown": 64}
    )
    assert report_of(detector).cells


def sound(model: Model, *failed: str, rotated: bool = True) -> Model:
    """Return the model as if its training had failed these checks alone."""
    checks = [{"name": name, "verdict": "fail", "value": 0.0, "message": ""} for name in failed]
    terms = [term for term in model.metadata["terms"] if term != "rotation"]
    changed = {"health": {"checks": checks}, "terms": [*terms, *["rotation"] * rotated]}
    return dataclasses.replace(model, metadata=model.metadata | changed)


GOOD = {"anoscan": 0.9, "pca": 0.8, "mean_image": 0.7}


@pytest.mark.parametrize("sees_from", [3.0, None])
def test_of_too_few_held_out_images_no_size_is_named(
    tested: Detector, sees_from: float | None
) -> None:
    model = sound(tested.model)
    few, enough = (_findings(model, GOOD, sees_from, 4, _Counts(70, n))[0] for n in (49, 50))
    assert "not said: 49 held-out images are too few. It takes 50" in few
    assert "--held-out" in few
    assert "see" in enough
    assert "not said" not in enough


@pytest.mark.parametrize(
    ("failed", "rotated", "said"),
    [
        (("images",), True, False),
        (("constant", "reconstruction"), True, False),
        (("diversity",), False, False),
        (("diversity",), True, True),
        (("reconstruction",), True, True),
    ],
)
def test_after_a_failed_check_of_scores_no_size_is_named(
    tested: Detector, failed: tuple[str, ...], rotated: bool, said: bool
) -> None:
    model = sound(tested.model, *failed, rotated=rotated)
    first = _findings(model, GOOD, 3.0, 4, _Counts(1000, 100))[0]
    assert ("can see defects from" in first) == said
    assert (f"failed a check of its scores ({failed[0]})" in first) != said


def test_fifteen_images_get_no_promise(few: Digits, tmp_path: Path, quick: dict[str, int]) -> None:
    some = sorted(few.normal.iterdir())[:15]
    found = report_of(Detector.train(some, path=tmp_path / "m.safetensors", workers=1, **quick))
    assert "can see defects" not in " ".join(found.findings)
    assert "failed a check of its scores (images)" in found.findings[0]


def test_better_baselines_are_named_with_what_may_help(tested: Detector) -> None:
    model = sound(tested.model)

    def say(sees_from: float | None, **auroc: float) -> str:
        return " ".join(_findings(model, auroc, sees_from, 4, _Counts(trained=70, held_out=50)))

    good = say(3.0, anoscan=0.9, pca=0.8, mean_image=0.7)
    assert "about 3 px of the 16" in good
    assert "better" not in good
    bad = say(None, anoscan=0.6, pca=0.8, mean_image=0.7)
    assert "hardly sees" in bad
    assert "PCA does better on your data" in bad
    assert "--images-shown 1280" in bad
    assert "more images" in bad
    assert "The mean image does better" in say(3.0, anoscan=0.8, pca=0.8, mean_image=0.9)


def test_a_model_without_a_gan_is_advised_to_have_one(tested: Detector) -> None:
    model = sound(tested.model)
    config = model.metadata["config"] | {"images_shown": 0, "backbone": "resnet18"}
    bare = dataclasses.replace(model, metadata=model.metadata | {"config": config})
    auroc = {"anoscan": 0.6, "pca": 0.8, "mean_image": 0.7}
    said = " ".join(_findings(bare, auroc, None, 4, _Counts(trained=2000, held_out=200)))
    assert "train a GAN too (without --images-shown 0)" in said


def test_the_table_fits_into_eighty_columns(tested: Detector) -> None:
    test = report_of(tested)
    wide = dataclasses.replace(test, cells=tuple(cells(s16=0.5, s32=0.6, s64=0.7, s128=0.8)))
    console = Console(width=80, record=True)
    for part in tables._self_test(wide):
        console.print(part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:5] == ["blob", "0.50", "0.60", "0.70", "0.80"] for line in lines)
    assert any("synthetic" in line for line in lines)
    assert any(line.startswith("AUROC on normals bent") for line in lines)
