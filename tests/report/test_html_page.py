"""The page of a scoring, without a browser: what is in it, and what cannot be."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import json
import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anoscan.cli.app import app
from anoscan.core.errors import InputError, UsageError
from anoscan.core.results import ImageScore, Region
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.model import file as modelfile
from anoscan.report import html_page
from anoscan.report.album import Album
from anoscan.report.html_page import Background, HtmlReport, chart, run_facts
from anoscan.report.pictures import Views
from anoscan.report.views import ImageViews
from anoscan.training.health import warnings_of
from tests.conftest import Digits

HOSTILE = (
    "</script><script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "<!--.png",
    "line\nbreak\u202egnp.png",
    "not-utf8-\udcff.png",
    "{{ 7 * 7 }}{% raw %}.png",
    "javascript:alert(1)&amp;'.png",
)
RULE = ImageRule(size=16, channels=1, window=None)


def result(path: str, score: float, regions: tuple[Region, ...] = ()) -> ImageScore:
    return ImageScore(
        rank=None,
        path=path,
        score=score,
        p_value=0.01,
        q_value=None,
        verdict="anomalous" if score > 2 else "normal",
        terms={"density": score, "local": score / 2},
        regions=regions,
        residual=None,
    )


def document(scored: list[ImageScore]) -> dict[str, Any]:
    ordered = sorted(scored, key=lambda image: -image.score)
    rows = [
        {
            "rank": rank,
            "path": image.path,
            "score": image.score,
            "p_value": image.p_value,
            "q_value": 0.05,
            "verdict": image.verdict,
            "terms": image.terms,
            "regions": [dataclasses.asdict(region) for region in image.regions],
            "residual": None,
        }
        for rank, image in enumerate(ordered, start=1)
    ]
    return {
        "schema": "anoscan.score/1",
        "model": {"name": "cells", "path": "cells.safetensors", "sha256": "0" * 64},
        "score": "calibrated",
        "mapping": "encoder",
        "threshold": {
            "score": 2.0,
            "false_alarm_rate": 0.01,
            "chosen": "auto",
            "effective_rate": 0.01,
            "calibration_images": 99,
            "warning": None,
        },
        "counts": {
            "scored": len(rows),
            "anomalous": sum(row["verdict"] == "anomalous" for row in rows),
            "skipped": 1,
        },
        "images": rows,
        "skipped": [{"path": "<b>broken</b>.png", "reason": "empty file"}],
    }


def seen(path: str, folder: Path, *, size: tuple[int, int] = (40, 20)) -> ImageViews:
    file = folder / "picture.png"
    if not file.exists():
        noise = np.random.default_rng(0).integers(0, 255, size[::-1]).astype(np.uint8)
        Image.fromarray(noise).save(file)
    decoded = decode(ImageFile(path, file, path), RULE)
    return ImageViews(decoded, np.zeros((1, 16, 16)), np.eye(16), 1.0, RULE)


def page_of(
    names: tuple[str, ...] | list[str], folder: Path, *, assets: bool = False
) -> tuple[Path, str]:
    """A written page of images with falling scores from 4."""
    scored = [result(name, 4 - i / 2) for i, name in enumerate(names)]
    path = folder / "report.html"
    with HtmlReport(path, len(names), assets=assets) as page:
        for image in reversed(scored):
            page.add(image, seen(image.path, folder))
        page.write(document(scored), Background({}, np.linspace(-2, 2, 99)))
    return path, path.read_text(encoding="utf-8")


def test_the_page_says_that_the_rate_was_chosen_automatically(tmp_path: Path) -> None:
    _, text = page_of(["a"], tmp_path)
    assert "1 % (chosen automatically) on 99 calibration images" in text


def test_the_top_says_what_was_scored_when_and_by_what() -> None:
    checks = [{"name": "a", "verdict": "ok"}, {"name": "b", "verdict": "warn"}]
    metadata = {"anoscan_version": "1.2.3", "device": "cpu", "health": {"checks": checks}}
    when = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    scored = document([result("q/x/a.png", 3.0), result("q/x/b.png", 1.0)])
    facts = dict(run_facts(scored, Background(metadata, np.empty(0), ("q", "r"), when)))
    assert facts == {
        "queries": "q, r",
        "scored on": "2026-01-02 03:04 UTC",
        "model": "cells, trained with anoscan 1.2.3 on cpu",
        "threshold": "anomalous is a score above 2",
        "false-alarm rate": "1 % (chosen automatically) on 99 calibration images",
        "images": "1 anomalous, 1 normal, 1 skipped",
        "model health": "warn",
    }
    scored["skipped"] = []
    assert dict(run_facts(scored, Background({}, np.empty(0))))["queries"] == "q/x"


def test_marks_belong_to_the_results_and_not_to_the_time(tmp_path: Path) -> None:
    keys = []
    for names in (["a.png", "b.png"], ["a.png", "b.png"], ["a.png", "c.png"]):
        keys.append(Page(page_of(names, tmp_path)[1]).data["key"])
    assert keys[0] == keys[1] != keys[2]


class Page(HTMLParser):
    """What a browser would make of the markup."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.styles: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.texts.append((self._inside, data))

    def images(self) -> list[tuple[list[Any], list[str]]]:
        """Rows without the number of their pictures, and the pictures."""
        held = {a.get("id"): text for a, text in self.scripts}
        rows = self.data["images"]
        return [(row[:6] + row[7:], held[f"p{row[6]}"].split(" ")) for row in rows]

    @property
    def data(self) -> dict[str, Any]:
        found = [text for attributes, text in self.scripts if attributes.get("id") == "data"]
        value: dict[str, Any] = json.loads(found[0])
        return value


def sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_hostile_names_are_data_and_nothing_else(tmp_path: Path) -> None:
    _, text = page_of(HOSTILE, tmp_path)

    page = Page(text)
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(running) == 1
    assert "alert" not in running[0]
    assert [tag for tag, _ in page.elements if tag == "img"] == ["img"] * 3  # of the viewer
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert len(page.data["images"]) == len(HOSTILE)
    names = [row[1] for row in page.data["images"]]
    assert names[0] == HOSTILE[0]
    assert names[3] == "line\\nbreak\\u202egnp.png"
    assert names[4] == "not-utf8-\\xff.png"
    assert names[5] == HOSTILE[5]
    assert "&lt;b&gt;broken&lt;/b&gt;.png" in text


def test_the_policy_allows_its_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    _, text = page_of(["a.png"], tmp_path)

    page = Page(text)
    policies = [a["content"] for _, a in page.elements if "http-equiv" in a]
    script = next(text for attributes, text in page.scripts if "type" not in attributes)
    assert policies == [
        f"default-src 'none'; img-src data:; style-src {sha(''.join(page.styles))}; "
        f"script-src {sha(script)}; base-uri 'none'; form-action 'none'"
    ]
    head = [tag for tag, _ in page.elements]
    assert head.index("meta") < head.index("style") < head.index("script")


def test_nothing_in_the_page_points_outside_it(tmp_path: Path) -> None:
    _, text = page_of(["a.png"], tmp_path)

    page = Page(text)
    links = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "action", "srcset", "data", "poster")
    ]
    assert all(str(link).startswith("#") for link in links)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert not any("url(" in style or "@import" in style for style in page.styles)


def test_pictures_belong_to_their_images_and_are_as_tall_as_they_were(tmp_path: Path) -> None:
    _, text = page_of(["first.png", "second.png", "third.png"], tmp_path)

    page = Page(text)
    held = {a["id"]: text for a, text in page.scripts if a.get("type") == "text/plain"}
    assert [(row[0], row[1], row[6], row[7:9]) for row in page.data["images"]] == [
        (1, "first.png", 2, [40, 20]),
        (2, "second.png", 1, [40, 20]),
        (3, "third.png", 0, [40, 20]),
    ]
    for row in page.data["images"]:
        query, reconstruction, anomaly_map = held[f"p{row[6]}"].split(" ")
        for encoded, size in (
            (query, (40, 20)),
            (reconstruction, (16, 16)),
            (anomaly_map, (200, 100)),  # enlarged: the map over the query
        ):
            file = tmp_path / "decoded.webp"
            file.write_bytes(base64.b64decode(encoded, validate=True))
            with Image.open(file) as picture:
                assert (picture.format, picture.size) == ("WEBP", size)


