"""The parts `concurrency` and `load`: processes at the same time, and very many images."""

from __future__ import annotations

import json
import math
import os
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.faults import runs
from benchmarks.faults.campaign import Outcome, Plan, Tally, descendants, resident
from benchmarks.faults.interrupted import without_date
from benchmarks.faults.runs import Material, Run

REPLACING_SECONDS = 10.0
_GROWTH, _SLACK = 1.05, 20.0  # of memory in the second half of a scoring: ratio, and MB
_DIFFERENT = 500  # images of the part `load`; the others are links to them


# --- at the same time ---------------------------------------------------------------------------


def concurrency(plan: Plan, tally: Tally) -> None:
    """Let processes write and read the same files at the same time."""
    material = runs.prepare(plan.prepared)
    kinds = (_two_trainings, _score_and_calibrate, _load_while_replaced, _two_writers)
    for number in plan.cases:
        kind = kinds[number % len(kinds)]
        folder = plan.folder / f"case-{number}"
        rng = np.random.default_rng([plan.seed, number])
        problem = kind(material, folder, rng)
        what = kind.__name__.strip("_").replace("_", " ")
        tally.add(Outcome(number, "failed" if problem else "held", what, problem))


def _two_trainings(material: Material, folder: Path, rng: np.random.Generator) -> str:
    """Train twice under one name: one training gives the model, the other is refused."""
    home = folder / "home"
    first = Run(material.train(), folder / "a", home)
    time.sleep(float(rng.uniform(0, 1.5)))
    second = Run(material.train(), folder / "b", home)
    ended = [first.ended(), second.ended()]
    if problem := ended[0].problem or ended[1].problem:
        return problem
    if sorted(str(run.code) for run in ended) != ["0", "1"]:
        return f"exit codes {ended[0].code} and {ended[1].code}"
    refused = next(run for run in ended if run.code)
    if not refused.is_one_line():
        return f"is refused with {refused.err!r}"
    file = home / "models" / f"{runs.NAME}.safetensors"
    return "" if file.read_bytes() == material.model else "the model is another one"


def _score_and_calibrate(material: Material, folder: Path, rng: np.random.Generator) -> str:
    """Score while the model is calibrated: both succeed."""
    home = _store(material, folder)
    calibrate = ["calibrate", runs.NAME, "--false-alarm-rate", "0.2", "-q"]
    score = ["score", material.queries, "--model", runs.NAME, "--json", "-q"]
    first = Run(calibrate, folder / "a", home)
    time.sleep(float(rng.uniform(0, 0.5)))
    second = Run(score, folder / "b", home)
    for run in (first.ended(), second.ended()):
        if run.code:
            return run.problem or run.err
    return ""


def _load_while_replaced(material: Material, folder: Path, rng: np.random.Generator) -> str:
    """Load a model while another process replaces it: hash and weights are of one version."""
    home = _store(material, folder)
    file = home / "models" / material.file.name
    context = get_context("forkserver")
    versions, ours = [material.model], folder / "problem"
    for rate in ("0.1", "0.2"):
        runs.call(["calibrate", runs.NAME, "--false-alarm-rate", rate, "-q"], folder / "a", home)
        versions.append(file.read_bytes())
    writer = context.Process(target=_replace, args=(file, versions))
    reader = context.Process(target=_load, args=(file, versions, ours))
    writer.start()
    reader.start()
    reader.join(10 * REPLACING_SECONDS)
    code = reader.exitcode
    for process in (writer, reader):
        process.kill()
        process.join()
    if code is None:
        return "hangs"
    return ours.read_text() if ours.exists() else f"no load within {REPLACING_SECONDS} s"


def _replace(file: Path, versions: list[bytes]) -> None:
    from anoscan.model.file import replacing_model

    while True:
        for version in versions:
            with replacing_model(file) as stream:
                stream.write(version)


def _load(file: Path, versions: list[bytes], problem: Path) -> None:
    """Load again and again; write what is wrong, and nothing when all loads were right."""
    import hashlib

    from anoscan.detector import Detector

    expected = {}
    for version in versions:
        alone = problem.with_name("alone.safetensors")
        alone.write_bytes(version)
        rate = Detector.load(alone, device="cpu", workers=1).threshold().false_alarm_rate
        expected[hashlib.sha256(version).hexdigest()] = rate
    until, said, loads = time.monotonic() + REPLACING_SECONDS, "", 0
    while time.monotonic() < until and not said:
        try:
            detector = Detector.load(file, device="cpu", workers=1)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            break
        loads += 1
        if detector.threshold().false_alarm_rate != expected[detector.reference.sha256]:
            said = f"load {loads} has the hash of another file than its content"
    if loads or said:
        problem.write_text(said)


