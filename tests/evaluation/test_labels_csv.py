"""Label files: what is read, and what is refused with the line it stands on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anoscan.core.errors import InputError
from anoscan.evaluation.labels import Label, match, read_labels


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def labels_of(file: Path, text: str | bytes) -> list[Label]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(file)


def refusal(file: Path, text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        labels_of(file, text)
    assert caught.value.hint
    assert str(file) in caught.value.message
    return caught.value.message


def test_all_columns_are_read_in_any_order(csv_file: Path) -> None:
    assert labels_of(csv_file, "class,mask,label,path\nhole,m/1.png,1,a/1.png\n,,0,2.png\n") == [
        Label(2, "a/1.png", True, "m/1.png", "hole"),
        Label(3, "2.png", False, None, None),
    ]


@pytest.mark.parametrize(
    "path", ["path", "image_path", "image", "file", "filename", " Image Path "]
)
@pytest.mark.parametrize("label", ["label", "target", "y", "LABEL"])
def test_column_names_have_aliases(csv_file: Path, path: str, label: str) -> None:
    assert labels_of(csv_file, f"{label},{path}\n1,a.png\n") == [Label(2, "a.png", True)]


def test_the_plain_column_name_wins_over_an_alias(csv_file: Path) -> None:
    assert labels_of(csv_file, "file,path,y,label\nx,a.png,0,1\n") == [Label(2, "a.png", True)]


ANOMALOUS = """1 true anomaly anomalous abnormal bad defect defective ng nok fail positive
 1.0 True NG Anomaly"""
NORMAL = "0 false normal good ok pass negative 0.0 False OK Good"


def test_words_for_both_labels_are_known_in_any_case(csv_file: Path) -> None:
    for words, anomalous in ((ANOMALOUS, True), (NORMAL, False)):
        for word in words.split():
            found = labels_of(csv_file, f"path,label\na, {word} \n")
            assert (word, found[0].anomalous) == (word, anomalous)


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,label\r\na,1\r\nb,0\r\n",
        b"path;label\na;1\nb;0",
        b"path\tlabel\na\t1\nb\t0\n",
        b'"path","label"\n"a","1"\n"b","0"\n',
        b"path,label\ra,1\rb,0\r",
        b"path,label,note\na,1,\nb,0,x\n",
        b"path,label\na,1,,\n b , 0 \n,\n\n",
    ],
    ids=ascii,
)
def test_csv_dialects_are_recognised(csv_file: Path, text: bytes) -> None:
    assert [(x.path, x.anomalous) for x in labels_of(csv_file, text)] == [("a", True), ("b", False)]


def test_file_names_may_hold_delimiters_newlines_and_any_letter(csv_file: Path) -> None:
    text = 'path;label\n"a;b\nc";1\n"字,\'""\x1b";0\n'
    assert labels_of(csv_file, text) == [
        Label(2, "a;b\nc", True),
        Label(4, "字,'\"\x1b", False),
    ]


def test_bad_rows_are_named_by_the_line_they_start_on(csv_file: Path) -> None:
    text = 'path,label\n\n"a\nb",1\n,1\nc,maybe\nd\ne,1,2\n'
    message = refusal(csv_file, text)
    assert "line 5: no path" in message
    assert "line 6: unknown label 'maybe'" in message
    assert "line 7: unknown label ''" in message
    assert "line 8: 3 cells where the header has 2" in message


def test_five_bad_rows_are_shown_and_the_others_counted(csv_file: Path) -> None:
    message = refusal(csv_file, "path,label\n" + "".join(f"{i},x\n" for i in range(8)))
    assert "line 6" in message
    assert "line 7" not in message
    assert message.endswith("; and 3 more.")


@pytest.mark.parametrize("again", ["a.png", "./a.png", "b/../a.png"])
def test_an_image_labelled_twice_counts_once_unless_the_labels_differ(
    csv_file: Path, again: str
) -> None:
    assert len(labels_of(csv_file, f"path,label\na.png,1\n{again},bad\n")) == 1
    message = refusal(csv_file, f"path,label\na.png,1\n{again},0\n")
    assert f"line 3: {again!r} is labelled otherwise on line 2" in message


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", " ,, \n", '""\n'], ids=ascii)
def test_an_empty_file_is_refused(csv_file: Path, text: str) -> None:
    assert "is empty" in refusal(csv_file, text)


def test_a_header_without_rows_is_refused(csv_file: Path) -> None:
    assert "no labels" in refusal(csv_file, "path,label\n\n")


@pytest.mark.parametrize(
    ("header", "column"), [("path,verdict", "label"), ("label", "path"), ("a.png,1", "path")]
)
def test_a_missing_column_is_named(csv_file: Path, header: str, column: str) -> None:
    message = refusal(csv_file, f"\n{header}\na.png,1\n")
    assert f"no column {column!r}" in message
    assert "line 2" in message


@pytest.mark.parametrize("text", ["path,label\nä,1\n".encode("latin-1"), "path".encode("utf-16")])
def test_text_that_is_not_utf8_is_refused(csv_file: Path, text: bytes) -> None:
    assert "is not UTF-8" in refusal(csv_file, text)


def test_a_cell_without_end_is_refused(csv_file: Path) -> None:
    message = refusal(csv_file, 'path,label\na,1\n"b,0\n' + "x" * 200_000)
    assert "cannot be read as CSV from line 3 on" in message


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match="cannot read the labels"):
            read_labels(file)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=60)
    | st.text(st.sampled_from('ab01,;\t"\r\n \0é'), max_size=60).map(
        lambda text: b"path,label\n" + text.encode()
    )
)
def test_any_bytes_give_labels_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "hostile.csv"
    file.write_bytes(data)
    try:
        labels = read_labels(file)
    except InputError:
        return
    assert labels
    match(labels, file.parent)


def test_images_are_found_below_the_base_or_by_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "c.png"):
        (tmp_path / name).touch()
    paths = ["a.png", "sub\\b.png", str(tmp_path / "c.png"), "none.png", "sub", "x" * 5000, "\0"]
    labels = [Label(i, path, False) for i, path in enumerate(paths)]
    found, missing = match(labels, tmp_path)
    assert [(label.line, path) for label, path in found] == [
        (0, tmp_path / "a.png"),
        (1, tmp_path / "sub" / "b.png"),
        (2, tmp_path / "c.png"),
    ]
    assert [label.line for label in missing] == [3, 4, 5, 6]


@pytest.mark.skipif(os.name == "nt", reason="a backslash separates folders there")
def test_a_backslash_that_is_part_of_a_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").touch()
    assert match([Label(2, "a\\b.png", True)], tmp_path)[0][0][1].name == "a\\b.png"
