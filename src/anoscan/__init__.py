"""anoscan finds the odd image out, after learning from normal images only.

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
    from anoscan.core.errors import AnoscanError
    from anoscan.detector import Detector

__all__ = ["AnoscanError", "Detector", "TrainConfig", "__version__"]

_HOMES = {
    "Detector": "anoscan.detector",
    "TrainConfig": "anoscan.core.config",
    "AnoscanError": "anoscan.core.errors",
}


def __getattr__(name: str) -> Any:
    # Lazy, because importing the detector imports torch: seconds that --help must not cost.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'anoscan' has no attribute {name!r}")
