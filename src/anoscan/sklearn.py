"""`AnomalyDetector`, a detector with the interface of scikit-learn.

>>> from anoscan.sklearn import AnomalyDetector                 # doctest: +SKIP
>>> detector = AnomalyDetector(random_state=0).fit(normal)      # doctest: +SKIP
>>> detector.predict(queries)                                   # doctest: +SKIP
array([ 1,  1, -1])
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import tempfile
import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted

from anoscan.core.channels import MOST_CHANNELS
from anoscan.core.config import FalseAlarmRate, TrainConfig, rate_in_range
from anoscan.core.errors import AnoscanError, AnoscanWarning, TrainingInterrupted
from anoscan.core.runtime import Runtime
from anoscan.dataset.split import FEWEST_IMAGES
from anoscan.detector import Detector
from anoscan.images import in_memory
from anoscan.images.in_memory import Held
from anoscan.model.model import Model
from anoscan.scoring.choices import DEFAULT_SCORE, ScoreRequest

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn before 1.6

    def validate_data(estimator: Any, X: Any, **how: Any) -> Any:
        """Check images as newer versions do."""
        return estimator._validate_data(X, **how)


_SETTINGS = tuple(field.name for field in dataclasses.fields(TrainConfig))
_PARAMETERS = {"fit": "fit_images"}  # settings whose name is that of a method
_COLOURS = 3


class AnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Finds anomalous images with f-AnoGAN, after a `fit` on normal images.

    Images are arrays (n, h, w) or (n, h, w, 3), or flat vectors (n, side * side) or
    (n, side * side * 3) of square ones. Grey levels are uint8, uint16, or floats from 0 to 1. Other
    numbers are scaled by the range that `fit` sees, whose ends become black and white.

    Vectors of other lengths are laid out row by row in a square, which is filled up with black.
    This works, with a warning, but no two values are neighbours there for a reason.

    Parameters
    ----------
    random_state : int, RandomState or None
        Where it is given, it takes the place of `seed`. Equal seeds give equal models.
    false_alarm_rate : float in (0, 1) or 'auto'
        The share of normal images that `predict` may call anomalous. 'auto' chooses 1 to 10 %, the
        lower the more images are held out of the training.
    anomaly_score : str
        The score, as ``anoscan score --score`` names it.
    device : {'auto', 'cpu', 'cuda', 'mps'}
    workers : int, optional
        The number of threads that prepare images.
    size, channels, patches, ... : see `anoscan.TrainConfig`
        The settings of a training. `fit_images` is the setting `fit`.

    Attributes
    ----------
    detector_ : Detector
        The trained detector, for maps and reconstructions: ``detector_.predict``.
    image_shape_ : tuple of int
        The shape of one image, (h, w) or (h, w, 3).
    range_ : (float, float)
        The values that become black and white.
    offset_ : float
        ``decision_function`` is ``score_samples - offset_``.
    n_features_in_ : int
        The length of the vectors, or the number of pixels and colours of an image.
    """

    def __init__(
        self,
        *,
        random_state: Any = None,
        false_alarm_rate: FalseAlarmRate = "auto",
        anomaly_score: str = DEFAULT_SCORE,
        device: str = "auto",
        workers: int | None = None,
        size: int | None = None,
        channels: int | None = None,
        show_channels: str | None = None,
        fit_images: str = "stretch",
        patches: int | None = None,
        patch_size: int | None = None,
        architecture: str = "auto",
        objective: str = "nonsaturating",
        encoder: str = "ae",
        mapping: str = "izi_f",
        backbone: str = "none",
        images_shown: int | None = None,
        rotation_images_shown: int | None = None,
        encoder_images_shown: int | None = None,
        reconstruction_images_shown: int | None = None,
        batch_size: int = 32,
        learning_rate: float | None = None,
        latent_dim: int = 64,
        width: int = 32,
        ema_images: int = 10_000,
        augment: str = "auto",
        align: str = "auto",
        held_out: float = 0.1,
        seed: int = 0,
        calibration_folds: int | None = None,
        keep_thumbnails: bool = False,
    ) -> None:
        # Each parameter is an attribute of its name, as scikit-learn has it.
        for name, value in list(locals().items()):
            if name != "self":
                setattr(self, name, value)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from normal images (n, h, w), (n, h, w, c) or (n, features); `y` is ignored.

        c is 3 for colours, and up to 16 for images of many channels.

        The model stays in memory; nothing is written to the store of models.

        Raises
        ------
        ValueError
            When the images, or too few of them, cannot be learned from, or a parameter is out of
            range.
        """
        X = self._checked(X, reset=True)
        settings = {name: _plain(getattr(self, _PARAMETERS.get(name, name))) for name in _SETTINGS}
        if self.random_state is not None:
            settings["seed"] = _seed(self.random_state)
        self.image_shape_ = _image_shape(X.shape[1:])
        if X.ndim == 2 and math.prod(self.image_shape_) != X.shape[1]:
            side = self.image_shape_[0]
            message = f"vectors of {X.shape[1]} values are no square images: laid out in {side}x"
            warnings.warn(f"{message}{side}.", AnoscanWarning, stacklevel=2)
        self.range_ = _range(X)
        if settings["channels"] is None and self.image_shape_[2:] not in ((), (_COLOURS,)):
            settings["channels"] = self.image_shape_[2]
        try:
            rate_in_range(self.false_alarm_rate)
            config = TrainConfig.from_dict(settings)
            self.detector_ = Detector.train(
                self._images(X), config=config, device=self.device, workers=self.workers
            )
            self.offset_ = -self.detector_.threshold(self._request).score
        except TrainingInterrupted:  # a search would go on after another error
            raise KeyboardInterrupt from None
        except AnoscanError as error:
            raise ValueError(_said(error)) from error
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the scores (n,) of images: the higher, the more normal.

        They are the negative scores of `anoscan.Detector`.

        Raises
        ------
        ValueError
            When an image cannot be scored.
        """
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        request = self._request
        try:
            predictions = self.detector_.predict(
                self._images(X), score=request.score, batch_size=request.batch_size
            )
        except AnoscanError as error:
            raise ValueError(_said(error)) from error
        if predictions.skipped:
            first = predictions.skipped[0]
            raise ValueError(f"{first.path} {first.reason}.")
        found: NDArray[np.float64] = -predictions.scores
        return found

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return scores (n,) that are negative for anomalous images."""
        found: NDArray[np.float64] = self.score_samples(X) - self.offset_
        return found

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return -1 for anomalous images and 1 for normal ones, (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    @property
    def _request(self) -> ScoreRequest:
        return ScoreRequest(score=self.anomaly_score, false_alarm_rate=self.false_alarm_rate)

    def _checked(self, X: Any, *, reset: bool) -> NDArray[Any]:
        """Return images as an array of finite numbers; `reset` says whether these are of `fit`."""
        least = FEWEST_IMAGES if reset else 1
        dimensions = np.ndim(X) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)
        if dimensions not in (3, 4):
            found: NDArray[Any] = validate_data(self, X, reset=reset, ensure_min_samples=least)
            return found
        X = check_array(X, ensure_2d=False, allow_nd=True, ensure_min_samples=least)
        if reset:
            self.n_features_in_ = math.prod(X.shape[1:])
        elif _image_shape(X.shape[1:]) != self.image_shape_:
            raise ValueError(f"images of shape {X.shape[1:]}: fit has seen {self.image_shape_}.")
        return np.asarray(X)

    def _images(self, X: NDArray[Any]) -> Held:
        """Return images with grey levels that stand for the same values as in `fit`."""
        low, high = self.range_
        if _full(X) != self.range_:
            X = ((X.astype(np.float64) - low) / (high - low)).astype(np.float32)
        flat = X.reshape(len(X), -1)
        missing = math.prod(self.image_shape_) - flat.shape[1]
        return in_memory.unchecked(
            np.pad(flat, ((0, 0), (0, missing))).reshape(len(X), *self.image_shape_)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters, and what was fitted, with the model as bytes of a model file."""
        state = dict(super().__getstate__())
        detector = state.pop("detector_", None)
        if detector is not None:
            with tempfile.TemporaryDirectory(prefix="anoscan-") as folder:
                file = Path(folder) / "model.safetensors"
                detector.model.write(file)
                state["model_"] = file.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        model = state.pop("model_", None)
        super().__setstate__(state)
        if model is None:
            return
        runtime = Runtime.resolve(self.device, "float32", self.workers).measuring()
        with tempfile.TemporaryDirectory(prefix="anoscan-") as folder:
            file = Path(folder) / "model.safetensors"
            file.write_bytes(model)
            self.detector_ = Detector(Model.read(file, runtime)[0], runtime)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image, (h, w) or (h, w, c), of that of a vector or an image."""
    if len(shape) == 1:
        for colours in ((), (_COLOURS,)):
            side = math.isqrt(shape[0] // math.prod(colours))
            if side**2 * math.prod(colours) == shape[0] and side > 1:
                return (side, side, *colours)
        side = max(2, math.isqrt(shape[0] - 1) + 1)
        return (side, side)
    if len(shape) == 3 and not 1 <= shape[2] <= MOST_CHANNELS:
        raise ValueError(
            f"images of shape {shape}: they are (h, w), (h, w, 3) or of many channels."
        )
    return shape[:2] if shape[2:] in ((), (1,)) else shape


def _full(X: NDArray[Any]) -> tuple[float, float] | None:
    """Return the values that are black and white in arrays of such a type, where that is known."""
    if X.dtype == np.bool_:
        return 0.0, 1.0
    if X.dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(X.dtype).max)
    return None


def _range(X: NDArray[Any]) -> tuple[float, float]:
    """Return the values that become black and white."""
    if (full := _full(X)) is not None:
        return full
    low, high = float(X.min()), float(X.max())
    if X.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def _plain(value: Any) -> Any:
    """Return a parameter as Python has it; searches give those of NumPy."""
    return value.item() if isinstance(value, np.generic) else value


def _said(error: AnoscanError) -> str:
    return f"{error.message} {error.hint}" if error.hint else error.message


def _seed(random_state: Any) -> int:
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
