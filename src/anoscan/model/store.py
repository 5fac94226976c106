"""The store: models by name, one file each, in the user's cache.

Nothing here imports torch, so listing and moving models is fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from anoscan.core.errors import ModelError, UsageError
from anoscan.core.files import reason_of, remove_leftovers, why_unwritable
from anoscan.core.results import ModelSummary
from anoscan.images.globs import root_of
from anoscan.model import file as model_file
from anoscan.model.training_record import Record

SUFFIX = ".safetensors"

_RUNNING = ".running"  # ends the name of the mark of a training that runs
_LONGEST = 100  # characters
_MOST_BYTES = 200  # in UTF-8; file systems allow 255 for name and suffix together
_PUNCTUATION = frozenset("._- +()")
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL"]
    + [f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"]
)
_LIST_HINT = "anoscan models list shows the models."
_FORCE_HINT = "Choose another name, or replace it with --force."
_HOME_HINT = "Set ANOSCAN_HOME to a folder of your own that has room."


def home() -> Path:
    """Return the folder of all that anoscan stores: ``$ANOSCAN_HOME``, or the user's cache."""
    if chosen := os.environ.get("ANOSCAN_HOME"):
        return Path(chosen)
    return platformdirs.user_cache_path("anoscan", appauthor=False)


def models_folder() -> Path:
    """Return the folder of the models; it need not exist yet."""
    return home() / "models"


def path_for(name: str) -> Path:
    """Return the path of the model of that name, whether it exists or not.

    Raises
    ------
    UsageError
        For a name that `check_name` refuses.
    """
    return models_folder() / f"{check_name(name)}{SUFFIX}"


def checkpoint_path(name: str) -> Path:
    """Return the path of the checkpoint of an interrupted training of that name.

    Raises
    ------
    UsageError
        For a name that `check_name` refuses.
    """
    return home() / "checkpoints" / f"{check_name(name)}{SUFFIX}"


@contextmanager
def claim(name: str) -> Iterator[None]:
    """Reserve a training's checkpoint, record and name; the lock also ends with the process.

    Raises
    ------
    ModelError
        When another process trains under that name, or the store cannot be written.
    UsageError
        For a name that `check_name` refuses.
    """
    lock, running = _lock(name), _locks() / f"{check_name(name)}{_RUNNING}"
    try:
        _locks().mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ModelError(
            f"another training of the name {name!r} is running.",
            hint="Wait until it has ended, or give another --name.",
        ) from None
    except NotImplementedError:
        pass  # a file system without locks cannot keep other processes out
    except OSError as error:
        raise ModelError(
            f"cannot write to {home()}: {reason_of(error)}.", hint=_HOME_HINT
        ) from error
    try:
        writable(checkpoint_path(name))
        _clean_up(name)
        with suppress(OSError):
            running.touch()
        yield
    finally:
        with suppress(OSError):
            running.unlink(missing_ok=True)
        lock.release()


def _locks() -> Path:
    return home() / "locks"


def _lock(name: str) -> FileLock:
    return FileLock(_locks() / f"{check_name(name)}.lock")


def _clean_up(name: str) -> None:
    """Remove what trainings that were killed left behind; this process holds the lock of `name`.

    A training marks that it runs. A mark whose lock is free is of one that was killed. Its record
    is of no use without a checkpoint to go on from.
    """
    for folder in (models_folder(), home() / "checkpoints"):
        remove_leftovers(folder)
    for mark in list(_locks().glob(f"*{_RUNNING}")):
        killed = mark.name.removesuffix(_RUNNING)
        with (
            suppress(OSError, Timeout, NotImplementedError, UsageError),
            nullcontext() if killed == name else _lock(killed).acquire(timeout=0),
        ):
            if not checkpoint_path(killed).exists():
                Record(checkpoint_path(killed)).clear()
            mark.unlink()


def check_name(name: str) -> str:
    """Check that every file system accepts a name, and return it in Unicode's composed form (NFC).

    A name has at most 100 characters (200 bytes in UTF-8): letters, marks and digits of any script,
    ``. _ - + ( )`` and inner spaces. It may not start with a dot or a hyphen, end in the suffix of
    model files, or be the name of a Windows device.

    Raises
    ------
    UsageError
        When the name is not allowed; the message names the problem.
    """
    name = unicodedata.normalize("NFC", name)
    if problem := _problem_with(name):
        raise UsageError(
            f"{name!r} cannot name a model: {problem}.",
            hint="Use letters, digits, spaces and . _ - + ( ), at most 100 characters.",
        )
    return name


