"""What replaced or removed a model can be taken back, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from anoscan.core.errors import AnoscanWarning, ModelError
from anoscan.model import history, listing, store, versions
from anoscan.model.training_record import Record
from tests.model.test_store import add, home, names, write

__all__ = ["home"]  # a fixture


def change(name: str, content: str, action: str = "calibrate") -> None:
    """Replace a model as the commands do."""
    path = store.path_for(name)
    with versions.keeping(path, action):
        new = path.with_name("new")
        write(new, anoscan_version=content)
        new.replace(path)


def content(name: str) -> str | None:
    """Say which of the contents of `change` a model has; None where it is removed."""
    return next((model.created_by for model in listing.models() if model.name == name), None)


def kept(name: str) -> list[tuple[str, bool]]:
    return [(v.action, v.undone) for v in versions.kept(store.path_for(name))]


def test_changes_are_taken_back_one_after_the_other() -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    change("a", "2", "train")
    store.remove("a")
    assert names() == []
    for was in ("2", "1", "0"):
        store.restore("a")
        assert content("a") == was
    with pytest.raises(ModelError, match="no earlier version of 'a'"):
        store.restore("a")
    assert content("a") == "0"


def test_a_restore_is_taken_back_too_and_keeps_the_date_of_training() -> None:
    add("a", anoscan_version="0", trained_at=5)
    for number in "12":
        change("a", number)
        os.utime(store.path_for("a"), (50, 50))
    for _ in range(2):
        store.restore("a")
    assert content("a") == "0"
    assert store.path_for("a").stat().st_mtime == 5
    for was in ("1", "2"):
        store.restore("a", forward=True)
        assert content("a") == was
    assert store.path_for("a").stat().st_mtime == 50
    with pytest.raises(ModelError, match="nothing of 'a' was taken back"):
        store.restore("a", forward=True)
    store.restore("a")
    assert content("a") == "1"


def test_what_was_taken_back_is_not_lost_by_a_new_change() -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    change("a", "2")
    store.restore("a")
    store.restore("a")
    change("a", "3")
    assert kept("a") == [("calibrate", False), ("restore", False), ("calibrate", False)]
    for was in ("0", "2", "1"):
        store.restore("a")
        assert content("a") == was


def test_so_many_versions_are_kept_and_no_more() -> None:
    add("a", anoscan_version="0")
    for number in range(1, 9):
        change("a", str(number))
    assert len(kept("a")) == versions.KEPT
    for number in (7, 6, 5, 4, 3):
        store.restore("a")
        assert content("a") == str(number)
    with pytest.raises(ModelError):
        store.restore("a")
    assert len(kept("a")) == versions.KEPT


def test_the_same_model_again_is_no_version() -> None:
    add("a", anoscan_version="0")
    change("a", "0")
    assert kept("a") == []


def test_a_change_that_fails_keeps_nothing_and_loses_nothing() -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    store.restore("a")

    def fail() -> None:
        with versions.keeping(store.path_for("a"), "train"):
            raise ModelError("no room.")

    with pytest.raises(ModelError, match="no room"):
        fail()
    assert content("a") == "0"
    assert kept("a") == [("calibrate", True)]
    store.restore("a", forward=True)
    assert content("a") == "1"


def test_a_model_that_cannot_be_kept_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    add("a", anoscan_version="0")
    store.path_for("a").with_name("a.kept").write_text("a file in the way")
    with pytest.raises(ModelError, match="cannot be kept") as caught:
        store.remove("a")
    assert "--purge" in (caught.value.hint or "")
    assert content("a") == "0"


def test_where_no_links_can_be_made_versions_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    add("a", anoscan_version="0", trained_at=7)
    Record(store.path_for("a")).append({"stage": "gan", "images": 1, "pictures": []})
    store.remove("a")
    store.restore("a")
    assert content("a") == "0"
    assert store.path_for("a").stat().st_mtime == 7
    assert len(Record(store.path_for("a")).lines()) == 1


def test_a_link_in_the_store_is_kept_as_what_it_shows(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", anoscan_version="0")
    store.models_folder().mkdir(parents=True)
    store.path_for("a").symlink_to(elsewhere)
    store.remove("a")
    write(elsewhere, anoscan_version="changed in place")
    store.restore("a")
    assert content("a") == "0"


def test_the_record_of_a_training_comes_back_with_its_model() -> None:
    path = add("a", anoscan_version="0")
    record = Record(path)
    record.append({"stage": "gan", "images": 1, "pictures": []})
    change("a", "1", "train")
    record.clear()
    record.append({"stage": "gan", "images": 2, "pictures": []})
    store.restore("a")
    assert [line["images"] for line in record.lines()] == [1]
    store.restore("a", forward=True)
    assert [line["images"] for line in record.lines()] == [2]
    store.remove("a")
    assert not record.folder.exists()
    store.restore("a")
    assert [line["images"] for line in record.lines()] == [2]


KILLED = """
import os, pathlib, sys
from anoscan.model import store, versions
path = store.path_for("a")
where = sys.argv[1]
if where == "kept":
    versions.Record.copy = lambda *_: os._exit(9)
