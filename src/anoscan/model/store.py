"""The store: models by name, one file each, in the user's cache.

Nothing here imports torch, so listing and moving models is fast.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from anoscan.core import storage
from anoscan.core.errors import InputError, ModelError
from anoscan.core.files import reason_of, replacing, why_unwritable
from anoscan.core.urls import shown, url_of
from anoscan.model import file as model_file
from anoscan.model import history, versions
from anoscan.model.names import SUFFIX, check_name, made_of, problem_with
from anoscan.model.training_record import Record

_LIST_HINT = "anoscan models list shows the models."
_FORCE_HINT = "Choose another name, or replace it with --force."
HOME_HINT = "Set ANOSCAN_HOME to a folder of your own that has room."


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


def resolve(model: str | Path | None) -> Path:
    """Find a model file; whether it is a model is checked by `model.file` when it is read.

    Parameters
    ----------
    model : str, Path or None
        A name in the store, or else a path; ``./name`` is the file in the working folder. None
        takes the model that is pinned, or else the most recently trained one: see `default`.

    Raises
    ------
    ModelError
        When there is no such model, with a hint at similar names, or no model at all.
    """
    if model is None:
        return default().path
    if (url := url_of(model)) is not None:
        raise ModelError(
            f"{shown(url)} is not on this computer, so it can only be used, not changed.",
            hint="Take the model into the store first: anoscan models import URL",
        )
    text = str(model)
    if not problem_with(unicodedata.normalize("NFC", text)) and _exists(path_for(text)):
        return path_for(text)
    if _exists(Path(text)):
        return Path(text)
    if Path(text).name != text or text.endswith(SUFFIX):
        close = _close_to(made_of(Path(text).name))
        raise ModelError(f"there is no model file {text}.", hint=close)
    raise _missing(text)


def to_read(model: str | Path | None) -> tuple[Path, str]:
    """Find a model file to read, and return its path and what to call it; a URL is fetched.

    Raises
    ------
    ModelError
        When there is no such model, as for `resolve`, or it cannot be fetched.
    """
    if model is None or (url := url_of(model)) is None:
        path = resolve(model)
        return path, str(path)
    return _fetched(url), shown(url)


def _fetched(url: str) -> Path:
    try:
        return storage.kept(url)
    except InputError as error:
        raise ModelError(
            f"the model {shown(url)} cannot be read: {error.message}.", hint=error.hint
        ) from None


@dataclass(frozen=True)
class Default:
    """The model that commands use without ``--model``, and whether it is pinned.

    `trained` is when it was trained, in UTC.
    """

    path: Path
    pinned: bool
    trained: datetime


def default() -> Default:
    """Return the model that is pinned, or else the most recently trained one.

    That is the newest file of the store, and the first by name among equals.

    Raises
    ------
    ModelError
        When there is no model, or the pinned one is not there.
    """
    if (name := pinned()) is not None:
        path = path_for(name)
        if not _exists(path):
            raise ModelError(
                f"the pinned model {name!r} is not there.",
                hint="Pin another with anoscan models use NAME, or none with --none.",
            )
    elif found := newest():
        path = found
    else:
        raise ModelError("there is no model yet.", hint="Train one: anoscan train FOLDER")
    trained = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Default(path, name is not None, trained)


def pinned() -> str | None:
    """Return the name of the model that `pin` made the default; None without one."""
    try:
        name = _pin_file().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return None if problem_with(name) else name


def pin(name: str | None) -> None:
    """Make a model of the store the default, until another is; None takes that back.

    Raises
    ------
    ModelError
        When there is no model of that name, or the store cannot be written.
    """
    try:
        if name is None:
            _pin_file().unlink(missing_ok=True)
            return
    except OSError as error:
        raise ModelError(f"cannot remove {_pin_file()}: {reason_of(error)}.") from error
    path = _existing(name)
    with replacing(_pin_file(), ModelError) as stream:
        stream.write(f"{path.stem}\n".encode())


def _pin_file() -> Path:
    return home() / "default-model"


def newest() -> Path | None:
    """Return the most recently trained model of the store; None where there is none."""
    dated = []
    for path in files():
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
        raise ModelError(f"cannot write {model}: {problem}.", hint=HOME_HINT)
    return model


def files() -> list[Path]:
    """Return the model files of the store, by name.

    Raises
    ------
    ModelError
        When the folder of the store cannot be read.
    """
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


def remove(name: str, *, purge: bool = False) -> None:
    """Take a model out of the store; it is kept for `restore`. If it is pinned, none is then.

    With `purge`, it is deleted, with its kept versions and its history. It may be removed already.

    Raises
    ------
    ModelError
        When there is no model of that name, or the system refuses.
    """
    gone = purge and not os.path.lexists(path_for(name)) and versions.kept(path_for(name))
    path = path_for(name) if gone else _existing(name)
    try:
        with nullcontext() if purge else versions.keeping(path, "remove"):
            path.unlink(missing_ok=bool(gone))
    except OSError as error:
        raise ModelError(f"cannot remove {path}: {error.strerror or error}.") from error
    Record(path).clear()
    if pinned() == path.stem:
        pin(None)
    if purge:
        versions.purge(path)
        history.clear(path)
    else:
        history.add(path, "remove")


def rename(old: str, new: str, *, force: bool = False) -> None:
    """Give a model of the store another name; its record, kept versions, history and pin follow.

    Where the new name has kept versions or a history of its own, those of the old name stay with
    that, and both names can be restored.

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
    same = _exists(destination) and destination.samefile(source)
    if _exists(destination) and not same and not force:
        raise ModelError(f"there is a model named {new!r} already.", hint=_FORCE_HINT)
    taken = not same and (
        _exists(destination) or versions.kept(destination) or history.events(destination)
    )
    was_pinned = pinned() == source.stem
    with ExitStack() as stack:
        if taken:
            stack.enter_context(versions.keeping(source, "rename"))
            stack.enter_context(versions.keeping(destination, "rename"))
        try:
            source.replace(destination)
        except OSError as error:
            raise ModelError(f"cannot rename {source}: {error.strerror or error}.") from error
    Record(source).move(Record(destination))
    said = f"from {source.stem} to {destination.stem}"
    if taken:
        history.add(source, "rename", note=said)
    elif source != destination:
        versions.follow(source, destination)
        history.follow(source, destination)
    if source != destination:
        history.add(destination, "rename", note=said)
    if was_pinned:
        pin(destination.stem)