def _problem_with(name: str) -> str | None:
    if not name:
        return "it is empty"
    if strange := [c for c in name if not _allowed(c)]:
        return f"it holds {strange[0]!r}"
    if len(name) > _LONGEST or len(name.encode()) > _MOST_BYTES:
        return "it is too long"
    if name[0] in ".-":
        return f"it starts with {name[0]!r}"
    if name != name.strip():
        return "it starts or ends with a space"
    if name.lower().endswith(SUFFIX):
        return f"{SUFFIX} is added to names, and cannot end one"
    if name.split(".")[0].strip().upper() in _DEVICES:
        return "Windows keeps it for a device"
    return None


def _allowed(character: str) -> bool:
    # Marks are allowed too, because the vowel signs of many scripts are marks.
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"


def name_for(folder: Path) -> str:
    """Return a model's name after a resolved folder; ``-`` replaces what is not allowed.

    Of a pattern, the folder that it starts from is taken.
    """
    return _valid(Path(os.path.realpath(root_of(folder))).name)


def _valid(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    name = "".join(c if _allowed(c) else "-" for c in composed)[:_LONGEST]
    name = name.encode()[:_MOST_BYTES].decode(errors="ignore").strip(" .-")
    while name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)].strip(" .-")
    # Characters may compose in new ways after cutting and stripping, so the result is checked.
    name = unicodedata.normalize("NFC", name)
    if name and _problem_with(name):
        name = f"model-{name}"[:_LONGEST]
    return name if not _problem_with(name) else "model"


def resolve(model: str | Path | None) -> Path:
    """Find a model file; whether it is a model is checked by `model.file` when it is read.

    Parameters
    ----------
    model : str, Path or None
        A name in the store, or else a path; ``./name`` is the file in the working folder. None
        takes the most recently trained model: the newest file of the store, the first by name among
        equals.

    Raises
    ------
    ModelError
        When there is no such model, with a hint at similar names, or no model at all.
    """
    if model is None:
        if newest := _newest():
            return newest
        raise ModelError("there is no model yet.", hint="Train one: anoscan train FOLDER")
    text = str(model)
    if not _problem_with(unicodedata.normalize("NFC", text)) and _exists(path_for(text)):
        return path_for(text)
    if _exists(Path(text)):
        return Path(text)
    if Path(text).name != text or text.endswith(SUFFIX):
        raise ModelError(f"there is no model file {text}.", hint=_close_to(_valid(Path(text).name)))
    raise _missing(text)


def _newest() -> Path | None:
    dated = []
    for path in _files():
        try:
            dated.append((-path.stat().st_mtime_ns, path.name, path))
        except FileNotFoundError:  # another process removed it after the listing
            continue
    return min(dated)[2] if dated else None


@contextmanager
def dated_like(model: Path, file: Path) -> Iterator[None]:
    """Give `file`, which is written inside this context, the date of `model`.

    The date says when a model was trained, and the newest is the default model. So a model that is
    only calibrated anew keeps its date. Under another name, it is a nanosecond older.
    """
    date = model.stat().st_mtime_ns if _exists(model) else None
    yield
    if date is not None:  # it is None when the model was removed meanwhile
        os.utime(file, ns=(date, date - (file != model)))


def unused(name: str, path: Path | None = None, *, force: bool) -> Path:
    """Return the path of a new model: its place in the store, or `path` where given.

    Raises
    ------
    ModelError
        When that file exists and `force` is False, or it cannot be written.
    UsageError
        For a name that `check_name` refuses.
    """
    target = path or path_for(name)
    if target.exists() and not force:
        raise ModelError(
            f"a model {name!r} exists already.",
            hint="Give another --name, or --force to replace it.",
        )
    return writable(target)


def writable(model: Path) -> Path:
    """Return the path of a model after a check, before long work, that it can be written.

    Raises
    ------
    ModelError
        When it cannot.
    """
    if problem := why_unwritable(model):
        raise ModelError(f"cannot write {model}: {problem}.", hint=_HOME_HINT)
    return model


def models() -> list[ModelSummary]:
    """Return summaries of the store's models, by name; an unreadable file has a `problem`.

    Raises
    ------
    ModelError
        When the folder of the store cannot be read.
    """
    remove_leftovers(models_folder())
    newest = _newest()
    return [dataclasses.replace(_summary(path), default=path == newest) for path in _files()]


