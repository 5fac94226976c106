"""Set the threshold of a trained model again, without training: by new normal images or labels.

Every change is written into the `history` in the model's metadata, and marked there when labels
decided it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import anoscan
from anoscan.core.arrays import evenly
from anoscan.core.config import FalseAlarmRate, rate_in_range
from anoscan.core.errors import InputError, UsageError
from anoscan.core.results import (
    CalibrateReport,
    Decision,
    ModelReference,
    Review,
    Skipped,
    Threshold,
)
from anoscan.core.runtime import Runtime
from anoscan.dataset.inspection import inspect
from anoscan.dataset.material import Material
from anoscan.evaluation import review
from anoscan.evaluation.labels import gather
from anoscan.images.files import ImageFile
from anoscan.model.held_out import measure_held_out
from anoscan.model.judge import TERMS_ALONE, Judge, nothing_readable
from anoscan.model.model import Model
from anoscan.networks.architectures import Networks
from anoscan.scoring import calibration
from anoscan.scoring.choices import DEFAULT_SCORE
from anoscan.scoring.maps import MOST_HELD_OUT, Maps, calibrated
from anoscan.scoring.measure import Measurer, chunks

CHUNK = 64


@dataclass(frozen=True)
class Target:
    """What sets the false-alarm rate of a model's verdicts.

    It is `false_alarm_rate`, or `labels` with one of `miss_cost` and `target_recall`. With `labels`
    and neither of these, labelled normal images join the calibration; see `evaluation.review`.

    Parameters
    ----------
    false_alarm_rate : float in (0, 1) or 'auto', optional
        'auto' is chosen by the number of calibration images, and anew when these change.
    labels : Path, optional
        CSV of labelled images as for ``anoscan eval``. Its paths are relative to its folder.
    miss_cost : float above 0, optional
        Cost of a missed anomaly, as a number of false alarms. The rate is the one of the least
        expected cost. Anomalies are taken to be as frequent as among the labelled images.
    target_recall : float in (0, 1], optional
        Share of the labelled anomalies that must be found. The rate is the lowest that finds them.

    Raises
    ------
    UsageError
        When a number is out of range, or arguments do not go together.
    """

    false_alarm_rate: FalseAlarmRate | None = None
    labels: Path | None = None
    miss_cost: float | None = None
    target_recall: float | None = None

    def __post_init__(self) -> None:
        asked = (self.miss_cost is not None) + (self.target_recall is not None)
        if self.labels is None and asked:
            raise UsageError("--miss-cost and --target-recall need --labels FILE.")
        if asked == 2:
            raise UsageError("--miss-cost and --target-recall exclude each other.")
        if self.false_alarm_rate is not None:
            if asked:
                raise UsageError(
                    "--false-alarm-rate excludes --miss-cost and --target-recall, which choose it."
                )
            rate_in_range(self.false_alarm_rate)
        if self.target_recall is not None and not 0 < self.target_recall <= 1:
            raise UsageError(f"--target-recall must lie in (0, 1]. Got {self.target_recall}.")
        if self.miss_cost is not None and not 0 < self.miss_cost < np.inf:
            raise UsageError(f"--miss-cost must be above 0. Got {self.miss_cost}.")

    @property
    def reviewed(self) -> Path | None:
        """CSV whose normal images join the calibration, if there is one."""
        return self.labels if self.miss_cost is None and self.target_recall is None else None


@dataclass(frozen=True)
class Renewed:
    """A model after `renew`.

    `decision` has the new rate and what set it; it is None where the rate was left as it was.
    `skipped` are images that could not be read. `review` is None where no labelled images were to
    join the calibration.
    """

    model: Model
    decision: Decision | None
    skipped: tuple[Skipped, ...]
    review: Review | None

    def report(
        self,
        before: ModelReference,
        after: ModelReference,
        threshold: Threshold,
        *,
        new_images: bool,
    ) -> CalibrateReport:
        """Say what was done to the model `before`, which was saved as `after`.

        `new_images` says whether new normal images were given.
        """
        return CalibrateReport(
            model=after,
            previous=before,
            images=len(self.model.calibration.terms) if new_images else None,
            warning=caveat(self.model) if new_images else None,
            threshold=threshold,
            decision=self.decision,
            uses_labels=self.model.uses_labels,
            history=tuple(self.model.metadata.get("history", ())),
            skipped=self.skipped,
            review=self.review,
        )


def renew(
    model: Model,
    runtime: Runtime,
    normals: Sequence[ImageFile],
    target: Target | None,
    on_progress: Callable[[int, int], None],
) -> Renewed:
    """Calibrate on new normal images if there are any, then set a new rate if one is asked for.

    Labelled normal images join the calibration before the rate is set.

    Parameters
    ----------
    model : Model
    runtime : Runtime
    normals : sequence of ImageFile
        New normal images; may be empty.
    target : Target or None
        What sets the rate; None leaves the rate as it is.
    on_progress : callable
        Called with the number of normal images read and of all.

    Raises
    ------
    InputError
        When too few images can be read, or the labelled images decide no rate.
    """
    decision, skipped, reviewed = None, tuple[Skipped, ...](), None
    before, target = model, target or Target()
    if normals:
        model, skipped = on_normals(model, normals, runtime, on_progress)
    if target.reviewed is not None:
        model, reviewed = review.join(model, target.reviewed, runtime, on_progress)
        skipped += reviewed.skipped
    elif target.labels is not None:
        decision, more = _by_labels(model, target, target.labels, runtime)
        skipped += more
    if target.false_alarm_rate is not None:
        decision = _asked(model, target.false_alarm_rate)
    model = model if decision is None else _decided(model, decision)
    found = None
    if reviewed is not None:
        found = reviewed.review(Judge(before, runtime), Judge(model, runtime))
    return Renewed(model, decision, skipped, found)


def _asked(model: Model, rate: FalseAlarmRate) -> Decision:
    """Return the decision for a rate that was asked for; it stays "auto" where that was."""
    if rate == "auto":
        chosen = calibration.automatic_rate(len(model.calibration.terms))
        return Decision(false_alarm_rate=chosen, set_by="auto", uses_labels=False)
    return Decision(false_alarm_rate=rate, set_by="false-alarm-rate", uses_labels=False)


def on_normals(
    model: Model,
    files: Sequence[ImageFile],
    runtime: Runtime,
    on_progress: Callable[[int, int], None],
) -> tuple[Model, tuple[Skipped, ...]]:
    """Return the model calibrated on new normal images, and the images that could not be read.

    They set the grey levels, scales, weights of terms and the threshold. They also set the size,
    brightness and sharpness of normal images. The networks stay as they are, and so does what the
    terms learned. Images that the model was trained on must not be among the new ones, because they
    have lower scores than new images.

    Raises
    ------
    InputError
        When too few images can be read.
    """
    config, rule = model.config, model.rule
    seen = inspect(files, config, runtime.workers, rule.roi)
    # 8-bit images set no grey levels. Then the levels of deeper images, if any, stay as they are.
    rule = dataclasses.replace(rule, window=seen.rule.window or rule.window)
    material = Material.of_normals(
        files, rule, seed=config.seed, workers=runtime.workers, on_progress=on_progress
    )
    networks = model.networks
    maps = _maps_of(model.maps, networks, material, runtime)
    measurer = Measurer(networks, model.fitted, rule, maps)
    held = measure_held_out(measurer, model.baselines, material, config.seed)
    event = {
        "action": "calibrate",
        "images": len(material.held_out),
        "skipped": len(material.skipped),
        "sha256": hashlib.sha256(b"".join(sorted(material.digests))).hexdigest(),
        "window": rule.to_dict()["window"],
        "uses_labels": False,
    }
    metadata = model.metadata | {
        "image_rule": rule.to_dict(),
        "picture_scale": held.calibration.picture_scale,
        "kinds": list(held.calibration.looks.kinds),
        "maps": maps.described(),
    }
    metadata.pop("reviewed", None)  # these images are no longer in the calibration
    changed = held.complete(dataclasses.replace(model, metadata=metadata, maps=maps))
    return _noted(changed, event), tuple(material.skipped)


def caveat(model: Model) -> str | None:
    """Return a warning when a model was calibrated last on its own training images, else None."""
    events = [event for event in model.metadata["history"] if event["action"] == "calibrate"]
    last = [event for event in events if "joined" not in event][-1]
    if last["sha256"] != model.metadata.get("training_data", {}).get("sha256"):
        return None
    return (
        "these are the images that the model was trained on: they look tamer to it than any "
        "other, so the threshold is too low. Calibrate on normal images that it never saw."
    )


def _maps_of(maps: Maps, networks: Networks, material: Material, runtime: Runtime) -> Maps:
    read, unseen = material.pixels.__getitem__, evenly(material.unseen, MOST_HELD_OUT)
    inside = material.inside_of(unseen)
    return calibrated(networks, maps, lambda: chunks(unseen, read, runtime.device), inside)


def _by_labels(
    model: Model, target: Target, labels: Path, runtime: Runtime
) -> tuple[Decision, tuple[Skipped, ...]]:
    """Return the rate that labelled images decide, and those of them that could not be read."""
    p, odd, skipped = _labelled(model, labels, runtime)
    if not odd.any():
        raise InputError(f"{labels} names no anomaly that can be read.")
    if target.miss_cost is None:
        set_by, wanted = "target-recall", target.target_recall or 0.0
        rate = calibration.rate_for_recall(p[odd], wanted)
    elif odd.all():
        raise InputError(
            f"--miss-cost: {labels} names no normal image, so the share of anomalies is not known.",
            hint="Add normal images in the proportion that you expect, or use --target-recall.",
        )
    else:
        set_by, wanted = "miss-cost", target.miss_cost
        n = len(model.calibration.terms)
        rate = calibration.rate_for_cost(p[odd], n, float(odd.mean()), wanted)
    if not rate < 1:
        raise InputError(
            f"--target-recall {wanted:g}: some labelled anomalies look calmer than every normal "
            "image, so that every image would have to be called anomalous.",
            hint="Ask for less, or look at these images: anoscan score lists them last.",
        )
    decision = Decision(
        false_alarm_rate=rate,
        set_by=set_by,
        uses_labels=True,
        wanted=wanted,
        labelled={"normal": int((~odd).sum()), "anomalous": int(odd.sum())},
        recall=float((p[odd] <= rate + 1e-9).mean()),
    )
    return decision, skipped


def _labelled(
    model: Model, labels: Path, runtime: Runtime
) -> tuple[np.ndarray, np.ndarray, tuple[Skipped, ...]]:
    """Return p-values (n,) of labelled images, whether each is anomalous (n,), and skipped ones."""
    given = gather(labels, None, None).images
    truth = {item.image.path: item.anomalous for item in given}
    files = [item.image for item in given]
    judge = Judge(model, runtime)
    terms, odd, skipped = [], [], []
    for batch in judge.measured(files, CHUNK, wanted=TERMS_ALONE):
        for decoded, row, *_ in batch:
            if isinstance(decoded, Skipped):
                skipped.append(decoded)
            else:
                terms.append(row)
                odd.append(truth[decoded.image.path])
    if not terms:
        raise nothing_readable(skipped)
    scores = judge.scorer.scores(np.array(terms), DEFAULT_SCORE)
    p = calibration.p_values(scores, judge.scorer.calibration_scores(DEFAULT_SCORE))
    return p, np.array(odd, dtype=bool), tuple(skipped)


def _decided(model: Model, decision: Decision) -> Model:
    facts = {key: value for key, value in dataclasses.asdict(decision).items() if value is not None}
    changed = dataclasses.replace(model, metadata=model.metadata | {"decision": facts})
    return _noted(changed, {"action": "decide"} | facts)


def _noted(model: Model, event: dict[str, Any]) -> Model:
    history = [*model.metadata.get("history", []), event | {"by": anoscan.__version__}]
    return dataclasses.replace(model, metadata=model.metadata | {"history": history})
