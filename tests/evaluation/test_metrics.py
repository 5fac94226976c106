from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from anoscan.core.errors import InputError
from anoscan.evaluation import metrics
from anoscan.evaluation.labels import Label, match, read_labels
from anoscan.evaluation.metrics import at_threshold, detection


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


NORMAL_FIRST = np.array([False, False, True, True])


@pytest.mark.parametrize(
    ("scores", "auroc"),
    [
        ([1, 2, 3, 4], 1.0),
        ([4, 3, 2, 1], 0.0),
        ([1, 3, 2, 4], 0.75),
        ([1, 2, 2, 3], 0.875),
        ([5, 5, 5, 5], 0.5),
    ],
)
def test_auroc_is_the_share_of_pairs_in_order_and_half_for_ties(
    scores: list[float], auroc: float
) -> None:
    assert detection(np.array(scores), NORMAL_FIRST).auroc == pytest.approx(auroc)


def test_rounding_takes_no_average_precision_above_one() -> None:
    # As scikit-learn adds up these, the sum is 1.0000000000000002.
    found = detection(np.arange(21.0), np.arange(21) > 0, resamples=0)
    assert found.average_precision == 1


def test_average_precision_by_hand() -> None:
    found = detection(np.array([1, 3, 2, 4]), NORMAL_FIRST)
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.undefined is None


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    scores = draw(st.lists(st.integers(-20, 20), min_size=2, max_size=30))
    rest = st.lists(st.booleans(), min_size=len(scores) - 2, max_size=len(scores) - 2)
    return np.array(scores, dtype=float), np.array([True, False, *draw(rest)])


