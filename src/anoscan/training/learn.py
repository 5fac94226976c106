"""Turn a folder of normal images into a model, by the parts of a training in this order.

images -> split -> GAN -> rotation -> encoder -> reconstruction -> (suspects) -> terms, baselines
-> maps -> calibration (and folds) -> health -> self-test
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anoscan
from anoscan.core.arrays import evenly
from anoscan.core.config import NO_BACKBONE, TrainConfig, architecture_for, decided
from anoscan.core.errors import InputError, UsageError
from anoscan.core.progress import OnProgress, Progress, notify, on_reading
from anoscan.core.results import (
    HealthCheck,
    HealthReport,
    ModelReference,
    SelfTest,
    Skipped,
    TrainedModel,
    TrainImages,
    TrainReport,
    to_json,
)
from anoscan.core.runtime import Runtime
from anoscan.dataset import census
from anoscan.dataset.inspection import Inspection, inspect
from anoscan.dataset.material import Material
from anoscan.images.files import ImageFile
from anoscan.images.roi import Roi
from anoscan.model.held_out import measure_held_out
from anoscan.model.model import Model, describe
from anoscan.model.score_of_terms import Scorer
from anoscan.model.training_record import Record
from anoscan.networks import backbone as backbones
from anoscan.networks.architectures import Networks
from anoscan.networks.backbone import Backbone
from anoscan.networks.loop import stop_where_asked
from anoscan.scoring import maps as anomaly_maps
from anoscan.scoring.fitting import fit_all
from anoscan.scoring.maps import Maps
from anoscan.scoring.measure import Measurer, chunks, terms_of
from anoscan.scoring.neighbours import Neighbours
from anoscan.scoring.terms import Tensors
from anoscan.training import network_checks, suspects
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.health import (
    Findings,
    examine,
    few_to_calibrate,
    of_folder,
    shrinking,
    with_kept,
)
from anoscan.training.redo import redo_encoder
from anoscan.training.self_test import run_self_test
from anoscan.training.suspects import Suspicion
from anoscan.training.together import read
from anoscan.training.train_networks import (
    Clock,
    Observer,
    TrainedNetworks,
    TrainingRun,
    train_networks,
)

SHOWN = 6  # held-out images that an observer gets, to show their reconstructions
MAPS_SAMPLE = 1024  # training images, or patches, at most, that anomaly maps are fitted on


@dataclass(frozen=True)
class Learned:
    """A trained model, and what its training reports.

    `held_out` are the paths of the images that no network saw. `suspicion` is None unless suspects
    were dropped. `seconds` is the wall-clock time by part of the training, and in total.
    """

    model: Model
    health: HealthReport
    self_test: SelfTest
    skipped: tuple[Skipped, ...]
    held_out: tuple[str, ...]
    suspicion: Suspicion | None
    seconds: dict[str, float]

    def report(self, saved: ModelReference, record: Record, runtime: Runtime) -> TrainReport:
        """Return the report of `anoscan train`; `record` is the folder beside the saved model."""
        config, rule = self.model.config, self.model.rule
        facts = self.model.metadata["training_data"]
        return TrainReport(
            model=TrainedModel(
                **dataclasses.asdict(saved),
                architecture=config.architecture,
                objective=config.objective,
                encoder=config.encoder,
                mapping=config.mapping,
                backbone=config.backbone,
                size=rule.size,
                patch_size=rule.patch,
                channels=rule.channels,
                latent_dim=config.latent_dim,
            ),
            images=TrainImages(
                found=facts["found"],
                trained=facts["trained"],
                held_out=facts["held_out"],
                dropped=facts["dropped"],
                patches=config.patches,
                skipped=self.skipped,
            ),
            images_shown=config.lengths(),
            seconds=self.seconds,
            health=self.health,
            self_test=self.self_test,
            tracking=record.folder.as_posix() if record.folder.is_dir() else None,
            device=runtime.device.type,
            precision=runtime.precision,
            seed=config.seed,
            anoscan_version=anoscan.__version__,
        )


def resolve(config: TrainConfig, inspection: Inspection) -> TrainConfig:
    """Replace every ``None`` and ``auto`` of the settings, except those of `augment` and `align`.

    What was found of the images decides the size, the channels and the patch size.
    """
    left = {name: value for name, value in decided(config).items() if getattr(config, name) is None}
    return dataclasses.replace(
        config,
        **left,
        size=inspection.rule.size,
        channels=inspection.rule.channels,
        patch_size=inspection.rule.patch,
        align=config.align if inspection.rule.patch is None else "off",
        architecture=architecture_for(inspection.rule.size)
        if config.architecture == "auto"
        else config.architecture,
    )


@dataclass(frozen=True)
class TrainRequest:
    """What a training is to do.

    Parameters
    ----------
    files : sequence of ImageFile
        Normal images.
    config : TrainConfig
        Settings as they were given.
    checkpoint : Path
        File that keeps an unfinished run. Remove it after the model is saved.
    resume : bool
        Whether to go on from the checkpoint, which must be of the same images and settings.
    drop_suspects : bool
        Whether to fit what counts as normal without the most suspect images. The networks learn
        from all images either way.
    roi : Roi, optional
        Region of interest: pixels outside it do not count.
    before : Model, optional
        Model whose encoder and reconstructions are trained again, on the same images.
    weights : Path, optional
        File of the weights of the pretrained network; by default the known ones.
    like : Model, optional
        Model whose pretrained network is used again.
    """

    files: Sequence[ImageFile]
    config: TrainConfig
    checkpoint: Path
    resume: bool = False
    drop_suspects: bool = False
    roi: Roi | None = None
    before: Model | None = None
    weights: Path | None = None
    like: Model | None = None


def learn(
    request: TrainRequest,
    runtime: Runtime,
    observer: Observer,
    on_progress: OnProgress,
    stopping: Callable[[], bool],
) -> Learned:
    """Train on images, and calibrate on the images held out; the model is not saved yet.

    `observer` follows every stage. `on_progress` is called in every part of the training, and
    `stopping` is asked between steps and parts whether to stop.

    Raises
    ------
    InputError
        When there are too few readable images.
    UsageError
        When suspects are to be dropped from a model of patches.
    ModelError
        When the checkpoint to go on from is missing, cannot be read, or is of another run.
    TrainingDiverged
        When losses or weights were not finite too often.
    TrainingInterrupted
        When `stopping` said yes.
    """
    files, measuring = request.files, runtime.measuring()
    backbone, origin = _pretrained(request)
    inspection = _inspect(request, runtime, on_progress)
    config = resolve(request.config, inspection)
    clock = Clock()
    material = read(files, inspection.rule, config, runtime, on_reading(on_progress))
    if request.drop_suspects:
        suspects.check(len(material.images), patches=config.patches is not None)
    clock.lap("reading")
    identity = _run_identity(config, material)
    checkpoint = Checkpoint(request.checkpoint, identity, request.resume)
    folder = _of_folder(material, inspection, config)
    _note(folder, few_to_calibrate(len(material.held_out), config), len(files), on_progress)
    held_out = material.some_held_out(SHOWN)
    observer.show(held_out, config.latent_dim, config.seed, runtime.device, material.rule)
    training = TrainingRun(checkpoint, observer, on_progress, stopping, clock)
    trained = _trained(request.before, material, config, runtime, training)
    networks, folds = trained.with_backbone(backbone)
    suspected, names = None, _names(config, folds.rotated)
    if request.drop_suspects:
        suspected = _suspected(networks, names, material, config, measuring)
        material = material.without(suspected.worst)
        clock.lap("suspects")
    part, pixels, rows = _Parts(on_progress, stopping), material.pixels, material.rows
    fitted, baselines = fit_all(networks, names, pixels, rows, config.seed, measuring.device)
    part.begin()
    maps = _maps(networks, fitted, material, config, measuring)
    part.begin()
    measurer = Measurer(networks, fitted, material.rule, maps)
    held = measure_held_out(measurer, baselines, material, config.seed)
    if config.calibration_folds is not None:
        clock.lap("calibration")
    extended = folds.extend(held.calibration, list(fitted), usual=material.rows)
    if config.calibration_folds is not None:
        clock.lap("folds")
    held = dataclasses.replace(held, calibration=extended)
    part.begin()
    health = examine(
        folder,
        Findings(
            rollbacks=checkpoint.rollbacks,
            game=trained.game,
            networks=network_checks.examine(networks, baselines, material, config)
            if trained.game
            else None,
            reconstruction=held.missed,
            twins=network_checks.twins(material, config.seed),
            apart=bool(config.encoder_images_shown),
        ),
    )
    if request.before is not None:
        health = with_kept(health, request.before.metadata["health"])
    clock.lap("calibration")
    metadata = describe(config, inspection.rule, held.calibration, runtime) | {
        "training_data": _facts(files, inspection, material, config),
        "terms": list(fitted),
        "maps": maps.described(),
        "health": to_json(health),
        **origin,
    }
    kept = _kept(networks, material) if config.keep_thumbnails else None
    model = Model(networks, fitted, held.calibration, baselines, metadata, maps, kept)
    model = held.complete(model)
    part.begin()
    self_test = run_self_test(model, material)
    model = dataclasses.replace(model, metadata=metadata | {"self_test": to_json(self_test)})
    part.done()
    clock.lap("self_test")
    unread, unseen = tuple(material.skipped), material.unseen_paths
    return Learned(model, health, self_test, unread, unseen, suspected, clock.with_total())


def _pretrained(request: TrainRequest) -> tuple[Backbone | None, dict[str, Any]]:
    """Return the pretrained network and its entry in the metadata, where one is asked for."""
    if request.config.backbone == NO_BACKBONE:
        if request.weights is not None:
            raise UsageError("--backbone-weights needs --backbone.", hint="Name the network.")
        return None, {}
    source = request.before or request.like
    if source is not None and source.networks.backbone is not None:
        return source.networks.backbone, {"backbone": source.metadata["backbone"]}
    network, origin = backbones.pretrained(request.config.backbone, request.weights)
    return network, {"backbone": dataclasses.asdict(origin)}


def _names(config: TrainConfig, rotated: bool) -> tuple[str, ...]:
    """Return the names of the terms that a training with such settings fits."""
    return terms_of(
        rotated=rotated,
        patches=config.patches is not None,
        backbone=config.backbone != NO_BACKBONE,
        game=bool(config.images_shown),
    )


def _trained(
    before: Model | None,
    material: Material,
    config: TrainConfig,
    runtime: Runtime,
    training: TrainingRun,
) -> TrainedNetworks:
    if before is None:
        return train_networks(material, config, runtime, training)
    if before.metadata["training_data"]["sha256"] != _fingerprint(material.digests):
        raise InputError(
            "--redo: these are not the images that the model was trained on.",
            hint="Give the folder of that training, or train a new model.",
        )
    return redo_encoder(before, material, config, runtime, training)


def _suspected(
    networks: Networks,
    names: Sequence[str],
    material: Material,
    config: TrainConfig,
    runtime: Runtime,
) -> Suspicion:
    """Rate how suspect all images are, by a model that was fitted on all training images.

    Held-out images take no part in the fits of others, which would lower their scores.
    """
    pixels, rows = material.pixels, material.rows
    fitted, baselines = fit_all(networks, names, pixels, rows, config.seed, runtime.device)
    measurer = Measurer(networks, fitted, material.rule)
    held = measure_held_out(measurer, baselines, material, config.seed)
    scorer = Scorer(fitted, held.calibration)
    found = suspects.scores(
        measurer, scorer, config.seed, material.pixels, material.groups, material.rows
    )
    return Suspicion(material.images, material.digests, found, material.skipped)


def _kept(networks: Networks, material: Material) -> Neighbours:
    paths = [image.path for image in material.images]
    return Neighbours.of(networks, material.pixels, material.rows, paths)


def _of_folder(
    material: Material, inspection: Inspection, config: TrainConfig
) -> tuple[HealthCheck, ...]:
    blank = map(census.is_blank, material.pixels)
    counts = census.take(material.digests, blank, inspection)
    of = "images" if material.rule.patch is None else "patches"
    calibrating = len(material.held_out) + len(material.rows) * bool(config.calibration_folds)
    return of_folder(counts, len(material.rows), calibrating, of)


def _note(
    checks: Sequence[HealthCheck], few: str | None, files: int, on_progress: OnProgress
) -> None:
    notify(on_progress, "reading", few, files)
    for check in checks:
        if check.verdict != "ok" and check.name != "calibration":
            on_progress(Progress("reading", files, files, note=check.message))


def _maps(
    networks: Networks,
    fitted: dict[str, Tensors],
    material: Material,
    config: TrainConfig,
    runtime: Runtime,
) -> Maps:
    read = material.pixels.__getitem__
    some = material.rows[:: max(1, len(material.rows) // MAPS_SAMPLE)][:MAPS_SAMPLE]
    unseen = evenly(material.unseen, anomaly_maps.MOST_HELD_OUT)
    return anomaly_maps.fit(
        networks,
        fitted,
        lambda: chunks(some, read, runtime.device),
        lambda: chunks(unseen, read, runtime.device),
        align={"auto": None, "on": True, "off": False}[config.align],
        inside=material.inside_of(unseen),
    )


def _facts(
    files: Sequence[ImageFile], inspection: Inspection, material: Material, config: TrainConfig
) -> dict[str, Any]:
    facts = {
        "found": len(files),
        "trained": len(material.trained),
        "held_out": len(material.held_out),
        "dropped": len(material.images) - len(material.trained) - len(material.held_out),
        "skipped": len(material.skipped),
        "sha256": _fingerprint(material.digests),
        "sizes": inspection.sizes,
        "bit_depths": inspection.bit_depths,
    }
    return facts if config.patches is None else facts | {"patches": config.patches}


def _fingerprint(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _inspect(request: TrainRequest, runtime: Runtime, on_progress: OnProgress) -> Inspection:
    found = inspect(request.files, request.config, runtime.workers, roi=request.roi)
    notify(on_progress, "reading", shrinking(found), len(request.files))
    return dataclasses.replace(found, rule=dataclasses.replace(found.rule, roi=request.roi))


def _run_identity(config: TrainConfig, material: Material) -> dict[str, Any]:
    identity = {"config": config.to_dict(), "images": _fingerprint(material.digests)}
    roi = material.rule.roi
    return identity if roi is None else identity | {"roi": roi.to_dict()}


class _Parts:
    """Reports the parts after the last stage (``calibration``), and stops between them if asked."""

    PARTS = 5  # terms, maps, held-out images, checks, self-test

    def __init__(self, on_progress: OnProgress, stopping: Callable[[], bool]) -> None:
        self._on_progress, self._stopping, self._begun = on_progress, stopping, 0
        self.begin()

    def begin(self) -> None:
        """Begin the next part; raises `TrainingInterrupted` when a stop is asked for."""
        stop_where_asked(self._stopping)
        self._tell(self._begun)
        self._begun += 1

    def done(self) -> None:
        self._tell(self._begun)

    def _tell(self, parts: int) -> None:
        self._on_progress(Progress("calibration", parts, self.PARTS))
