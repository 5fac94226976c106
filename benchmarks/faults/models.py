"""The parts `models` and `checkpoints`: damaged files that the program wrote itself once."""

from __future__ import annotations

import json
import math
import os
import random
import struct
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anoscan.core.errors import ModelError, TrainingDiverged
from anoscan.core.progress import Progress
from anoscan.detector import Detector
from anoscan.model import file as model_file
from anoscan.model import store
from benchmarks.faults import runs
from benchmarks.faults.campaign import Outcome, Plan, Tally, attempt_all
from benchmarks.faults.mutations import any_bytes
from benchmarks.faults.sabotage import Sabotage

MOST_MEGABYTES = 1024
_WHOLE = 10  # of so many resumed trainings one goes on to its end
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 1000, 10**6, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-300,
    1e308, "", "x", "dcgan", "../x", "\x1b[31m", "x" * 10_000, [], {}, [[]], [None], [0] * 1000,
    {"": {}},
)  # fmt: skip


# --- the parts ----------------------------------------------------------------------------------


def models(plan: Plan, tally: Tally) -> None:
    """Try damaged models: each is refused with a reason, or gives finite scores."""
    made = runs.prepare(plan.prepared)
    attempt_all(attempt_models, plan, tally, together=32, given=(made.file, made.query))


def checkpoints(plan: Plan, tally: Tally) -> None:
    """Try damaged checkpoints: each is refused with a reason, or trained on from.

    One is of the first stage of a training, and one of the moment before the model is saved.
    """
    made, kept = runs.prepare(plan.prepared), []
    for folder, kill_at in (("checkpoints", 9), ("models", 0)):
        home = plan.folder / f"killed-{folder}"
        killed = Sabotage(below=str(home / folder), kill_at=kill_at, only="os.rename")
        runs.call(made.train(), plan.folder / "out", home, sabotage=killed, often=True)
        kept.append(home / "checkpoints" / f"{runs.NAME}.safetensors")
        if not kept[-1].exists():
            raise RuntimeError(f"a training that was killed in {folder} left no checkpoint")
    given = (made.normal, made.query, *kept)
    attempt_all(attempt_checkpoints, plan, tally, together=8, given=given)


# --- in warm processes --------------------------------------------------------------------------


def load(file: Path) -> Detector:
    """Load a model as ``score`` does."""
    return Detector.load(file, device="cpu", workers=1)


def attempt_models(
    seed: int,
    numbers: Sequence[int],
    original: Path,
    query: Path,
    load: Callable[[Path], Detector] = load,
) -> list[Outcome]:
    """Load models of the cases, and score an image with them."""
    file = _own_folder() / "m.safetensors"

    def score() -> str:
        return _scored(load(file), query)

    return [_tried(number, damaged(seed, number, original, file), score) for number in numbers]


def attempt_checkpoints(
    seed: int, numbers: Sequence[int], normal: Path, query: Path, *originals: Path
) -> list[Outcome]:
    """Go on with trainings from checkpoints of the cases."""
    folder = _own_folder()
    os.environ["ANOSCAN_HOME"] = str(folder)
    found = []
    for number in numbers:
        checkpoint = store.checkpoint_path(runs.NAME)
        checkpoint.parent.mkdir(exist_ok=True)
        original = originals[number % len(originals)]
        what = damaged(seed, number // len(originals), original, checkpoint)
        whole = number // len(originals) % _WHOLE == 0

        def go_on(whole: bool = whole) -> str:
            detector = _resumed(normal, folder / "m.safetensors", whole)
            return _scored(detector, query) if detector else ""

        found.append(_tried(number, what, go_on))
    return found


class _Restored(Exception):
    """The stages of a training are over."""


def _resumed(normal: Path, file: Path, whole: bool) -> Detector | None:
    def watch(progress: Progress) -> None:
        if progress.stage == "calibration" and not whole:
            raise _Restored

    try:
        return Detector.train(
            normal, name=runs.NAME, path=file, force=True, resume=True, device="cpu", workers=1,
            on_progress=watch, **runs.SETTINGS,
        )  # fmt: skip
    except _Restored:
        return None


def _scored(detector: Detector, query: Path) -> str:
    """Return what is wrong with the scores of a model; empty when they are finite."""
    for image in detector.score([query]).images:
        values = (image.score, image.p_value, *image.terms.values())
        if not all(isinstance(value, float) and math.isfinite(value) for value in values):
            return f"gives score {image.score}, p-value {image.p_value}, {image.verdict!r}"
    return ""


def _tried(number: int, what: str, use: Callable[[], str]) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
    before = _megabytes("VmRSS")
    try:
        problem = use()
    except (ModelError, TrainingDiverged) as error:
        plain = error.message.replace("\x1b", "").isprintable()  # the command escapes it
        problem = "" if plain else f"has the message {error.message!r}"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    taken = _megabytes("VmHWM") - before
    if not problem and taken > MOST_MEGABYTES:
        problem = f"takes {taken:.0f} MB"
    return Outcome(number, "failed" if problem else "held", what, problem)


def _megabytes(what: str) -> float:
    """Return a number of megabytes from the status of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


@cache
def _own_folder() -> Path:
    """Return a folder of this process, which is set up for many models."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return Path(tempfile.mkdtemp(prefix="anoscan-models-"))


# --- damage -------------------------------------------------------------------------------------


def damaged(seed: int, number: int, original: Path, target: Path) -> str:
    """Write a damaged copy of a model or a checkpoint, and say what was done.

    A third are damaged bytes, a third a damaged header, and a third have a damaged content in a
    file that is written as the program writes it, so that its checksum is right.
    """
    rng = np.random.default_rng([seed, number])
    way = (_bytes, _header, _content)[number % 3]
    return f"{way.__name__.strip('_')}: {way(original, target, rng)}"


def _bytes(original: Path, target: Path, rng: np.random.Generator) -> str:
    data = original.read_bytes()
    for _ in range(int(rng.integers(1, 4))):
        data = any_bytes(data, rng) if data else data
    target.write_bytes(data)
    return f"{len(data)} bytes"


def _header(original: Path, target: Path, rng: np.random.Generator) -> str:
    data = original.read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:length])
    if rng.random() < 0.5:
        inner = json.loads(header["__metadata__"][model_file.METADATA_KEY])
        done = _changed(inner, rng)
        header["__metadata__"][model_file.METADATA_KEY] = json.dumps(inner)
    else:
        done = _changed(header, rng)
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[length:])
    return done


