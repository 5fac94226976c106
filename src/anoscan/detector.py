"""The class that train, score and eval share: a trained model that scores images.

>>> from anoscan import Detector                                   # doctest: +SKIP
>>> detector = Detector.train("normal_images", seed=1)             # doctest: +SKIP
>>> for image in detector.score(["queries"]).images[:20]:          # doctest: +SKIP
...     print(image.rank, image.path, image.score, image.p_value)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from anoscan.core.config import TrainConfig
from anoscan.core.progress import OnProgress, Progress, notify, on_reading
from anoscan.core.results import (
    CalibrateReport,
    EvalReport,
    ImageScore,
    ModelReference,
    SampleReport,
    ScoreReport,
    Skipped,
    Threshold,
    TrainReport,
)
from anoscan.core.runtime import Runtime
from anoscan.evaluation import recalibrate
from anoscan.evaluation.evaluate import Subject, assess
from anoscan.evaluation.labels import gather
from anoscan.evaluation.recalibrate import Target
from anoscan.images import masks
from anoscan.images.files import ImageFile, find
from anoscan.images.layout import query_paths, training_paths
from anoscan.model import file as model_file
from anoscan.model import store
from anoscan.model.judge import Judge
from anoscan.model.model import Model
from anoscan.model.training_record import Record
from anoscan.networks.loop import stop_on_interrupt
from anoscan.report.map_files import MapFiles
from anoscan.report.ranking import Ranking
from anoscan.report.samples import SAMPLES, Sampler
from anoscan.report.tracking import Tracker
from anoscan.report.views import OnImage, ViewFiles
from anoscan.scoring.choices import DEFAULT_SCORE, HowToScore, ScoreRequest
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.learn import TrainRequest, learn
from anoscan.training.suspects import Suspicion

_AS_USUAL = ScoreRequest()


def _quiet(progress: Progress) -> None:
    """Report nothing: the library never prints."""


class Detector:
    """A trained model. Make one with `train` or `load`.

    Attributes
    ----------
    model : Model
        Networks, fitted terms, calibration, and `metadata`: all that the file says in JSON.
    reference : ModelReference
        Name, path and SHA-256 of the model file.
    report : TrainReport or None
        Of the training that made it; None for a loaded model.
    suspicion : Suspicion or None
        Of that training's images, where suspects were dropped.
    """

    def __init__(self, model: Model, runtime: Runtime, judge: Judge | None = None) -> None:
        self.model, self.runtime = model, runtime
        self._judge = judge or Judge(model, runtime)
        self.reference = ModelReference(name="", path="", sha256="")
        self.report: TrainReport | None = None
        self.suspicion: Suspicion | None = None

    @classmethod
    def train(
        cls,
        folder: str | Path | Sequence[str | Path],
        *,
        config: TrainConfig | None = None,
        name: str | None = None,
        path: str | Path | None = None,
        force: bool = False,
        resume: bool = False,
        device: str = "auto",
        precision: str = "auto",
        workers: int | None = None,
        tensorboard: str | Path | None = None,
        drop_suspects: bool = False,
        roi: str | Path | None = None,
        on_progress: OnProgress = _quiet,
        **settings: Any,
    ) -> Detector:
        """Learn from normal images and save the model.

        Parameters
        ----------
        folder : path or sequence of paths
            Folders (searched recursively) and files of normal images. Of a folder laid out like
            MVTec AD, only ``train/good`` is used.
        config : TrainConfig, optional
        name : str, optional
            Of the model in the store; by default that of the folder.
        path : path, optional
            Save there instead of in the store.
        force : bool
            Replace a model that is there already.
        resume : bool
            Go on with an interrupted training of the same images and settings.
        device, precision, workers
            See `Runtime.resolve`.
        tensorboard : path, optional
            Folder for TensorBoard's event files, under the name of the model.
        drop_suspects : bool
            Rank the images when the networks are trained (`suspicion` of the detector), and fit
            what counts as usual without the most suspect ones. Held-out images stay.
        roi : path or 'auto', optional
            Mask (not black where images count), kept in the model; 'auto' leaves out borders that
            are constant in all images.
        on_progress : callable
            Called with a `Progress` a few times a second.
        **settings
            Fields of `TrainConfig`, over those of `config`.

        Raises
        ------
        InputError
            When the images cannot be used.
        UsageError
            For a setting out of range.
        ModelError
            When the name is taken, or another training of that name is running.
        TrainingDiverged, TrainingInterrupted
        """
        config = TrainConfig.from_dict((config or TrainConfig()).to_dict() | settings)
        paths = [folder] if isinstance(folder, str | Path) else list(folder)
        name = store.check_name(name or store.name_for(Path(paths[0])))
        with store.claim(name):  # until its files are where they stay
            target = store.unused(name, Path(path) if path else None, force=force)
            runtime = Runtime.resolve(device, precision, workers)
            normal, narrowed = training_paths(paths)
            files = find(normal)
            region = masks.chosen(roi, files, workers=runtime.workers, seed=config.seed)
            record = Record(checkpoint := store.checkpoint_path(name))
            if resume:
                Checkpoint.check(checkpoint)
            said = f"losses and pictures while the training runs: {record.folder}"
            anew = f"an unfinished training of {name!r} starts anew: --resume would go on with it"
            for note in (narrowed, anew if checkpoint.exists() and not resume else None, said):
                notify(on_progress, "reading", note, len(files))
            events = None if tensorboard is None else Path(tensorboard) / name
            tracker = Tracker(record, resume=resume, tensorboard=events)
            request = TrainRequest(files, config, checkpoint, resume, drop_suspects, region)
            with stop_on_interrupt() as stopping, closing(tracker):
                learned = learn(request, runtime, tracker, on_progress, stopping)
            detector = cls(learned.model, runtime.measuring())
            detector.save(target)
            checkpoint.unlink(missing_ok=True)
            tracking = record.move(Record(target))
        detector.suspicion = learned.suspicion
        detector.report = learned.report(detector.reference, tracking, runtime)
        return detector

    def save(self, path: str | Path) -> None:
        """Write the model file; the same model gives the same bytes."""
        path = Path(path)
        digest = self.model.write(path)
        self.reference = ModelReference(name=path.stem, path=str(path), sha256=digest)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        workers: int | None = None,
        roi: str | Path | None = None,
    ) -> Detector:
        """Read a model by name or path; None is the model trained last.

        With `roi`, a mask, what is outside it counts no more, beside what the model leaves out.

        Raises
        ------
        ModelError
            When there is none, or the file is damaged, foreign or newer than this program.
        """
        path = store.resolve(model)
        runtime = Runtime.resolve(device, "float32", workers).measuring()
        region = None if roi is None else masks.read(Path(roi))
        read = Model.read(path, runtime)
        detector = cls(read, runtime, Judge(read, runtime, region))
        digest = model_file.digest(path)
        detector.reference = ModelReference(name=path.stem, path=str(path), sha256=digest)
        return detector

    def score(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        top: int | None = None,
        residuals: str | Path | None = None,
        maps: MapFiles | None = None,
        on_progress: OnProgress = _quiet,
        **how: Unpack[HowToScore],
    ) -> ScoreReport:
        """Score and rank images.

        Parameters
        ----------
        paths : path or sequence of paths
            Folders and files of query images.
        top : int, optional
            Keep only so many images in the report; counts are of all.
        residuals : path, optional
            Folder for PNGs of query, reconstruction and residual.
        maps : MapFiles, optional
            Writes the anomaly maps.
        **how
            See `HowToScore`.

        Returns
        -------
        ScoreReport
            Images by rank; higher score is more anomalous.

        Raises
        ------
        InputError
            When nothing can be read.
        """
        files = find(query_paths(paths)[0])
        request, views = ScoreRequest.of(**how), self.view_files(residuals, maps)
        report = self.score_files(files, request, views, on_progress=on_progress)
        return dataclasses.replace(report, images=report.images[:top])

    def view_files(self, residuals: str | Path | None, maps: MapFiles | None) -> ViewFiles | None:
        """Return what writes pictures and maps of scored images; None where none are wanted."""
        if residuals is None and maps is None:
            return None
        return ViewFiles(self.model, None if residuals is None else Path(residuals), maps)

    def score_files(
        self,
        files: Sequence[ImageFile],
        request: ScoreRequest = _AS_USUAL,
        views: ViewFiles | None = None,
        *,
        on_progress: OnProgress = _quiet,
        on_image: OnImage | None = None,
    ) -> ScoreReport:
        """Score and rank images that were found already; see `score` and `stream`."""
        ranking = Ranking(self._judge, request, views, on_image, on_progress)
        return ranking.report(files, self.reference)

    def stream(
        self,
        files: Iterable[ImageFile],
        request: ScoreRequest = _AS_USUAL,
        views: ViewFiles | None = None,
        *,
        on_progress: OnProgress = _quiet,
        on_image: OnImage | None = None,
    ) -> Iterator[ImageScore | Skipped]:
        """Score images one batch after the other, in input order and bounded memory.

        `rank` and `q_value`, which need all images, are None. `on_image` is called with each
        result and what can be drawn of it.
        """
        ranking = Ranking(self._judge, request, views, on_image, on_progress)
        return ranking.stream(files)

    def sample(
        self,
        output: str | Path,
        *,
        n: int = SAMPLES,
        seed: int = 0,
        between: Sequence[str | Path] | None = None,
        turing: str | Path | None = None,
    ) -> SampleReport:
        """Write PNGs of what the generator makes; `Sampler` gives the images as arrays.

        Parameters
        ----------
        output : path
            Folder of the PNGs; those of an earlier call are replaced.
        n : int
            Generated images in the grid; images, half of them real, in the Turing test.
        between : two paths, optional
            Images to draw the way between, through the generator.
        turing : path, optional
            Folder of real images for a shuffled sheet of real and generated ones.
        """
        sampler = Sampler(self.model, self.runtime, seed)
        return sampler.write(Path(output), self.reference, n=n, between=between, turing=turing)

    def score_terms(self, score: str = DEFAULT_SCORE) -> tuple[str, ...]:
        """Names of the terms that a score shows, of those this model has."""
        return self._judge.scorer.terms(score)

    def threshold(self, request: ScoreRequest = _AS_USUAL) -> Threshold:
        """Score above which an image is called anomalous at a false-alarm rate."""
        return self._judge.threshold(request)

    def hint(self, request: ScoreRequest) -> str | None:
        """What a search is not good for with a score, or None."""
        return self._judge.hint(request.score, request.inversion)

    def calibrate(
        self,
        paths: Sequence[str | Path],
        target: Target | None = None,
        *,
        name: str | None = None,
        force: bool = False,
        on_progress: OnProgress = _quiet,
    ) -> CalibrateReport:
        """Set scales and threshold anew, and save; see `recalibration`.

        Parameters
        ----------
        paths : sequence of paths
            New normal images that were not trained on; with none only the rate is set. Of a
            folder laid out like MVTec AD, ``train/good`` is used.
        target : Target, optional
            What sets the false-alarm rate of verdicts from now on.
        name, force
            Save under another name in the store; otherwise the file that was loaded is replaced.
        """
        before = self.reference
        file = store.unused(name, force=force) if name else Path(before.path)
        normal, narrowed = training_paths(paths)
        normals = find(normal) if normal else []
        notify(on_progress, "reading", narrowed, len(normals))
        model, decision, skipped = recalibrate.renew(
            self.model, self.runtime, normals, target, on_reading(on_progress)
        )
        self.model, self._judge = model, self._judge.of(model)
        with store.dated_like(Path(before.path), file):
            self.save(file)
        return CalibrateReport(
            model=self.reference,
            previous=before,
            images=len(model.calibration.terms) if paths else None,
            warning=recalibrate.caveat(model) if paths else None,
            threshold=self.threshold(),
            decision=decision,
            uses_labels=model.uses_labels,
            history=tuple(model.metadata["history"]),
            skipped=skipped,
        )

    def calibration_scores(self, score: str = DEFAULT_SCORE) -> np.ndarray:
        """Scores (n,) of the normal images that thresholds are made of."""
        return self._judge.scorer.calibration_scores(score)

    def evaluate(
        self,
        labels: str | Path | None = None,
        folder: str | Path | None = None,
        *,
        masks: str | Path | None = None,
        against: Sequence[Detector] = (),
        on_progress: OnProgress = _quiet,
        **how: Unpack[HowToScore],
    ) -> EvalReport:
        """Score labelled images and measure how well scores and labels agree.

        Parameters
        ----------
        labels : path, optional
            CSV with the header ``path,label``; see docs/cli.md. Without it, `folder` must be laid
            out like MVTec AD.
        folder : path, optional
            What the paths in the CSV are relative to; by default the folder of the CSV.
        masks : path, optional
            Folder of masks under the names of the images, to measure pixels too.
        against : sequence of Detector
            Other models to compare this one with.
        **how
            See `HowToScore`.

        Returns
        -------
        EvalReport
            Metrics that the labels do not define are None, and `undefined` says why.

        Raises
        ------
        InputError
            When the CSV cannot be used or none of its images can be read.
        UsageError
            Without labels of either kind.
        """
        given = gather(*(None if p is None else Path(p) for p in (labels, folder, masks)))
        subjects = [Subject(model._judge, model.reference) for model in (self, *against)]
        return assess(subjects, given, ScoreRequest.of(**how), on_progress)
