"""The processes that train one model together: how they meet, agree and part.

The process of rank 0 leads. It alone reads images, decides, measures and writes. The others follow
its orders, and take their share of every training step. Orders come through the store of torchrun.
Tensors go from process to process, by gloo, or between CUDA devices by nccl.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from anoscan.core.errors import ProcessLost, TrainingInterrupted, UsageError
from anoscan.core.launch import SINGLE, Launch
from anoscan.core.shares import WHOLE, Share, answering, sum_up, taking

PATIENCE = datetime.timedelta(minutes=10)  # for the others, in a step
POLL = 0.03  # seconds between two looks for an order
BEAT = 1.0  # seconds between two signs of life of the process that leads
SILENCE = 4.0  # seconds without one after which it has ended, where a signal asks to stop
LAST_WORDS = 4.0  # seconds that processes have, at most, to say that they are still there

Order = dict[str, Any]


class Team:
    """The processes of one training; `launch` is the place of this one, and rank 0 leads.

    `store` is None where the process works alone.
    """

    def __init__(self, launch: Launch = SINGLE, store: Store | None = None) -> None:
        self.rank, self.size, self.local_rank = launch.rank, launch.size, launch.local_rank
        self._store = store
        self.broken = False  # whether processes may wait for different things
        self._orders = 0

    @property
    def store(self) -> Store:
        """Keys and values that all processes share.

        Raises
        ------
        RuntimeError
            When the process works alone.
        """
        if self._store is None:
            raise RuntimeError("a process that works alone has no store")
        return self._store

    def share(self, images: int) -> Share:
        """Return the share of this process in a batch."""
        return WHOLE if self.size == 1 else Share(self.rank, self.size, images)

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Take the own share of a batch of so many images in this context."""
        if self.size == 1:
            yield
            return
        self.broken = True
        with taking(self.share(images)):
            yield
        self.broken = False

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process has set it."""
        if self.size == 1:
            return flags
        return tuple(count > 0 for count in self.total([float(flag) for flag in flags]))

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.size == 1:
            return list(values)
        try:
            found: list[float] = sum_up(torch.tensor(values, dtype=torch.float64)).tolist()
        except ProcessLost:
            self.broken = True
            raise
        return found

    # --- orders ---------------------------------------------------------------------------------

    def order(self, order: Order, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Tell the others what to do next; does nothing where the process works alone."""
        if self.size == 1:
            return
        own = {k: v.detach().cpu().contiguous().clone() for k, v in (tensors or {}).items()}
        payload = bytearray(safetensors.torch.save(own))
        with answering():
            self.store.set(f"order/{self._orders}", json.dumps(order | {"payload": len(payload)}))
            dist.broadcast(torch.frombuffer(payload, dtype=torch.uint8), 0)
        self._orders += 1

    def next_order(self, stopping: Callable[[], bool]) -> tuple[Order, dict[str, Tensor]]:
        """Wait for the next order, however long the leader takes, and return its tensors too.

        Raises
        ------
        TrainingInterrupted
            When `stopping` says yes.
        ProcessLost
            When the leader gives no sign of life.
        """
        key = f"order/{self._orders}"
        self.wait_for(key, stopping)
        with answering():
            order: Order = json.loads(self.store.get(key))
            payload = torch.empty(order["payload"], dtype=torch.uint8)
            dist.broadcast(payload, 0)
        self._orders += 1
        return order, safetensors.torch.load(payload.numpy().tobytes())

    def wait_for(self, key: str, stopping: Callable[[], bool]) -> None:
        """Wait for a key of the store; raises as `next_order` does."""

        def there() -> bool:
            with answering():
                found: bool = self.store.check([key])
            return found

        self._wait(there, stopping)

    def meet(self, name: str, stopping: Callable[[], bool]) -> None:
        """Wait until all processes have done `name` of this order; raises as `next_order` does."""
        key = f"{name}/{self._orders}"

        def all_there() -> bool:
            with answering():
                found: bool = self.store.add(key, 0) == self.size
            return found

        with answering():
            self.store.add(key, 1)
        self._wait(all_there, stopping)

    def _wait(self, over: Callable[[], bool], stopping: Callable[[], bool]) -> None:
        beats, since = -1, time.monotonic()
        while not over():
            time.sleep(POLL)
            with answering():
                now = self.store.add("beats", 0)
            if now != beats and self.rank != 0:
                if stopping() and beats >= 0:
                    raise TrainingInterrupted("training was stopped.")
                beats, since = now, time.monotonic()
            elif time.monotonic() - since > (SILENCE if stopping() else PATIENCE.total_seconds()):
                raise ProcessLost("there is no sign of life")

    # --- the end --------------------------------------------------------------------------------

    def first_to_speak(self) -> bool:
        """Say whether this process is the first to report why the training failed."""
        try:
            return self.store.add("spoken", 1) == 1
        except RuntimeError:
            return True

    def lost(self, reason: ProcessLost) -> ProcessLost:
        """Return the error that names the processes which do not answer any more."""
        missing: list[int] = []
        with suppress(RuntimeError):
            self.store.set(f"alive/{self.rank}", "")
            end = time.monotonic() + LAST_WORDS
            while len(missing) != 1 and time.monotonic() < end:
                missing = [r for r in range(self.size) if not self.store.check([f"alive/{r}"])]
                time.sleep(0.1)
        ranks = " and ".join(map(str, missing)) or "unknown"
        return ProcessLost(
            f"process {ranks} of {self.size} has ended or hangs ({reason.message.rstrip('.')}).",
            hint="Its own messages come before. --resume goes on from the last checkpoint.",
        )


ALONE = Team()
_team = ALONE


def current() -> Team:
    """Return the team of this process."""
    return _team


def device_for(launch: Launch, device: str) -> str:
    """Return the device that this process trains on, 'cuda' or 'cpu', and select its card.

    Raises
    ------
    UsageError
        When torchrun started more processes than there are cards, or for another device.
    """
    if device == "mps":
        raise UsageError("--device mps trains in one process: start anoscan without torchrun.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu" if device == "auto" else device
    if launch.local_size > (cards := torch.cuda.device_count()):
        raise UsageError(
            f"torchrun started more processes than this machine has CUDA cards ({cards}).",
            hint="Lower --nproc-per-node, or give --device cpu.",
        )
    torch.cuda.set_device(launch.local_rank)
    return "cuda"


@contextmanager
def joined(launch: Launch, device: str) -> Iterator[Team]:
    """Meet the other processes that torchrun started, and make them the team of this process.

    Raises
    ------
    ProcessLost
        When the processes cannot reach each other.
    """
    global _team
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        with answering():
            store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
            )
    except ProcessLost as error:
        raise ProcessLost(
            f"the {launch.size} processes could not reach each other: {error.message}",
            hint="Give all machines the same --rdzv-endpoint, and open its port.",
        ) from error
    _team = Team(launch, PrefixStore("anoscan", store))
    done = threading.Event()
    if rank == 0:
        threading.Thread(target=_beat, args=(_team.store, done), daemon=True).start()
    try:
        yield _team
    finally:
        done.set()
        team, _team = _team, ALONE
        if not team.broken:
            with suppress(ProcessLost):
                if rank == 0:
                    team.order({"what": "end"})
                dist.destroy_process_group()


def _beat(store: Store, done: threading.Event) -> None:
    with suppress(RuntimeError):  # the store ends with torchrun
        while not done.is_set():
            store.add("beats", 1)
            done.wait(BEAT)