@pytest.mark.parametrize(
    ("orientation", "box"),
    [
        (1, (0, 0, 0.25, 0.1)),
        (3, (0.75, 0.9, 0.25, 0.1)),
        (6, (0.9, 0, 0.1, 0.25)),
        (8, (0, 0.75, 0.1, 0.25)),
    ],
)
def test_regions_turn_with_the_image(
    orientation: int, box: tuple[float, ...], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    decoded = decode(ImageFile("a.jpg", tmp_path / "turned.jpg", "a.jpg"), RULE)
    region = Region(x=0, y=0, width=10, height=2, score=1.0, area=20, p_value=0.01)
    scored = result("a.jpg", 3.0, (region,))
    with HtmlReport(tmp_path / "r.html", 1) as page:
        page.add(scored, ImageViews(decoded, np.zeros((1, 16, 16)), np.eye(16), 1.0, RULE))
        page.write(document([scored]), Background({}, np.empty(0)))

    row = Page((tmp_path / "r.html").read_text(encoding="utf-8")).data["images"][0]
    assert row[7:9] == ([20, 40] if orientation >= 5 else [40, 20])
    np.testing.assert_allclose(row[10], [[*box, 0]], atol=1e-4)


def page_of_regions(folder: Path, *, reconstructs: bool) -> Path:
    """A page of an image with a region above the level, of one below it, and of one with none."""
    above = Region(x=10, y=5, width=10, height=5, score=1.0, area=20, p_value=0.01)
    below = dataclasses.replace(above, below_level=True)
    scored = [
        result(name, score, found)
        for name, score, found in (
            ("above.png", 4.0, (above,)),
            ("below.png", 3.0, (below,)),
            ("none.png", 1.0, ()),
        )
    ]
    path = folder / "regions.html"
    with HtmlReport(path, 3) as page:
        for image in scored:
            views = dataclasses.replace(seen(image.path, folder), reconstructs=reconstructs)
            page.add(image, views)
        page.write(document(scored), Background({}, np.empty(0)))
    return path


def test_the_page_says_which_regions_are_below_the_level_and_what_colours_mean(
    tmp_path: Path,
) -> None:
    text = page_of_regions(tmp_path, reconstructs=True).read_text(encoding="utf-8")
    page = Page(text)
    box = [0.25, 0.25, 0.25, 0.25]
    assert [row[10] for row in page.data["images"]] == [[[*box, 0]], [[*box, 1]], []]
    assert page.data["reconstructs"] is True
    words = " ".join(part for _, part in page.texts)
    assert "1 and more, in standard deviations of normal images" in words
    assert "below the level of normal images" in words
    stops = [attributes for tag, attributes in page.elements if tag == "stop"]
    assert [stops[0]["stop-color"], stops[-1]["stop-color"]] == ["rgb(0 0 4)", "rgb(249 203 53)"]


def test_the_page_of_a_model_that_cannot_reconstruct_has_placards(tmp_path: Path) -> None:
    path = page_of_regions(tmp_path, reconstructs=False)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.data["reconstructs"] is False
    for _, (_, reconstruction, _) in page.images():
        file = tmp_path / "decoded.webp"
        file.write_bytes(base64.b64decode(reconstruction))
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.abs(pixels - 96).max(-1) < 10).mean() > 0.5


def test_pictures_beside_the_page_are_files_and_old_ones_go(tmp_path: Path) -> None:
    page_of(["a.png", "b.png", "c.png"], tmp_path, assets=True)
    (tmp_path / "report-files" / "mine.txt").write_text("kept", encoding="utf-8")
    _, text = page_of(["a.png", "b.png"], tmp_path, assets=True)

    assert sorted(file.name for file in (tmp_path / "report-files").iterdir()) == [
        *[f"00000{i}-{name}.webp" for i in (0, 1) for name in ("map", "query", "reconstruction")],
        "mine.txt",
    ]
    page = Page(text)
    assert page.data["assets"] == "report-files/"
    assert not any(a.get("type") == "text/plain" for a, _ in page.scripts)


@pytest.mark.parametrize(("count", "bytes_each"), [(5_000, 8_000), (500, 60_000)])
def test_the_more_images_the_smaller_their_pictures_even_of_pure_noise(
    count: int, bytes_each: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (512, 512, 3)).astype(np.uint8))

    def draw(side: int) -> Views:
        small = noise.copy()
        small.thumbnail((side, side))
        return Views(small, small, small)

    with Album(count, tmp_path) as album:
        sizes = [len(album.inline(album.add(draw))) for _ in range(4)]
    assert max(sizes) <= bytes_each * 4 / 3 + 10
    assert min(sizes) > bytes_each / 4


def test_simple_pictures_stay_large_however_many_there_are(tmp_path: Path) -> None:
    plain = Image.new("RGB", (384, 384), (90, 120, 60))
    with Album(5_000, tmp_path) as album:
        drawn = album.add(lambda side: Views(*[plain.resize((side, side))] * 3))
        encoded = album.inline(drawn).split()[0]
    (tmp_path / "plain.webp").write_bytes(base64.b64decode(encoded))
    with Image.open(tmp_path / "plain.webp") as picture:
        assert picture.width == 384


