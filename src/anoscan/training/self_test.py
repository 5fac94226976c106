"""Test without labels how well a model finds synthetic defects, beside PCA and the mean image.

Held-out normals get one defect each, of every kind and several sizes. How well a detector
distinguishes them from normals is an estimate for small local defects, and no promise about a
user's own anomalies. Normals that are bent as a whole measure whether the model knows what normal
images are like as a whole. No score depends on this test (see `model.patch_test`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anoscan.core.arrays import Floats, evenly
from anoscan.core.config import TrainConfig
from anoscan.core.results import SelfTest, SelfTestCell
from anoscan.core.runtime import random_stream
from anoscan.dataset.material import Material
from anoscan.model.model import Model
from anoscan.model.score_of_terms import Scorer
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.choices import DEFAULT_SCORE
from anoscan.scoring.measure import chunks, smooth
from anoscan.training.defects import KINDS, Mask, bent, defect
from anoscan.training.health import failed_of_scores

FRACTIONS = (32, 16, 8, 4, 2)  # a defect has the side of an image divided by one of these
SMALLEST = 2  # pixels: least size of a defect
MOST_CLEAN = 256  # normals without a defect, at most
FEWEST, MOST = 4, 64  # images with a defect, of each kind and size
BENT = 4  # images bent as a whole, for each image with a defect of one kind and size
SHARE = 32  # images that the training was shown, for each image with a defect
BACKGROUND = 10_000  # pixels without a defect, about, that a pixel AUROC is measured on
SEEN = 0.75  # AUROC from which defects count as seen
FEWEST_NORMALS = 50  # held-out images, at least: with fewer, no size is named as seen
MARGIN = 0.02  # difference in AUROC from which a baseline counts as better
SHOWN_ENOUGH = 200_000  # images shown from which on the advice is not to train longer
OWN = "anoscan"
_NAMES = {"pca": "PCA", "mean_image": "The mean image"}


@dataclass(frozen=True)
class _Scored:
    """Scores (n,) and maps (n, s, s) of some images by each detector; `maps` may be empty."""

    scores: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Counts:
    """Numbers of training images or patches, and of held-out images, which hold all patches."""

    trained: int
    held_out: int

    @classmethod
    def of(cls, material: Material) -> _Counts:
        return cls(len(material.rows), len(material.held_out))


def run_self_test(model: Model, material: Material, *, wanted: int | None = None) -> SelfTest:
    """Test a model on defects put into the held-out images of its training, or patches of them.

    The same images and seed give the same defects, so that models of one folder can be compared.
    `wanted` is the number of images with a defect, of each kind and size. By default it grows with
    the length of the training, so that the test costs a few per cent of that.
    """
    side, native = model.rule.size, round(_native_side(model))
    rows = evenly(material.unseen, MOST_CLEAN)
    views = np.ascontiguousarray(material.pixels[rows])
    inside = material.inside_of(rows) if model.rule.fit == "pad" else None
    clean = _scored(model, views, mapped=False).scores
    sizes = sizes_for(side)
    if wanted is None:
        wanted = _wanted(model.config, len(KINDS) * len(sizes), len(views))
    cells = []
    for number, (kind, size) in enumerate((kind, size) for kind in KINDS for size in sizes):
        rng = np.random.default_rng(
            random_stream(model.config.seed, "defects", number).initial_seed()
        )
        changed, masks = _changed(views, inside, kind, size, wanted, native, rng)
        if len(changed) > wanted // 4:
            cells.append(_cell(kind, size, clean, _scored(model, changed), masks))
    auroc, pixel_auroc = _mean([c.auroc for c in cells]), _mean([c.pixel_auroc for c in cells])
    whole = _bent(views[: BENT * wanted], native, model.config.seed)
    sees_from = smallest_seen(cells)
    return SelfTest(
        normals=len(views),
        side=side,
        auroc=auroc,
        pixel_auroc=pixel_auroc,
        whole_auroc=_aurocs(clean, _scored(model, whole, mapped=False).scores),
        sees_from=sees_from,
        findings=_findings(model, auroc, sees_from, max(sizes), _Counts.of(material)),
        cells=tuple(cells),
    )


def sizes_for(side: int) -> list[int]:
    """Return the sizes of defects in images with this side, in pixels, ascending.

    >>> sizes_for(64), sizes_for(28)
    ([2, 4, 8, 16, 32], [2, 4, 7, 14])
    """
    return sorted({max(SMALLEST, round(side / fraction)) for fraction in FRACTIONS})


def smallest_seen(cells: Sequence[SelfTestCell]) -> float | None:
    """Return the size in pixels from which on defects count as seen, or None where none do.

    They do when the mean AUROC over kinds is at least `SEEN`. Between two sizes that were tried,
    the result is where the line of AUROC over log size meets `SEEN`.
    """
    sizes = sorted({cell.size for cell in cells})
    means = [statistics.fmean(c.auroc[OWN] for c in cells if c.size == size) for size in sizes]
    found: float | None = None
    for index in reversed(range(len(sizes))):
        if means[index] < SEEN:
            break
        found = float(sizes[index])
        if index and means[index - 1] < SEEN:
            share = (means[index] - SEEN) / (means[index] - means[index - 1])
            found *= (sizes[index - 1] / sizes[index]) ** share
    return found


def _wanted(config: TrainConfig, conditions: int, most: int) -> int:
    shown = sum(config.lengths().values())
    return min(max(shown // SHARE // conditions, FEWEST), MOST, most)


def _changed(
    views: Floats,
    inside: Mask | None,
    kind: str,
    size: int,
    wanted: int,
    native: int,
    rng: np.random.Generator,
) -> tuple[Floats, Mask]:
    """Put defects into at most `wanted` normal images (m, c, s, s); omit those that do not show.

    With `inside`, (s, s) or (m, s, s), nothing changes outside of it. Returns the changed images
    (n, c, s, s), and masks (n, s, s) that are True where the defect is.
    """
    contrast = max(float(views.std()), 1e-6)
    images, masks = [], []
    for row in rng.permutation(len(views)):
        donor = views[(row + rng.integers(1, max(len(views), 2))) % len(views)]
        found = defect(kind, views[row], donor, size, contrast, native, rng)
        if found is None:
            continue
        image, mask = found
        if inside is not None:
            place = np.broadcast_to(inside, (len(views), *mask.shape))[row]
            image, mask = np.where(place, image, views[row]), mask & place
        if mask.any():
            images.append(image)
            masks.append(mask)
        if len(images) == wanted:
            break
    shape = (0, *views.shape[1:])
    return np.array(images, np.float32).reshape(-1, *shape[1:]), np.array(masks, bool)


def _bent(views: Floats, native: int, seed: int) -> Floats:
    rng = np.random.default_rng(random_stream(seed, "bent").initial_seed())
    return np.stack([bent(view, native, rng) for view in views])


def _scored(model: Model, views: Floats, *, mapped: bool = True) -> _Scored:
    terms, maps = [], []
    for x in chunks(np.arange(len(views)), views.__getitem__, model.measurer.device):
        measured = model.measurer.measure(x, mapped=mapped)
        terms.append(measured.terms)
        maps.append(measured.anomaly_map)
    scores = model.baselines.scores(views)
    scores[OWN] = Scorer(model.fitted, model.calibration).scores(
        np.concatenate(terms), DEFAULT_SCORE
    )
    if not mapped:
        return _Scored(scores, {})
    residuals = _baseline_residuals(model.baselines, views)
    smoothed = {name: smooth(residual) for name, residual in residuals.items()}
    return _Scored(scores, smoothed | {OWN: np.concatenate(maps)})


def _baseline_residuals(baselines: Baselines, views: Floats) -> dict[str, np.ndarray]:
    """Return the absolute residuals (n, s, s) of each baseline, as the mean over channels."""
    centred = views.reshape(len(views), -1) - baselines.mean
    outside = centred - centred @ baselines.components.T @ baselines.components
    found = {"mean_image": centred, "pca": outside}
    return {name: np.abs(flat.reshape(views.shape)).mean(1) for name, flat in found.items()}


def _cell(
    kind: str, size: int, clean: dict[str, np.ndarray], changed: _Scored, masks: Mask
) -> SelfTestCell:
    from sklearn.metrics import roc_auc_score

    inside = masks.ravel()
    outside = np.flatnonzero(~inside)
    looked_at = np.concatenate(
        [np.flatnonzero(inside), outside[:: max(1, len(outside) // BACKGROUND)]]
    )
    return SelfTestCell(
        kind=kind,
        size=size,
        images=len(masks),
        auroc=_aurocs(clean, changed.scores),
        pixel_auroc={
            name: float(roc_auc_score(inside[looked_at], maps.ravel()[looked_at]))
            for name, maps in changed.maps.items()
        },
    )


def _aurocs(clean: dict[str, np.ndarray], odd: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the AUROC of each detector, from its scores of normals and of changed images `odd`."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0, 1], [len(clean[OWN]), len(odd[OWN])])
    return {
        name: float(roc_auc_score(truth, np.append(clean[name], scores)))
        for name, scores in odd.items()
    }


def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    if not figures:
        return {}
    return {name: statistics.fmean(each[name] for each in figures) for name in figures[0]}


def _findings(
    model: Model, auroc: dict[str, float], sees_from: float | None, largest: int, counts: _Counts
) -> tuple[str, ...]:
    if not auroc:
        return ("The images are too few or too plain for synthetic defects to show in them.",)
    scale = _native_side(model) / model.rule.size
    sight = _sight(sees_from, largest, model.rule.size, scale)
    found = [_unsure(model, counts.held_out) or sight]
    best = max(_NAMES, key=auroc.__getitem__)
    beaten = auroc[best] > auroc[OWN] + MARGIN
    if beaten:
        found.append(
            f"{_NAMES[best]} does better on your data where defects are small: a mean AUROC of "
            f"{auroc[best]:.2f} on the synthetic ones, against {auroc[OWN]:.2f}. That says nothing "
            f"of images that are anomalous as a whole."
        )
    if beaten or sees_from is None:
        found.append(_advice(model, counts.trained, scale))
    return tuple(found)


def _unsure(model: Model, held_out: int) -> str | None:
    """Say what is needed to name the size of defects that a model sees; None if nothing is."""
    if failed := failed_of_scores(model.metadata):
        return (
            f"From which size on this model sees defects is not said, because its training failed "
            f"a check of its scores ({', '.join(failed)}). Mend that first."
        )
    if held_out < FEWEST_NORMALS:
        return (
            f"From which size on this model sees defects is not said: {held_out} held-out images "
            f"are too few. It takes {FEWEST_NORMALS}: train on {4 * FEWEST_NORMALS} images or "
            f"more, or hold out more of them (--held-out)."
        )
    return None


def _sight(sees_from: float | None, largest: int, side: int, scale: float) -> str:
    def pixels(size: float) -> str:
        seen = f"{size:.0f} px of the {side} that the networks see"
        return f"{seen} ({size * scale:.0f} px in your images)" if scale > 1.2 else seen

    if sees_from is None:
        return f"This model hardly sees synthetic defects, even of {pixels(largest)}."
    at_most = " or less" if sees_from <= SMALLEST else ""
    return (
        f"This model can see defects from about {pixels(sees_from)}{at_most}, if yours are alike."
    )


def _native_side(model: Model) -> float:
    """Return the side of what the networks see, in pixels of a typical training image's file."""
    if model.rule.patch is not None:
        return model.rule.patch
    sizes: dict[str, int] = model.metadata["training_data"]["sizes"]
    seen = min if model.rule.fit == "crop" else max
    sides = np.array([seen(map(int, name.split("x"))) for name in sizes])
    return float(np.median(np.repeat(sides, list(sizes.values()))))


def _advice(model: Model, trained: int, scale: float) -> str:
    config, shown = model.config, model.config.images_shown or 0
    ways = []
    if not shown:
        ways.append("train a GAN too (without --images-shown 0)")
    elif shown < SHOWN_ENOUGH:
        ways.append(f"train longer (--images-shown {2 * shown})")
    if trained < 1000 and config.patches is None:
        ways.append("use more images")
    if scale > 1.2 and config.patches is None:
        ways.append("show the networks more detail (a larger --size, or --patches)")
    if not ways:
        return "Until a model does better, compare anoscan eval --score pca."
    return f"What may help: {', or '.join(ways)}."
