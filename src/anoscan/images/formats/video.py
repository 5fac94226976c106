"""Read video files with PyAV, which is FFmpeg: each frame is a page."""

from __future__ import annotations

import bisect
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import (
    DAMAGED,
    Opened,
    check_pages,
    check_size,
    damage,
    of_samples,
    reasons,
    regular,
)

SUFFIXES = ".mp4 .avi .mov .mkv"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PICTURES = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"jxl ")
_lock = threading.Lock()
_playing: list[_Player] = []  # the one video that this process has open


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a video in one of the containers."""
    return _container(head) is not None


def _container(head: bytes) -> str | None:
    """Name that FFmpeg has for the container; naming it keeps it from trying playlists."""
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] in _BOXES and not (head[4:8] == b"ftyp" and head[8:12] in _PICTURES):
        return "mov"
    return None


def count(file: Path) -> int:
    """Number of frames in a file."""
    return len(_index_of(file).times)


def names(file: Path) -> tuple[str, ...]:
    """Names of all frames: their numbers, from 0, in six digits."""
    return tuple(f"{number:06d}" for number in range(count(file)))


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode one frame; frames in rising order are decoded once each."""
    index = _index_of(file)
    status = regular(file)
    version = (file, status.st_size, status.st_mtime_ns)
    with damage(), _lock:
        if not _playing or _playing[0].version != version:
            for player in _playing:
                player.close()
            _playing[:] = []
            _playing.append(_Player(version, index))
        try:
            frame = _playing[0].frame((page or 1) - 1)
            grey = frame.format.name == "gray"
            return of_samples(frame.to_ndarray(format="gray" if grey else "rgb24"))
        except BaseException:
            _playing.pop().close()
            raise


@dataclass(frozen=True)
class _Index:
    """Times of all frames, rising, and of those that decoding can start at; None without times."""

    times: tuple[int | None, ...]
    starts: tuple[int, ...]


def _index_of(file: Path) -> _Index:
    status = regular(file)
    return _index(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _index(file: Path, size: int, changed: int) -> _Index:
    """List the frames without decoding them; `size` and `changed` (ns) keep versions apart."""
    times: list[Any] = []
    starts: list[Any] = []
    with damage():
        source, container = _opened(file)
        with source, container:
            stream, kind = _stream(container), container.format.name
            check_size(stream.width, stream.height)
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                times.append(packet.pts)
                check_pages(len(times))
                if packet.is_keyframe:
                    starts.append(packet.pts)
    if not times:
        raise InputError("is a video without frames")
    # After a seek, FFmpeg guesses the times of AVI, which has none. Then frames are counted.
    if kind == "avi" or None in times or len(set(times)) < len(times):
        return _Index((None,) * len(times), ())
    return _Index(tuple(sorted(times)), tuple(sorted(starts)))


def _opened(file: Path) -> tuple[IO[bytes], Any]:
    try:
        import av
    except ImportError:
        raise InputError("is a video, which needs: pip install 'anoscan[video]'") from None
    av.logging.set_level(None)
    with reasons():
        source = file.open("rb")
    try:
        head = source.read(12)
        source.seek(0)
        # Given as a stream, a file cannot have FFmpeg open others that it names.
        return source, av.open(source, format=_container(head), metadata_errors="replace")
    except BaseException:
        source.close()
        raise


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise InputError("is a video file without pictures")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # files are decoded in several processes already
    return stream


class _Player:
    """An open video: frames after the last one are decoded on, and others from a frame before."""

    def __init__(self, version: tuple[Path, int, int], index: _Index) -> None:
        self.version, self._index = version, index
        self._open()

    def _open(self) -> None:
        self._source, self._container = _opened(self.version[0])
        self._stream = _stream(self._container)
        self._frames: Iterator[Any] = self._container.decode(self._stream)
        self._next = 0  # number of the frame that comes next; none before it can be decoded

    def frame(self, number: int) -> Any:
        times, starts = self._index.times, self._index.starts
        wanted = times[number]
        if wanted is None:
            return self._counted(number)
        place = bisect.bisect_right(starts, wanted) - 1
        start = starts[place] if place >= 0 else times[0]
        if number < self._next or (place >= 0 and starts[place] > (times[self._next] or 0)):
            self._container.seek(start, stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if frame.pts == wanted:
                self._next = number + 1
                return frame
            if frame.pts is not None and frame.pts > wanted:
                break
        raise InputError(DAMAGED)

    def _counted(self, number: int) -> Any:
        if number < self._next:
            self.close()
            self._open()
        for frame in self._frames:
            self._next += 1
            if self._next == number + 1:
                return frame
        raise InputError(DAMAGED)

    def close(self) -> None:
        self._container.close()
        self._source.close()
