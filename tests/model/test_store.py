from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anoscan.core.errors import ModelError, UsageError
from anoscan.model import file as modelfile
from anoscan.model import listing, store
from anoscan.model import names as naming
from anoscan.model.claims import claim

METADATA = {
    "format": 1,
    "anoscan_version": "0.1.0",
    "config": {"architecture": "dcgan", "objective": "wgan-gp"},
    "image_rule": {"size": 32, "channels": 1},
    "training_data": {"trained": 270},
}


def model_bytes(**metadata: object) -> bytes:
    text = json.dumps({"checksum": "0" * 64, **METADATA, **metadata})
    header = json.dumps({"__metadata__": {"anoscan": text}}).encode()
    return struct.pack("<Q", len(header)) + header


def write(path: Path, *, trained_at: int = 0, **metadata: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_bytes(**metadata))
    os.utime(path, (trained_at, trained_at))
    return path


def add(name: str, *, trained_at: int = 0, **metadata: object) -> Path:
    return write(store.path_for(name), trained_at=trained_at, **metadata)


def names() -> list[str]:
    return [summary.name for summary in listing.models()]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANOSCAN_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_models_and_checkpoints_live_under_anoscan_home(home: Path) -> None:
    assert store.home() == home
    assert store.path_for("a b") == home / "models" / "a b.safetensors"
    assert store.checkpoint_path("a") == home / "checkpoints" / "a.safetensors"


def test_two_trainings_of_one_name_do_not_run_at_once(home: Path) -> None:
    with claim("a"), claim("b"):
        with (
            pytest.raises(ModelError, match="another training of the name 'a'") as raised,
            claim("a"),
        ):
            pass
        assert "--name" in str(raised.value.hint)
    with claim("a"):
        pass


def test_a_file_whose_name_is_no_models_is_not_suggested_for_itself(home: Path) -> None:
    store.models_folder().mkdir(parents=True)
    (store.models_folder() / "a[red]b.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot name a model") as raised:
        store.resolve("a[red]b")
    assert raised.value.hint == "Rename the file."


def test_a_store_that_cannot_be_written_is_said_before_training(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot write to"), claim("a"):
        pass


@pytest.mark.parametrize("value", [None, ""])
def test_without_anoscan_home_the_users_cache_is_used(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("ANOSCAN_HOME")
    if value is not None:
        monkeypatch.setenv("ANOSCAN_HOME", value)
    assert store.home().is_absolute()
    assert store.home().name in ("anoscan", "Cache")


HOSTILE = [
    "",
    ".hidden",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "CON",
    "con",
    "nul.txt",
    "LPT1 .x",
    "-rf",
    " a",
    "a ",
    "a\nb",
    "a\0b",
    "a\x1b[31mb",
    "a:b",
    "a*",
    "\udcff",
    "a\u202eb",
    "x" * 101,
    "字" * 80,
    "a.safetensors",
    "a.SafeTensors",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_that_is_no_safe_file_name_is_a_usage_error(name: str) -> None:
    for function in (naming.check_name, store.path_for, store.checkpoint_path, store.remove):
        with pytest.raises(UsageError) as caught:
            function(name)
        assert caught.value.hint
        assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "name", ["bottle", "a.b_c-d +(1)", "Größe 2", "नमस्ते", "螺丝", "x" * 100, "console", "v1.2"]
)
def test_names_in_any_script_are_taken(name: str) -> None:
    assert naming.check_name(name) == name
    assert naming.name_for(Path(name)) == name


def test_a_decomposed_name_is_the_same_as_the_composed_one() -> None:
    assert naming.check_name("Gro\u0308ße") == naming.name_for(Path("Gro\u0308ße")) == "Größe"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/data/screws", "screws"),
        ("/", "model"),
        ("/data/|||", "model"),
        ("/data/a:b\nc", "a-b-c"),
        ("/data/.cache", "cache"),
        ("/data/CON", "model-CON"),
        ("/data/a.safetensors", "a"),
        ("/data/\udcffx", "x"),
        ("/data/" + "y" * 200, "y" * 100),
    ],
    ids=ascii,
)
def test_a_folder_gives_a_model_its_name(folder: str, name: str) -> None:
    assert naming.name_for(Path(folder)) == name


def test_a_dot_takes_the_name_of_the_working_folder() -> None:
    assert naming.name_for(Path()) == "work"


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_characters="/\0", codec=None), min_size=1, max_size=150))
def test_the_name_made_from_any_folder_is_valid_and_stays(text: str) -> None:
    name = naming.made_of(text)
    assert naming.check_name(name) == name == naming.made_of(name)


