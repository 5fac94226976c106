from __future__ import annotations

import tracemalloc
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from anoscan.core.results import PixelReport
from anoscan.evaluation import pixels
from anoscan.evaluation.pixels import AUPRO_LIMIT, PixelScores, pixel_metrics

Pair = tuple[np.ndarray, np.ndarray]


def measured(pairs: list[Pair], run: int = pixels.RUN, parts: int = 1) -> PixelReport:
    with ExitStack() as stack:
        made = [stack.enter_context(PixelScores(run)) for _ in range(parts)]
        for number, (scores, mask) in enumerate(pairs):
            made[number % parts].add(scores, mask)
        return pixel_metrics(made)


def brute_aupro(pairs: list[Pair]) -> float:
    """Overlap of every region and false-positive rate at every score there is."""
    regions = []
    for scores, mask in pairs:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [scores[labels == number] for number in range(1, count + 1)]
    normal = np.concatenate([scores[~mask] for scores, mask in pairs])
    thresholds = np.unique(np.concatenate([normal, *regions]))[::-1]
    x = [0.0] + [float((normal >= t).mean()) for t in thresholds]
    y = [0.0] + [float(np.mean([(r >= t).mean() for r in regions])) for t in thresholds]
    fine = np.unique([*(v for v in x if v < AUPRO_LIMIT), AUPRO_LIMIT])
    # Where the rate stands still, the curve is vertical: the highest point ends it, the lowest
    # begins what follows.
    area = 0.0
    for left, right in pairwise(fine):
        last = max(i for i, v in enumerate(x) if v <= left)
        slope = (y[last + 1] - y[last]) / (x[last + 1] - x[last])
        area += (right - left) * (y[last] + slope * (right - left) / 2)
    return area / AUPRO_LIMIT


def brute_dice(pairs: list[Pair]) -> float:
    scores = np.concatenate([s.ravel() for s, _ in pairs])
    mask = np.concatenate([m.ravel() for _, m in pairs])
    return max(
        2 * (mask & (scores >= t)).sum() / (mask.sum() + (scores >= t).sum())
        for t in np.unique(scores)
    )


@st.composite
def pictures(draw: st.DrawFn) -> list[Pair]:
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from((2, 5, 40, 10**6)))
    share = draw(st.floats(0.02, 0.9))
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(draw(st.integers(1, 4))):
        shape = tuple(generator.integers(1, 9, 2))
        mask = generator.random(shape) < share
        scores = generator.integers(-levels, levels, shape) / 8 + mask * draw(st.floats(-1, 3))
        pairs.append((scores.astype(np.float32), mask))
    pairs[0][1].flat[0] = True
    pairs.append((np.zeros((2, 3), np.float32), np.zeros((2, 3), bool)))
    return pairs


@settings(max_examples=80, deadline=None)
@given(pictures())
def test_figures_are_those_of_brute_force_and_of_scikit_learn(pairs: list[Pair]) -> None:
    found = measured(pairs)
    scores = np.concatenate([s.ravel() for s, _ in pairs])
    mask = np.concatenate([m.ravel() for _, m in pairs])
    assert found.auroc == pytest.approx(roc_auc_score(mask, scores), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision_score(mask, scores))
    assert found.aupro == pytest.approx(brute_aupro(pairs), abs=1e-12)
    assert found.best_dice is not None
    assert found.best_dice.dice == pytest.approx(brute_dice(pairs))
    at = scores >= found.best_dice.threshold
    assert found.best_dice.dice == pytest.approx(2 * (mask & at).sum() / (mask.sum() + at.sum()))
    assert found.best_dice.uses_labels
    assert (found.pixels, found.anomalous_pixels) == (mask.size, mask.sum())


