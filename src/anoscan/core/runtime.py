"""Where and how numbers are computed: device, precision, threads and random streams."""

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
    """A device, the precision of training on it, and the number of threads that decode images.

    Networks train in `precision`, 'float32' or 'bfloat16'. Their weights and the optimiser's
    moments are float32 all the same. bfloat16 has the range of float32, so no loss has to be
    scaled; float16 is never used. Scoring is in float32: bfloat16 would move scores by more than
    images differ.
    """

    device: torch.device
    precision: str
    workers: int

    @classmethod
    def resolve(
        cls, device: str = "auto", precision: str = "auto", workers: int | None = None
    ) -> Runtime:
        """Return the runtime for this machine.

        Parameters
        ----------
        device : {'auto', 'cpu', 'cuda', 'mps'}
            'auto' takes cuda, then mps, then cpu.
        precision : {'auto', 'float32', 'bfloat16'}
            'auto' takes bfloat16 where the hardware can multiply it, otherwise float32.
        workers : int, optional
            By default there is one thread for each core, at most 8.

        Raises
        ------
        UsageError
            When the machine does not have the device, or an argument is none of the above.
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
        """Return the runtime that fits terms and computes scores: the CPU in place of mps.

        Parts of this work need float64, which mps does not have.
        """
        if self.device.type != "mps":
            return self
        return dataclasses.replace(self, device=torch.device("cpu"), precision="float32")

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which networks compute at the precision of this runtime."""
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
        # Older torch cannot say what the processor can multiply; float32 always works.
        capability: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
    return False


def _limit_threads() -> None:
    # Threads of torch use the processor while they wait. So on two busy cores a second thread makes
    # small networks slower. Where the user set OMP_NUM_THREADS, it has already decided.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // 2)))


def random_stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """Return a CPU random generator for a named purpose; the same arguments give the same one.

    Each step of a training takes its own generator by its index. So a run can be resumed without a
    saved state, and draws from one stream never shift another.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed torch's CPU generator with a named stream for the context, then restore it."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators too, and nothing would restore them.
        torch.default_generator.manual_seed(random_stream(seed, name).initial_seed())
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute full float32 products (no TF32) and no gradients: the context of all scoring."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
