"""Where and how the numbers are computed: device, precision, threads, random streams."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from anoscan.core.config import DEVICES, PRECISIONS
from anoscan.core.errors import UsageError


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of training on it, and the workers that decode images.

    Scoring is always float32: bfloat16 would move scores by more than images differ. Weights and
    moments are float32 in training too. float16 is never used: bfloat16 has the range of float32,
    so that no loss has to be scaled, and a device without it trains in float32.
    """

    device: torch.device
    precision: str
    workers: int

    @classmethod
    def resolve(
        cls, device: str = "auto", precision: str = "auto", workers: int | None = None
    ) -> Runtime:
        """Runtime for this machine.

        Parameters
        ----------
        device : {'auto', 'cpu', 'cuda', 'mps'}
            'auto' takes cuda, then mps, then cpu.
        precision : {'auto', 'float32', 'bfloat16'}
            'auto' takes bfloat16 where the hardware multiplies it, else float32.
        workers : int, optional
            Threads that decode images; by default one a core, at most 8.

        Raises
        ------
        UsageError
            When the machine does not have the device asked for.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}.")
        chosen = _device(device)
        if precision == "auto":
            precision = "bfloat16" if _fast_bfloat16(chosen) else "float32"
        if chosen.type == "cpu":
            _limit_threads()
        return cls(chosen, precision, workers or min(8, os.cpu_count() or 1))

    def measuring(self) -> Runtime:
        """The runtime that fits terms and makes scores: partly in float64, which mps does not have.

        There the networks train on the device, and all that comes after is done on the CPU.
        """
        if self.device.type != "mps":
            return self
        return dataclasses.replace(self, device=torch.device("cpu"), precision="float32")

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which networks train at this runtime's precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _device(name: str) -> torch.device:
    if name not in DEVICES:
        raise UsageError(f"--device must be one of {', '.join(DEVICES)}. Got {name!r}.")
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UsageError(
            f"--device {name}: this machine has none that torch can use.",
            hint="Use --device auto, or see anoscan doctor.",
        )
    return torch.device(name)


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Older torch cannot say what the processor multiplies: float32 is always right.
        capability: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
    return False


def _limit_threads() -> None:
    # torch's threads spin while they wait: on two busy cores a second thread makes small networks
    # slower. OMP_NUM_THREADS, where the user set it, has already decided.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // 2)))


def random_stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """CPU random generator of a named purpose, the same for the same arguments.

    Each step of training takes its own generator by index, so no state has to be saved for a
    run to be resumed, and drawing from one stream never shifts another.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Give code that draws from torch's CPU generator a stream, then restore the generator."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the accelerators too and leaves them so.
        torch.default_generator.manual_seed(random_stream(seed, name).initial_seed())
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Full float32 products (no TF32) and no gradients: the context of all scoring."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
