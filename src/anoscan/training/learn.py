"""How a folder of normal images becomes a model: the stages of training, in order.

images -> split -> GAN -> rotation -> encoder -> (suspects) -> terms, baselines -> maps
-> calibration (and folds) -> health -> self-test
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import anoscan
from anoscan.core import registry
from anoscan.core.arrays import Floats, evenly
from anoscan.core.config import FEW_IMAGES, TrainConfig, architecture_for, decided
from anoscan.core.progress import OnProgress, Progress, on_reading
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
from anoscan.model.model import Model, describe, fresh_networks
from anoscan.model.training_record import Record
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.joint_stage import JointStage
from anoscan.networks.loop import Batches, Stage, run, stop_where_asked
from anoscan.networks.mappings import Mapping
from anoscan.networks.objectives import Objective
from anoscan.networks.rotation_stage import RotationStage
from anoscan.scoring import maps as anomaly_maps
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.maps import Maps
from anoscan.scoring.measure import chunks, fit_terms, terms_of
from anoscan.scoring.neighbours import Neighbours
from anoscan.scoring.terms import Tensors, rotation_logits
from anoscan.scoring.terms.rotation import certainty
from anoscan.training import network_checks, suspects
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.folds import Folds
from anoscan.training.health import Findings, GameWatch, examine, of_folder
from anoscan.training.network_checks import Game
from anoscan.training.self_test import run_self_test
from anoscan.training.suspects import Suspicion

SHOWN = 6  # held-out images whose reconstructions an observer is given
MAPS_SAMPLE = 1024  # images, or patches, whose places say what is usual anywhere
# Certainty of turns on held-out normals below which the rotation stage is undone: a task that was
# learned by heart, or not at all (textures, discs), only wears the features down. Of many images
# little can be learned by heart: there anything above guessing says more than nothing.
LEARNED, LEARNED_OF_FEW = 0.05, 0.5


class Observer(Protocol):
    """What looks on while networks are trained; it changes nothing of the training."""

    def show(self, held_out: Floats, latent_dim: int, seed: int, device: torch.device) -> None:
        """Take held-out images (n, c, s, s), at most `SHOWN`, whose reconstructions are shown."""

    def following(
        self,
        stage: str,
        images: int,
        on_progress: OnProgress,
        *,
        generator: nn.Module | None = None,
        mirror: tuple[nn.Module, nn.Module] | None = None,
    ) -> OnProgress:
        """Return a callback for the progress of a stage that stands at `images`."""


@dataclass(frozen=True)
class Learned:
    """A model, and what its training has to report."""

    model: Model
    health: HealthReport
    self_test: SelfTest
    skipped: tuple[Skipped, ...]
    suspicion: Suspicion | None  # of the images, where suspects were dropped
    seconds: dict[str, float]

    def report(self, saved: ModelReference, record: Record, runtime: Runtime) -> TrainReport:
        """What `anoscan train` says of a model saved, and of its record."""
        config, rule = self.model.config, self.model.rule
        facts = self.model.metadata["training_data"]
        return TrainReport(
            model=TrainedModel(
                **dataclasses.asdict(saved),
                architecture=config.architecture,
                objective=config.objective,
                encoder=config.encoder,
                mapping=config.mapping,
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
            images_shown={
                "gan": config.images_shown or 0,
                "rotation": config.rotation_images_shown or 0,
                "encoder": config.encoder_images_shown or 0,
            },
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
    """Settings with every ``None`` and ``auto`` decided but those of `augment` and `align`."""
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


def learn(
    files: Sequence[ImageFile],
    config: TrainConfig,
    runtime: Runtime,
    *,
    checkpoint: Path,
    resume: bool,
    observer: Observer,
    on_progress: OnProgress,
    stopping: Callable[[], bool],
    drop_suspects: bool = False,
    roi: Roi | None = None,
) -> Learned:
    """Train on images and calibrate on those held out.

    Parameters
    ----------
    files : sequence of ImageFile
    config : TrainConfig
    runtime : Runtime
    checkpoint : Path
        Where an unfinished run is kept. Remove it when the model is safe.
    resume : bool
        Go on from the checkpoint, which must be of the same images and settings.
    observer : Observer
        Told of every stage.
    drop_suspects : bool
        Fit what counts as usual without the most suspect images; networks learn from all.
    roi : Roi, optional
        Outside it nothing counts.

    Raises
    ------
    InputError
        When there are too few readable images.
    TrainingDiverged, TrainingInterrupted
    """
    inspection = _inspect(files, config, runtime, roi)
    config = resolve(config, inspection)
    clock = _Clock()
    material = Material.load(
        files, inspection.rule, config, workers=runtime.workers, on_progress=on_reading(on_progress)
    )
    if drop_suspects:
        suspects.check(len(material.images), patches=config.patches is not None)
    clock.lap("reading")
    keeper = Checkpoint(checkpoint, _run_identity(config, material), resume)
    folder = _of_folder(material, inspection, config)
    _note(folder, len(files), on_progress)
    observer.show(material.some_held_out(SHOWN), config.latent_dim, config.seed, runtime.device)
    networks, rollbacks, after, game = _train(
        material, config, runtime, keeper, observer, on_progress, stopping, clock
    )
    measuring = runtime.measuring()
    names, suspected = terms_of(rotated=after.rotated, patches=config.patches is not None), None
    if drop_suspects:
        suspected = _suspected(networks, names, material, config, measuring)
        material = material.without(suspected.worst)
        clock.lap("suspects")
    part = _Parts(on_progress, stopping)
    fitted, baselines = _fitted(networks, names, material, config, measuring)
    part.begin()
    maps = _maps(networks, fitted, material, config, measuring)
    part.begin()
    held = measure_held_out(networks, fitted, baselines, material, maps, config.seed, measuring)
    extended = after.extend(held.calibration, list(fitted), usual=material.rows)
    held = dataclasses.replace(held, calibration=extended)
    part.begin()
    health = examine(
        folder,
        Findings(
            rollbacks=rollbacks,
            game=game,
            networks=network_checks.examine(networks, baselines, material, config),
            reconstruction=held.missed,
            apart=bool(config.encoder_images_shown),
        ),
    )
    clock.lap("calibration")
    metadata = describe(config, inspection.rule, held.calibration, runtime) | {
        "training_data": _facts(files, inspection, material, config),
        "terms": list(fitted),
        "maps": maps.described(),
        "health": to_json(health),
    }
    kept = _kept(networks, material) if config.keep_thumbnails else None
    model = Model(networks, fitted, held.calibration, baselines, metadata, kept, maps)
    model = held.complete(model, measuring)
    part.begin()
    self_test = run_self_test(model, material, measuring)
    model = dataclasses.replace(model, metadata=metadata | {"self_test": to_json(self_test)})
    part.done()
    clock.lap("self_test")
    return Learned(model, health, self_test, tuple(material.skipped), suspected, clock.with_total())


def _fitted(
    networks: Networks,
    names: Sequence[str],
    material: Material,
    config: TrainConfig,
    runtime: Runtime,
) -> tuple[dict[str, Tensors], Baselines]:
    pixels, rows = material.pixels, material.rows
    fitted = fit_terms(networks, names, chunks(rows, pixels.__getitem__, runtime.device))
    return fitted, Baselines.fit(pixels, rows, config.seed)


def _suspected(
    networks: Networks,
    names: Sequence[str],
    material: Material,
    config: TrainConfig,
    runtime: Runtime,
) -> Suspicion:
    """All images, by a model that holds none of them suspect yet.

    Held-out images do not vouch for others: they would look tamer than images to come.
    """
    fitted, baselines = _fitted(networks, names, material, config, runtime)
    held = measure_held_out(networks, fitted, baselines, material, None, config.seed, runtime)
    metadata = describe(config, material.rule, held.calibration, runtime)
    model = Model(networks, fitted, held.calibration, baselines, metadata)
    found = suspects.scores(model, runtime, material.pixels, material.groups, material.rows)
    return Suspicion(material.images, material.digests, found, material.skipped)


def _kept(networks: Networks, material: Material) -> Neighbours:
    paths = [image.path for image in material.images]
    return Neighbours.of(networks, material.pixels, material.rows, paths)


def _train(
    material: Material,
    config: TrainConfig,
    runtime: Runtime,
    keeper: Checkpoint,
    observer: Observer,
    on_progress: OnProgress,
    stopping: Callable[[], bool],
    clock: _Clock,
) -> tuple[Networks, int, Folds, Game]:
    """All stages.

    Returns frozen networks, how often training went back, what folds would start from, and how the
    game stood in the end.
    """
    networks = fresh_networks(config, material.rule)
    for network in (networks.generator, networks.discriminator, networks.encoder):
        network.to(device=runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(name: str, size: int = 1) -> Batches:
        many = size * config.batch_size
        return Batches(material.pixels, material.rows, many, config.seed, name, runtime.device)

    def go(
        stage: Stage, shown: int | None, many: int, tell: OnProgress = on_progress, **looks: Any
    ) -> None:
        if keeper.has_finished(stage):
            keeper.restore_finished(stage)
        else:
            position = keeper.restore(stage)
            run(
                stage,
                steps=math.ceil((shown or 0) / many),
                images_per_step=many,
                position=position,
                on_progress=observer.following(stage.name, position.step * many, tell, **looks),
                checkpoint=lambda where: keeper.save(stage, where),
                stopping=stopping,
            )
            keeper.finish(stage, position)
        clock.lap(stage.name)

    batch, few = config.batch_size, len(material.rows) < FEW_IMAGES
    mapping: Mapping = registry.load("mappings", config.mapping)
    objective: Objective = registry.load("objectives", config.objective)
    kind = JointStage if mapping.loss is None else GanStage
    gan = kind(networks, objective, batches("gan"), config, runtime, few=few)
    trained, rotated = gan.trained(), False
    mirror = (trained.encoder, trained.generator)
    pairs = mapping.loss is None
    judge = None if pairs else trained.discriminator

    def snapshot(images: int) -> Game:
        return network_checks.game(trained.generator, judge, material, config, images=images)

    if objective.note:
        on_progress(Progress("gan", 0, config.images_shown or 0, {}, 0.0, objective.note))
    looks = {"mirror": mirror} if pairs else {}
    watch = GameWatch(on_progress, snapshot)
    go(gan, config.images_shown, batch, watch, generator=trained.generator, **looks)
    game = snapshot(network_checks.SAMPLES)
    after_gan = copy.deepcopy(trained)
    if config.rotation_images_shown:
        pupil = copy.deepcopy(trained.discriminator)
        steps = math.ceil(config.rotation_images_shown / (2 * batch))
        stage = RotationStage(pupil, batches("rotation", 2), steps, config, runtime, few=few)
        go(stage, config.rotation_images_shown, 2 * batch)
        unseen = chunks(material.unseen, material.pixels.__getitem__, runtime.device)
        rotated = _certainty(pupil, unseen) >= (LEARNED_OF_FEW if few else LEARNED)
        if rotated:
            trained.discriminator = pupil
    if not pairs:
        encoder = EncoderStage(trained, mapping, batches("encoder"), config, runtime)
        go(encoder, config.encoder_images_shown, batch, mirror=mirror)
    folds = Folds(after_gan, rotated, few, material, config, runtime, on_progress, stopping)
    frozen = trained.frozen(runtime.measuring().device)
    return frozen, keeper.rollbacks, folds, game


@torch.no_grad()
def _certainty(discriminator: Discriminator, batches: Iterable[Tensor]) -> float:
    """How well the quarter turns of held-out normals are told, 1 at most."""
    discriminator.eval()
    found = [rotation_logits(discriminator, x, discriminator.features(x)) for x in batches]
    return float(certainty(torch.cat(found).cpu()).mean())


def _of_folder(
    material: Material, inspection: Inspection, config: TrainConfig
) -> tuple[HealthCheck, ...]:
    blank = map(census.is_blank, material.pixels)
    counts = census.take(material.digests, blank, inspection)
    of = "images" if material.rule.patch is None else "patches"
    calibrating = len(material.held_out) + len(material.rows) * bool(config.calibration_folds)
    return of_folder(counts, len(material.rows), calibrating, of)


def _note(checks: Sequence[HealthCheck], files: int, on_progress: OnProgress) -> None:
    for check in checks:
        if check.verdict != "ok" and check.name != "calibration":
            on_progress(Progress("reading", files, files, {}, 0.0, check.message))


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
        inside=material.inside,
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


def _inspect(
    files: Sequence[ImageFile], config: TrainConfig, runtime: Runtime, roi: Roi | None
) -> Inspection:
    found = inspect(
        files,
        size=config.size,
        channels=config.channels,
        workers=runtime.workers,
        seed=config.seed,
        patch=config.patch,
        roi=roi,
    )
    return dataclasses.replace(found, rule=dataclasses.replace(found.rule, roi=roi))


def _run_identity(config: TrainConfig, material: Material) -> dict[str, Any]:
    identity = {"config": config.to_dict(), "images": _fingerprint(material.digests)}
    roi = material.rule.roi
    return identity if roi is None else identity | {"roi": roi.to_dict()}


class _Parts:
    """What comes after the last stage, part by part: told as progress, and each can be the last."""

    PARTS = 5  # terms, maps, held-out images, checks, self-test

    def __init__(self, on_progress: OnProgress, stopping: Callable[[], bool]) -> None:
        self._on_progress, self._stopping, self._begun = on_progress, stopping, 0
        self.begin()

    def begin(self) -> None:
        """Stop before the next part where that is asked for."""
        stop_where_asked(self._stopping)
        self._tell(self._begun)
        self._begun += 1

    def done(self) -> None:
        self._tell(self._begun)

    def _tell(self, parts: int) -> None:
        self._on_progress(Progress("calibration", parts, self.PARTS, {}, 0.0))


class _Clock:
    """Wall-clock seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def with_total(self) -> dict[str, float]:
        """All parts, and their sum."""
        return self.seconds | {"total": sum(self.seconds.values())}

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now
