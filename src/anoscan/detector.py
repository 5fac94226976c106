"""`Detector`, a trained model that scores images; commands and Python users share it.

>>> from anoscan import Detector                                   # doctest: +SKIP
>>> detector = Detector.train("normal_images", seed=1)             # doctest: +SKIP
>>> detector.score(["queries"]).images[:20]                        # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from anoscan.core.config import TrainConfig, TrainSettings
from anoscan.core.errors import AnoscanWarning
from anoscan.core.progress import OnProgress, Progress, notify, on_reading
from anoscan.core.progress_bar import bars
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
from anoscan.export.runtime import device_for, measurer_of
from anoscan.images import in_memory, masks
from anoscan.images.files import ImageFile, find
from anoscan.images.in_memory import Held
from anoscan.images.layout import query_paths, training_paths
from anoscan.model import history, store, versions
from anoscan.model.judge import Judge
from anoscan.model.model import Model
from anoscan.report.map_files import MapFiles
from anoscan.report.predicting import Predicting
from anoscan.report.predictions import Predictions
from anoscan.report.ranking import Elsewhere, Ranking
from anoscan.report.samples import SAMPLES, Sampler
from anoscan.report.views import OnImage, ViewFiles
from anoscan.scoring.choices import DEFAULT_SCORE, HowToScore, ScoreRequest
from anoscan.training import health
from anoscan.training.suspects import Suspicion

if TYPE_CHECKING:
    from anoscan.images.in_memory import Images

_AS_USUAL = ScoreRequest()


def _quiet(progress: Progress) -> None:
    """Report nothing: the library never prints."""


class Detector:
    """A trained model; `train` and `load` make one.

    Attributes
    ----------
    model : Model
        Networks, fitted terms and calibration. Its `metadata` is the JSON part of the model file.
    reference : ModelReference
        Name, path and SHA-256 of the model file; all are empty until the model has a file.
    report : TrainReport or None
        Report of the training that made the model; None for a loaded model.
    suspicion : Suspicion or None
        How suspect each image of that training is; None unless suspects were dropped.
    held_out : tuple of str
        Paths of the images that no network of that training saw; empty for a loaded model.
    """

    def __init__(self, model: Model, runtime: Runtime, judge: Judge | None = None) -> None:
        self.model, self.runtime = model, runtime
        self._judge = judge or Judge(model, runtime)
        self.reference = ModelReference(name="", path="", sha256="")
        self.report: TrainReport | None = None
        self.suspicion: Suspicion | None = None
        self.held_out: tuple[str, ...] = ()

    @classmethod
    def train(
        cls,
        images: Images,
        *,
        names: Sequence[str] | None = None,
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
        redo: str | None = None,
        every: int = 1,
        backbone_weights: str | Path | None = None,
        like: Model | None = None,
        progress: bool = False,
        on_progress: OnProgress = _quiet,
        **settings: Unpack[TrainSettings],
    ) -> Detector:
        """Learn from normal images and save the model.

        Parameters
        ----------
        images : paths, array, tensor, or sequence of paths or images
            Normal images. Folders are searched recursively; of a folder laid out like MVTec AD,
            only ``train/good`` is read. Arrays are (n, h, w) or (n, h, w, c), c up to 16: uint8,
            uint16, or floats from 0 to 1. Tensors may be (n, c, h, w). Others are in sequences.
        names : sequence of str, optional
            Names of images in memory, in results; by default ``array[0]`` and so on.
        name : str, optional
            Name of the model in the store; by default the name of the folder. Without a name or a
            path, a model of images in memory is not saved: `save` does that.
        path : path, optional
            File to save the model to, instead of the store.
        force, resume : bool
            Whether to replace a model that exists already; whether to go on with an interrupted
            training of the same images and settings.
        device, precision, workers : see `core.runtime.Runtime.resolve`
        tensorboard : path, optional
            Folder for TensorBoard's event files, in a subfolder named like the model.
        drop_suspects : bool
            Whether to rank the images after the networks are trained (see `suspicion`). What
            counts as normal is then fitted without the most suspect ones. Held-out images stay.
        roi : path or 'auto', optional
            Mask file, black where pixels do not count. The model keeps the mask. 'auto' leaves out
            borders that are constant in all images.
        redo : 'encoder', optional
            Train only the encoder and the reconstructions of the model again, which must exist and
            is replaced. The images must be those that it was trained on.
        every : int
            Of video files, every so many-th frame is learned from.
        backbone_weights : path, optional
            File of weights for the pretrained network that the setting `backbone` names, as
            ``torch.save`` writes them. By default they are those of the extra ``imagenet`` or of
            torchvision.
        like : Model, optional
            Model whose settings, region of interest and pretrained network are used again.
        progress : bool
            Whether bars on stderr, or in a notebook, show how far the training is.
        on_progress : callable
            Called with a `Progress` a few times a second.
        **settings : see `core.config.TrainSettings`
            Fields of `TrainConfig`; they replace those of `config`.

        Raises
        ------
        InputError
            When the images or the mask cannot be used.
        UsageError
            For a setting out of range or a bad name.
        ModelError
            When the model exists, another training of that name runs, the store cannot be written,
            or `resume` finds no checkpoint of the same images and settings.
        TrainingDiverged, TrainingInterrupted
        """
        from anoscan import trainer  # slow to load, and not needed to score

        options = trainer.TrainOptions(
            names=names,
            name=name,
            path=Path(path) if path else None,
            force=force,
            resume=resume,
            device=device,
            precision=precision,
            workers=workers,
            tensorboard=None if tensorboard is None else Path(tensorboard),
            drop_suspects=drop_suspects,
            roi=roi,
            redo=redo,
            every=every,
            backbone_weights=None if backbone_weights is None else Path(backbone_weights),
            like=like,
        )
        with bars(progress, on_progress) as shown:
            trained = trainer.train(images, config, {**settings}, options, shown)
        detector = cls(trained.model, trained.runtime)
        detector.reference, detector.report = trained.reference, trained.report
        detector.suspicion, detector.held_out = trained.suspicion, trained.held_out
        return detector

    def save(self, path: str | Path) -> None:
        """Write the model file, and set `reference`; the same model gives the same bytes."""
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
        runtime: str = "torch",
    ) -> Detector:
        """Read a model by name, path or URL; None takes the default (`store.default`).

        Pixels do not count where the mask file `roi` is black, or where the model leaves them out.
        With the `runtime` 'onnx', ONNX Runtime (extra ``onnx``) computes the default score.
        Where the training of the model failed a check, an `AnoscanWarning` says what it affects.

        Raises
        ------
        ModelError
            When there is no such model, or it is damaged, foreign or newer than this program.
        InputError
            When the mask cannot be used.
        """
        path, called = store.to_read(model)
        machine = Runtime.resolve(device_for(runtime, device), "float32", workers).measuring()
        region = None if roi is None else masks.read(Path(roi))
        read, digest = Model.read(path, machine)
        measurer = measurer_of(runtime, read, digest)
        detector = cls(read, machine, Judge(read, machine, region, measurer))
        detector.reference = ModelReference(name=path.stem, path=called, sha256=digest)
        for message in health.warnings_of(path.stem, read.metadata):
            warnings.warn(message, AnoscanWarning, stacklevel=2)
        return detector

    def score(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        top: int | None = None,
        residuals: str | Path | None = None,
        maps: MapFiles | None = None,
        progress: bool = False,
        on_progress: OnProgress = _quiet,
        **how: Unpack[HowToScore],
    ) -> ScoreReport:
        """Score and rank files of query images; a higher score is more anomalous.

        `predict` takes images in memory too.

        Parameters
        ----------
        paths : path or sequence of paths
            Files and folders.
        top : int, optional
            Largest number of images in the report; its counts still cover all.
        residuals : path, optional
            Folder for PNGs of query, reconstruction and residual of each image.
        maps : MapFiles, optional
            Writer of the anomaly maps.
        progress : bool
            Whether bars on stderr, or in a notebook, show how far the scoring is.
        **how : see `scoring.choices.HowToScore`

        Raises
        ------
        InputError
            When no image can be read, or a picture or map cannot be written.
        UsageError, ModelError
            For an option out of range, or one that this model cannot do.
        """
        files = find(query_paths(paths)[0])
        request, views = ScoreRequest.of(**how), self.view_files(residuals, maps)
        with bars(progress, on_progress) as shown:
            report = self.score_files(files, request, views, on_progress=shown)
        return dataclasses.replace(report, images=report.images[:top])

    def predict(
        self,
        images: Images,
        *,
        maps: bool = False,
        reconstructions: bool = False,
        names: Sequence[str] | None = None,
        progress: bool = False,
        on_progress: OnProgress = _quiet,
        **how: Unpack[HowToScore],
    ) -> Predictions:
        """Score images in memory or files, and return what is found as arrays, in their order.

        An array has the same scores as the same pixels in a file.

        Parameters
        ----------
        images : paths, array, tensor, Pillow image, or sequence of paths or images
            As for `train`. An array (h, w) or (h, w, 3), and a Pillow image, are a single image.
        maps, reconstructions : bool
            Whether the anomaly maps and the reconstructions are kept.
        names, progress, on_progress
            As for `train`.
        **how : see `scoring.choices.HowToScore`

        Raises
        ------
        InputError
            When there is no image, none can be read, or shapes or values are not those of images.
        UsageError, ModelError
            For something that is no image, or an option as for `score`.
        """
        channels, request = self.model.rule.channels, ScoreRequest.of(**how)
        given = in_memory.gather(images, names, channels)
        if isinstance(given, Held):
            given.check_colours(channels)
            files: Sequence[ImageFile] = given.images
        else:
            files = find(query_paths(given)[0])
        held = given if isinstance(given, Held) else None
        predicting = Predicting(self._judge, request, self.reference, maps, reconstructions)
        with bars(progress, on_progress) as shown:
            return predicting.predict(files, held, shown)

    def show_channels(self, channels: str) -> None:
        """Draw later pictures in these channels; see `Model.showing`."""
        self.model = self.model.showing(channels)
        self._judge = self._judge.of(self.model)

    def view_files(self, residuals: str | Path | None, maps: MapFiles | None) -> ViewFiles | None:
        """Return the writer of pictures and maps of scored images; None where none are wanted."""
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
        elsewhere: Elsewhere | None = None,
    ) -> ScoreReport:
        """Score and rank image files as `score` does; `on_image` is called as in `stream`.

        `elsewhere` scores them in place of this process, as `scale.ray_scoring.RayScoring` does.
        """
        ranking = Ranking(self._judge, request, views, on_image, on_progress)
        return ranking.report(files, self.reference, elsewhere)

    def stream(
        self,
        files: Iterable[ImageFile],
        request: ScoreRequest = _AS_USUAL,
        views: ViewFiles | None = None,
        *,
        on_progress: OnProgress = _quiet,
        on_image: OnImage | None = None,
    ) -> Iterator[ImageScore | Skipped]:
        """Yield results in input order, batch by batch and in bounded memory.

        `rank` and `q_value` are None, because they need all images. `on_image` is called with each
        result and the `ImageViews` of its image.
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
        """Write PNGs of generated images; `Sampler.images` returns such images as arrays.

        Parameters
        ----------
        output : path
            Folder of the PNGs; PNGs of an earlier call are replaced.
        n : int
            Number of images in the grid, and in the Turing test, where half of them are real.
        between : two paths, optional
            Two images; the generator draws an interpolation between their latents.
        turing : path, optional
            Folder of real images for a shuffled sheet of real and generated images.
        """
        sampler = Sampler(self.model, self.runtime, seed)
        return sampler.write(Path(output), self.reference, n=n, between=between, turing=turing)

    def score_terms(self, score: str = DEFAULT_SCORE) -> tuple[str, ...]:
        """Return the names of the terms that a score shows, of those that this model has."""
        return self._judge.scorer.terms(score)

    def threshold(self, request: ScoreRequest = _AS_USUAL) -> Threshold:
        """Return the score above which an image is anomalous at the rate of `request`."""
        return self._judge.threshold(request)

    def hint(self, request: ScoreRequest) -> str | None:
        """Return a note that the search of `request` does not change its score, or None."""
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
        """Calibrate the model again without training, and save it; see `evaluation.recalibrate`.

        Parameters
        ----------
        paths : sequence of paths
            New normal images that were not trained on; without any, only the rate is set. In a
            folder laid out like MVTec AD, only ``train/good`` is read.
        target : Target, optional
            What sets the false-alarm rate of verdicts; by default the rate stays.
        name, force
            New name in the store, and whether to replace a model of that name. By default the file
            that was loaded is replaced.

        Raises
        ------
        InputError
            When too few images can be read, or the labelled images decide no rate.
        UsageError, ModelError
            For a bad name; for a name that is taken while `force` is False.
        """
        before = self.reference
        file = store.unused(name, force=force) if name else store.writable(Path(before.path))
        normal, narrowed = training_paths(paths)
        normals = find(normal) if normal else []
        notify(on_progress, "reading", narrowed, len(normals))
        renewed = recalibrate.renew(
            self.model, self.runtime, normals, target, on_reading(on_progress)
        )
        model, changed = renewed.model, renewed.model is not self.model
        self.model, self._judge = model, self._judge.of(model)
        threshold = self.threshold()
        if changed or name:
            with versions.keeping(file, "calibrate"), store.dated_like(Path(before.path), file):
                self.save(file)
            history.add(
                file,
                "calibrate",
                folders=[*paths, *([target.labels] if target and target.labels else [])],
                images=len(model.calibration.terms),
                threshold=threshold,
                sha256=self.reference.sha256,
                note=f"from {before.name}" if name else None,
            )
        return renewed.report(before, self.reference, threshold, new_images=bool(paths))

    def calibration_scores(self, score: str = DEFAULT_SCORE) -> np.ndarray:
        """Return the scores (n,) of the calibration images, which set the thresholds."""
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

        Metrics that the labels do not define are None, and `undefined` of the report says why.

        Parameters
        ----------
        labels : path, optional
            CSV ``path,label`` (docs/cli.md); without it, `folder` must be laid out like MVTec AD,
            or have folders of good and of bad images.
        folder : path, optional
            Folder that paths in the CSV are relative to; by default the folder of the CSV.
        masks : path, optional
            Folder of masks, named like their images; with masks, pixels are measured too.
        against : sequence of Detector
            Other models to compare this one with.
        **how : see `scoring.choices.HowToScore`

        Raises
        ------
        InputError
            When the CSV cannot be used or none of its images can be read.
        UsageError
            For an option out of range, or without labels of either kind.
        """
        given = gather(*(None if p is None else Path(p) for p in (labels, folder, masks)))
        subjects = [Subject(model._judge, model.reference) for model in (self, *against)]
        return assess(subjects, given, ScoreRequest.of(**how), on_progress)
