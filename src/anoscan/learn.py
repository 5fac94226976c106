"""How a folder of normal images becomes a model: the stages of training, in order.

images -> split -> GAN -> rotation -> encoder -> terms -> calibration -> baselines -> health
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anoscan import modelfile, registry
from anoscan.adversarial import GanStage, TurnStage, sample
from anoscan.architectures import Networks
from anoscan.baselines import Baselines
from anoscan.calibration import tile_moments
from anoscan.config import IMAGES_SHOWN, TrainConfig
from anoscan.errors import ModelError
from anoscan.health import Findings, examine
from anoscan.images import ImageFile, ImageRule
from anoscan.judgement import Judge
from anoscan.mapping import EncoderStage
from anoscan.material import Material
from anoscan.model import Model, Yardstick, describe, fresh_networks
from anoscan.results import HealthReport, Skipped, to_json
from anoscan.runtime import Runtime
from anoscan.scoring import Tiled, chunks, fit_terms, smooth, terms_of
from anoscan.terms import Tensors
from anoscan.tracking import MOST as SHOWN
from anoscan.tracking import Tracker
from anoscan.training import (
    Batches,
    OnProgress,
    Position,
    Progress,
    Stage,
    load_state_tensors,
    run,
    state_tensors,
)
from anoscan.trainset import Inspection, inspect

FEW_IMAGES = 3000  # fewer are shown to the discriminator with small random changes
DIVERSITY_SAMPLE = 256


@dataclass(frozen=True)
class Learned:
    """A model, and what its training has to report."""

    model: Model
    health: HealthReport
    skipped: tuple[Skipped, ...]
    seconds: dict[str, float]


def resolve(config: TrainConfig, inspection: Inspection) -> TrainConfig:
    """Settings with every ``None`` decided."""
    shown = config.images_shown or IMAGES_SHOWN
    return dataclasses.replace(
        config,
        size=inspection.rule.size,
        channels=inspection.rule.channels,
        patch_size=inspection.rule.patch,
        images_shown=shown,
        rotation_images_shown=shown
        if config.rotation_images_shown is None
        else config.rotation_images_shown,
        encoder_images_shown=config.encoder_images_shown or math.ceil(shown / 2.5),
        learning_rate=config.learning_rate
        or registry.load("objectives", config.objective).learning_rate,
    )


def learn(
    files: Sequence[ImageFile],
    config: TrainConfig,
    runtime: Runtime,
    *,
    checkpoint: Path,
    resume: bool,
    tracker: Tracker,
    on_progress: OnProgress,
    stopping: Callable[[], bool],
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
    tracker : Tracker
        Told of every stage.

    Raises
    ------
    InputError
        When there are too few readable images.
    TrainingDiverged, TrainingInterrupted
    """
    inspection = inspect(
        files,
        size=config.size,
        channels=config.channels,
        workers=runtime.workers,
        seed=config.seed,
        patch=config.patch,
    )
    config = resolve(config, inspection)
    clock = _Clock()
    material = Material.load(
        files, inspection.rule, config, workers=runtime.workers, on_progress=_reading(on_progress)
    )
    pixels, rows = material.pixels, material.rows
    clock.lap("reading")
    keeper = _Keeper(checkpoint, _run_identity(config, material.digests), resume)
    some_held = material.some_held_out(SHOWN)
    tracker.show(some_held, config.latent_dim, config.seed, runtime.device)
    networks, rollbacks = _train(
        pixels,
        rows,
        config,
        inspection.rule,
        runtime,
        keeper,
        tracker,
        on_progress,
        stopping,
        clock,
    )
    batches = chunks(rows, pixels.__getitem__, runtime.device)
    fitted = fit_terms(networks, terms_of(config), batches)
    baselines = Baselines.fit(pixels, rows, config.seed)
    yardstick, missed, large = _hold_against(networks, fitted, baselines, material, runtime)
    findings = Findings(
        trained=len(rows),
        held_out=len(material.held_out),
        rollbacks=rollbacks,
        reconstruction=missed,
        diversity=_diversity(networks, pixels, rows, config),
        of="images" if config.patches is None else "patches",
    )
    clock.lap("calibration")
    health = examine(findings)
    metadata = describe(config, inspection.rule, yardstick, runtime) | {
        "training_data": _facts(files, inspection, material, config),
        "terms": list(fitted),
        "health": to_json(health),
    }
    model = Model(networks, fitted, yardstick, baselines, metadata)
    if large:
        model = _with_tiles(model, large, runtime)
    seconds = clock.seconds | {"total": sum(clock.seconds.values())}
    return Learned(model, health, tuple(material.skipped), seconds)


