"""Rules of ``score --fail-if``: what they say, and how often `excess` cries wolf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import betabinom

from anoscan.core.errors import UsageError
from anoscan.core.results import ImageScore, Threshold
from anoscan.report.alarms import Rule, Tally
from anoscan.scoring import calibration
from tests.cli.test_cli import Run, model_file, odd_folder, run
from tests.conftest import Digits

__all__ = ["model_file", "odd_folder", "run"]  # fixtures


def threshold(n: int = 199, rate: float = 0.05) -> Threshold:
    return Threshold(
        score=0.0,
        false_alarm_rate=rate,
        chosen="given",
        effective_rate=max(rate, 1 / (n + 1)),
        calibration_images=n,
        uncertainty=calibration.rate_interval(n, rate),
        warning=None,
    )


def tally(p_values: list[float], anomalous: int, used: Threshold | None = None) -> Tally:
    found = Tally(used or threshold())
    for number, p in enumerate(p_values):
        found.add(
            ImageScore(
                rank=None,
                path=str(number),
                score=1 - p,
                p_value=p,
                q_value=None,
                verdict="anomalous" if number < anomalous else "normal",
                terms={},
                regions=(),
                residual=None,
            )
        )
    return found


@pytest.mark.parametrize(
    ("rule", "anomalous", "holds", "detail"),
    [
        ("count>3", 3, False, "3 of 100 images are anomalous"),
        ("count>3", 4, True, "4 of 100 images are anomalous"),
        ("count>0", 1, True, "1 of 100 images is anomalous"),
        (" count > 3 ", 4, True, "4 of 100 images are anomalous"),
        ("share>0.05", 5, False, "5 of 100 images are anomalous, 5 %"),
        ("share>5%", 6, True, "6 of 100 images are anomalous, 6 %"),
        ("share>.05", 6, True, "6 of 100 images are anomalous, 6 %"),
        (
            "excess",
            5,
            False,
            "about 5.0 are expected of normal images at a false-alarm rate of 5 %",
        ),
        ("excess", 30, True, "30 of 100 images are anomalous; about 5.0 are expected"),
    ],
)
def test_a_rule_holds_or_not_and_says_with_which_numbers(
    rule: str, anomalous: int, holds: bool, detail: str
) -> None:
    alarm = Rule.of(rule).judge(tally([0.5] * 100, anomalous))
    assert alarm.rule == rule.replace(" ", "")
    assert alarm.holds is holds
    assert detail in alarm.detail


def test_q_values_are_those_of_all_images() -> None:
    p_values = [0.001, 0.004] + [0.5] * 98
    lowest, second = np.sort(calibration.q_values(np.array(p_values)))[:2]
    assert (lowest, second) == (0.1, 0.2)
    for rule, holds, count in (
        ("q<0.1", False, "0 of"),
        ("q<15%", True, "1 of"),
        ("q<1", True, "100"),
    ):
        alarm = Rule.of(rule).judge(tally(p_values, 0))
        assert alarm.holds is holds
        assert alarm.detail.startswith(count)
        assert alarm.detail.endswith("the lowest is 0.1")


@pytest.mark.parametrize("rule", ["count>0", "share>0", "q<1", "excess"])
def test_no_rule_holds_where_nothing_was_scored(rule: str) -> None:
    alarm = Rule.of(rule).judge(tally([], 0))
    assert not alarm.holds
    assert alarm.detail.startswith("0 of 0 images are anomalous")


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "count",
        "count<3",
        "share<1",
        "q>0.1",
        "count>1.5",
        "count>5%",
        "count>-1",
        "share>2",
        "share>101%",
        "q<0",
        "q<1.1",
        "q<nan",
        "excess>1",
        "count>=3",
        "count>3 or excess",
        "Excess",
    ],
)
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="--fail-if"):
        Rule.of(rule)


def test_the_excess_is_the_tail_of_a_beta_binomial_law() -> None:
    for n, rate, j in ((199, 0.05, 10), (99, 0.01, 1), (50, 0.001, 1)):
        for scored, anomalous in ((100, 12), (1000, 70), (20, 0)):
            tail = betabinom.pmf(np.arange(anomalous, scored + 1), scored, j, n + 1 - j).sum()
            found = calibration.excess_p_value(anomalous, scored, n, rate)
            assert found == pytest.approx(tail, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "rate", "images"), [(199, 0.05, 100), (59, 0.1, 400), (599, 0.01, 2000)]
)
def test_an_excess_is_seen_in_at_most_one_of_a_hundred_normal_nights(
    n: int, rate: float, images: int
) -> None:
    # Each night has a model of its own: the promise is about models and nights together.
    random, rule, nights = np.random.default_rng(3), Rule.of("excess"), 8000
    used, false_alarms, naive = threshold(n, rate), 0, 0
    known = {}
    for _ in range(nights):
        level = calibration.threshold(random.standard_normal(n), rate)[0]
        anomalous = int((random.standard_normal(images) > level).sum())
        if anomalous not in known:
            p = calibration.excess_p_value(anomalous, images, n, rate)
            known[anomalous] = p < 0.01
        false_alarms += known[anomalous]
        naive += anomalous > rate * images + 2.33 * (images * rate * (1 - rate)) ** 0.5
    # Three standard deviations of a count of one in a hundred.
    assert false_alarms / nights <= 0.01 + 3 * (0.01 / nights) ** 0.5
    assert false_alarms > 0
    assert naive / nights > 0.02  # without the threshold's own uncertainty there are many more
    assert rule.judge(tally([0.5] * images, images, used)).holds


# --- the command --------------------------------------------------------------------------------


def test_a_rule_that_holds_gives_exit_code_four_and_is_in_the_json(
    run: Run, model_file: Path, digits: Digits, odd_folder: Path
) -> None:
    paths = [digits.queries, odd_folder / "zero.png"]
    always = ("score", *paths, "--model", model_file, "--false-alarm-rate", 0.5, "--json")
    result = run(*always, "--fail-if", "count>5", "--fail-if", "share>99%", "--quiet")
    assert result.code == 4  # although a file was skipped
    anomalous = result.json["counts"]["anomalous"]
    first, second = result.json["alarms"]
    assert first == {
        "rule": "count>5",
        "holds": True,
        "detail": f"{anomalous} of 300 images are anomalous",
    }
    assert (second["rule"], second["holds"]) == ("share>99%", False)
    assert f"Alarm: count>5: {anomalous} of 300 images are anomalous" in result.err.splitlines()
    assert "share>99%" not in result.err
    result = run(*always, "--fail-if", "share>99%")
    assert result.code == 3
    assert "no alarm by share>99%: " in result.err
    assert run(*always).json["alarms"] == []


def test_fail_on_anomaly_is_a_rule_too(run: Run, model_file: Path, digits: Digits) -> None:
    always = ("score", digits.queries, "--model", model_file, "--false-alarm-rate", 0.5, "--json")
    result = run(*always, "--fail-on-anomaly", "--fail-if", "count>0")
    assert result.code == 4
    assert [alarm["rule"] for alarm in result.json["alarms"]] == ["count>0"]


@pytest.mark.parametrize("form", ["--jsonl", "--csv"])
def test_streams_know_the_same_rules(form: str, run: Run, model_file: Path, digits: Digits) -> None:
    always = ("score", digits.queries, "--model", model_file)
    rules = [part for rule in ("q<0.5", "excess", "share>0") for part in ("--fail-if", rule)]
    whole, streamed = run(*always, "--json", *rules), run(*always, form, *rules)
    assert streamed.code == whole.code == 4
    said = [line for line in whole.err.splitlines() if "alarm" in line.lower()]
    assert len(said) == 3
    assert [line for line in streamed.err.splitlines() if "alarm" in line.lower()] == said


def test_a_rule_that_the_shell_cut_is_refused_before_the_model_is_read(run: Run) -> None:
    result = run("score", "none", "--model", "none", "--fail-if", "count")
    assert result.code == 2
    assert "--fail-if must be count>N, share>X, q<X or excess. Got 'count'." in result.err
    assert "Put the rule in quotes" in result.err


def test_an_empty_folder_is_no_failure_where_that_is_allowed(
    run: Run, model_file: Path, odd_folder: Path, tmp_path: Path
) -> None:
    empty, files = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    command = ["score", empty, "--model", model_file]
    assert run(*command).code == 1
    ends = (".csv", ".json", ".jsonl", ".xlsx", ".parquet", ".coco.json", ".html")
    out = [part for end in ends for part in ("-o", files / f"r{end}")]
    rules = [part for rule in ("q<0.5", "excess") for part in ("--fail-if", rule)]
    result = run(*command, "--allow-empty", "--json", *out, *rules, "--append", files / "h.csv")
    assert result.code == 0, result.err
    assert result.json["counts"] == {"scored": 0, "anomalous": 0, "skipped": 0}
    assert [alarm["holds"] for alarm in result.json["alarms"]] == [False, False]
    assert all((files / f"r{end}").exists() for end in ends)
    assert run(*command, "--allow-empty").code == 0
    assert run(*command, "--allow-empty", "--jsonl").out == ""
    assert run("score", tmp_path / "gone", "--model", model_file, "--allow-empty").code == 1
    some = run(*command[:2], odd_folder / "plain.png", *command[2:], "--allow-empty", "--json")
    assert some.json["counts"]["scored"] == 1