def restore(model: str, *, forward: bool = False) -> versions.Version:
    """Take back the last change of a model, or with `forward` the last `restore`.

    `model` is a name, or the path of a file outside the store. Returns what was brought back.

    Raises
    ------
    ModelError
        When nothing can be taken back, or the system refuses.
    """
    path = known(model)
    version = versions.restore(path, forward=forward)
    again = "again as after" if forward else "as before"
    history.add(path, "restore", sha256=model_file.digest(path), note=f"{again} {version.action}")
    return version


def known(model: str) -> Path:
    """Find a model by its name or path, even if only kept versions or a history are left of it.

    Raises
    ------
    ModelError
        When there is nothing of it.
    """
    places = [] if problem_with(unicodedata.normalize("NFC", model)) else [path_for(model)]
    for path in (*places, Path(model)):
        if path.name and (versions.kept(path) or history.events(path)):
            return path
    return resolve(model)


def export(
    name: str, destination: Path, *, with_history: bool = False, force: bool = False
) -> Path:
    """Copy a model out of the store, and return the file that was written.

    Parameters
    ----------
    name : str
    destination : Path
        The file to write, or an existing folder, in which the file is named like the model.
    with_history : bool
        Whether the history is copied too, to a file beside that one.
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
    model_file.copy(source, target)
    if with_history:
        history.carry(source, target)
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
    whence = str(file)
    if (url := url_of(file)) is not None:
        file, whence = _fetched(url), shown(url)
    chosen = made_of(file.name) if name is None else check_name(name)
    if model_file.read_metadata(file).get("kind") == "checkpoint":
        raise ModelError(
            f"{file} is a checkpoint of an unfinished training, not a model.",
            hint="Finish it with anoscan train ... --resume.",
        )
    target = path_for(chosen)
    if os.path.lexists(target) and not force:
        raise ModelError(f"there is a model named {chosen!r} already.", hint=_FORCE_HINT)
    with versions.keeping(target, "import"):
        model_file.copy(file, target)
    Record(target).clear()  # a record that is there belongs to the model that was replaced
    if not history.events(target):
        history.carry(file, target)
    history.add(target, "import", folders=[whence], sha256=model_file.digest(target))
    return chosen


def _existing(name: str) -> Path:
    path = path_for(name)
    if not os.path.lexists(path):
        raise _missing(name)
    return path


def _missing(name: str) -> ModelError:
    if problem_with(name) and _exists(models_folder() / f"{name}{SUFFIX}"):
        return ModelError(
            f"{name}{SUFFIX} is in {models_folder()}, but {name!r} cannot name a model.",
            hint="Rename the file.",
        )
    return ModelError(f"there is no model named {name!r}.", hint=_close_to(name))


def _close_to(name: str) -> str:
    names = [*(path.stem for path in files()), *versions.removed(models_folder())]
    close = difflib.get_close_matches(name, names, n=3)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else _LIST_HINT


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, not permitted, or a null character
        return False
