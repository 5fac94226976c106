"""List the models of the store, from the headers of their files; nothing here imports torch."""

from __future__ import annotations

import dataclasses
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anoscan.core.errors import ModelError
from anoscan.core.files import remove_leftovers
from anoscan.core.results import HistoryReport, KeptVersion, ModelSummary, RemovedModel
from anoscan.model import file as model_file
from anoscan.model import history, store, versions
from anoscan.model.names import SUFFIX, problem_with


def models() -> list[ModelSummary]:
    """Return summaries of the store's models, by name; an unreadable file has a `problem`.

    Raises
    ------
    ModelError
        When the folder of the store cannot be read.
    """
    remove_leftovers(store.models_folder())
    name, newest = store.pinned(), store.newest()
    chosen = newest if name is None else store.path_for(name)
    found = []
    for path in store.files():
        kept = versions.kept(path)
        summary = dataclasses.replace(
            _summary(path),
            default=path == chosen,
            pinned=name is not None and path == chosen,
            kept=len(kept),
            kept_bytes=sum(version.bytes for version in kept),
        )
        found.append(summary)
    return found


def removed() -> list[RemovedModel]:
    """Return the models that were removed and can be restored, by name."""
    found = []
    for name in versions.removed(store.models_folder()):
        kept = versions.kept(store.models_folder() / f"{name}{SUFFIX}")
        size = sum(version.bytes for version in kept)
        found.append(RemovedModel(name=name, kept=len(kept), kept_bytes=size))
    return found


def _summary(path: Path) -> ModelSummary:
    name = path.stem
    try:
        there = path.stat()
        size, trained_at = (
            there.st_size,
            history.in_utc(datetime.fromtimestamp(there.st_mtime, UTC)),
        )
    except OSError:  # removed meanwhile, or a dangling link
        size, trained_at = 0, None
    try:
        metadata = model_file.read_metadata(path)
    except ModelError as error:
        return ModelSummary(
            name=name, path=str(path), bytes=size, created_by=None, problem=error.message
        )
    config, rule, data = (
        _object(metadata.get(key)) for key in ("config", "image_rule", "training_data")
    )
    problem = None
    if unicodedata.normalize("NFC", name) != name or problem_with(name):
        problem = f"{path} has a file name that is no model name; rename the file."
    return ModelSummary(
        name=name,
        path=str(path),
        bytes=size,
        created_by=_text(metadata.get("anoscan_version")),
        architecture=_text(config.get("architecture")),
        objective=_text(config.get("objective")),
        size=_integer(rule.get("size")),
        channels=_integer(rule.get("channels")),
        images=_integer(data.get("trained")),
        trained_at=trained_at,
        problem=problem,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def history_of(name: str) -> HistoryReport:
    """Report what was done to a model, and which versions of it are kept; it may be removed.

    Raises
    ------
    ModelError
        When there is nothing of that name or path.
    """
    path = store.known(name)
    return HistoryReport(
        name=path.stem,
        path=str(path),
        exists=path.is_file(),
        events=history.events(path),
        kept=tuple(
            KeptVersion(
                at=history.in_utc(version.at),
                action=version.action,
                undone=version.undone,
                bytes=version.bytes,
                path=str(version.file),
            )
            for version in versions.kept(path)
        ),
    )