def _files() -> list[Path]:
    folder = models_folder()
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelError(
            f"cannot read the folder of the models {folder}: {error.strerror or error}.",
            hint="Set ANOSCAN_HOME to a folder of your own.",
        ) from error
    found = (path for path in entries if path.suffix == SUFFIX and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.stem)


def _summary(path: Path) -> ModelSummary:
    name = path.stem
    try:
        size = path.stat().st_size
    except OSError:  # removed meanwhile, or a dangling link
        size = 0
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
    if unicodedata.normalize("NFC", name) != name or _problem_with(name):
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
        problem=problem,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def remove(name: str) -> None:
    """Delete a model of the store, and the record of its training.

    Raises
    ------
    ModelError
        When there is no model of that name, or the system refuses.
    """
    path = _existing(name)
    try:
        path.unlink()
    except OSError as error:
        raise ModelError(f"cannot remove {path}: {error.strerror or error}.") from error
    Record(path).clear()


def rename(old: str, new: str, *, force: bool = False) -> None:
    """Give a model of the store, and its record, another name.

    Raises
    ------
    ModelError
        When there is no model `old`, a model `new` exists and `force` is False, or the system
        refuses.
    UsageError
        For a name that `check_name` refuses.
    """
    source, destination = _existing(old), path_for(new)
    # Where the file system ignores case, both names may be the same file, which is allowed.
    if _exists(destination) and not destination.samefile(source) and not force:
        raise ModelError(f"there is a model named {new!r} already.", hint=_FORCE_HINT)
    try:
        source.replace(destination)
    except OSError as error:
        raise ModelError(f"cannot rename {source}: {error.strerror or error}.") from error
    Record(source).move(Record(destination))


def export(name: str, destination: Path, *, force: bool = False) -> Path:
    """Copy a model out of the store, and return the file that was written.

    Parameters
    ----------
    name : str
    destination : Path
        The file to write, or an existing folder, in which the file is named like the model.
    force : bool
        Whether a file that exists is replaced.

    Raises
    ------
    ModelError
        When there is no such model, the file exists and `force` is False, or it cannot be written.
    """
    source = _existing(name)
    target = destination / source.name if destination.is_dir() else destination
    if os.path.lexists(target) and not force:
        raise ModelError(
            f"{target} exists already.", hint="Choose another file, or replace it with --force."
        )
    _copy(source, target)
    return target


def import_model(file: Path, *, name: str | None = None, force: bool = False) -> str:
    """Copy a model file into the store, and return its name there.

    Parameters
    ----------
    file : Path
    name : str, optional
        The name in the store. By default it is made from the name of the file.
    force : bool
        Whether a model that already has this name is replaced.

    Raises
    ------
    ModelError
        When the file is not a usable model, or a model of that name exists and `force` is False.
    UsageError
        For a name that `check_name` refuses.
    """
    chosen = _valid(file.name) if name is None else check_name(name)
    if model_file.read_metadata(file).get("kind") == "checkpoint":
        raise ModelError(
            f"{file} is a checkpoint of an unfinished training, not a model.",
            hint="Finish it with anoscan train ... --resume.",
        )
    target = path_for(chosen)
    if os.path.lexists(target) and not force:
        raise ModelError(f"there is a model named {chosen!r} already.", hint=_FORCE_HINT)
    _copy(file, target)
    Record(target).clear()  # a record that is there belongs to the model that was replaced
    return chosen


def _copy(source: Path, target: Path) -> None:
    with model_file.opened(source) as reader, model_file.replacing_model(target) as writer:
        shutil.copyfileobj(reader, writer)
        times = os.fstat(reader.fileno())
    # A copy keeps its date, because the newest file counts as the most recently trained model.
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _existing(name: str) -> Path:
    path = path_for(name)
    if not os.path.lexists(path):
        raise _missing(name)
    return path


def _missing(name: str) -> ModelError:
    if _problem_with(name) and _exists(models_folder() / f"{name}{SUFFIX}"):
        return ModelError(
            f"{name}{SUFFIX} is in {models_folder()}, but {name!r} cannot name a model.",
            hint="Rename the file.",
        )
    return ModelError(f"there is no model named {name!r}.", hint=_close_to(name))


def _close_to(name: str) -> str:
    close = difflib.get_close_matches(name, [path.stem for path in _files()], n=3)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else _LIST_HINT


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, not permitted, or a null character
        return False
