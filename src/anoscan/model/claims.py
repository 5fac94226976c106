"""Reserve the name of a training, so that two trainings do not write the same files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from anoscan.core.errors import ModelError, UsageError
from anoscan.core.files import reason_of, remove_leftovers
from anoscan.model import store
from anoscan.model.names import check_name
from anoscan.model.training_record import Record

_RUNNING = ".running"  # ends the name of the mark of a training that runs


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
            f"cannot write to {store.home()}: {reason_of(error)}.", hint=store.HOME_HINT
        ) from error
    try:
        store.writable(store.checkpoint_path(name))
        _clean_up(name)
        with suppress(OSError):
            running.touch()
        yield
    finally:
        with suppress(OSError):
            running.unlink(missing_ok=True)
        lock.release()


def _locks() -> Path:
    return store.home() / "locks"


def _lock(name: str) -> FileLock:
    return FileLock(_locks() / f"{check_name(name)}.lock")


def _clean_up(name: str) -> None:
    """Remove what trainings that were killed left behind; this process holds the lock of `name`.

    A training marks that it runs. A mark whose lock is free is of one that was killed. Its record
    is of no use without a checkpoint to go on from.
    """
    for folder in (store.models_folder(), store.home() / "checkpoints"):
        remove_leftovers(folder)
    for mark in list(_locks().glob(f"*{_RUNNING}")):
        killed = mark.name.removesuffix(_RUNNING)
        with (
            suppress(OSError, Timeout, NotImplementedError, UsageError),
            nullcontext() if killed == name else _lock(killed).acquire(timeout=0),
        ):
            if not store.checkpoint_path(killed).exists():
                Record(store.checkpoint_path(killed)).clear()
            mark.unlink()
