"""anoscan learns from normal images only, and finds the anomalous ones among others.

>>> from anoscan import Detector                                # doctest: +SKIP
>>> detector = Detector.train("normal_images")                  # doctest: +SKIP
>>> report = detector.score(["queries"])                        # doctest: +SKIP
>>> report.images[0].path, report.images[0].score               # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from anoscan.core.config import TrainConfig
    from anoscan.core.errors import AnoscanError, AnoscanWarning
    from anoscan.core.results import to_json
    from anoscan.detector import Detector
    from anoscan.evaluation.pixels import PixelScores
    from anoscan.evaluation.recalibrate import Target
    from anoscan.images.files import find as find_images
    from anoscan.report.html_page import HtmlReport
    from anoscan.report.map_files import MapFiles
    from anoscan.report.predictions import Predictions
    from anoscan.scoring.choices import Inversion

__all__ = [
    "AnoscanError",
    "AnoscanWarning",
    "Detector",
    "HtmlReport",
    "Inversion",
    "MapFiles",
    "PixelScores",
    "Predictions",
    "Target",
    "TrainConfig",
    "__version__",
    "find_images",
    "to_json",
]

# For each public name: the module that defines it, and its name in that module.
_HOMES = {
    "AnoscanError": ("anoscan.core.errors", "AnoscanError"),
    "AnoscanWarning": ("anoscan.core.errors", "AnoscanWarning"),
    "Detector": ("anoscan.detector", "Detector"),
    "HtmlReport": ("anoscan.report.html_page", "HtmlReport"),
    "Inversion": ("anoscan.scoring.choices", "Inversion"),
    "MapFiles": ("anoscan.report.map_files", "MapFiles"),
    "PixelScores": ("anoscan.evaluation.pixels", "PixelScores"),
    "Predictions": ("anoscan.report.predictions", "Predictions"),
    "Target": ("anoscan.evaluation.recalibrate", "Target"),
    "TrainConfig": ("anoscan.core.config", "TrainConfig"),
    "find_images": ("anoscan.images.files", "find"),
    "to_json": ("anoscan.core.results", "to_json"),
}


def __getattr__(name: str) -> Any:
    # Lazy, because the detector imports torch. That takes seconds, and --help must not wait for it.
    if name in _HOMES:
        from importlib import import_module

        home, called = _HOMES[name]
        return getattr(import_module(home), called)
    raise AttributeError(f"module 'anoscan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
