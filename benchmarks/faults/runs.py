"""Run commands of the program: by fork from a process that has imported it, or from the start."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.faults.sabotage import Sabotage

ROOT = Path(__file__).parents[2]
SECONDS = 120.0  # after which a run hangs
NAME = "m"
# Settings of a training of about a second.
SETTINGS: dict[str, Any] = {
    "images_shown": 128, "encoder_images_shown": 64, "rotation_images_shown": 64, "batch_size": 16,
    "width": 4, "latent_dim": 8,
}  # fmt: skip
_QUICK = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
_PRELOADED = ["anoscan.cli.app", "anoscan.detector", "anoscan.report.html_page"]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative for a signal; None when it hung) and its output."""

    code: int | None
    out: str
    err: str

    @property
    def problem(self) -> str:
        """What no run may do: end by a signal, hang, or print a traceback; empty when all is well.

        A program that tells a full disk or a broken pipe apart from a bug exits with 0 to 5.
        """
        if self.code is None:
            return f"hangs for {SECONDS:g} seconds"
        if "Traceback" in self.out + self.err:
            errors = re.findall(
                r"^[\w.]*(?:Error|Exception)\b.*", self.out + self.err, re.MULTILINE
            )
            return f"prints a traceback: {errors[-1] if errors else ''}"
        return "" if self.code in range(6) else f"exit code {self.code}: {self.err[-150:]!r}"

    def is_one_line(self) -> bool:
        """Say whether the run failed with one line on stderr that says why."""
        lines = [line for line in self.err.splitlines() if not line.startswith("Warning: ")]
        return self.code in (1, 2) and len(lines) == 1 and lines[0].startswith("Error: ")


@dataclass
class Run:
    """A command that runs, forked from a process that has imported the program."""

    arguments: Sequence[object]
    folder: Path  # of its output, which need not exist
    home: Path
    sabotage: Sabotage = field(default_factory=Sabotage)
    often: bool = False  # whether a training writes a checkpoint after every step

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("out", "err"):
            (self.folder / name).write_bytes(b"")
        context = get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        given = [*map(str, self.arguments)]
        environment = {"ANOSCAN_HOME": str(self.home)}
        self._process = context.Process(
            target=_perform, args=(given, self.folder, environment, self.sabotage, self.often)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid or 0

    def alive(self) -> bool:
        """Say whether it still runs."""
        return self._process.is_alive()

    def kill_after(self, seconds: float) -> Ended:
        """Kill it, unless it ended before."""
        self._process.join(seconds)
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        return self.ended()

    def ended(self, seconds: float = SECONDS) -> Ended:
        """Wait for its end; it is killed when it does not end in time."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = ((self.folder / name).read_bytes().decode() for name in ("out", "err"))
        return Ended(code, out, err)


def _perform(
    arguments: list[str],
    folder: Path,
    environment: Mapping[str, str],
    sabotage: Sabotage,
    often: bool,
) -> None:
    """Be the program, in a process that was forked for it."""
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.update(environment)
    sys.argv = ["anoscan", *arguments]
    if often:
        from anoscan.networks import loop

        loop.LOOK_SECONDS = loop.CHECKPOINT_SECONDS = 0.0
    from anoscan import cli

    sabotage.begin()
    try:
        cli.main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def call(arguments: Sequence[object], folder: Path, home: Path, **how: Any) -> Ended:
    """Run a command to its end; see `Run`."""
    return Run(arguments, folder, home, **how).ended()


def cold(
    arguments: Sequence[object], home: Path, *, shell: str = "", path: Sequence[Path] = (),
    stdin: bytes = b"",
) -> Ended:  # fmt: skip
    """Run a command from the start of Python.

    `shell` redirects its streams, as in ``>&-``. `path` precedes the path of Python's modules.
    """
    places = os.pathsep.join(map(str, [*path, ROOT / "src", ROOT]))
    environment = os.environ | {"ANOSCAN_HOME": str(home), "PYTHONPATH": places}
    command = [sys.executable, "-m", "anoscan", *map(str, arguments)]
    try:
        done = subprocess.run(
            ["bash", "-c", f'"$@" {shell}', "run", *command],
            input=stdin, capture_output=True, env=environment, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ended(None, "", "")
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


# --- what they work on --------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """Images, a store with a model that was trained without any fault, and its bytes."""

    normal: Path
    queries: Path
    home: Path
    model: bytes

    @property
    def file(self) -> Path:
        """The model file."""
        return self.home / "models" / f"{NAME}.safetensors"

    @property
    def query(self) -> Path:
        """One of the query images."""
        return min(self.queries.iterdir())

    def train(self, *more: str) -> list[str]:
        """Return the arguments of the training that made the model."""
        own = ["--name", NAME, "--device", "cpu", "--workers", "1", "-q"]
        return ["train", str(self.normal), *_QUICK, *own, *more]


def digits(folder: Path, count: int, first: int = 0) -> Path:
    """Write scanned digits as PNGs of 8 x 8 pixels."""
    folder.mkdir(parents=True)
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    for number in range(first, first + count):
        Image.fromarray(images[number % len(images)]).save(folder / f"{number:06}.png")
    return folder


def prepare(folder: Path) -> Material:
    """Write images and train a small model, unless they are there.

    Raises
    ------
    RuntimeError
        When the training fails, without any fault.
    """
    made = Material(folder / "normal", folder / "queries", folder / "home", b"")
    if not made.file.exists():
        digits(made.normal, 60)
        digits(made.queries, 12, 100)
        done = call(made.train(), folder / "trained", made.home)
        if done.code:
            raise RuntimeError(f"cannot train: {done.err}")
    return replace(made, model=made.file.read_bytes())
