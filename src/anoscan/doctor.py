"""What this machine can do, and what training on a folder would mean."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import anoscan
from anoscan import images, store, trainset
from anoscan.config import TrainConfig
from anoscan.errors import ModelError
from anoscan.health import worst
from anoscan.learn import resolve
from anoscan.material import FEWEST_IMAGES
from anoscan.results import DoctorReport, HealthCheck, Skipped
from anoscan.runtime import Runtime

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "tifffile",
             "safetensors", "typer", "rich", "platformdirs",
             "imagecodecs", "pydicom", "nibabel")  # fmt: skip
NEEDED_BYTES = 200_000_000


def examine(
    folders: Sequence[str | Path], *, device: str, precision: str, workers: int | None
) -> DoctorReport:
    """Facts about the machine, and about `folders` of training images when some are given."""
    runtime = Runtime.resolve(device, precision, workers)
    facts, checks = _store()
    about = None
    if folders:
        about, more = _images(folders, runtime)
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
    # Not Path.exists, which raises where a folder above is another user's.
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
        facts["models"] = len(store.models())
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
    folders: Sequence[str | Path], runtime: Runtime
) -> tuple[dict[str, Any], list[HealthCheck]]:
    files = images.find(folders)
    inspection = trainset.inspect(files, size=None, channels=None, workers=runtime.workers, seed=0)
    config = resolve(TrainConfig(), inspection)
    skipped = [
        outcome
        for outcome in images.stream(files, inspection.rule, workers=runtime.workers)
        if isinstance(outcome, Skipped)
    ]
    readable = len(files) - len(skipped)
    facts = {
        "found": len(files),
        "readable": readable,
        "skipped": len(skipped),
        "sizes": dict(list(inspection.sizes.items())[:5]),
        "bit_depths": inspection.bit_depths,
        "model_size": inspection.rule.size,
        "model_channels": inspection.rule.channels,
        "images_shown": config.images_shown,
    }
    return facts, _image_checks(readable, skipped)


def _image_checks(readable: int, skipped: list[Skipped]) -> list[HealthCheck]:
    checks = []
    if readable < FEWEST_IMAGES:
        message = f"{readable} readable images: training needs at least {FEWEST_IMAGES}."
        checks.append(_check("images", "fail", float(readable), message))
    elif readable < 1000:
        message = f"{readable} readable images: training works, 1,000 or more work better."
        checks.append(_check("images", "warn", float(readable), message))
    else:
        checks.append(_check("images", "ok", float(readable), f"{readable:,} readable images."))
    if skipped:
        first = f"{skipped[0].path!r}: {skipped[0].reason}"
        message = f"{len(skipped)} files cannot be read, the first {first}."
        checks.append(_check("unreadable", "warn", float(len(skipped)), message))
    return checks


def _check(name: str, verdict: Any, value: float | None, message: str) -> HealthCheck:
    return HealthCheck(name=name, verdict=verdict, value=value, message=message)
