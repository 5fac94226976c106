"""The loop that all stages share: named random streams, divergence, stops, and state."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torch import Tensor

from anoscan.core import registry
from anoscan.core.errors import TrainingDiverged, TrainingInterrupted
from anoscan.core.progress import Progress
from anoscan.core.runtime import random_stream
from anoscan.model.model import fresh_networks
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.loop import (
    Position,
    load_state_tensors,
    run,
    state_tensors,
    stop_on_interrupt,
)
from tests.networks.test_stages import CONFIG, CPU, RULE, batches, copy_of, gan, moved, quietly


def test_streams_differ_by_name_seed_and_index_and_repeat() -> None:
    draws = {
        torch.rand(1, generator=random_stream(*arguments)).item()
        for arguments in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    }
    assert len(draws) == 4
    assert torch.equal(
        torch.rand(3, generator=random_stream(5, "z", 2)),
        torch.rand(3, generator=random_stream(5, "z", 2)),
    )


def test_state_of_a_stage_comes_back_with_its_optimisers() -> None:
    whole = gan()
    quietly(whole, 9)
    half = gan()
    quietly(half, 5)
    resumed = gan()
    load_state_tensors(resumed, {k: v.clone() for k, v in state_tensors(half).items()})
    quietly(resumed, 9, Position(step=5))
    for name, module in whole.modules.items():
        assert not moved(copy_of(module), resumed.modules[name]), name


class Exploding(GanStage):
    """A stage that loses its weights at a step, some times over, in silence or not."""

    def __init__(self, *, at: int, times: int = 1, silently: bool = False) -> None:
        networks = fresh_networks(CONFIG, RULE)
        entry = registry.load("objectives", "nonsaturating")
        super().__init__(networks, entry, batches(), CONFIG, CPU, few=True)
        self.at, self.times, self.silently = at, times, silently

    def step(self, index: int) -> dict[str, Tensor]:
        losses = super().step(index)
        if index == self.at and self.times:
            self.times -= 1
            with torch.no_grad():
                next(self.generator.parameters()).fill_(math.nan)
            if not self.silently:
                losses["generator"] = torch.tensor(math.nan)
        return losses


@pytest.mark.parametrize("times", [1, 3])
def test_losses_that_are_not_finite_cost_rollbacks_and_speed_not_the_run(times: int) -> None:
    stage, position, seen = Exploding(at=20, times=times), Position(), list[Progress]()
    run(
        stage,
        steps=60,
        images_per_step=4,
        position=position,
        on_progress=seen.append,
        checkpoint=lambda position: None,
        stopping=lambda: False,
    )
    assert (position.step, position.rollbacks) == (60, times)
    assert sum("went back" in (progress.note or "") for progress in seen) == times
    rate = registry.load("objectives", "nonsaturating").learning_rate / 4**times
    assert stage.optimizers["discriminator"].param_groups[0]["lr"] == pytest.approx(rate)
    assert all(torch.isfinite(value).all() for value in state_tensors(stage).values())


def test_a_stop_right_after_weights_were_lost_leaves_what_can_be_gone_on_with() -> None:
    def broken() -> Exploding:
        return Exploding(at=20, silently=True)

    whole, stage, position = broken(), broken(), Position()
    quietly(whole, 60)
    saved: dict[str, Tensor] = {}
    with pytest.raises(TrainingInterrupted):
        run(
            stage,
            steps=60,
            images_per_step=4,
            position=position,
            on_progress=lambda progress: None,
            checkpoint=lambda position: saved.update(
                {name: value.clone() for name, value in state_tensors(stage).items()}
            ),
            stopping=lambda: position.step == 22,
        )
    assert position.rollbacks == 1
    assert all(torch.isfinite(value).all() for value in saved.values())
    resumed = Exploding(at=-1)
    load_state_tensors(resumed, saved)
    quietly(resumed, 60, position)
    for name, module in whole.modules.items():
        assert not moved(copy_of(module), resumed.modules[name]), name


def test_weights_lost_in_the_last_step_are_won_back() -> None:
    stage = Exploding(at=59, silently=True)
    quietly(stage, 60)
    assert all(torch.isfinite(value).all() for value in state_tensors(stage).values())


def test_losses_that_are_never_finite_stop_with_advice() -> None:
    with pytest.raises(TrainingDiverged) as error:
        quietly(Exploding(at=20, times=99), 60)
    assert "--learning-rate" in str(error.value.hint)


def test_a_stop_between_steps_saves_a_checkpoint() -> None:
    saved: list[int] = []
    with pytest.raises(TrainingInterrupted):
        run(
            gan(),
            steps=50,
            images_per_step=4,
            position=(position := Position()),
            on_progress=lambda progress: None,
            checkpoint=lambda where: saved.append(where.step),
            stopping=lambda: position.step >= 3,
        )
    assert saved == [3]


def test_the_first_interrupt_asks_and_the_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where tests run in the background
    with stop_on_interrupt() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