if where == "restoring":
    pathlib.Path.replace = lambda *_: os._exit(9)
    store.restore("a")
if where == "restored":
    versions.Record.move = lambda *_: os._exit(9)
    store.restore("a")
if where == "removed":
    store.Record.clear = lambda *_: os._exit(9)
    store.remove("a")
with versions.keeping(path, "train"):
    path.with_name("new").replace(path)
    if where == "replaced":
        os._exit(9)
"""


@pytest.mark.parametrize("where", ["kept", "replaced", "removed", "restoring", "restored"])
def test_a_process_that_is_killed_leaves_the_old_model_or_the_new_one(where: str) -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    write(store.models_folder() / "new", anoscan_version="2")
    done = subprocess.run([sys.executable, "-c", KILLED, where], check=False)
    assert done.returncode == 9
    now = {"kept": "1", "replaced": "2", "removed": None, "restoring": "1", "restored": "0"}[where]
    assert content("a") == now
    if where == "restored":
        store.restore("a", forward=True)
        assert content("a") == "1"
        return
    older = {"kept": "0", "replaced": "1", "removed": "1", "restoring": "0"}[where]
    store.restore("a")
    assert content("a") == older
    if now is not None:
        store.restore("a", forward=True)
        assert content("a") == now


def test_two_processes_do_not_change_the_versions_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    monkeypatch.setattr(versions, "_PATIENCE", 0.1)
    caught: list[ModelError] = []

    def restore() -> None:
        try:
            store.restore("a")
        except ModelError as error:
            caught.append(error)

    with versions.keeping(store.path_for("a"), "train"):
        other = threading.Thread(target=restore)
        other.start()
        other.join()
    assert "another process is changing" in caught[0].message
    store.restore("a")
    assert content("a") == "0"


def test_rename_over_a_model_is_taken_back_on_both_sides() -> None:
    add("a", anoscan_version="A")
    add("b", anoscan_version="B")
    store.rename("a", "b", force=True)
    assert (content("a"), content("b")) == (None, "A")
    store.restore("b")
    store.restore("a")
    assert (content("a"), content("b")) == ("A", "B")


def test_versions_history_and_pin_follow_a_plain_rename() -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    history.add(store.path_for("a"), "calibrate")
    store.pin("a")
    store.rename("a", "b")
    assert store.pinned() == "b"
    assert kept("a") == []
    assert [event.action for event in history.events(store.path_for("b"))] == [
        "calibrate",
        "rename",
    ]
    assert history.events(store.path_for("a")) == ()
    store.restore("b")
    assert content("b") == "0"
    store.rename("b", "b")
    assert content("b") == "0"


def test_import_over_a_model_is_taken_back() -> None:
    add("a", anoscan_version="0")
    store.import_model(write(Path("a.safetensors"), anoscan_version="1"), force=True)
    assert content("a") == "1"
    store.restore("a")
    assert content("a") == "0"


def test_a_file_outside_the_store_is_restored_by_its_path() -> None:
    path = write(Path("sub/x.safetensors"), anoscan_version="0")
    with versions.keeping(path, "calibrate"):
        write(Path("new"), anoscan_version="1").replace(path)
    store.restore("sub/x.safetensors")
    assert b'"0\\"' in path.read_bytes()
    with pytest.raises(ModelError, match="no earlier version"):
        store.restore("sub/x.safetensors")
    with pytest.raises(ModelError, match="no model file"):
        store.restore("sub/y.safetensors")


def test_a_removed_model_is_named_with_the_size_of_what_is_kept() -> None:
    size = add("bottle").stat().st_size
    add("zzz")
    store.remove("bottle")
    (gone,) = listing.removed()
    assert (gone.name, gone.kept, gone.kept_bytes) == ("bottle", 1, size)
    with pytest.raises(ModelError) as caught:
        store.restore("botle")
    assert caught.value.hint == "Did you mean 'bottle'?"
    change("zzz", "1")
    (summary,) = listing.models()
    assert (summary.kept, summary.kept_bytes) == (1, size)


@pytest.mark.parametrize("gone", [False, True])
def test_purge_leaves_nothing(gone: bool) -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    history.add(store.path_for("a"), "train")
    Record(store.path_for("a")).append({"stage": "gan", "images": 1, "pictures": []})
    if gone:
        store.remove("a")
    store.remove("a", purge=True)
    assert list(store.models_folder().iterdir()) == []
    with pytest.raises(ModelError, match="no model named"):
        store.remove("a", purge=True)


def test_other_files_in_the_folder_of_versions_are_left_alone() -> None:
    add("a", anoscan_version="0")
    change("a", "1")
    stray = store.models_folder() / "a.kept" / "notes.txt"
    stray.touch()
    store.restore("a")
    store.remove("a", purge=True)
    assert stray.exists()


# --- the pin --------------------------------------------------------------------------------------


def test_a_pinned_model_is_the_default_whatever_was_trained_last() -> None:
    add("old", trained_at=10)
    add("new", trained_at=20)
    assert not store.default().pinned
    store.pin("old")
    assert store.resolve(None) == store.path_for("old")
    assert store.default().pinned
    assert {m.name: (m.default, m.pinned) for m in listing.models()} == {
        "new": (False, False),
        "old": (True, True),
    }
    store.pin(None)
    store.pin(None)
    assert store.resolve(None) == store.path_for("new")


def test_only_a_model_of_the_store_is_pinned() -> None:
    add("bottle")
    with pytest.raises(ModelError, match="no model named 'botle'"):
        store.pin("botle")
    assert store.pinned() is None


def test_removing_the_pinned_model_takes_the_pin_away() -> None:
    add("a")
    add("b")
    store.pin("a")
    store.remove("b")
    assert store.pinned() == "a"
    store.remove("a")
    assert store.pinned() is None


def test_a_pinned_model_that_vanished_is_said_and_no_other_is_taken() -> None:
    path = add("a")
    add("b")
    store.pin("a")
    path.unlink()
    with pytest.raises(ModelError, match="pinned model 'a' is not there") as caught:
        store.resolve(None)
    assert "--none" in (caught.value.hint or "")
    assert [model.default for model in listing.models()] == [False]


def test_a_file_of_the_pin_that_is_garbage_pins_nothing(home: Path) -> None:
    add("a")
    for garbage in (b"\xff\xfe", b"../a", b""):
        (home / "default-model").write_bytes(garbage)
        assert store.resolve(None) == store.path_for("a")


# --- the history ----------------------------------------------------------------------------------


def test_the_store_writes_down_what_it_did() -> None:
    file = write(Path("there.safetensors"))
    store.import_model(file, name="a")
    store.rename("a", "b")
    store.remove("b")
    store.restore("b")
    report = listing.history_of("b")
    assert [event.action for event in report.events] == ["import", "rename", "remove", "restore"]
    imported, renamed, _, restored = report.events
    assert imported.folders == (str(file.absolute()),)
    assert renamed.note == "from a to b"
    assert restored.note == "as before remove"
    assert imported.sha256 == restored.sha256 is not None
    assert all(event.at.endswith("Z") and event.by for event in report.events)


def test_a_removed_model_still_has_its_history() -> None:
    add("a")
    store.remove("a")
    report = listing.history_of("a")
    assert (report.exists, len(report.kept)) == (False, 1)
    with pytest.raises(ModelError, match="no model named 'c'"):
        listing.history_of("c")


def test_a_model_without_a_history_has_an_empty_one() -> None:
    add("a")
    assert listing.history_of("a").events == ()


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '{"at": 3, "action": "train"}', "\x00", "[" * 10_000]
)
def test_lines_that_are_no_events_are_left_out(line: str) -> None:
    path = add("a")
    history.add(path, "train", images=3)
    with history.file_of(path).open("a") as stream:
        stream.write(line + "\n")
    history.add(path, "calibrate")
    assert [event.action for event in history.events(path)] == ["train", "calibrate"]


def test_a_folder_whose_name_is_not_utf8_is_written_down() -> None:
    path = add("a")
    history.add(path, "train", folders=[os.fsdecode(b"m\xff\n")])
    (event,) = history.events(path)
    assert event.folders[0].endswith("m\\xff\n")


def test_a_history_that_cannot_be_written_is_warned_of() -> None:
    path = add("a")
    history.file_of(path).mkdir()
    with pytest.warns(AnoscanWarning, match="lacks this train"):
        history.add(path, "train")


def test_export_carries_the_history_only_when_asked() -> None:
    history.add(add("a"), "train", images=7)
    store.export("a", Path("plain.safetensors"))
    assert not Path("plain.history.jsonl").exists()
    store.export("a", Path("with.safetensors"), with_history=True)
    assert store.import_model(Path("with.safetensors")) == "with"
    assert [event.action for event in history.events(store.path_for("with"))] == ["train", "import"]
