"""Marks on the images of a report, in a real browser: kept, counted, saved, and used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anoscan.cli.app import app
from anoscan.detector import Detector
from anoscan.evaluation.labels import gather, read_labels
from anoscan.evaluation.recalibrate import Target
from tests.conftest import Digits
from tests.report.test_html_page import page_of
from tests.report.test_html_page_browser import browser, opened

__all__ = ["browser"]

NAMES = [
    "queries/a, b.png",
    'queries/"quoted".png',
    "queries/line\nbreak.png",
    "queries/\u753b\u50cf \u00fc.png",
    "=HYPERLINK(1).png",
    " blank.png",
    "queries/scan.tif/3",
    "</script><b>.png",
    "not-utf8-\udcff.png",
    "queries/plain.png",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(NAMES, tmp_path_factory.mktemp("marks"))[0]


def saved(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "labels.csv"
    file = folder / "labels.csv"
    download.value.save_as(file)
    return file


def marked(page: Any) -> str:
    return str(page.locator("#marked").text_content())


def button(page: Any, place: int, word: str) -> Any:
    return page.locator("#grid li").nth(place).get_by_role("button", name=word)


def test_any_name_comes_back_from_the_saved_labels(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 1600})
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector(".card img")
    for place in range(len(NAMES)):
        mark = page.locator("#grid li").nth(place).locator(".marks button").nth(place % 2)
        assert mark.is_disabled() == (NAMES[place] == "not-utf8-\udcff.png")
        if mark.is_enabled():
            mark.click()
    labels = saved(page, tmp_path)
    context.close()
    found = {label.path: label.anomalous for label in read_labels(labels)}
    expected = {name: place % 2 == 0 for place, name in enumerate(NAMES) if "utf8" not in name}
    for name in ("=HYPERLINK(1).png", " blank.png"):
        expected[f"./{name}"] = expected.pop(name)
    assert found == expected
    assert labels.read_bytes().startswith(b"\xef\xbb\xbfpath,label\r\n")


def test_marks_are_counted_kept_and_taken_back(browser: Any, report: Path) -> None:
    for page in opened(browser, report):
        assert page.locator("#save").is_disabled()
        button(page, 0, "Confirmed").click()
        button(page, 1, "False alarm").click()
        assert marked(page) == "Marked: 1 anomaly, 1 normal"
        assert button(page, 0, "Confirmed").get_attribute("aria-pressed") == "true"
        assert button(page, 0, "False alarm").get_attribute("aria-pressed") == "false"
        button(page, 1, "Confirmed").click()  # the other one takes its place
        assert marked(page) == "Marked: 2 anomalies, 0 normal"
        page.select_option("#mark", "none")
        assert page.locator("#count").text_content() == f"{len(NAMES) - 2} of {len(NAMES)} images"
        page.locator("#filters button[type=reset]").click()
        button(page, 1, "Confirmed").click()
        assert marked(page) == "Marked: 1 anomaly, 0 normal"
        # Beside the verdict normal, "confirmed" could be read as "it is normal".
        assert button(page, 9, "Missed anomaly").count() == 1


def test_marks_outlive_the_window_but_not_other_results(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    context = browser.new_context()
    for path, expected in ((report, None), (report, "Marked: 1 anomaly, 0 normal")):
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector(".card img")
        if expected is None:
            button(page, 0, "Confirmed").click()
        else:
            assert marked(page) == expected
        page.close()
    other = page_of(["queries/a, b.png", "another.png"], tmp_path)[0]
    page = context.new_page()
    page.goto(other.as_uri())
    page.wait_for_selector(".card img")
    assert marked(page) == "No image is marked"
    context.close()


def test_without_storage_marks_last_as_long_as_the_page_which_says_so(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    context = browser.new_context()
    context.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    )
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector(".card img")
    assert not page.locator("#unkept").is_visible()
    button(page, 0, "False alarm").click()
    assert page.locator("#unkept").is_visible()
    assert [label.anomalous for label in read_labels(saved(page, tmp_path))] == [False]
    context.close()


def test_the_keyboard_marks(browser: Any, report: Path) -> None:
    for page in opened(browser, report):
        page.keyboard.press("c")  # nothing has the focus, so nothing is marked
        assert marked(page) == "No image is marked"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("c")
        assert button(page, 1, "Confirmed").get_attribute("aria-pressed") == "true"
        page.keyboard.press("f")
        assert marked(page) == "Marked: 0 anomalies, 1 normal"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert marked(page) == "Marked: 1 anomaly, 0 normal"
        assert not page.locator("#viewer").is_visible()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")  # the viewer
        page.keyboard.press("f")
        viewed = page.locator("#viewer").get_by_role("button", name="False alarm")
        assert viewed.get_attribute("aria-pressed") == "true"
        page.keyboard.press("Escape")
        assert marked(page) == "Marked: 1 anomaly, 1 normal"


def test_on_paper_marks_are_words_and_buttons_are_gone(browser: Any, report: Path) -> None:
    for page in opened(browser, report):
        button(page, 0, "Confirmed").click()
        page.emulate_media(media="print")
        assert page.locator("#grid button:visible:not(.card)").count() == 0
        assert not page.locator("#save").is_visible()
        assert page.locator(".stamp").first.is_visible()
        assert page.locator(".stamp").first.text_content() == "confirmed"


def test_without_javascript_the_page_lists_the_images(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 740})
    page = context.new_page()
    page.goto(report.as_uri())
    rows = page.locator("noscript tbody tr")
    assert rows.count() == len(NAMES)
    assert rows.nth(1).locator(".path").text_content() == 'queries/"quoted".png'
    assert page.locator("dl.run").is_visible()
    assert not page.locator("#filters, #review, #tools").first.is_visible()
    context.close()


def test_two_marks_go_from_the_page_into_the_calibration(
    browser: Any,
    trained: Detector,
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(digits.queries.parent)
    page_file, downloads = tmp_path / "report.html", tmp_path / "downloads"
    downloads.mkdir()
    options = ["--model", trained.reference.path, "--report", str(page_file), "--quiet"]
    some = [f"queries/{file.name}" for file in sorted(digits.queries.iterdir())[::10]]
    app(["score", *some, *options], standalone_mode=False)
    context = browser.new_context()
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector(".card img")
    button(page, 0, "Confirmed").click()
    button(page, 1, "False alarm").click()
    labels = saved(page, downloads)
    context.close()
    given = gather(labels, None, None)
    assert [item.anomalous for item in given.images] == [True, False]
    own = Detector.load(trained.reference.path)
    review = own.calibrate([], Target(labels=labels), name="reviewed").review
    assert review is not None
    assert (review.joined, review.anomalous, review.found_before) == (1, 1, 1)