def _train(
    pixels: np.ndarray,
    rows: np.ndarray,
    config: TrainConfig,
    rule: ImageRule,
    runtime: Runtime,
    keeper: _Keeper,
    tracker: Tracker,
    on_progress: OnProgress,
    stopping: Callable[[], bool],
    clock: _Clock,
) -> tuple[Networks, int]:
    """All stages; returns frozen networks and how often training went back."""
    networks = fresh_networks(config, rule)
    for network in (networks.generator, networks.discriminator, networks.encoder):
        network.to(device=runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(name: str, size: int = 1) -> Batches:
        many = size * config.batch_size
        return Batches(pixels, rows, many, config.seed, name, runtime.device)

    def go(stage: Stage, steps: int, many: int, **shown: Any) -> None:
        if keeper.has_finished(stage):
            keeper.restore_finished(stage)
        else:
            position = keeper.restore(stage)
            run(
                stage,
                steps=steps,
                images_per_step=many,
                position=position,
                on_progress=tracker.following(
                    stage.name, position.step * many, on_progress, **shown
                ),
                checkpoint=lambda where: keeper.save(stage, where),
                stopping=stopping,
            )
            keeper.finish(stage, position)
        clock.lap(stage.name)

    batch = config.batch_size
    gan = GanStage(
        networks,
        registry.load("objectives", config.objective),
        batches("gan"),
        config,
        runtime,
        few=len(rows) < FEW_IMAGES,
    )
    steps = math.ceil((config.images_shown or 0) / batch)
    go(gan, steps, batch, generator=gan.averages[0])
    trained = Networks(*gan.averages, networks.encoder)
    if config.rotation_images_shown:
        many = 2 * batch
        steps = math.ceil(config.rotation_images_shown / many)
        turned = batches("rotation", 2)
        go(TurnStage(trained.discriminator, turned, steps, config, runtime), steps, many)
    encoder = EncoderStage(
        trained, registry.load("mappings", config.mapping), batches("encoder"), config, runtime
    )
    steps = math.ceil((config.encoder_images_shown or 0) / batch)
    go(encoder, steps, batch, mirror=(trained.encoder, trained.generator))
    return trained.frozen(), keeper.rollbacks


def _hold_against(
    networks: Networks,
    fitted: dict[str, Tensors],
    baselines: Baselines,
    material: Material,
    runtime: Runtime,
) -> tuple[Yardstick, float, list[Tiled]]:
    """Measure held-out normals.

    Also returns what reconstructions miss, relative to the mean image; and the large images.
    """
    terms, trusts, peaks, levels, errors, mean_errors = [], [], [], [], [], []
    large: list[Tiled] = []
    for held in material.measured(networks, fitted, baselines, runtime.device):
        terms.append(held.measured.terms)
        trusts.append(held.measured.trust)
        levels.append(held.level)
        errors.append(held.error)
        mean_errors.append(held.mean_error)
        if held.tiled is None:
            peaks.append(smooth(held.measured.residual).max(axis=(1, 2)))
        else:
            large.append(held.tiled)
    # Twice what the brightest residuals of normals reach: a normal image looks calm.
    scale = max(2 * float(np.mean(levels)), 1e-3)
    trust = np.clip(np.concatenate(trusts).mean(0), 0, 1)
    all_peaks = np.sort(np.concatenate(peaks)) if peaks else np.empty(0)
    yardstick = Yardstick(np.concatenate(terms), trust, scale, all_peaks)
    mean_error = float(np.mean(np.concatenate(mean_errors)))
    missed = float(np.mean(np.concatenate(errors))) / max(mean_error, 1e-12)
    return yardstick, missed, large


def _with_tiles(model: Model, large: Sequence[Tiled], runtime: Runtime) -> Model:
    """Model whose yardstick knows the tiles of the held-out images too."""
    moments = np.stack([tile_moments(image.terms) for image in large])
    model = dataclasses.replace(
        model, yardstick=dataclasses.replace(model.yardstick, tiles=moments)
    )
    judge = Judge(model, runtime)
    peaks = np.sort([judge.oddness(image.terms, image.grid).max() for image in large])
    return dataclasses.replace(
        model, yardstick=dataclasses.replace(model.yardstick, region_peaks=peaks)
    )


def _diversity(
    networks: Networks, pixels: np.ndarray, rows: np.ndarray, config: TrainConfig
) -> float:
    fake = sample(
        networks.generator, DIVERSITY_SAMPLE, config.latent_dim, config.seed, "diversity"
    ).cpu()
    some = rows[:: max(1, len(rows) // DIVERSITY_SAMPLE)]
    real = torch.from_numpy(np.ascontiguousarray(pixels[some]))
    return float(fake.var(0).mean() / real.var(0).mean().clamp_min(1e-12))


def _facts(
    files: Sequence[ImageFile], inspection: Inspection, material: Material, config: TrainConfig
) -> dict[str, Any]:
    facts = {
        "found": len(files),
        "trained": len(material.trained),
        "held_out": len(material.held_out),
        "skipped": len(material.skipped),
        "sha256": _fingerprint(material.digests),
        "sizes": inspection.sizes,
        "bit_depths": inspection.bit_depths,
    }
    return facts if config.patches is None else facts | {"patches": config.patches}


def _fingerprint(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _run_identity(config: TrainConfig, digests: Sequence[bytes]) -> dict[str, Any]:
    return {"config": config.to_dict(), "images": _fingerprint(digests)}


def _reading(on_progress: OnProgress) -> Callable[[int, int], None]:
    start = time.monotonic()

    def report(done: int, total: int) -> None:
        speed = done / max(time.monotonic() - start, 1e-9)
        on_progress(Progress("reading", done, total, {}, speed))

    return report


class _Clock:
    """Wall-clock seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now


class _Keeper:
    """The checkpoint of a run: a safetensors file beside the models, never pickled.

    It holds the stage that is under way and the end states of those before it.
    """

    def __init__(self, path: Path, identity: dict[str, Any], resume: bool) -> None:
        self.path, self.identity = path, identity
        self.rollbacks = 0
        self._finished: dict[str, dict[str, Tensor]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._found: dict[str, Any] = {}
        if resume:
            self._read()

    def _read(self) -> None:
        if not self.path.exists():
            raise ModelError(
                "--resume: there is no checkpoint of an interrupted run under this name.",
                hint="Train without --resume.",
            )
        self._tensors, self._found = modelfile.load(self.path)
        if self._found.get("identity") != self.identity:
            raise ModelError(
                "--resume: the checkpoint is of other images or other settings.",
                hint="Give the images and options of the interrupted run, or drop --resume.",
            )

    def has_finished(self, stage: Stage) -> bool:
        """Whether the checkpoint is of a later stage than `stage`."""
        return stage.name in self._found.get("finished", ())

    def restore(self, stage: Stage) -> Position:
        """Put `stage` where the checkpoint left it; at its start when there is none of it."""
        if not self._found or self._found["stage"] != stage.name:
            return Position()
        load_state_tensors(stage, self._under("now"))
        return Position(self._found["step"], self._found["rollbacks"])

    def restore_finished(self, stage: Stage) -> None:
        """Put `stage` into its end state."""
        load_state_tensors(stage, self._under(f"finished-{stage.name}"))
        self.finish(stage, Position(rollbacks=self._found["finished"][stage.name]))

    def finish(self, stage: Stage, position: Position) -> None:
        """Remember the end state of a stage for the checkpoints of later ones."""
        self.rollbacks += position.rollbacks
        self._finished[stage.name] = {
            f"finished-{stage.name}|{key}": value.clone()
            for key, value in state_tensors(stage).items()
        } | {f"finished-{stage.name}|rollbacks": torch.tensor(position.rollbacks)}

    def save(self, stage: Stage, position: Position) -> None:
        """Write the state of the stage under way, and of those before it."""
        tensors = {f"now|{key}": value for key, value in state_tensors(stage).items()}
        rollbacks = {}
        for name, finished in self._finished.items():
            tensors |= finished
            rollbacks[name] = int(finished[f"finished-{name}|rollbacks"])
        metadata = {
            "kind": "checkpoint",
            "identity": self.identity,
            "stage": stage.name,
            "step": position.step,
            "rollbacks": position.rollbacks,
            "finished": rollbacks,
        }
        modelfile.save(self.path, tensors, metadata)

    def _under(self, part: str) -> dict[str, Tensor]:
        prefix = f"{part}|"
        return {
            key.removeprefix(prefix): value
            for key, value in self._tensors.items()
            if key.startswith(prefix)
        }
