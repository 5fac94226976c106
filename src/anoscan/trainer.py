"""Train a model on images that a user gives, and save it where it belongs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError, TrainingInterrupted, UsageError
from anoscan.core.progress import OnProgress, notify
from anoscan.core.results import ModelReference, TrainReport
from anoscan.core.runtime import Runtime
from anoscan.images import in_memory, masks
from anoscan.images.files import ImageFile, every_nth, find
from anoscan.images.in_memory import Held
from anoscan.images.layout import training_paths
from anoscan.model import history, store, versions
from anoscan.model.claims import claim
from anoscan.model.judge import Judge
from anoscan.model.model import Model
from anoscan.model.names import check_name, name_for
from anoscan.model.training_record import Record
from anoscan.networks.loop import stop_on_interrupt
from anoscan.report.tracking import Tracker
from anoscan.scoring.choices import ScoreRequest
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.learn import TrainRequest, learn
from anoscan.training.redo import model_to_redo, settings_for
from anoscan.training.suspects import Suspicion

if TYPE_CHECKING:
    from anoscan.images.in_memory import Images

Given = Held | list[str | Path]
_LEFT_NOTHING = "training was stopped; without a name or a path no checkpoint is kept."
UNSAVED = ModelReference(name="", path="", sha256="")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of a training beside the settings of its model; see `Detector.train`."""

    names: Sequence[str] | None
    name: str | None
    path: Path | None
    force: bool
    resume: bool
    device: str
    precision: str
    workers: int | None
    tensorboard: Path | None
    drop_suspects: bool
    roi: str | Path | None
    redo: str | None
    every: int
    backbone_weights: Path | None
    like: Model | None


class Trained(NamedTuple):
    """A trained model with its place, its report, and how suspect its images are.

    `held_out` are the paths of the images that calibrated it.
    """

    model: Model
    runtime: Runtime
    reference: ModelReference
    report: TrainReport
    suspicion: Suspicion | None
    held_out: tuple[str, ...]


def train(
    images: Images,
    config: TrainConfig | None,
    settings: dict[str, Any],
    options: TrainOptions,
    on_progress: OnProgress,
) -> Trained:
    """Train a model and save it, unless its images are in memory and nothing names it.

    `settings` replace those of `config`. Errors are those of `Detector.train`.
    """
    given = in_memory.gather(images, options.names, _channels(config, settings, options.like))
    name = _name(given, options)
    runtime = Runtime.resolve(options.device, options.precision, options.workers)
    before, like, force = None, options.like, options.force
    if options.redo is not None:
        before = _to_redo(options, name, runtime)
        settings = (config.to_dict() if config else {}) | settings
        config, settings, force = settings_for(before, settings), {}, True
    if like is not None:
        config = config or like.config
    config = TrainConfig.from_dict((config or TrainConfig()).to_dict() | settings)
    drop_suspects, resume = options.drop_suspects, options.resume
    with _place(name, options, force=force) as place:
        files, narrowed = _files(given)
        files = every_nth(files, options.every)
        if source := before or like:
            region = source.rule.roi
            drop_suspects |= source.metadata["training_data"]["dropped"] > 0
        else:
            region = masks.chosen(
                options.roi,
                files,
                workers=runtime.workers,
                seed=config.seed,
                channels=config.channels,
            )
        if resume:
            Checkpoint.check(place.checkpoint)
        for note in (narrowed, *place.notes(resume=resume)):
            notify(on_progress, "reading", note, len(files))
        record, weights = Record(place.checkpoint), options.backbone_weights
        events = None if options.tensorboard is None else options.tensorboard / place.name
        tracker = Tracker(record, resume=resume, tensorboard=events)
        request = TrainRequest(
            files, config, place.checkpoint, resume, drop_suspects, region, before, weights, like
        )
        try:
            with stop_on_interrupt() as stopping, closing(tracker):
                learned = learn(request, runtime, tracker, on_progress, stopping)
            reference = _kept(learned.model, place, given, before, like)
            place.checkpoint.unlink(missing_ok=True)
            # The record of the whole training stays where only a stage was trained again.
            own = Record(place.model)
            tracking = record.move(own) if before is None else own
        except TrainingInterrupted:
            if place.saved:
                raise
            raise TrainingInterrupted(_LEFT_NOTHING) from None
        finally:
            if before is not None:
                place.checkpoint.unlink(missing_ok=True)
                record.clear()
    report = learned.report(reference, tracking, runtime)
    measuring = runtime.measuring()
    return Trained(learned.model, measuring, reference, report, learned.suspicion, learned.held_out)


