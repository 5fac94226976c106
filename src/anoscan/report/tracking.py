"""Record a training while it runs: losses, generated images, reconstructions.

A `Tracker` does not change the training. Its latents come from a random stream of their own, and it
restores the modes of the networks. So the weights are the same with or without it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anoscan.core.arrays import Floats
from anoscan.core.errors import InputError, UsageError
from anoscan.core.progress import OnProgress, Progress, notify
from anoscan.core.runtime import exact_float32, random_stream
from anoscan.images.decode import ImageRule
from anoscan.model.training_record import Record
from anoscan.report import pictures

LOOKS = 8  # pictures in a stage; each costs about as much as a step of training
SHEET_SIDE = 512  # approximate width of a sheet in pixels
FEWEST, MOST = 2, 6  # images in a row


class Tracker:
    """Writes the stages of one training to its record, and to TensorBoard when asked.

    A record that cannot be written does not stop the training. The tracker reports this once, as a
    note of progress, and then writes nothing more.

    Parameters
    ----------
    record : Record
    resume : bool
        Whether the training continues the run of the record. If not, the record is emptied.
    tensorboard : Path, optional
        Folder for TensorBoard's event files.

    Raises
    ------
    UsageError
        When TensorBoard is wanted and not installed, or its folder cannot be written.
    """

    def __init__(self, record: Record, *, resume: bool, tensorboard: Path | None = None) -> None:
        self.record = record
        self._board = None if tensorboard is None else _Board(tensorboard, resume=resume)
        self._writes = True
        self._columns = FEWEST
        self._rule: ImageRule | None = None
        self._latents, self._held_out = torch.empty(0), torch.empty(0)
        if not resume:
            record.clear()

    def show(
        self,
        held_out: Floats,
        latent_dim: int,
        seed: int,
        device: torch.device,
        rule: ImageRule | None = None,
    ) -> None:
        """Choose the latents and the images that every later picture shows; see `Observer.show`.

        The first few held-out images (n, c, s, s), in [-1, 1], are shown with their
        reconstructions, in the channels that `rule` names.
        """
        self._rule = rule
        self._columns = min(max(SHEET_SIDE // held_out.shape[-1], FEWEST), MOST)
        generator = random_stream(seed, "tracking")
        self._latents = torch.randn(self._columns**2, latent_dim, generator=generator).to(device)
        self._held_out = torch.from_numpy(held_out[: self._columns].copy()).to(device)

    def following(
        self,
        stage: str,
        images: int,
        on_progress: OnProgress,
        *,
        generator: nn.Module | None = None,
        mirror: tuple[nn.Module, nn.Module] | None = None,
    ) -> OnProgress:
        """Return a callback for the progress of a stage; see `Observer.following`.

        It writes each report before `on_progress` gets it. It shows generated images of the fixed
        latents, and reconstructions of the held-out images.
        """
        shown = self._rewind(stage, images, on_progress)

        def follow(progress: Progress) -> None:
            nonlocal shown
            if progress.note:
                shown = self._rewind(stage, progress.images, on_progress)
            spacing = max(progress.total_images / LOOKS, 1)
            sheets: dict[str, Image.Image] = {}
            if self._writes and progress.images // spacing > shown // spacing:
                sheets, shown = self._sheets(generator, mirror), progress.images
            self._guarded(lambda: self._write(progress, sheets), stage, on_progress)
            on_progress(progress)

        return follow

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _rewind(self, stage: str, images: int, on_progress: OnProgress) -> int:
        """Take the record back to `images` of a stage; return where its last picture was drawn."""

        def rewind() -> None:
            self.record.rewind(stage, images)
            if self._board is not None:
                self._board.go_on(stage, images)

        self._guarded(rewind, stage, on_progress)
        lines = self.record.lines() if self._writes else []
        seen = [line["images"] for line in lines if line["stage"] == stage and line["pictures"]]
        return max(seen, default=0)

    def _guarded(self, act: Callable[[], None], stage: str, on_progress: OnProgress) -> None:
        if not self._writes:
            return
        try:
            act()
        except (OSError, InputError) as error:
            self._writes = False
            reason = error.message if isinstance(error, InputError) else error.strerror or error
            note = f"no more losses and pictures in {self.record.folder}: {reason}"
            notify(on_progress, stage, note)

    def _sheets(
        self, generator: nn.Module | None, mirror: tuple[nn.Module, nn.Module] | None
    ) -> dict[str, Image.Image]:
        sheets = {}
        if generator is not None:
            with _at_rest(generator):
                sheets["samples"] = self._grid(generator(self._latents))
        if mirror is not None:
            encoder, decoder = mirror
            with _at_rest(encoder, decoder):
                x_hat = decoder(encoder(self._held_out))
                sheets["reconstructions"] = self._grid(self._held_out, x_hat)
        return sheets

    def _grid(self, *images: Tensor) -> Image.Image:
        shown = np.concatenate([part.float().cpu().numpy() for part in images])
        columns = self._columns if len(images) == 1 else len(images[0])
        return pictures.grid(shown if self._rule is None else self._rule.picture(shown), columns)

    def _write(self, progress: Progress, sheets: dict[str, Image.Image]) -> None:
        names = []
        for kind, sheet in sheets.items():
            path = self.record.picture(kind, progress.stage, progress.images)
            pictures.save_png(sheet, path)
            names.append(path.name)
        self.record.append(
            {
                "stage": progress.stage,
                "images": progress.images,
                "total_images": progress.total_images,
                "images_per_second": progress.images_per_second,
                "losses": progress.losses,
                "pictures": names,
                "note": progress.note,
            }
        )
        if self._board is not None:
            self._board.write(progress, sheets)


class _Board:
    """Writes TensorBoard's event files, one folder for each stage, which counts images from 0.

    When a stage resumes, later events are marked as purged: TensorBoard ignores, but keeps them.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--tensorboard: TensorBoard is not installed.",
                hint="Install it: python -m pip install 'anoscan[tensorboard]'",
            ) from None
        self.folder, self._make = folder, SummaryWriter
        self._writer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            # Events of an earlier training in this folder are marked as purged.
            for stage in [] if resume else sorted({p.parent for p in folder.glob("*/events.*")}):
                SummaryWriter(str(stage), purge_step=0).close()
        except OSError as error:
            raise UsageError(
                f"--tensorboard {folder} cannot be written: {error.strerror or error}.",
                hint="Name a folder that can.",
            ) from None

    def go_on(self, stage: str, images: int) -> None:
        """Start or resume a stage that has shown `images` images; `write` then writes to it."""
        self.close()
        first = images + 1 if images else 0
        self._writer = self._make(str(self.folder / stage), purge_step=first)

    def write(self, progress: Progress, sheets: dict[str, Image.Image]) -> None:
        """Write the losses of a report, and the pictures drawn for it, to the stage of `go_on`."""
        if self._writer is None:
            raise RuntimeError("go_on comes before write")
        for name, loss in progress.losses.items():
            self._writer.add_scalar(f"{progress.stage}/{name}", loss, progress.images)
        for kind, sheet in sheets.items():
            tag, pixels = f"{progress.stage}/{kind}", np.asarray(sheet)
            self._writer.add_image(tag, pixels, progress.images, dataformats="HWC")

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextmanager
def _at_rest(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode without gradients, and restore their modes afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        with exact_float32():
            yield
    finally:
        for module, training in modes:
            module.training = training
