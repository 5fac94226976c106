"""Read image files in processes of their own, so that a file that kills its decoder costs one file.

Decoders are native code, and files come from anywhere. A process that dies, takes too long or needs
too much memory is replaced, and the file is skipped with the reason. Small PNGs and JPEGs of 8 bits
are read in threads of this process, where starting others would cost more than it saves. So are
images that are in memory already. Remote files are fetched by threads, a few ahead, and read then.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from anoscan.core import storage
from anoscan.core.errors import InputError, UsageError
from anoscan.images.files import ImageFile
from anoscan.images.formats import ARCHIVES, VIDEOS
from anoscan.images.formats.picture import NO_ROOM

T = TypeVar("T")

SECONDS, MEGABYTES = 60.0, 2048  # that one file may take, unless the environment says otherwise
_LEAST_SHARE = 256  # megabytes that each of several processes may take
_FILES, _BYTES = 64, 2**20  # of small files that one task reads, at most
_FETCHED_AHEAD = 2 * storage.THREADS  # remote files whose results may wait for their turn
_SHARED = 2**18  # bytes of a result from which it is handed over in shared memory
_SMALL, _PIXELS = 2**22, 2**24  # bytes of a file, and pixels, that may be read in this process
# CPU seconds that files take, about, and that starting processes has to save.
_A_FILE, _A_BYTE, _WORTH = 4e-4, 2e-8, 2.0
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclass(frozen=True)
class Failed:
    """Reason why a file was not read."""

    reason: str


Read = Callable[[ImageFile], T]


@dataclass(frozen=True)
class Limits:
    """What one file may take: seconds, and megabytes of memory."""

    seconds: float
    megabytes: int

    @classmethod
    def of_environment(cls) -> Limits:
        """Limits of ``$ANOSCAN_DECODE_SECONDS`` and ``$ANOSCAN_DECODE_MB``.

        Raises
        ------
        UsageError
            When one of them is no positive number.
        """
        return cls(
            _number("ANOSCAN_DECODE_SECONDS", SECONDS), int(_number("ANOSCAN_DECODE_MB", MEGABYTES))
        )


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise UsageError(f"{name} must be a number above 0. Got {text!r}.")
    return number


def read_all(
    read: Read[T],
    files: Iterable[ImageFile],
    workers: int,
    *,
    inside: bool = True,
    ahead: int | None = None,
) -> Iterator[tuple[ImageFile, T | Failed]]:
    """Read files, and yield each with its result, in the order of the files.

    Parameters
    ----------
    read : callable
        Reads one file, or raises InputError. It and its results must be picklable.
    files : iterable of ImageFile
        May be endless, for only a few files are read ahead.
    workers : int
        Processes, or threads.
    inside : bool
        Whether small files may be read in this process.
    ahead : int, optional
        Files that are read ahead at most, where results are large.

    Raises
    ------
    UsageError
        When the limits in the environment are no numbers.
    """
    listed = files if isinstance(files, Sequence) else ()
    remote = any(image.remote for image in listed)
    lanes = _Lanes(read, workers, inside=inside and (remote or not _worth_starting(files)))
    most = ahead or max(4 * workers, remote * _FETCHED_AHEAD)
    together = 1 if ahead or remote or not listed else _together(len(listed), workers)
    waiting: deque[_Task[T]] = deque()
    try:
        for batch in _batches(files, together):
            waiting.append(lanes.submit(batch))
            # Results are yielded as soon as they are done, even if the source of files is slow.
            while len(waiting) >= most or (waiting and waiting[0].done()):
                yield from waiting.popleft().results()
        while waiting:
            yield from waiting.popleft().results()
    finally:
        for task in waiting:
            task.future.cancel()
        lanes.close()


def read_one(read: Read[T], image: ImageFile) -> T:
    """Read one file.

    Raises
    ------
    InputError
        When it cannot be read, or takes too much time or memory. The message is the bare reason.
    """
    ((_, found),) = read_all(read, [image], 1)
    if isinstance(found, Failed):
        raise InputError(found.reason)
    return found


def _together(files: int, workers: int) -> int:
    """How many files one task reads: few enough that all workers have something to do."""
    return min(_FILES, math.ceil(files / (4 * workers)) or 1)


def _batches(files: Iterable[ImageFile], most: int) -> Iterator[list[ImageFile]]:
    """Yield groups of at most so many files, and of one where a file is large.

    Frames of a video and images in a tar file are small, however large that is. They cost the least
    one after the other.
    """
    if most == 1:  # of an iterator, which may be slow
        yield from ([image] for image in files)
        return
    batch: list[ImageFile] = []
    size = 0
    for image in files:
        frame = image.page is not None and image.file.name.lower().endswith((*VIDEOS, *ARCHIVES))
        more = 0 if frame else _size(image.file)
        if batch and (len(batch) == most or size + more > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(image)
        size += more
    if batch:
        yield batch


def _worth_starting(files: Iterable[ImageFile]) -> bool:
    """Whether reading the files would take longer than starting processes does."""
    if not isinstance(files, Sequence) or not files:
        return False
    some = files[:: max(1, len(files) // 64)]
    each = sum(_A_FILE + _A_BYTE * _size(image.file) for image in some) / len(some)
    return each * len(files) > _WORTH


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except (OSError, ValueError):
        return 0


def is_plain(image: ImageFile) -> bool:
    """Whether a file is a small PNG or JPEG of 8 bits a sample, which this process may read."""
    if image.page is not None or not 0 < _size(image.file) <= _SMALL:
        return False
    try:
        with image.file.open("rb") as source:
            head = source.read(26)
    except (OSError, ValueError):
        return False
    if not head.startswith(_PNG):
        return head.startswith(_JPEG)
    width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
    return len(head) == 26 and head[24] <= 8 and width * height <= _PIXELS


# --- this process -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task(Generic[T]):
    """Files that are being read together, and how to read them one by one when that fails."""

    future: Future[list[Any]]
    files: Sequence[ImageFile]
    alone: Callable[[ImageFile], T | Failed]

    def done(self) -> bool:
        return self.future.done()

    def results(self) -> Iterator[tuple[ImageFile, T | Failed]]:
        try:
            found = self.future.result()
        except (ProcessExpired, TooSlow):
            found = [_AGAIN] * len(self.files)
        for image, outcome in zip(self.files, found, strict=True):
            yield image, self.alone(image) if _is_again(outcome) else outcome


def _is_again(outcome: object) -> bool:
    return isinstance(outcome, Failed) and outcome == _AGAIN


_AGAIN = Failed("")  # for want of memory, or with a file that ended the process


class _Lanes(Generic[T]):
    """Where files are read: threads, shared processes, and one process for large or bad files."""

    def __init__(self, read: Read[T], workers: int, *, inside: bool) -> None:
        self._read, self._workers, self._limits = read, workers, Limits.of_environment()
        self._inside = inside
        self._threads: ThreadPoolExecutor | None = None
        self._fetching: ThreadPoolExecutor | None = None

    def submit(self, files: list[ImageFile]) -> _Task[T]:
        if any(image.remote for image in files):
            if self._fetching is None:
                self._fetching = ThreadPoolExecutor(storage.THREADS, thread_name_prefix="fetch")
            return _Task(self._fetching.submit(self._fetched, files), files, self._alone)
        if all(image.in_memory or (self._inside and is_plain(image)) for image in files):
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
            return _Task(self._threads.submit(_attempts, self._read, files), files, self._alone)
        return self._scheduled(files)

    def _scheduled(self, files: list[ImageFile]) -> _Task[T]:
        share = max(_LEAST_SHARE, self._limits.megabytes // self._workers)
        pool = _pool(self._workers, min(share, self._limits.megabytes))
        future = pool.schedule(
            _packed_attempts, (self._read, _found(files)), timeout=self._limits.seconds
        )
        return _Task(_unpacked(future), files, self._alone)

    def _fetched(self, files: list[ImageFile]) -> list[T | Failed]:
        """Fetch files and read their copies, one by one."""
        found: list[T | Failed] = []
        for image in files:
            try:
                with image.here() as copy:
                    if self._inside and is_plain(copy):
                        (outcome,) = _attempts(self._read, [copy])
                        found.append(self._alone(copy) if _is_again(outcome) else outcome)
                    else:
                        found += (result for _, result in self._scheduled([copy]).results())
            except InputError as error:
                found.append(Failed(error.message))
        return found

    def _alone(self, image: ImageFile) -> T | Failed:
        """Read a file that killed a process, or that needs more memory than its share."""
        limits = self._limits
        pool = _pool(1, limits.megabytes)
        future = pool.schedule(
            _packed_attempts, (self._read, _found([image])), timeout=limits.seconds
        )
        try:
            (found,) = _unpacked(future).result()
        except TooSlow:
            return Failed(f"cannot be decoded within {limits.seconds:g} seconds")
        except ProcessExpired as error:
            return Failed(f"damaged image: it ends its decoder (exit code {error.exitcode})")
        if _is_again(found):
            return Failed(f"needs more than {limits.megabytes} MB of memory to be decoded")
        return found  # type: ignore[no-any-return]

    def close(self) -> None:
        for threads in (self._threads, self._fetching):
            if threads is not None:
                threads.shutdown(cancel_futures=True)


def _found(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Files as a process finds them, which may have been started in another working folder."""
    return [dataclasses.replace(image, file=image.file.absolute()) for image in files]


