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
from anoscan.config import IMAGES_SHOWN, TrainConfig
from anoscan.errors import InputError, ModelError
from anoscan.health import Findings, examine
from anoscan.images import ImageFile, ImageRule
from anoscan.mapping import EncoderStage
from anoscan.model import Model, Yardstick, describe, fresh_networks
from anoscan.results import HealthReport, Skipped, to_json
from anoscan.runtime import Runtime
from anoscan.scoring import chunks, fit_terms, measure, smooth, terms_of
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
from anoscan.trainset import ImageArray, Inspection, inspect

FEWEST_IMAGES = 8
FEWEST_HELD_OUT = 50
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
        files, size=config.size, channels=config.channels, workers=runtime.workers, seed=config.seed
    )
    config = resolve(config, inspection)
    clock = _Clock()
    reading = _reading(on_progress)
    array, skipped = ImageArray.load(
        files, inspection.rule, workers=runtime.workers, on_progress=reading
    )
    with array:
        if len(array) < FEWEST_IMAGES:
            raise InputError(
                f"{len(array)} readable images are too few to learn from: at least "
                f"{FEWEST_IMAGES} are needed, and 1,000 are good.",
                hint=_first_reason(skipped),
            )
        train_rows, held_rows = split(array.digests, config.seed, config.held_out)
        clock.lap("reading")
        keeper = _Keeper(checkpoint, _run_identity(config, array.digests), resume)
        some_held = np.ascontiguousarray(array.pixels[held_rows[:SHOWN]])
        tracker.show(some_held, config.latent_dim, config.seed, runtime.device)
        networks, rollbacks = _train(
            array.pixels,
            train_rows,
            config,
            inspection.rule,
            runtime,
            keeper,
            tracker,
            on_progress,
            stopping,
            clock,
        )
        read = array.pixels.__getitem__
        batches = chunks(train_rows, read, runtime.device)
        fitted = fit_terms(networks, terms_of(config), batches)
        yardstick, residual = _hold_against(networks, fitted, array.pixels, held_rows, runtime)
        baselines = Baselines.fit(array.pixels, train_rows, config.seed)
        mean_image = float(np.mean(baselines.scores(array.pixels[held_rows])["mean_image"]))
        findings = Findings(
            trained=len(train_rows),
            held_out=len(held_rows),
            rollbacks=rollbacks,
            reconstruction=residual / max(mean_image, 1e-12),
            diversity=_diversity(networks, array.pixels, train_rows, config),
        )
        facts = _facts(files, inspection, array.digests, train_rows, held_rows, skipped)
    clock.lap("calibration")
    health = examine(findings)
    metadata = describe(config, inspection.rule, yardstick, runtime) | {
        "training_data": facts,
        "terms": list(fitted),
        "health": to_json(health),
    }
    model = Model(networks, fitted, yardstick, baselines, metadata)
    seconds = clock.seconds | {"total": sum(clock.seconds.values())}
    return Learned(model, health, tuple(skipped), seconds)


def split(digests: Sequence[bytes], seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, from the seed and what is in the files.

    File names and order do not matter, and files with the same content stay on the same side: a
    held-out image whose twin was trained on would be no witness.

    Parameters
    ----------
    digests : sequence of bytes
        One a row.
    seed : int
    share : float
        Held out are at least `FEWEST_HELD_OUT` images where that is at most a quarter of all.
    """
    n = len(digests)
    wanted = max(round(share * n), min(FEWEST_HELD_OUT, n // 4), 1)
    salt = seed.to_bytes(8, "little")
    order = sorted(range(n), key=lambda row: (hashlib.sha256(salt + digests[row]).digest(), row))
    end = wanted
    while end < n and digests[order[end]] == digests[order[end - 1]]:
        end += 1
    if end >= n:
        raise InputError(
            "the training images are all the same picture: there is nothing to learn from.",
            hint="Give a folder with different images.",
        )
    return np.sort(np.array(order[end:])), np.sort(np.array(order[:end]))


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
    pixels: np.ndarray,
    rows: np.ndarray,
    runtime: Runtime,
) -> tuple[Yardstick, float]:
    """Measure held-out normals; also returns their mean squared residual."""
    terms, trusts, peaks, levels, squares = [], [], [], [], []
    for batch in chunks(rows, pixels.__getitem__, runtime.device):
        measured = measure(networks, fitted, batch)
        terms.append(measured.terms)
        trusts.append(measured.trust)
        peaks.append(smooth(measured.residual).max(axis=(1, 2)))
        levels.append(np.quantile(measured.residual, 0.999))
        squares.append(np.square(batch.cpu().numpy() - measured.x_hat).mean((1, 2, 3)))
    # Twice what the brightest residuals of normals reach: a normal image looks calm.
    scale = max(2 * float(np.mean(levels)), 1e-3)
    trust = np.clip(np.concatenate(trusts).mean(0), 0, 1)
    yardstick = Yardstick(np.concatenate(terms), trust, scale, np.sort(np.concatenate(peaks)))
    return yardstick, float(np.mean(np.concatenate(squares)))


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
    files: Sequence[ImageFile],
    inspection: Inspection,
    digests: Sequence[bytes],
    train_rows: np.ndarray,
    held_rows: np.ndarray,
    skipped: Sequence[Skipped],
) -> dict[str, Any]:
    return {
        "found": len(files),
        "trained": len(train_rows),
        "held_out": len(held_rows),
        "skipped": len(skipped),
        "sha256": _fingerprint(digests),
        "sizes": inspection.sizes,
        "bit_depths": inspection.bit_depths,
    }


def _fingerprint(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _run_identity(config: TrainConfig, digests: Sequence[bytes]) -> dict[str, Any]:
    return {"config": config.to_dict(), "images": _fingerprint(digests)}


def _first_reason(skipped: Sequence[Skipped]) -> str | None:
    return f"{len(skipped)} were skipped, the first: {skipped[0].reason}." if skipped else None


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