def _kept(
    model: Model, place: _Place, given: Given, before: Model | None, like: Model | None
) -> ModelReference:
    """Save a model where it has a place, keep what it replaces, and write its history."""
    if not place.saved:
        return UNSAVED
    action = "redo" if before else "retrain" if like else "train"
    with versions.keeping(place.model, action):
        reference = saved(model, place.model)
    history.add(
        place.model,
        action,
        folders=given if isinstance(given, list) else (),
        images=model.metadata["training_data"]["trained"],
        threshold=Judge(model, Runtime.resolve("cpu", "float32", 1)).threshold(ScoreRequest()),
        sha256=reference.sha256,
    )
    return reference


def saved(model: Model, path: Path) -> ModelReference:
    """Write a model file, and return what names it."""
    return ModelReference(name=path.stem, path=str(path), sha256=model.write(path))


def _to_redo(options: TrainOptions, name: str | None, runtime: Runtime) -> Model:
    """Read the model of which a stage is trained again."""
    if options.resume:
        raise UsageError("--redo does not go with --resume: it starts anew.")
    if options.roi is not None:
        raise UsageError("--redo keeps the region of interest of the model: drop --roi.")
    return model_to_redo(str(options.redo), store.resolve(options.path or name), runtime)


def _channels(
    config: TrainConfig | None, settings: dict[str, Any], like: Model | None
) -> int | None:
    """Return the channels that the settings ask for; None where the images decide."""
    known = config or (TrainConfig() if like is None else like.config)
    return TrainConfig.from_dict(known.to_dict() | settings).channels


def _files(given: Given) -> tuple[Sequence[ImageFile], str | None]:
    """Return the images to train on, and a note where a folder was replaced by a part of it."""
    if isinstance(given, Held):
        return given.images, None
    normal, narrowed = training_paths(given)
    return find(normal), narrowed


def _name(given: Given, options: TrainOptions) -> str | None:
    """Return the name of a training; None where its images are in memory and nothing names it."""
    name, path = options.name, options.path
    if isinstance(given, list):
        return check_name(name or name_for(Path(given[0])))
    if given.single:
        raise InputError(
            "one image is too few to learn from.",
            hint="Give many: (n, h, w) or (n, h, w, 3). Flat ones need X.reshape(n, h, w).",
        )
    if name is not None or path is not None:
        return check_name(name or name_for(Path(path or "").with_suffix("")))
    if options.resume or options.redo is not None:
        raise UsageError(
            "resume and redo need the name of a training.", hint="Give name= or path=."
        )
    return None


# --- where the files are ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """The files of one training; those of a model that is not `saved` are temporary."""

    name: str
    model: Path
    checkpoint: Path
    saved: bool = True

    def notes(self, *, resume: bool) -> Iterator[str]:
        """Yield what a user should know before a training."""
        if self.checkpoint.exists() and not resume:
            name = repr(self.name)
            yield f"an unfinished training of {name} starts anew: --resume would go on with it"
        if self.saved:
            folder = Record(self.checkpoint).folder
            yield f"losses and pictures while the training runs: {folder}"


@contextmanager
def _place(name: str | None, options: TrainOptions, *, force: bool) -> Iterator[_Place]:
    """Reserve the files of a training; they are in a temporary folder where it has no name."""
    if name is None:
        with tempfile.TemporaryDirectory(prefix="anoscan-") as folder:
            root = Path(folder)
            yield _Place("array", root / "model", root / "unfinished", saved=False)
        return
    unfinished = name if options.redo is None else f"{name}-{options.redo}"
    with claim(name):  # until its files are at their final places
        model = store.unused(name, options.path, force=force)
        yield _Place(name, model, store.checkpoint_path(unfinished))