def test_bins_of_the_chart_have_an_edge_at_the_threshold_and_lose_nobody() -> None:
    rng = np.random.default_rng(0)
    scores = [*rng.normal(0, 1, 500), 2.0, 2.0 + 1e-9, 900.0]
    found = chart(scores, rng.normal(0, 1, 99), 2.0)

    assert found is not None
    assert sum(bar.scored for bar in found.bars) == 503
    assert sum(bar.held_out for bar in found.bars) == 99
    assert sum(bar.scored for bar in found.bars if bar.anomalous) == sum(s > 2.0 for s in scores)
    assert found.cut
    assert found.high < 30  # one far away must not press all others into one bin
    assert 4 <= len(found.ticks) <= 12


@pytest.mark.parametrize(
    ("scores", "held_out"), [([1.0], []), ([1.0, 1.0], [1.0]), ([5.0], [5.0]), ([-3.0], [])]
)
def test_a_chart_of_hardly_any_scores_is_still_a_chart(
    scores: list[float], held_out: list[float]
) -> None:
    found = chart(scores, np.array(held_out), 1.0)
    assert found is not None
    assert sum(bar.scored for bar in found.bars) == len(scores)
    assert np.isfinite([bar.left for bar in found.bars]).all()


def test_a_report_that_is_not_named_as_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.html"):
        HtmlReport(tmp_path / "image.png", 1)


def test_a_page_that_cannot_be_written_fails_before_anything_is_scored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        HtmlReport(tmp_path / "file" / "report.html", 1)


def test_scoring_with_a_model_that_failed_a_check_begins_with_that(
    model_file: Path, few: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata, _ = modelfile.load(model_file)
    for check in metadata["health"]["checks"]:
        check["verdict"] = "fail" if check["name"] in ("images", "constant") else "ok"
    modelfile.save(tmp_path / "poor.safetensors", tensors, metadata)
    page = tmp_path / "page.html"
    query = str(next(few.queries.iterdir()))
    code = run("score", query, "--model", str(tmp_path / "poor.safetensors"),
               "--report", str(page))  # fmt: skip
    warning = "failed the checks of images and constant: its scores and verdicts may mean little"
    assert code == 0
    assert warning in capsys.readouterr().err
    assert warning in page.read_text()


def test_the_model_card_survives_metadata_that_nobody_checked() -> None:
    odd: dict[str, Any] = {"config": 3, "image_rule": {"size": "x"}, "health": {"checks": [1, {}]}}
    card = html_page.model_card(document([]), odd)
    assert ("model", "cells") in card


@pytest.mark.parametrize("health", [None, 3, {"checks": 3}, {"checks": [1, {"verdict": "ok"}]}])
def test_only_a_model_that_failed_a_check_is_warned_of(health: Any) -> None:
    assert warnings_of("cells", {"health": health}) == ()


def run(*arguments: str) -> int:
    try:
        code = app(list(arguments), standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    return int(code or 0)


def test_scoring_writes_the_page(
    model_file: Path, few: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = tmp_path / "queries"
    shutil.copytree(few.queries, queries)
    (queries / "broken.png").write_bytes(b"\x89PNG")
    page = tmp_path / "page.html"

    code = run("score", str(queries), "--model", str(model_file), "--json", "--report", str(page),
               "--false-alarm-rate", "0.05")  # fmt: skip
    out = capsys.readouterr().out
    assert code == 3

    scored = json.loads(out)
    assert "failed the check" not in page.read_text()
    assert "chosen automatically" not in page.read_text()
    first = Page(page.read_text())
    assert [row[1] for row in first.data["images"]] == [row["path"] for row in scored["images"]]
    assert {len(pictures) for _, pictures in first.images()} == {3}
    assert ("dt", "held out") in first.texts
    assert ("td", (queries / "broken.png").as_posix()) in first.texts


@pytest.mark.parametrize(
    "arguments", [["--report", "r.html", "--csv"], ["--report-assets"], ["--report", "r.png"]]
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], model_file: Path, few: Digits
) -> None:
    with pytest.raises(UsageError):
        app(["score", str(few.queries), "--model", str(model_file), *arguments],
            standalone_mode=False)  # fmt: skip


def test_the_wheel_holds_the_templates(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    builder = hatchling.WheelBuilder(str(Path(__file__).parents[2]))
    built = next(builder.build(directory=str(tmp_path), versions=["standard"]))
    names = zipfile.ZipFile(built).namelist()
    for name in ("report.html", "report.css", "report.js"):
        assert f"anoscan/report/templates/{name}" in names
    assert not re.search(r"(^|/)tests/", "\n".join(names))
