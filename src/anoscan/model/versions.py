"""Keep the model files that commands replace or remove, so that the change can be taken back.

The versions of ``bolts.safetensors`` are in the folder ``bolts.kept`` beside it. A version is
linked there before the model changes, and a model is replaced in one step. So a process that is
killed leaves the old model or the new one, and the old one is kept. Nothing here imports torch.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from anoscan.core.errors import ModelError
from anoscan.core.files import reason_of, remove_leftovers
from anoscan.model import file as model_file
from anoscan.model.names import SUFFIX
from anoscan.model.training_record import Record

KEPT = 5  # versions of a model, at most; the oldest goes first
_FOLDER, _LOCK, _PATIENCE = ".kept", "lock", 60.0  # seconds
_STAMP = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(\d{4,})-(\d{8}T\d{6}Z)-([a-z]+)(-undone)?" + re.escape(SUFFIX))
_PURGE_HINT = "Make room, or remove the kept versions: anoscan models remove NAME --purge."


@dataclass(frozen=True)
class Version:
    """A kept version of a model.

    `number` is its place in time. `action` is what replaced it and `at` when, in UTC. `undone`
    marks a version that ``models restore`` replaced; then `action` is what had made it.
    """

    file: Path
    number: int
    at: datetime
    action: str
    undone: bool

    @property
    def bytes(self) -> int:
        """Size of the file; 0 where another process removed it meanwhile."""
        try:
            return self.file.stat().st_size
        except OSError:
            return 0


def kept(model: Path) -> list[Version]:
    """Return the kept versions of a model file, which need not exist, the oldest first."""
    found = []
    with suppress(OSError):
        for file in _folder(model).iterdir():
            if parts := _NAME.fullmatch(file.name):
                at = datetime.strptime(parts[2], _STAMP).replace(tzinfo=UTC)
                found.append(Version(file, int(parts[1]), at, parts[3], bool(parts[4])))
    return sorted(found, key=lambda version: version.number)


def removed(folder: Path) -> list[str]:
    """Return the names of the models of a folder of which only kept versions are left."""
    try:
        names = [path.stem for path in folder.iterdir() if path.suffix == _FOLDER]
    except OSError:
        return []
    models = {name: folder / f"{name}{SUFFIX}" for name in sorted(names)}
    return [name for name, file in models.items() if not os.path.lexists(file) and kept(file)]


@contextmanager
def keeping(model: Path, action: str) -> Iterator[None]:
    """Keep the model file, if there is one, which is replaced or removed inside this context.

    `action` is one word that says what replaces it. After an error the file is as it was.

    Raises
    ------
    ModelError
        When the version cannot be kept; then nothing is changed.
    """
    if not model.is_file():
        yield
        return
    with _locked(model):
        _tidy(model)
        before = kept(model)
        undone = [version for version in before if version.undone]
        number = 1 + max((version.number for version in before), default=0)
        _copy(model, _named(model, number, action))
        try:
            yield
            # What was taken back and stays so is now older than the version that was just kept.
            actions = [*(version.action for version in undone[1:]), "restore"]
            for version, reason in zip(undone, actions, strict=False):
                _move(version, _named(model, version.number, reason, at=version.at))
        finally:
            with suppress(ModelError):
                _tidy(model)
                for version in kept(model)[:-KEPT]:
                    _drop(version)


def restore(model: Path, *, forward: bool = False) -> Version:
    """Put the last kept version in the place of the model, which is kept too; return what it was.

    With `forward`, the last `restore` is taken back instead.

    Raises
    ------
    ModelError
        When no version is kept, or the system refuses.
    """
    if not _folder(model).is_dir():
        raise _nothing(model, forward)
    with _locked(model):
        _tidy(model)
        found = [version for version in kept(model) if version.undone == forward]
        if not found:
            raise _nothing(model, forward)
        version = found[0] if forward else found[-1]
        if model.is_file():
            _copy(model, _named(model, version.number, version.action, undone=not forward))
        try:
            version.file.replace(model)
        except OSError as error:
            raise ModelError(f"cannot restore {model}: {reason_of(error)}.") from error
        Record(version.file).move(Record(model))
    return version


def follow(model: Path, other: Path) -> None:
    """Let the kept versions follow a model that got another name, which has none of its own."""
    with suppress(OSError):
        _folder(model).rename(_folder(other))


def purge(model: Path) -> int:
    """Remove the kept versions of a model, and return how many there were.

    Raises
    ------
    ModelError
        When the system refuses.
    """
    if not _folder(model).is_dir():
        return 0
    with _locked(model):
        found = kept(model)
        for version in found:
            _drop(version)
    with suppress(OSError):
        (_folder(model) / _LOCK).unlink(missing_ok=True)
        _folder(model).rmdir()
    return len(found)


def _folder(model: Path) -> Path:
    return model.with_name(model.name.removesuffix(SUFFIX) + _FOLDER)


def _named(
    model: Path, number: int, action: str, *, undone: bool = False, at: datetime | None = None
) -> Path:
    stamp = (at or datetime.now(UTC)).strftime(_STAMP)
    return _folder(model) / f"{number:04}-{stamp}-{action}{'-undone' * undone}{SUFFIX}"


@contextmanager
def _locked(model: Path) -> Iterator[None]:
    """Keep other processes from the versions of this model, where the file system has locks."""
    folder = _folder(model)
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise ModelError(
            f"another process is changing the model {model.stem!r}.", hint="Try again later."
        ) from None
    except NotImplementedError:
        pass
    except OSError as error:
        raise _unkept(model, error) from error
    try:
        yield
    finally:
        lock.release()


def _tidy(model: Path) -> None:
    """Remove versions that are no older or newer than the model: a killed process left them."""
    remove_leftovers(_folder(model))
    if not model.is_file():
        return
    for undone in (False, True):
        found = [version for version in kept(model) if version.undone == undone]
        if found and _same(beside := found[0 if undone else -1], model):
            _drop(beside)


def _same(version: Version, model: Path) -> bool:
    try:
        return version.file.samefile(model) or filecmp.cmp(version.file, model, shallow=False)
    except OSError:
        return False


def _copy(model: Path, target: Path) -> None:
    """Link a model and its record to another place, or copy them where links cannot be made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if model.is_symlink():
            raise OSError("the file that a link names may be changed in place")
        os.link(model, target)
    except OSError:
        model_file.copy(model, target)
    Record(model).copy(Record(target))


def _move(version: Version, target: Path) -> None:
    version.file.replace(target)
    Record(version.file).move(Record(target))


def _drop(version: Version) -> None:
    try:
        version.file.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"cannot remove {version.file}: {reason_of(error)}.") from error
    Record(version.file).clear()


def _nothing(model: Path, forward: bool) -> ModelError:
    if forward:
        return ModelError(f"nothing of {model.stem!r} was taken back that could come again.")
    return ModelError(
        f"no earlier version of {model.stem!r} is kept.", hint="anoscan models list shows which."
    )


def _unkept(model: Path, error: OSError) -> ModelError:
    return ModelError(
        f"the model {model} as it is now cannot be kept: {reason_of(error)}.", hint=_PURGE_HINT
    )