def test_no_model_at_all_hints_at_training(home: Path) -> None:
    for _ in range(2):
        with pytest.raises(ModelError, match="no model yet") as caught:
            store.resolve(None)
        assert "anoscan train" in (caught.value.hint or "")
        (home / "models").mkdir(parents=True, exist_ok=True)


def test_without_a_model_named_the_most_recently_trained_is_taken() -> None:
    add("a", trained_at=10)
    add("c", trained_at=30)
    add("b", trained_at=30)
    add("d", trained_at=20)
    assert store.resolve(None) == store.path_for("b")


def test_a_name_in_the_store_wins_over_a_file_which_its_path_reaches() -> None:
    in_store = add("bottle")
    here = write(Path("bottle"))
    assert store.resolve("bottle") == in_store
    assert store.resolve("./bottle") == here
    in_store.unlink()
    assert store.resolve("bottle") == here


def test_a_path_is_found_with_and_without_a_folder() -> None:
    write(Path("sub/x.safetensors"))
    write(Path("y.safetensors"))
    assert store.resolve("sub/x.safetensors") == Path("sub/x.safetensors")
    assert store.resolve(Path("y.safetensors").absolute()) == Path("y.safetensors").absolute()
    assert store.resolve("y.safetensors") == Path("y.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("botle", "no model named 'botle'"),
        ("sub/botle.safetensors", "no model file sub/botle.safetensors"),
        ("bottle.safetensors", "no model file bottle.safetensors"),
    ],
)
def test_a_model_that_is_not_there_brings_close_names(wrong: str, message: str) -> None:
    add("bottle")
    with pytest.raises(ModelError, match=message) as caught:
        store.resolve(wrong)
    assert caught.value.hint == "Did you mean 'bottle'?"


@pytest.mark.parametrize("wrong", [*HOSTILE, "x" * 5000, "zzz"], ids=ascii)
def test_nothing_that_is_not_there_resolves(wrong: str) -> None:
    add("bottle")
    if wrong == "/etc/passwd":
        wrong = "/etc/no-such-file"
    with pytest.raises(ModelError) as caught:
        store.resolve(wrong)
    assert caught.value.hint


def test_models_are_listed_by_name_with_what_they_are() -> None:
    add("b")
    path = add("a")
    first, second = listing.models()
    assert (first.name, second.name) == ("a", "b")
    assert first.path == str(path)
    assert first.bytes == path.stat().st_size
    assert (first.created_by, first.architecture, first.objective) == ("0.1.0", "dcgan", "wgan-gp")
    assert (first.size, first.channels, first.images) == (32, 1, 270)
    os.utime(path, (0, 1_772_366_400))
    assert listing.models()[0].trained_at == "2026-03-01T12:00:00Z"
    assert first.problem is None


def test_metadata_of_other_shapes_leave_the_summary_empty() -> None:
    add("a", anoscan_version=3, config=[], image_rule={"size": "32", "channels": True})
    add("b", training_data=None, config={"architecture": 1, "objective": None}, image_rule=4)
    for summary in listing.models():
        assert summary.problem is None
        assert (summary.architecture, summary.objective) == (None, None)
        assert (summary.size, summary.channels) == (None, None)
    assert listing.models()[0].created_by is None
    assert listing.models()[1].images is None


def test_files_that_are_no_models_are_listed_with_their_problem(home: Path) -> None:
    add("good")
    store.path_for("bad").write_bytes(b"garbage")
    store.path_for("folder").mkdir()
    store.path_for("gone").symlink_to("nowhere")
    write(home / "models" / "odd:name.safetensors")
    problems = {summary.name: summary.problem for summary in listing.models()}
    assert problems.pop("good") is None
    assert sorted(problems) == ["bad", "folder", "gone", "odd:name"]
    assert all(problems.values())


def test_other_files_in_the_folder_are_not_listed(home: Path) -> None:
    add("good")
    (home / "models" / "notes.txt").touch()
    (home / "models" / ".hidden.safetensors").touch()
    (home / "models" / ".anoscan-1.tmp").touch()
    assert names() == ["good"]


def test_without_a_folder_there_are_no_models() -> None:
    assert listing.models() == []


