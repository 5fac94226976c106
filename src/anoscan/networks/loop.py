"""The loop that all stages of training share: steps, progress, checkpoints, divergence.

A stage (`gan_stage.GanStage`, `encoder_stage.EncoderStage`) knows one step. A run that is stopped
between two steps and resumed ends with the same weights. A loss that stops being finite costs a few
hundred steps, not the run.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from anoscan.core import shares, team
from anoscan.core.arrays import under
from anoscan.core.errors import TrainingDiverged, TrainingInterrupted
from anoscan.core.progress import OnProgress, Progress
from anoscan.core.runtime import random_stream
from anoscan.core.tensors import Like, check, like

# Losses are checked every CHECK_EVERY steps only, since each check waits for the device. Where
# steps take long, losses are checked when LOOK_SECONDS have passed.
CHECK_EVERY = 50
LOOK_SECONDS = 2.0
SNAPSHOT_EVERY = 400  # steps between the states that a diverged run can go back to
CHECKPOINT_SECONDS = 60.0
MOST_ROLLBACKS = 3  # per stage; each one quarters the learning rate
STOPPED = "training was stopped; a checkpoint is kept."


class Stage(Protocol):
    """One stage of training: some modules, their optimisers, and what one step does.

    `slow_down` multiplies every learning rate. It is 1, or less after losses were not finite.
    """

    name: str
    slow_down: float
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, index: int) -> dict[str, Tensor]:
        """Take step number `index` (from 0); return its losses by name, as detached scalars."""
        ...


@dataclass
class Position:
    """How far a stage has come; resuming needs nothing else but the stage's tensors."""

    step: int = 0
    rollbacks: int = 0


class Batches:
    """Gives training images in a new random order every epoch; batch `index` is always the same.

    In a step that several processes share, each gets its part of the batch.

    Parameters
    ----------
    pixels : array of shape (n, c, s, s), float32
        Images, which may be memory-mapped: only the rows of a batch are read.
    rows : ndarray of int
        Rows of `pixels` to take.
    name : str
        Name of the random stream that decides the order, together with `seed`.
    device : torch.device
        Device that batches are moved to.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        name: str,
        device: torch.device,
    ) -> None:
        self.pixels, self.rows, self.batch_size = pixels, rows, batch_size
        self.seed, self.name, self.device = seed, name, device
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, index: int) -> Tensor:
        """Return batch number `index`, (batch_size, c, s, s); it may run into the next epoch."""
        first = index * self.batch_size
        places = range(first, first + self.batch_size)[shares.current().rows]
        chosen = [self._row(place) for place in places]
        batch = torch.from_numpy(np.ascontiguousarray(self.pixels[np.array(chosen)]))
        return batch.to(self.device, memory_format=torch.channels_last)

    def _row(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.rows))
        if epoch != self._epoch:
            generator = random_stream(self.seed, f"{self.name}-order", epoch)
            self._order = torch.randperm(len(self.rows), generator=generator).numpy()
            self._epoch = epoch
        return int(self.rows[self._order[offset]])


def run(
    stage: Stage,
    *,
    steps: int,
    images_per_step: int,
    position: Position,
    on_progress: OnProgress,
    checkpoint: Callable[[Position], None],
    stopping: Callable[[], bool],
) -> None:
    """Take the steps of a stage, from `position` up to the number `steps`.

    Parameters
    ----------
    stage : Stage
    steps, images_per_step : int
        Number of steps of the whole stage, and of images that one uses (for reports of progress).
    position : Position
        Where the stage stands. It is advanced in place.
    on_progress : callable
        Called with the progress after each check of the losses.
    checkpoint : callable
        Saves the stage at a position. It is called about once a minute and before stopping.
    stopping : callable
        Is asked between steps. When it returns True, a checkpoint is saved and the run stops.

    All processes of a team run the same stage. They go on, look and stop together.

    Raises
    ------
    TrainingInterrupted
        After `stopping` returned True.
    TrainingDiverged
        When losses or weights were not finite more than `MOST_ROLLBACKS` times.
    """
    crew = team.current()
    meter = _Meter(stage.name, steps * images_per_step, images_per_step, crew)
    good = _Snapshot(stage, position.step)
    saved = time.monotonic()
    stop, late = crew.agree(stopping(), False)
    while position.step < steps:
        if stop:
            report = meter.report(position.step)
            if not _sound(stage, report):  # no run could go on from its checkpoint
                _roll_back(stage, position, good, on_progress, report)
            checkpoint(position)
            raise TrainingInterrupted(STOPPED)
        with crew.step(images_per_step):
            meter.add(stage.step(position.step))
        position.step += 1
        stop, late = crew.agree(stopping(), crew.rank == 0 and meter.seconds() > LOOK_SECONDS)
        look = position.step % CHECK_EVERY == 0 or position.step == steps
        if not (look or late):
            continue
        report = meter.report(position.step)
        if not _sound(stage, report):
            _roll_back(stage, position, good, on_progress, report)
            continue
        on_progress(report)
        if position.step % SNAPSHOT_EVERY == 0:
            good = _Snapshot(stage, position.step)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoint(position)
            saved = time.monotonic()


def stop_where_asked(stopping: Callable[[], bool]) -> None:
    """Stop, if asked to, between two parts of a training that come after its last stage.

    Raises
    ------
    TrainingInterrupted
        When `stopping` returns True. The checkpoint holds what the stages learned.
    """
    if stopping():
        raise TrainingInterrupted(STOPPED)


def _roll_back(
    stage: Stage, position: Position, good: _Snapshot, on_progress: OnProgress, report: Progress
) -> None:
    if position.rollbacks == MOST_ROLLBACKS:
        raise TrainingDiverged(
            f"training diverged: the {stage.name} losses are not finite at "
            f"{report.images:,} images, after going back {MOST_ROLLBACKS} times.",
            hint="Lower --learning-rate, or use --precision float32.",
        )
    images = report.images // position.step * good.step
    slower = stage.slow_down / 4  # relative to now, not to the state that is restored
    good.restore(stage)
    position.step, position.rollbacks = good.step, position.rollbacks + 1
    stage.slow_down = slower
    note = "losses were not finite: went back, and go on with a quarter of the learning rate"
    on_progress(Progress(stage.name, images, report.total_images, note=note))


def _sound(stage: Stage, report: Progress) -> bool:
    """Whether the losses, weights and layer statistics of a stage are all finite."""
    if not all(map(math.isfinite, report.losses.values())):
        return False
    # The last step can make weights infinite after its losses were computed.
    states = [module.state_dict().values() for module in stage.modules.values()]
    return all(bool(torch.isfinite(value).all()) for state in states for value in state)


class _Snapshot:
    """Copy of a stage's tensors on the CPU."""

    def __init__(self, stage: Stage, step: int) -> None:
        self.step = step
        self.tensors = {key: value.cpu().clone() for key, value in state_tensors(stage).items()}

    def restore(self, stage: Stage) -> None:
        load_state_tensors(stage, self.tensors)


