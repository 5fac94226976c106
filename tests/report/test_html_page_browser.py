"""The page of a scoring in a real browser, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_html_page import HOSTILE, page_of, page_of_regions

sync_api = pytest.importorskip("playwright.sync_api")

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
NAMES = [
    *(f"queries/cells/cell{i:03d}.png" for i in range(30)),
    *(f"queries/wafers/deep/wafer{i:03d}.png" for i in range(90)),
    *HOSTILE,
]


def executable() -> str | None:
    named = os.environ.get("ANOSCAN_CHROMIUM")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return named or next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = executable()
    if program is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        except sync_api.Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(NAMES, tmp_path_factory.mktemp("report"))[0]


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened; fails when it complained or asked for anything."""
    yield from opened(browser, report)


def opened(browser: Any, report: Path, **options: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector(".card img")
    yield page
    context.close()
    assert complaints == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    beside = report.with_name(f"{report.stem}-files").as_uri()
    files = [url for url in requests if url.startswith("file:") and not url.startswith(beside)]
    assert files == [report.as_uri()]


def names(page: Any) -> list[str]:
    """Names of the cards that are there, in reading order."""
    found: list[str] = page.locator(".card .name").all_text_contents()
    return found


def count(page: Any) -> str:
    return str(page.locator("#count").text_content())


def test_images_come_by_score_and_only_those_near_the_window_are_there(page: Any) -> None:
    assert count(page) == f"{len(NAMES)} images"
    there = names(page)
    assert there[:2] == ["cell000.png", "cell001.png"]
    assert 8 <= len(there) < 60
    assert page.evaluate("document.querySelector('.card img').naturalWidth") == 40

    page.select_option("#order", "low")
    assert names(page)[0] == HOSTILE[-1]
    page.select_option("#order", "name")
    assert names(page)[0].startswith(('"', "<"))

    page.select_option("#order", "high")
    page.keyboard.press("End")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function(
        "![...document.querySelectorAll('.name')].some(e => e.textContent === 'cell000.png')"
    )
    assert HOSTILE[-1] in names(page)


def test_hostile_names_are_shown_and_do_nothing(page: Any) -> None:
    page.fill("#name", "alert(1)")
    assert count(page) == f"3 of {len(NAMES)} images"
    assert names(page)[1] == HOSTILE[1].rpartition("/")[2]
    page.locator(".card").nth(1).click()
    assert page.locator("#viewer-name").text_content() == HOSTILE[1]
    assert page.evaluate("document.querySelectorAll('#grid script, #viewer script').length") == 0


def test_filters_by_verdict_score_name_and_folder_meet(page: Any) -> None:
    page.get_by_role("radio", name="Anomalous").check()
    assert count(page) == f"4 of {len(NAMES)} images"
    page.get_by_role("radio", name="Normal").check()
    assert count(page) == f"{len(NAMES) - 4} of {len(NAMES)} images"
    page.select_option("#folder", "queries/wafers")
    assert count(page) == f"90 of {len(NAMES)} images"
    page.fill("#name", "WAFER00 png")
    assert count(page) == f"10 of {len(NAMES)} images"
    page.fill("#from", "-12.6")
    assert count(page) == f"4 of {len(NAMES)} images"
    page.fill("#to", "-12")
    assert count(page) == f"2 of {len(NAMES)} images"
    page.fill("#name", "nothing like it")
    assert page.locator("#none").is_visible()
    page.locator("#clear").click()
    page.wait_for_function("() => document.querySelector('#none').hidden")
    assert count(page) == f"{len(NAMES)} images"


def test_dragging_over_the_chart_selects_scores(page: Any) -> None:
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 4, box["y"] + 50)
    page.mouse.up()
    shown = int(count(page).split()[0])
    assert 0 < shown < 30
    assert page.input_value("#from") != ""
    assert page.input_value("#to") == ""


def test_the_keyboard_moves_opens_and_closes(page: Any) -> None:
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "Rank 3, cell002.png, score 3, anomalous"
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").text_content() == NAMES[3]
    assert page.locator("#viewer-place").text_content() == f"4 of {len(NAMES)}"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    # A dialog that closes says so in an event of its own, a moment later.
    page.wait_for_function("document.activeElement.ariaLabel.includes('cell003.png')")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("wafer")
    assert count(page) == f"90 of {len(NAMES)} images"


def test_the_wipe_uncovers_the_reconstruction(page: Any) -> None:
    page.locator(".card").first.click()
    page.keyboard.press("2")
    port = page.locator("#stage .port").nth(1)
    clip = "element => getComputedStyle(element).clipPath"
    assert port.evaluate(clip) == "inset(0px 0px 0px 50%)"
    page.locator("#slide").fill("20")
    assert port.evaluate(clip) == "inset(0px 0px 0px 20%)"
    box = port.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 50)
    page.mouse.up()
    assert page.input_value("#slide") == "75"