@settings(max_examples=30, deadline=None)
@given(pictures(), st.integers(1, 20), st.integers(1, 3))
def test_runs_on_disk_parts_and_small_steps_change_nothing(
    pairs: list[Pair], run: int, parts: int
) -> None:
    whole = measured(pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "RUN", run)
        broken = measured(pairs, run, parts)
    assert broken.images == whole.images == len(pairs)
    for name in ("auroc", "average_precision", "aupro"):
        assert getattr(broken, name) == pytest.approx(getattr(whole, name), abs=1e-12)
    assert broken.regions == whole.regions
    assert broken.best_dice == whole.best_dice


def test_aupro_by_hand() -> None:
    mask = np.zeros((1, 14), bool)
    mask[0, :4] = mask[0, 13] = True  # regions of four pixels and of one
    scores = np.array([[9, 9, 2, 2, 0, 0, 0, 0, 0, 0, 0, 5, 3, 4]], np.float32)
    # Of 9 normal pixels one lies above the region of one pixel, two above the rest of the other.
    area = (1 / 9) * (1 / 4) + (1 / 9) * (3 / 4) + (0.3 - 2 / 9) * 1.0
    assert measured([(scores, mask)]).aupro == pytest.approx(area / 0.3)


def test_regions_that_touch_at_a_corner_are_one() -> None:
    mask = np.eye(4, dtype=bool)
    assert measured([(np.zeros((4, 4)), mask)]).regions == 1
    mask[1, 1] = False
    assert measured([(np.zeros((4, 4)), mask), (np.zeros((4, 4)), mask)]).regions == 4


def test_a_perfect_map_has_all_ones_and_a_blind_one_guesses() -> None:
    mask = np.zeros((20, 20), bool)
    mask[3:7, 3:9] = mask[12:14, 1:3] = True
    found = measured([(mask.astype(float), mask)])
    assert (found.auroc, found.average_precision, found.aupro) == (1.0, 1.0, 1.0)
    blind = measured([(np.full((20, 20), 3.0), mask)])
    assert blind.auroc == 0.5
    assert blind.aupro == pytest.approx(0.15)
    assert blind.average_precision == pytest.approx(mask.mean())


@pytest.mark.parametrize("mask", [np.zeros((3, 3), bool), np.ones((3, 3), bool)])
def test_one_kind_of_pixel_alone_defines_nothing(mask: np.ndarray) -> None:
    found = measured([(np.zeros((3, 3)), mask)])
    assert (found.auroc, found.average_precision, found.aupro, found.best_dice) == (None,) * 4
    assert "both normal and anomalous pixels" in (found.undefined or "")
    assert found.pixels == 9


def test_a_coarse_map_is_enlarged_to_the_mask_and_strips_leave_no_seam() -> None:
    generator = np.random.default_rng(2)
    coarse = generator.random((5, 7)).astype(np.float32)
    mask = ndimage.zoom(coarse, (12, 10), order=0) > 0.8
    enlarged = np.asarray(Image.fromarray(coarse).resize((70, 60), Image.Resampling.BILINEAR))
    whole = measured([(enlarged, mask)])
    assert measured([(coarse, mask)]) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_STRIP", 70 * 7)
        strips = measured([(coarse, mask)])
    assert strips.auroc == pytest.approx(whole.auroc, abs=1e-6)
    assert strips.aupro == pytest.approx(whole.aupro, abs=1e-5)
    assert strips.regions == whole.regions > 2


@pytest.mark.parametrize("scores", [np.full((2, 2), np.nan), np.full((2, 2), np.inf), np.zeros(4)])
def test_scores_that_are_no_finite_picture_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        PixelScores().add(scores, np.zeros((2, 2), bool))


def test_many_pixels_take_little_memory() -> None:
    mask = np.zeros((1000, 1000), bool)
    mask[100:200, 100:160] = True
    scores = np.random.default_rng(0).random(mask.shape, np.float32)
    tracemalloc.start()
    try:
        with PixelScores(2**18) as pixels:
            for _ in range(8):
                pixels.add(scores, mask)
            held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 8 million pixels are 32 MB as they are.
    assert held < 2_000_000
    assert peak < 24_000_000