def _attempts(read: Read[T], files: Sequence[ImageFile]) -> list[Any]:
    """Results of files; `_AGAIN` for those that want more memory."""
    found: list[Any] = []
    for image in files:
        try:
            found.append(read(image))
        except InputError as error:
            found.append(_AGAIN if error.message == NO_ROOM else Failed(error.message))
        except MemoryError:
            found.append(_AGAIN)
    return found


def _unpacked(packed: Future[_Packed]) -> Future[list[Any]]:
    found: Future[list[Any]] = Future()

    def unpack(done: Future[_Packed]) -> None:
        if found.cancelled() or done.cancelled():
            return
        error = done.exception()
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(done.result().opened())

    packed.add_done_callback(unpack)
    return found


# --- processes ----------------------------------------------------------------------------------


class _Process(SpawnProcess):
    """A process that does not import the program that started it.

    Such an import would run a script of a user again, which calls this library at its top level.
    """

    _starting = threading.Lock()

    def start(self) -> None:
        """Start, in a daemonic process too: those of `multiprocessing.Pool` may have no children.

        A process that reads files ends when the one that started it does, so none is left behind.
        """
        config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        daemon = config.pop("daemon", None)
        try:
            super().start()
        finally:
            if daemon is not None:
                config["daemon"] = daemon

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _Process._starting:
            program = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = program