def test_all_three_views_zoom_together(page: Any) -> None:
    page.locator(".card").first.click()
    page.keyboard.press("+")
    assert page.locator("#zoom").text_content() == "1.5x"
    sheets = page.locator("#stage .sheet")
    before = [sheets.nth(i).evaluate("e => e.style.transform") for i in range(3)]
    assert len(set(before)) == 1
    assert "scale(1.5)" in before[0]
    page.locator("#stage .port").first.hover()
    page.mouse.wheel(0, -400)
    page.wait_for_function("() => document.querySelector('#zoom').textContent !== '1.5x'")
    page.keyboard.press("0")
    assert page.locator("#zoom").text_content() == "1x"


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Any, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    for page in opened(browser, report, color_scheme="dark"):
        assert page.evaluate(ground) == "rgb(21, 23, 26)"
        page.keyboard.press("t")
        assert page.evaluate(ground) == "rgb(247, 247, 245)"
        page.keyboard.press("t")
        assert page.evaluate(ground) == "rgb(21, 23, 26)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str, browser: Any, report: Path) -> None:
    """WCAG 2.1, 1.4.3: 4.5 to 1, of every text that is there."""
    contrast = """() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (rgb) => { const [r, g, b] = rgb.slice(0, 3).map((v) => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
      const bad = [];
      for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility()) continue;
        if (['SCRIPT', 'OPTION', 'TITLE'].includes(e.tagName)) continue;
        const style = getComputedStyle(e);
        const svg = e.namespaceURI.endsWith('svg');
        const [a, b] = [light(parse(svg ? style.fill : style.color)), light(ground(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
      }
      return bad;
    }"""
    for page in opened(browser, report, color_scheme=scheme):
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.evaluate(contrast) == []
        page.locator(".card").first.click()
        assert page.evaluate(contrast) == []


def test_pictures_and_fields_have_names(page: Any) -> None:
    page.locator(".card").first.click()
    unnamed = """() => [...document.querySelectorAll('img, input, select, button')]
      .filter((e) => e.checkVisibility())
      .filter((e) => !(e.alt || e.getAttribute('aria-label') || e.textContent.trim() ||
        (e.labels && [...e.labels].some((l) => l.textContent.trim()))))
      .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(unnamed) == []
    alts = page.locator("#stage img").evaluate_all("all => all.map((e) => e.alt)")
    assert alts == [
        "Query image of cell000.png", "Reconstruction of cell000.png",
        "Anomaly map over the query of cell000.png"
    ]  # fmt: skip


@pytest.mark.parametrize("reconstructs", [True, False])
def test_boxes_show_where_at_once_and_are_dashed_below_the_level(
    browser: Any, tmp_path: Path, reconstructs: bool
) -> None:
    path = page_of_regions(tmp_path, reconstructs=reconstructs)
    for page in opened(browser, path):
        dashes = """card => [...card.querySelectorAll('rect:not(.halo)')]
          .map((e) => getComputedStyle(e).strokeDasharray)"""
        cards = page.locator(".card")
        assert [cards.nth(i).evaluate(dashes) for i in range(3)] == [["none"], ["6px, 5px"], []]
        picture = cards.first.locator(".over").nth(2).bounding_box()
        box = cards.first.locator("rect:not(.halo)").bounding_box()
        assert box["x"] - picture["x"] == pytest.approx(picture["width"] / 4, abs=2)
        assert box["width"] == pytest.approx(picture["width"] / 4, abs=3)
        cards.first.click()
        shown = page.locator("#stage .pane").evaluate_all(
            "all => all.map((e) => e.querySelectorAll('rect:not(.halo)').length)"
        )
        assert shown == [1, int(reconstructs), 1]
        assert page.locator("#stage .boxes").first.is_visible()
        page.keyboard.press("b")
        assert not page.locator("#stage .boxes").first.is_visible()


def test_on_a_phone_nothing_runs_out_of_the_window(browser: Any, report: Path) -> None:
    wide = "document.documentElement.scrollWidth"
    for page in opened(browser, report):
        page.set_viewport_size({"width": 360, "height": 740})  # narrower than a phone of 375
        page.wait_for_function("() => document.querySelectorAll('#grid li').length > 0")
        page.wait_for_function("() => window.innerWidth === 360")  # not at once on a busy machine
        assert page.evaluate(wide) <= 360
        page.locator(".card").first.click()
        assert page.evaluate(wide) <= 360


def test_printing_lays_out_more_than_the_window(page: Any) -> None:
    before = len(names(page))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(names(page)) == len(NAMES) > before
    assert not page.locator("#filters").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(names(page)) == before


def test_pictures_in_a_folder_are_found_from_the_page(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a # odd % folder"
    folder.mkdir()
    path, _ = page_of(["a.png", "b.png"], folder, assets=True)
    for page in opened(browser, path):
        page.wait_for_function("() => document.querySelector('.card img').naturalWidth === 40")