def _two_writers(material: Material, folder: Path, rng: np.random.Generator) -> str:
    """Write pictures, maps and a page to the same places: each file is whole."""

    def score(place: Path, said: str) -> Run:
        outputs = ["--residuals", place / "r", "--maps", place / "m", "--report", place / "p.html"]
        given = ["score", material.queries, "--model", material.file, *outputs, "--json", "-q"]
        return Run(given, folder / said, folder / "home")

    def contents(place: Path) -> dict[str, bytes]:
        files = sorted(path for path in place.rglob("*") if path.is_file())
        return {str(file.relative_to(place)): without_date(file, place) for file in files}

    alone = score(folder / "alone", "said").ended()
    both = [score(folder / "both", said) for said in ("a", "b")]
    for run in (alone, *(run.ended() for run in both)):
        if run.code:
            return run.problem or run.err
    expected, found = contents(folder / "alone"), contents(folder / "both")
    differing = [name for name in expected | found if expected.get(name) != found.get(name)]
    return f"{differing[0]} differs" if differing else ""


def _store(material: Material, folder: Path) -> Path:
    """Return a store with the model."""
    models = folder / "home" / "models"
    models.mkdir(parents=True)
    (models / material.file.name).write_bytes(material.model)
    return folder / "home"


# --- very many ----------------------------------------------------------------------------------


def load(plan: Plan, tally: Tally) -> None:
    """Score very many small images as lines of JSON, and compare memory early and late."""
    material = runs.prepare(plan.prepared)
    many = _linked(plan.folder / "many", plan.count)
    given = ["score", many, "--model", material.file, "--jsonl", "-q"]
    run = Run(given, plan.folder / "said", material.home)
    out = plan.folder / "said" / "out"
    begun, seen = time.monotonic(), []
    while run.alive():
        time.sleep(0.2)
        processes = list(descendants(run.pid))
        seen.append((out.stat().st_size, sum(map(resident, processes)), time.monotonic()))
    ended = run.ended()
    for number, problem in enumerate(_problems(ended.out, plan.count)):
        tally.add(Outcome(number, "failed" if problem else "held", "image", problem))
    if problem := ended.problem or (f"exit code {ended.code}" if ended.code else ""):
        tally.add(Outcome(-1, "failed", "run", problem))
    first = next((at for size, _, at in seen if size), begun)
    tally.facts["images_per_second"] = round(plan.count / max(time.monotonic() - first, 0.1))
    compare(tally, [(size / max(len(ended.out), 1), mb) for size, mb, _ in seen])


def compare(tally: Tally, seen: list[tuple[float, float]]) -> None:
    """Compare the most memory in the second and in the last quarter of the images."""
    early, late = (
        max((mb for share, mb in seen if low <= share <= high), default=math.nan)
        for low, high in ((0.25, 0.5), (0.75, 1.0))
    )
    if math.isnan(early + late):  # it was over before it was looked at
        return
    tally.facts |= {"early_mb": round(early), "late_mb": round(late)}
    if late > _GROWTH * early + _SLACK:
        problem = f"grows from {early:.0f} to {late:.0f} MB"
        tally.add(Outcome(-1, "failed", "memory of all processes", problem))


def _problems(text: str, count: int) -> list[str]:
    lines = text.splitlines()
    found = ["" if _is_finite(line) else f"line {line[:100]!r}" for line in lines]
    return found + ["has no line"] * (count - len(lines))


def _is_finite(line: str) -> bool:
    try:
        image = json.loads(line)
        return math.isfinite(image["score"]) and math.isfinite(image["p_value"])
    except (ValueError, KeyError, TypeError):
        return False


def _linked(folder: Path, count: int) -> Path:
    """Write so many files, which are links to fewer images."""
    images = sorted(runs.digits(folder.with_name("some"), min(count, _DIFFERENT)).iterdir())
    for number in range(count):
        inside = folder / f"{number // 1000:03}"
        if number % 1000 == 0:
            inside.mkdir(parents=True)
        os.link(images[number % len(images)], inside / f"{number:06}.png")
    return folder