class _Context(SpawnContext):
    Process = _Process


_started: dict[tuple[int, int, int], ProcessPool] = {}  # by the process that started them
_lock = threading.Lock()


def _pool(workers: int, megabytes: int) -> ProcessPool:
    with _lock:
        key = (os.getpid(), workers, megabytes)
        if key not in _started:
            # A process of `multiprocessing` waits for its children, and calls no `atexit` before.
            Finalize(None, stop, exitpriority=1)
            _started[key] = ProcessPool(
                workers, initializer=_begin, initargs=(megabytes,), context=_Context()
            )
        return _started[key]


def stop() -> None:
    """End all processes; files that are read later start new ones."""
    with _lock:
        pools = [pool for (owner, *_), pool in _started.items() if owner == os.getpid()]
        _started.clear()
    for pool in pools:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _begin(megabytes: int) -> None:
    """Set up a process: Ctrl-C is for its parent, decoders are silent, and memory is limited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    status = Path("/proc/self/statm")
    if not status.exists():  # elsewhere than on Linux the limit is not kept, or not known
        return
    import resource

    used = int(status.read_text().split()[0]) * resource.getpagesize()
    most = used + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _packed_attempts(read: Read[T], files: Sequence[ImageFile]) -> _Packed:
    return _Packed.of(_attempts(read, files))


@dataclass(frozen=True)
class _Packed:
    """Results on their way out of a process; arrays that are large together are in shared memory.

    Only processes of this module pickle and unpickle: nothing here comes from a file.
    """

    head: bytes
    parts: list[bytes]
    sizes: list[int]
    shared: str | None = None

    @classmethod
    def of(cls, results: list[Any]) -> _Packed:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(results, 5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        sizes = [part.nbytes for part in parts]
        if sum(sizes) < _SHARED or not _has_room(sum(sizes)):
            return cls(head, [bytes(part) for part in parts], sizes)
        memory = SharedMemory(create=True, size=sum(sizes))
        whole: memoryview[int] = memory.buf  # type: ignore[assignment]
        for start, part in zip(_starts(sizes), parts, strict=True):
            whole[start : start + part.nbytes] = part
        whole.release()
        memory.close()
        return cls(head, [], sizes, memory.name)

    def opened(self) -> list[Any]:
        """Results again; the shared memory is let go."""
        if self.shared is None:
            return list(pickle.loads(self.head, buffers=map(bytearray, self.parts)))
        memory = SharedMemory(self.shared)
        try:
            spans = zip(_starts(self.sizes), self.sizes, strict=True)
            whole: memoryview[int] = memory.buf  # type: ignore[assignment]
            parts = [bytearray(whole[start : start + size]) for start, size in spans]
            whole.release()
        finally:
            memory.close()
            memory.unlink()
        return list(pickle.loads(self.head, buffers=parts))


def _has_room(size: int) -> bool:
    """Whether shared memory holds so many bytes; what writes more than it holds is killed."""
    shared = Path("/dev/shm")
    if not shared.is_dir():  # on other systems it is not limited so
        return True
    status = os.statvfs(shared)
    return status.f_bavail * status.f_frsize > 2 * size


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)][:-1]