def test_a_store_that_cannot_be_read_is_a_model_error(home: Path) -> None:
    home.mkdir()
    (home / "models").touch()
    with pytest.raises(ModelError, match="cannot read the folder"):
        listing.models()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_that_is_not_utf8_is_listed(home: Path) -> None:
    write(home / "models" / os.fsdecode(b"m\xff\n.safetensors"))
    assert listing.models()[0].problem


def test_remove_deletes_the_model_and_only_that() -> None:
    add("a")
    add("b")
    store.remove("a")
    assert names() == ["b"]


def test_rename_keeps_content_and_time_of_training() -> None:
    before = add("a", trained_at=5).read_bytes()
    store.rename("a", "b")
    assert names() == ["b"]
    assert store.path_for("b").read_bytes() == before
    assert store.path_for("b").stat().st_mtime == 5
    store.rename("b", "b")
    assert names() == ["b"]


def test_rename_replaces_another_model_only_by_force() -> None:
    add("a", anoscan_version="A")
    add("b", anoscan_version="B")
    with pytest.raises(ModelError, match="'b' already") as caught:
        store.rename("a", "b")
    assert "--force" in (caught.value.hint or "")
    assert names() == ["a", "b"]
    store.rename("a", "b", force=True)
    assert [(s.name, s.created_by) for s in listing.models()] == [("b", "A")]


def test_missing_models_are_model_errors_with_a_hint() -> None:
    add("bottle")
    for action in (
        lambda: store.remove("botle"),
        lambda: store.rename("botle", "b"),
        lambda: store.export("botle", Path()),
    ):
        with pytest.raises(ModelError, match="no model named 'botle'") as caught:
            action()
        assert caught.value.hint == "Did you mean 'bottle'?"


def test_export_writes_into_a_folder_or_a_file() -> None:
    source = add("a", trained_at=5)
    Path("folder").mkdir()
    for destination, expected in (
        (Path("folder"), Path("folder/a.safetensors")),
        (Path("new/b.safetensors"), Path("new/b.safetensors")),
    ):
        assert store.export("a", destination) == expected
        assert expected.read_bytes() == source.read_bytes()
        assert expected.stat().st_mtime == 5


def test_export_replaces_a_file_only_by_force() -> None:
    add("a")
    Path("x").write_text("precious")
    with pytest.raises(ModelError, match="exists already") as caught:
        store.export("a", Path("x"))
    assert "--force" in (caught.value.hint or "")
    assert Path("x").read_text() == "precious"
    store.export("a", Path("x"), force=True)
    assert Path("x").read_bytes() == store.path_for("a").read_bytes()


def test_a_copy_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = write(Path("m.safetensors"))
    add("a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(ModelError, match="No space left"):
            store.import_model(source)
        with pytest.raises(ModelError, match="No space left"):
            store.export("a", Path("copy"))
    assert names() == ["a"]
    assert [path.name for path in store.models_folder().iterdir()] == ["a.safetensors"]
    assert [path.name for path in Path().iterdir()] == ["m.safetensors"]


def test_import_names_the_model_after_the_file_unless_told() -> None:
    file = write(Path("my:model.safetensors"))
    assert store.import_model(file) == "my-model"
    assert store.import_model(file, name="other") == "other"
    assert names() == ["my-model", "other"]
    assert store.path_for("other").read_bytes() == file.read_bytes()


def test_import_replaces_a_model_only_by_force() -> None:
    add("a", anoscan_version="old")
    file = write(Path("a.safetensors"), anoscan_version="new")
    with pytest.raises(ModelError, match="'a' already"):
        store.import_model(file)
    assert listing.models()[0].created_by == "old"
    store.import_model(file, force=True)
    assert listing.models()[0].created_by == "new"


def test_an_imported_model_does_not_pass_for_the_most_recently_trained() -> None:
    mine = add("mine", trained_at=20)
    store.import_model(write(Path("theirs.safetensors"), trained_at=10))
    assert store.resolve(None) == mine


def test_import_refuses_what_is_no_model() -> None:
    Path("x.safetensors").write_bytes(b"garbage")
    write(Path("c.safetensors"), kind="checkpoint")
    for file in (Path("x.safetensors"), Path("c.safetensors"), Path("none"), Path()):
        with pytest.raises(ModelError):
            store.import_model(file, force=True)
    with pytest.raises(UsageError):
        store.import_model(write(Path("y.safetensors")), name="../y")
    assert listing.models() == []


def test_a_saved_model_is_found_by_name() -> None:
    modelfile.save(store.path_for("a"), {}, METADATA)
    assert modelfile.read_metadata(store.resolve("a")) == METADATA
