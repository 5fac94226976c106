"""A training that several processes share: what the leader sends them, and how they follow.

The leader, of rank 0, reads all images once. The other processes of its machine map the file of its
pixels. One process on each other machine gets the pixels over the network and writes such a file
there. So no other machine needs the images or the model store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from anoscan.core import team
from anoscan.core.arrays import Floats, allocate, in_folder, under
from anoscan.core.config import TrainConfig
from anoscan.core.errors import TrainingDiverged, TrainingInterrupted, UsageError
from anoscan.core.runtime import Runtime
from anoscan.core.shares import answering
from anoscan.core.team import Order, Team
from anoscan.dataset.material import Material, OnRead
from anoscan.images.decode import ImageRule
from anoscan.images.files import ImageFile
from anoscan.model.model import fresh_networks
from anoscan.networks.loop import Position, Stage, load_state_tensors, stop_on_interrupt
from anoscan.networks.stages import Planned, Stages

PIECE = 2**24  # values that are sent to other machines at once: 64 MB
PIXELS = "pixels"  # name of the file that processes of one machine map


def read(
    files: Sequence[ImageFile],
    rule: ImageRule,
    config: TrainConfig,
    runtime: Runtime,
    on_progress: OnRead,
) -> Material:
    """Read the images of a training, and give the other processes their pixels.

    Raises
    ------
    InputError
        When too few images can be read, or there is no room for their pixels.
    UsageError
        When a batch has fewer images than there are processes.
    """
    crew, workers = team.current(), runtime.workers
    if crew.size == 1:
        return Material.load(files, rule, config, workers=workers, on_progress=on_progress)
    if config.batch_size < crew.size:
        raise UsageError(
            f"--batch-size {config.batch_size} is less than one image for each of the "
            f"{crew.size} processes.",
            hint="Start fewer processes, or raise --batch-size.",
        )
    order: Order = {
        "what": "begin",
        "config": config.to_dict(),
        "rule": rule.to_dict(),
        "device": runtime.device.type,
        "precision": runtime.precision,
    }
    # The file leaves the folder as soon as all have mapped it, so none is left behind.
    with tempfile.TemporaryDirectory(prefix="anoscan-") as name, in_folder(Path(name)):
        material = Material.load(files, rule, config, workers=workers, on_progress=on_progress)
        shape = list(material.pixels.shape)
        crew.order(order | {"file": str(Path(name) / PIXELS), "shape": shape})
        machines = _machines(crew)
        if machines is not None:
            _exchange(material.pixels, machines)
        crew.meet("mapped", lambda: False)
    return material


def follow(crew: Team) -> None:
    """Do what the leader orders, until it ends the training.

    The first signal to stop is handed on to all processes, so that the leader saves a checkpoint.

    Raises
    ------
    ProcessLost
        When another process has ended, or does not answer.
    TrainingInterrupted
        When a signal asks to stop while nothing is to be done.
    """
    training: _Training | None = None
    with stop_on_interrupt() as stopping:
        while True:
            order, tensors = crew.next_order(stopping)
            if order["what"] == "end":
                return
            if order["what"] == "begin":
                training = _Training(crew, order, stopping)
            elif training is not None:
                training.run(order, tensors)


class _Training:
    """What a process that follows needs to make every stage of one training."""

    def __init__(self, crew: Team, order: Order, stopping: Callable[[], bool]) -> None:
        self.config = TrainConfig.from_dict(order["config"])
        self.rule = ImageRule.from_dict(order["rule"])
        self.runtime = Runtime.resolve(order["device"], order["precision"])
        self.stopping = stopping
        self.pixels = _taken(crew, Path(order["file"]), tuple(order["shape"]), stopping)

    def run(self, order: Order, tensors: dict[str, Tensor]) -> None:
        """Run a stage with the others. The leader alone reports how it ended."""
        planned = self._planned(order, tensors)
        load_state_tensors(planned.stage, under(tensors, "now|"))
        position = Position(order["step"], order["rollbacks"])
        try:
            planned.run(position, lambda progress: None, lambda where: None, self.stopping)
        except (TrainingInterrupted, TrainingDiverged):
            return  # the leader raises the same

    def _planned(self, order: Order, tensors: dict[str, Tensor]) -> Planned[Stage]:
        rows, few, suffix = tensors["rows"].numpy(), order["few"], order["suffix"]
        stages = Stages(self.pixels, rows, self.config, self.runtime, few, suffix)
        networks = fresh_networks(self.config, self.rule).to(self.runtime.device)
        for name, network in networks.parts().items():
            if given := under(tensors, f"{name}|"):
                network.load_state_dict(given)
        if order["kind"] == "rotation":
            planned: Planned[Stage] | None = stages.rotation(networks.discriminator)
        else:
            planned = getattr(stages, order["kind"])(networks, **order["arguments"])
        if planned is None:
            raise RuntimeError("the leader has a stage that the settings leave out")
        return planned


# --- pixels -------------------------------------------------------------------------------------


def _taken(crew: Team, file: Path, shape: tuple[int, ...], stopping: Callable[[], bool]) -> Floats:
    """Map the pixels that the leader hands out; `file` is that of the leader's machine."""
    machines, first = _machines(crew), crew.rank - crew.local_rank
    key = f"file/{first}"
    if machines is not None:
        with tempfile.TemporaryDirectory(prefix="anoscan-") as name, in_folder(Path(name)):
            pixels = allocate(shape)
            _exchange(pixels, machines)
            crew.store.set(key, str(Path(name) / PIXELS))
            crew.meet("mapped", stopping)
        return pixels
    if first != 0:
        crew.wait_for(key, stopping)
        file = Path(crew.store.get(key).decode())
    pixels = np.memmap(file, np.float32, mode="r", shape=shape)
    crew.meet("mapped", stopping)
    return pixels


def _machines(crew: Team) -> dist.ProcessGroup | None:
    """Return the group of the first process of each machine; None where this is not one of them.

    It is None as well where all processes are on one machine. All processes call this.
    """
    own = [float(rank == crew.rank and crew.local_rank == 0) for rank in range(crew.size)]
    first = [rank for rank, flag in enumerate(crew.total(own)) if flag]
    if len(first) == 1:
        return None
    with answering():
        group = dist.new_group(first, timeout=team.PATIENCE, backend="gloo")
    return group if isinstance(group, dist.ProcessGroup) and crew.rank in first else None


def _exchange(pixels: Floats, machines: dist.ProcessGroup) -> None:
    """Send pixels from the leader to the first process of each other machine, piece by piece."""
    flat = pixels.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = torch.from_numpy(np.array(flat[start : start + PIECE]))
        with answering():
            dist.broadcast(piece, 0, group=machines)
        if dist.get_rank() != 0:
            flat[start : start + PIECE] = piece.numpy()
