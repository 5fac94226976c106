"""The command ``anoscan watch``: score images as they arrive in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anoscan.cli.options import (
    OUTPUT,
    Device,
    Model,
    Quiet,
    RoiMask,
    Workers,
    load,
    option,
    output_of,
)
from anoscan.cli.settings import asked_for, with_request
from anoscan.cli.signals import whole_line
from anoscan.core.errors import AnoscanError, InputError, UsageError
from anoscan.core.urls import url_of
from anoscan.scoring.choices import ScoreRequest

if TYPE_CHECKING:
    from anoscan.cli.output import Output
    from anoscan.detector import Detector
    from anoscan.images.files import ImageFile
    from anoscan.report.watching import Arrivals, Arrived, Command, Memory, Version

SETTLE, EXEC_SECONDS = 2.0, 60.0
_WAKE = 250  # milliseconds between looks at files that are not complete yet
_SCAN = 30.0  # seconds between looks at the whole folder, for events that got lost
_TOGETHER = 256  # files that are scored before the folder is looked at again


@with_request
def watch(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder to watch, with all folders in it.")
    ],
    model: Model = None,
    state: Annotated[
        Path | None,
        option(
            help="Keep there what was done with each image, so that a restart scores nothing "
            "twice.",
            metavar="FILE",
            default="a file in the user's cache for each folder and model",
        ),
    ] = None,
    existing: Annotated[
        bool,
        typer.Option(
            "--existing/--no-existing",
            help="Whether to score the images that are there when a folder is first watched.",
        ),
    ] = True,
    settle: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="Take a file for complete when it has not changed for so long.",
        ),
    ] = SETTLE,
    command: Annotated[
        str | None,
        option(
            "--exec",
            help="Run this for each anomalous image, without a shell, with its result as JSON on "
            "stdin.",
            metavar="COMMAND",
            panel=OUTPUT,
        ),
    ] = None,
    exec_seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="End the command of --exec after so long.",
            rich_help_panel=OUTPUT,
        ),
    ] = EXEC_SECONDS,
    roi: RoiMask = None,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    **asked: Any,
) -> None:
    """Score images as they arrive, one JSON object each.

    Example: anoscan watch ./incoming --exec "notify-send anomaly"
    """
    from anoscan.model import store
    from anoscan.report import watching

    if url_of(folder) is not None:
        raise UsageError(
            "anoscan watch needs a folder of this computer: a URL says nothing of new files.",
            hint="Score it as often as you need: anoscan score URL",
        )
    root = Path(folder)
    changes = _changes(root)
    alarm = None if command is None else watching.Command.of(command, exec_seconds)
    request = ScoreRequest.of(**asked_for(asked))
    output = output_of(False, quiet)
    detector = load(model, device, workers, roi, output)
    if warning := detector.threshold(request).warning:
        output.caution(warning)
    reference = detector.reference
    file = state or watching.default_state(store.home(), root, reference.name, reference.sha256)
    memory = watching.Memory(file, root, reference.sha256)
    arrivals = watching.Arrivals(root.resolve(), settle)
    watched = _Watch(folder, detector, request, memory, alarm, output)
    try:
        if memory.other_model:
            output.note(f"another model has scored some images; they are not scored again: {file}")
        if memory.new and not existing:
            watched.pass_by()
        watched.remind()
        output.note(f"watching {folder}; what was done is kept in {file}")
        watched.run(arrivals, changes)
    finally:
        memory.close()


def _changes(folder: Path) -> Iterator[Sequence[str]]:
    """Yield paths that have changed in a folder, and an empty list when none have for a moment.

    Raises
    ------
    AnoscanError
        When watchfiles is missing, or there is no such folder.
    """
    try:
        from watchfiles import watch as events
    except ImportError:
        raise AnoscanError("anoscan watch needs: pip install 'anoscan[watch]'.") from None
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder that can be watched.")
    found = events(
        folder.resolve(),
        watch_filter=None,
        debounce=_WAKE,
        rust_timeout=_WAKE,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    return ([path for _, path in some] for some in found)


@dataclass(frozen=True)
class _Watch:
    """A folder that is watched, and what happens to its images."""

    folder: str
    detector: Detector
    request: ScoreRequest
    memory: Memory
    alarm: Command | None
    output: Output

    def run(self, arrivals: Arrivals, changes: Iterator[Sequence[str]]) -> None:
        """Score files as they become complete, until an interrupt."""
        scanned, lost = -_SCAN, False
        for paths in changes:
            folders = arrivals.note(paths)
            if folders or time.monotonic() - scanned >= _SCAN:
                scanned = time.monotonic()
                lost = not self._scanned(arrivals, lost)
            ready = arrivals.complete()
            for start in range(0, len(ready), _TOGETHER):
                self.score(ready[start : start + _TOGETHER])

    def _scanned(self, arrivals: Arrivals, lost: bool) -> bool:
        """Look at the whole folder; warn once where it cannot be read, and go on."""
        try:
            arrivals.scan()
        except InputError as error:
            if not lost:
                self.output.warn(f"{error.message} The watch goes on.")
            return False
        return True

    def score(self, files: Sequence[Arrived]) -> None:
        """Score the images of files that were not done yet."""
        from anoscan.core.results import IMAGE_SCHEMA, Skipped, to_json
        from anoscan.report.watching import SCORED, SKIPPED, version_of

        todo = list(self._unknown(files))
        outcomes = self.detector.stream([image for image, _ in todo], self.request)
        for (image, version), outcome in zip(todo, outcomes, strict=True):
            inside = image.inside
            if version_of(image.file) not in (version, None):  # it changes: its event follows
                continue
            if isinstance(outcome, Skipped):
                self.output.unreadable(outcome)
                self.memory.add(inside, version, SKIPPED)
                continue
            alarmed = self.alarm is not None and outcome.verdict == "anomalous"
            result = {"schema": IMAGE_SCHEMA} | to_json(outcome) if alarmed else None
            with whole_line():  # an interrupt between the two would repeat the line
                self.output.line(outcome)
                self.memory.add(inside, version, SCORED, result)
            if result is not None:
                self._run(inside, result)

    def _unknown(self, files: Sequence[Arrived]) -> Iterator[tuple[ImageFile, Version]]:
        """Yield the images of files, which may have pages, that were not done yet."""
        from anoscan.images.files import in_file

        for file in files:
            if (file.inside, file.version) in self.memory:
                continue
            named = self.folder.replace(os.sep, "/")
            path = f"{named}{'' if named.endswith('/') else '/'}{file.inside}"
            for image in in_file(path, Path(self.folder, file.inside), file.inside):
                if (image.inside, file.version) not in self.memory:
                    yield image, file.version

    def pass_by(self) -> None:
        """Note all images that are there as done, without scoring them."""
        from anoscan.images.files import images_below, in_file
        from anoscan.report.watching import version_of

        there: dict[str, Version] = {}
        for inside in images_below(Path(self.folder)):
            file = Path(self.folder, inside)
            if version := version_of(file):
                there |= {image.inside: version for image in in_file(inside, file, inside)}
        self.memory.pass_by(there)
        self.output.note(f"{len(there):,} images that are there already are not scored")

    def remind(self) -> None:
        """Run the command for alarms that an earlier watch did not come to."""
        for inside, result in self.memory.alarms:
            if self.alarm is not None:
                self._run(inside, result)

    def _run(self, inside: str, result: dict[str, Any]) -> None:
        if self.alarm is None:
            return
        if failure := self.alarm.run(result):
            self.output.warn(f"--exec {self.alarm.words[0]} {failure}, for {inside}")
        self.memory.handled(inside)
