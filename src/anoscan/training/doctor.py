"""Report what this machine can do, and what a training on a folder would cost."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anoscan
from anoscan.core.arrays import Floats
from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError, ModelError, UsageError
from anoscan.core.results import DoctorReport, HealthCheck, Skipped
from anoscan.core.runtime import Runtime
from anoscan.dataset import census
from anoscan.dataset.inspection import Inspection, inspect
from anoscan.dataset.split import FEWEST_IMAGES, split, together
from anoscan.images.decode import decode_all
from anoscan.images.files import ImageFile, find
from anoscan.images.layout import training_paths
from anoscan.model import store
from anoscan.training import trial
from anoscan.training.health import of_folder, shrinking, worst
from anoscan.training.learn import resolve

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "tifffile",
             "safetensors", "typer", "rich", "platformdirs",
             "imagecodecs", "pydicom", "nibabel")  # fmt: skip
NEEDED_BYTES = 200_000_000  # free space that models and checkpoints need at least
TRIED = 256  # images that a trial of training gets, about
LONG_SECONDS = 6 * 3600  # a training expected to take longer gets a warning


def triable(settings: dict[str, Any]) -> TrainConfig:
    """Make a `TrainConfig` from the settings of a training that can be tried.

    Raises
    ------
    UsageError
        When a setting is wrong, or a few steps cannot show the cost of such a training.
    """
    config = TrainConfig.from_dict(settings)
    for name in ("patches", "calibration_folds"):
        if getattr(config, name) is not None:
            raise UsageError(
                f"doctor tries no trainings with --{name.replace('_', '-')}.",
                hint="Leave it out of --config; the rest can be tried.",
            )
    return config


def examine(
    folders: Sequence[str | Path],
    config: TrainConfig,
    *,
    device: str,
    precision: str,
    workers: int | None,
) -> DoctorReport:
    """Report facts about the machine, and the cost of a training with `config` on `folders`.

    `folders` hold normal images as for `anoscan train`, and may be empty. The keywords are those of
    `Runtime.resolve`.
    """
    runtime = Runtime.resolve(device, precision, workers)
    facts, checks = _store()
    about = None
    if folders:
        about, more = _images(folders, config, runtime)
        checks += more
    return DoctorReport(
        verdict=worst(tuple(checks)),
        machine=_machine(runtime),
        versions=_versions(),
        store=facts,
        images=about,
        checks=tuple(checks),
    )


def _machine(runtime: Runtime) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "device": runtime.device.type,
        "devices": ["cpu"]
        + ["cuda"] * torch.cuda.is_available()
        + ["mps"] * torch.backends.mps.is_available(),
        "precision": runtime.precision,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "workers": runtime.workers,
        "memory_gb": _memory_gb(),
    }


def _memory_gb() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no sysconf on Windows
        return None
    return round(pages * size / 1e9, 1)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"anoscan": anoscan.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _store() -> tuple[dict[str, Any], list[HealthCheck]]:
    home = store.home()
    # Path.exists would raise here when a parent folder belongs to another user.
    there = next(folder for folder in (home, *home.absolute().parents) if os.path.exists(folder))  # noqa: PTH110
    free = shutil.disk_usage(there).free
    writable = _writable(there)
    facts: dict[str, Any] = {
        "folder": str(home),
        "models": None,
        "writable": writable,
        "free_gb": round(free / 1e9, 1),
    }
    if not writable:
        message = f"{home} cannot be written: set ANOSCAN_HOME to a folder that can."
        return facts, [_check("store", "fail", None, message)]
    try:
        facts["models"] = len(store.files())
    except ModelError as error:
        return facts, [_check("store", "fail", None, f"{error.message} {error.hint}")]
    if free < NEEDED_BYTES:
        message = f"{free / 1e6:.0f} MB are free at {home}: models and checkpoints need more."
        return facts, [_check("store", "warn", float(free), message)]
    return facts, [_check("store", "ok", float(free), "Models can be written.")]


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _images(
    folders: Sequence[str | Path], config: TrainConfig, runtime: Runtime
) -> tuple[dict[str, Any], list[HealthCheck]]:
    files = find(training_paths(folders)[0])
    inspection = inspect(files, config, runtime.workers)
    config = resolve(config, inspection)
    read = _read(files, inspection, runtime)
    counts = census.take(read.digests, read.blank, inspection)
    checks, parts = _image_checks(read, counts, config)
    if note := shrinking(inspection):
        checks.append(_check("resolution", "warn", None, f"{note[0].upper()}{note[1:]}"))
    facts: dict[str, Any] = {
        "found": len(files),
        "readable": counts.images,
        "skipped": len(read.skipped),
        "formats": dict(Counter(file.file.suffix.lower() or "none" for file in files)),
        "sizes": dict(list(inspection.sizes.items())[:5]),
        "bit_depths": inspection.bit_depths,
        "copies": counts.copies,
        "constant": counts.blank,
        "model_size": inspection.rule.size,
        "model_channels": inspection.rule.channels,
        "images_shown": config.images_shown,
        "expected_seconds": None,
        "expected_memory_gb": None,
        "expected_device_memory_gb": None,
    }
    if parts is not None:
        trained, held_out = map(len, parts)
        found = trial.run(
            np.stack(read.some),
            config,
            inspection.rule,
            runtime,
            trained=trained,
            held_out=held_out,
        )
        checks.append(_cost_check(found, read.seconds))
        facts |= _expected(found, read.seconds)
    return facts, checks


@dataclass
class _Read:
    """The images of a folder that could be read, and those that could not.

    `digests` are SHA-256 of contents, and `some` are the pixels (c, s, s) of about `TRIED` images.
    """

    images: list[ImageFile]
    digests: list[bytes]
    blank: list[bool]
    some: list[Floats]
    skipped: list[Skipped]
    seconds: float


def _read(files: Sequence[ImageFile], inspection: Inspection, runtime: Runtime) -> _Read:
    start, read = time.monotonic(), _Read([], [], [], [], [], 0.0)
    every = -(-len(files) // TRIED)
    for index, outcome in enumerate(decode_all(files, inspection.rule, workers=runtime.workers)):
        if isinstance(outcome, Skipped):
            read.skipped.append(outcome)
            continue
        read.images.append(outcome.image)
        read.digests.append(outcome.digest)
        read.blank.append(census.is_blank(outcome.pixels))
        if index % every == 0:
            read.some.append(outcome.pixels)
    read.seconds = time.monotonic() - start
    return read


def _image_checks(
    read: _Read, counts: census.Census, config: TrainConfig
) -> tuple[list[HealthCheck], tuple[np.ndarray, np.ndarray] | None]:
    """Check the images, and split their rows into rows to train on and to hold out, if possible."""
    checks: list[HealthCheck] = []
    if read.skipped:
        first = f"{read.skipped[0].path!r}: {read.skipped[0].reason}"
        message = f"{len(read.skipped)} files cannot be read, the first {first}."
        checks.append(_check("unreadable", "warn", float(len(read.skipped)), message))
    if counts.images < FEWEST_IMAGES:
        message = f"{counts.images} readable images: training needs at least {FEWEST_IMAGES}."
        return [_check("images", "fail", float(counts.images), message), *checks], None
    try:
        alike = together(read.images, read.digests)
        parts = split(alike, config.seed, config.held_out)
    except InputError as error:
        return [_check("duplicates", "fail", 1.0, f"{error.message} {error.hint}"), *checks], None
    trained, held_out = map(len, parts)
    return [*of_folder(counts, trained, held_out, "images"), *checks], parts


def _expected(found: trial.Trial, reading: float) -> dict[str, Any]:
    def gigabytes(size: float | None) -> float | None:
        return None if size is None else round(size / 1e9, 2)

    seconds = {"reading": reading} | found.seconds
    seconds["total"] += reading
    return {
        "expected_seconds": {part: round(value, 1) for part, value in seconds.items()},
        "expected_memory_gb": gigabytes(found.memory),
        "expected_device_memory_gb": gigabytes(found.device_memory),
    }


def _cost_check(found: trial.Trial, reading: float) -> HealthCheck:
    total, available = found.seconds["total"] + reading, _memory_gb()
    message = f"Training takes about {_duration(total)} on this machine (a trial of a few steps)"
    if found.memory is not None:
        message += f" and {found.memory / 1e9:.1f} GB of memory"
        if available is not None and found.memory / 1e9 > 0.8 * available:
            advice = f"{message}, of {available} there are: train at a lower --size."
            return _check("training", "warn", total, advice)
    if total > LONG_SECONDS:
        advice = f"{message}. A GPU, a lower --size or fewer --images-shown make it shorter."
        return _check("training", "warn", total, advice)
    return _check("training", "ok", total, f"{message}.")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _check(name: str, verdict: Any, value: float | None, message: str) -> HealthCheck:
    return HealthCheck(name=name, verdict=verdict, value=value, message=message)