def _content(original: Path, target: Path, rng: np.random.Generator) -> str:
    tensors, metadata, *_ = model_file.load(original)
    for _ in range(100):
        done = _changed(metadata, rng) if rng.random() < 0.5 else _changed_tensor(tensors, rng)
        try:
            model_file.save(target, tensors, metadata)
            return done
        except (ModelError, ValueError, TypeError, RuntimeError):  # no file can hold this
            tensors, metadata, *_ = model_file.load(original)
    raise ValueError("no content could be written")


def _changed(tree: dict[str, Any], rng: np.random.Generator) -> str:
    """Change a value of a JSON object, wherever it is, and return its path."""
    chosen = random.Random(int(rng.integers(2**32)))
    path: list[str] = []
    node: Any = tree
    while True:
        key = chosen.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path.append(str(key))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or chosen.random() < 0.2:
            break
        node = inner
    what = chosen.randrange(6)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node["new"] = node.pop(key)
    elif what == 2 and type(inner) in (int, float):
        node[key] = inner * chosen.choice([-1, 2, 1000, 2**20])
    elif what == 3 and isinstance(inner, list):
        inner += chosen.choice([inner, [0], [None]])
    else:
        node[key] = chosen.choice(_VALUES)
    return f"{'/'.join(path)} ({what})"[:100]


_Tensor = torch.Tensor


def _poisoned(value: float) -> Callable[[_Tensor, np.random.Generator], _Tensor]:
    def poison(tensor: _Tensor, rng: np.random.Generator) -> _Tensor:
        made = tensor.clone() if tensor.is_floating_point() else tensor.float()
        flat = made.view(-1)
        if len(flat):
            flat[int(rng.integers(len(flat)))] = value
        return made

    return poison


_TENSOR_CHANGES: dict[str, Callable[[_Tensor, np.random.Generator], _Tensor]] = {
    "NaN": _poisoned(math.nan),
    "infinity": _poisoned(math.inf),
    "1e38": _poisoned(1e38),
    "-1": _poisoned(-1.0),
    "zeros": lambda tensor, rng: torch.zeros_like(tensor),
    "all NaN": lambda tensor, rng: torch.full_like(tensor.float(), math.nan),
    "flat": lambda tensor, rng: tensor.reshape(-1),
    "one more axis": lambda tensor, rng: tensor[None],
    "cut": lambda tensor, rng: tensor[: len(tensor) // 2] if tensor.ndim else tensor[None],
    "doubled": lambda tensor, rng: torch.cat([tensor, tensor]) if tensor.ndim else tensor + 1,
    "turned": lambda tensor, rng: tensor.movedim(0, -1) if tensor.ndim else tensor,
    "empty": lambda tensor, rng: tensor.reshape(-1)[:0],
    "half": lambda tensor, rng: tensor.half(),
    "double": lambda tensor, rng: tensor.double(),
    "integers": lambda tensor, rng: tensor.long(),
    "bytes": lambda tensor, rng: tensor.to(torch.uint8),
}


def _changed_tensor(tensors: dict[str, _Tensor], rng: np.random.Generator) -> str:
    names = sorted(tensors)
    name = names[int(rng.integers(len(names)))]
    what = [*_TENSOR_CHANGES, "missing", "renamed"][int(rng.integers(2 + len(_TENSOR_CHANGES)))]
    if what in ("missing", "renamed"):
        tensor = tensors.pop(name)
        if what == "renamed":
            tensors[name + "x"] = tensor
    else:
        tensors[name] = _TENSOR_CHANGES[what](tensors[name], rng)
    return f"{name} {what}"