@settings(max_examples=50, deadline=None)
@given(labelled())
def test_rising_functions_of_the_scores_change_nothing(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, anomalous = case
    first = detection(scores, anomalous, resamples=20)
    assert detection(np.exp(scores / 5) * 3 + 1, anomalous, resamples=20) == first


@settings(max_examples=100, deadline=None)
@given(labelled())
def test_the_fast_auroc_of_the_bootstrap_is_that_of_sklearn(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, anomalous = case
    distinct, ranks = np.unique(scores, return_inverse=True)
    counts = [
        np.bincount(ranks[chosen], minlength=len(distinct)) for chosen in (~anomalous, anomalous)
    ]
    assert metrics._auroc(*counts) == pytest.approx(roc_auc_score(anomalous, scores))


def test_the_bootstrap_draws_what_resampling_images_by_hand_draws() -> None:
    scores, anomalous = sample(30)
    generator = np.random.default_rng(5)
    groups = [np.flatnonzero(~anomalous), np.flatnonzero(anomalous)]
    by_hand = []
    for _ in range(20):
        drawn = np.concatenate([group[generator.integers(30, size=30)] for group in groups])
        by_hand.append(roc_auc_score(anomalous[drawn], scores[drawn]))
    fast = metrics._bootstrap(scores, anomalous, np.random.default_rng(5), 20)
    assert fast == pytest.approx(np.array(by_hand))


def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
    anomalous = np.repeat([False, True], count)
    return np.random.default_rng(0).normal(size=2 * count) + anomalous, anomalous


def interval(count: int, **options: int) -> tuple[float, float, float]:
    found = detection(*sample(count), **options)
    assert found.auroc is not None
    assert found.auroc_ci95 is not None
    return found.auroc_ci95[0], found.auroc, found.auroc_ci95[1]


def test_the_interval_holds_the_estimate_and_shrinks_with_more_images() -> None:
    widths = []
    for count in (10, 100, 1000):
        low, auroc, high = interval(count)
        assert 0 <= low < auroc < high <= 1
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_the_interval_is_as_wide_as_theory_says() -> None:
    low, _, high = interval(1000)
    # Normal scores one standard deviation apart: AUROC 0.760, standard error 0.0106 (Hanley).
    assert high - low == pytest.approx(2 * 1.96 * 0.0106, rel=0.15)


def test_the_interval_depends_on_the_seed_alone() -> None:
    assert interval(50, seed=1) == interval(50, seed=1)
    assert interval(50, seed=1) != interval(50, seed=2)


@pytest.mark.parametrize("turned", [False, True])
def test_a_perfect_auroc_of_few_images_is_no_certainty(turned: bool) -> None:
    ends = []
    for normal, anomalous in ((5, 5), (10, 5), (50, 50)):
        labels = np.repeat([False, True], (normal, anomalous))
        scores = np.linspace(0, 1, labels.size) * (-1 if turned else 1)
        found = detection(scores, labels)
        assert found.auroc == (0 if turned else 1)
        assert found.auroc_ci95 is not None
        low, high = sorted(1 - end for end in found.auroc_ci95) if turned else found.auroc_ci95
        assert high == 1
        # The standard error of the lower end, by Hanley and McNeil for exponential scores, with
        # the mean number of images in the place of both.
        of_two = low / (2 - low) - low**2, 2 * low**2 / (1 + low) - low**2
        variance = low * (1 - low) + ((normal + anomalous) / 2 - 1) * sum(of_two)
        assert (1 - low) / math.sqrt(variance / (normal * anomalous)) == pytest.approx(1.96)
        ends.append(low)
    assert ends == sorted(ends)
    assert 0.6 < ends[0] < 0.7 < ends[1] < 0.9 < ends[2] < 0.97


def test_the_interval_of_few_good_images_holds_the_truth() -> None:
    generator = np.random.default_rng(0)
    anomalous = np.repeat([False, True], 5)
    held = 0
    for _ in range(60):  # normal scores this far apart have an AUROC of 0.97
        scores = generator.normal(size=10) + anomalous * 2.66
        interval = detection(scores, anomalous, resamples=50).auroc_ci95
        assert interval is not None
        held += interval[0] <= 0.97 <= interval[1]
    assert held >= 54  # 20 by the bootstrap alone


def test_without_resamples_there_is_no_interval() -> None:
    found = detection(*sample(10), resamples=0)
    assert found.auroc is not None
    assert found.auroc_ci95 is None


@settings(max_examples=50, deadline=None)
@given(labelled())
def test_the_interval_always_holds_the_estimate(case: tuple[np.ndarray, np.ndarray]) -> None:
    found = detection(*case, resamples=1)
    assert found.auroc is not None
    assert found.auroc_ci95 is not None
    assert found.auroc_ci95[0] <= found.auroc <= found.auroc_ci95[1]


@pytest.mark.parametrize(
    ("anomalous", "reason"),
    [
        ([False, False], "only normal images are labelled"),
        ([True], "only anomalous images are labelled"),
        ([], "no labelled image"),
    ],
)
def test_one_class_alone_has_no_auroc_and_a_reason(anomalous: list[bool], reason: str) -> None:
    found = detection(np.arange(len(anomalous)), np.array(anomalous, dtype=bool))
    assert (found.auroc, found.auroc_ci95, found.average_precision) == (None, None, None)
    assert reason in (found.undefined or "")


@pytest.mark.parametrize("scores", [[1.0, np.nan], [np.inf, 1.0], [1.0], [[1.0], [2.0]]])
def test_scores_that_are_not_finite_or_do_not_fit_are_refused(scores: list[float]) -> None:
    for function in (detection, lambda s, a: at_threshold(s, a, 0.0)):
        with pytest.raises(ValueError, match="scores"):
            function(np.array(scores), np.array([True, False]))


def test_decisions_by_hand_with_a_score_on_the_threshold_normal() -> None:
    scores = np.array([0.1, 0.5, 0.6, 0.2, 0.5, 0.9, 0.8])
    anomalous = np.array([False, False, False, True, True, True, True])
    found = at_threshold(scores, anomalous, 0.5)
    assert found.score == 0.5
    assert found.false_alarm_rate == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(2 / 4)
    assert found.precision == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("scores", "anomalous", "expected"),
    [
        ([0, 0], [False, True], (0.0, 0.0, None, 0.0)),
        ([2, 0], [False, False], (0.5, None, 0.0, None)),
        ([0, 0], [False, False], (0.0, None, None, None)),
        ([2, 2], [True, True], (None, 1.0, 1.0, 1.0)),
        ([0, 0], [True, True], (None, 0.0, None, 0.0)),
        ([], [], (None, None, None, None)),
    ],
)
def test_rates_without_images_to_take_them_of_are_none(
    scores: list[float], anomalous: list[bool], expected: tuple[float | None, ...]
) -> None:
    found = at_threshold(np.array(scores), np.array(anomalous, dtype=bool), 1.0)
    assert (found.false_alarm_rate, found.recall, found.precision, found.f1) == expected