class _Meter:
    """Collects the mean losses and the speed between two reports."""

    def __init__(
        self, stage: str, total_images: int, images_per_step: int, crew: team.Team
    ) -> None:
        self.stage, self.total, self.per_step = stage, total_images, images_per_step
        self.crew, self.weight = crew, crew.share(images_per_step).weight
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.steps, self.since = 0, time.monotonic()

    def add(self, losses: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(loss)) + loss
            self.counts[name] = self.counts.get(name, 0) + 1

    def seconds(self) -> float:
        return max(time.monotonic() - self.since, 1e-9)

    def report(self, step: int) -> Progress:
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        whole = self.crew.total([mean * self.weight for mean in means.values()])
        means = dict(zip(means, whole, strict=True))
        speed = self.steps * self.per_step / self.seconds()
        self._clear()
        return Progress(self.stage, step * self.per_step, self.total, means, speed)


def state_tensors(stage: Stage) -> dict[str, Tensor]:
    """Return all tensors of a stage: weights, buffers, optimiser moments, and `slow_down`."""
    tensors: dict[str, Tensor] = {}
    for name, module in stage.modules.items():
        for key, value in module.state_dict().items():
            tensors[f"{name}/{key}"] = value
    for name, optimizer in stage.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer-{name}/{index}/{key}"] = torch.as_tensor(value)
    tensors["slow-down"] = torch.tensor(stage.slow_down, dtype=torch.float64)
    return tensors


def load_state_tensors(stage: Stage, tensors: dict[str, Tensor]) -> None:
    """Restore a stage to the state that `state_tensors` returned."""
    for name, module in stage.modules.items():
        module.load_state_dict(under(tensors, f"{name}/"))
    for name, optimizer in stage.optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        flat = under(tensors, f"optimizer-{name}/")
        for key, value in flat.items():
            index, moment = key.split("/")
            state.setdefault(int(index), {})[moment] = value.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    stage.slow_down = float(tensors["slow-down"])


def check_state_tensors(stage: Stage, tensors: dict[str, Tensor]) -> None:
    """Check that tensors can be the state of a stage; see `state_tensors`.

    Raises
    ------
    ValueError
        For the first tensor that is missing, unknown, of another shape or type, or not finite.
    """
    expected = {"slow-down": Like((), torch.float64, low=4.0**-MOST_ROLLBACKS, high=1.0)}
    for name, module in stage.modules.items():
        expected |= {f"{name}/{key}": form for key, form in like(module.state_dict()).items()}
    having = {key.rpartition("/")[0] for key in tensors}
    for name, optimizer in stage.optimizers.items():
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        for index, weight in enumerate(weights):
            moments = f"optimizer-{name}/{index}"
            if moments in having:  # weights that are not used have no moments
                expected |= {f"{moments}/{key}": form for key, form in _moments(weight).items()}
    check(tensors, expected)


def _moments(weight: Tensor) -> dict[str, Like]:
    """Return what the state of Adam for a weight is like; it has taken at least one step."""
    shape = tuple(weight.shape)
    squares = Like(shape, weight.dtype, low=0.0)
    return {"step": Like((), low=1.0), "exp_avg": Like(shape, weight.dtype), "exp_avg_sq": squares}


def half_wave(share: float, last: float) -> float:
    """Return a factor of a learning rate that falls from 1 to `last` along half a cosine wave.

    `share` says how much of the stage is over, from 0 to 1.
    """
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters of an optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C, SIGTERM or SIGHUP asked to stop.

    The second Ctrl-C raises KeyboardInterrupt. A terminal that closes may send SIGHUP twice, and
    systems that shut down SIGTERM too: these do not disturb the checkpoint. A SIGHUP that is
    ignored, as under nohup, stays ignored. Only the main thread gets signals; in other threads the
    function always returns False.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(signum: int, frame: object) -> None:
        if asked.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
