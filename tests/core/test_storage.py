"""Remote files: found, fetched within a limit, tried again, and without secrets in messages."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from anoscan.core import storage
from anoscan.core.errors import InputError, UsageError
from anoscan.core.files import replacing
from anoscan.core.storage import RemoteFile
from anoscan.core.urls import shown, url_of


class Flaky(MemoryFileSystem):
    """Fails so many times for each file before it answers."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures = 0
    asked: ClassVar[Counter[str]] = Counter()

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        Flaky.asked[path] += 1
        if Flaky.asked[path] <= Flaky.failures:
            raise ConnectionResetError(104, "the text of an error may hold ?sig=secret")
        return super().cat_file(path, *args, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))
    Flaky.asked.clear()
    Flaky.failures = 0
    system = Flaky()
    system.pipe("/set/a.png", b"content")
    yield system
    system.store.clear()


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    system = MemoryFileSystem()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/a//b.png", "s3://bucket/a//b.png"),
        (Path("s3://bucket/a.png"), "s3://bucket/a.png"),
        (Path("file:///home/a.png"), "file:///home/a.png"),
        ("/home/a.png", None),
        ("a:b", None),
        ("C:/images", None),
        ("", None),
    ],
)
def test_urls_are_told_from_paths(path: str | Path, url: str | None) -> None:
    assert url_of(path) == url


def test_a_folder_that_is_named_like_a_protocol_is_no_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:", "images").mkdir(parents=True)
    assert url_of("s3:/images") is None


def test_passwords_and_signatures_are_not_shown() -> None:
    assert shown("ftp://me:pw@host/a") == "ftp://me:***@host/a"
    signed = shown("https://host/a.png?X-Amz-Credential=ab%2Fc&id=5&X-Amz-Signature=ff")
    assert signed == "https://host/a.png?X-Amz-Credential=***&id=5&X-Amz-Signature=***"


def test_a_storage_that_fails_twice_is_asked_again(flaky: Flaky) -> None:
    Flaky.failures = 2
    with storage.copied(RemoteFile("flaky://set/a.png", 7, None)) as copy:
        assert copy.read_bytes() == b"content"
        assert copy.name == "a.png"
    assert not copy.exists()  # without a version it could be out of date the next time


def test_a_storage_that_always_fails_is_asked_three_times_and_its_text_is_kept_back(
    flaky: Flaky,
) -> None:
    Flaky.failures = 99
    with (
        pytest.raises(InputError, match="cannot be reached") as raised,
        storage.copied(RemoteFile("flaky://set/a.png", 7, None)),
    ):
        pass
    assert "secret" not in str(raised.value)
    assert list(Flaky.asked.values()) == [3]


def test_what_is_not_there_is_not_asked_for_again(flaky: Flaky) -> None:
    with (
        pytest.raises(InputError, match="does not exist"),
        storage.copied(RemoteFile("flaky://set/b.png", 7, None)),
    ):
        pass
    assert list(Flaky.asked.values()) == [1]


@pytest.mark.parametrize("size", [3 * 2**20, None])
def test_a_file_over_the_limit_is_not_fetched(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    memory.pipe("/a.png", bytes(3 * 2**20))
    monkeypatch.setenv("ANOSCAN_FETCH_MB", "1")
    with (
        pytest.raises(InputError, match="larger than 1 MB"),
        storage.copied(RemoteFile("memory://a.png", size, None)),
    ):
        pass
    monkeypatch.setenv("ANOSCAN_FETCH_MB", "none")
    with pytest.raises(UsageError, match="ANOSCAN_FETCH_MB"):
        storage.largest()


def test_a_copy_serves_again_until_the_file_changes_or_room_is_needed(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOSCAN_FETCH_MB", "1")
    memory.pipe("/a.png", bytes(600_000))
    first = storage.look("memory://a.png")
    assert first is not None
    with storage.copied(first) as copy:
        pass
    with storage.copied(first) as again:
        assert again == copy
    memory.pipe("/a.png", bytes(600_001))
    second = storage.look("memory://a.png")
    assert second is not None
    with storage.copied(second) as changed:
        assert changed.stat().st_size == 600_001
    assert not copy.exists()  # both together are more than there is room for


def test_files_of_many_threads_are_fetched_once_each(memory: MemoryFileSystem) -> None:
    memory.pipe("/shard.tar", bytes(10_000))
    source = storage.look("memory://shard.tar")
    assert source is not None
    seen = []

    def use() -> None:
        with storage.copied(source) as copy:
            seen.append((copy, copy.stat().st_size))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_folders_are_listed_without_what_is_hidden(memory: MemoryFileSystem) -> None:
    for name in ("b/2.png", "a/1.png", ".hidden/3.png", "__MACOSX/4.png", "a/.5.png"):
        memory.pipe(f"/set/{name}", b"x")
    assert sorted(inside for inside, _ in storage.below("memory://set/")) == ["a/1.png", "b/2.png"]
    assert storage.is_folder("memory://set")
    assert storage.is_file("memory://set/a/1.png")
    assert not storage.is_file("memory://set/none.png")
    assert storage.matching("memory://set/*/*.png") == [
        "memory://set/a/1.png",
        "memory://set/b/2.png",
    ]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://none", "memory://none does not exist"),
        ("nothing://a", "nothing here opens nothing://"),
        ("abfs://a/b", "a package for abfs:// is not installed.*adlfs"),
        ("zip://a.png::memory://a.zip", "addresses in addresses"),
    ],
)
def test_what_cannot_be_opened_is_one_line_with_the_url(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS", ())
    with pytest.raises(InputError) as raised:
        storage.look(url)
    whole = f"{raised.value.message} {raised.value.hint}"
    assert re.search(says, whole)
    assert url in whole
    assert "\n" not in whole


def test_results_are_not_written_to_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match=r"s3://bucket/a\.csv: results are written to this"),
        replacing(Path("s3://bucket/a.csv")),
    ):
        pass
    assert not list(tmp_path.iterdir())
