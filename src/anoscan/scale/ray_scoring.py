"""Score images on a Ray cluster: actors decode and score shards of files, and the driver ranks.

A shard whose actor is lost is scored again by another. Shards are whole batches, so the same images
are measured together as without Ray.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anoscan.core.errors import AnoscanError, UsageError
from anoscan.core.files import replacing, temporary_folder
from anoscan.core.progress import Progress
from anoscan.core.results import ImageScore, Skipped
from anoscan.core.runtime import Runtime
from anoscan.core.urls import scheme_of, url_of
from anoscan.images.files import ImageFile
from anoscan.images.roi import Roi
from anoscan.model import store
from anoscan.model.judge import Judge
from anoscan.model.model import Model
from anoscan.report.ranking import Ranking
from anoscan.scoring.choices import ScoreRequest

Outcomes = list[ImageScore | Skipped]

_STORE = 200 * 2**20  # bytes of Ray's memory for objects on a local cluster: results are small
_BATCHES, _SHARDS_AN_ACTOR = 8, 4  # most batches of a shard, and fewest shards of an actor


@dataclass(frozen=True)
class RayScoring:
    """Scores files on a Ray cluster, in place of a `Ranking`.

    Parameters
    ----------
    workers : int, optional
        Number of actors of a cluster that is started here; by default, one a core.
    shards : Path, optional
        Folder for one Parquet file a shard, written as soon as the shard is scored.
    """

    workers: int | None = None
    shards: Path | None = None

    def __call__(
        self, ranking: Ranking, files: Sequence[ImageFile], model: str
    ) -> Iterator[ImageScore | Skipped]:
        """Yield the results of files with the model at a path or URL; skipped files come last.

        Raises
        ------
        UsageError
            When files are in the memory of this process.
        AnoscanError
            When Ray is missing, cannot be reached, or fails; or what an actor raises.
        """
        _check(files)
        done, skipped = 0, dict[int, Outcomes]()
        with _cluster(self.workers) as ray:
            for number, found in self._shards(ray, ranking, files, model) if files else ():
                if self.shards is not None:
                    _write(self.shards / f"part-{number:06d}.parquet", found)
                skipped[number] = [outcome for outcome in found if isinstance(outcome, Skipped)]
                done += len(found)
                yield from (outcome for outcome in found if not isinstance(outcome, Skipped))
                ranking.on_progress(Progress("scoring", done, len(files)))
        # Shards come in any order, and skipped files stay in the order of the files.
        for number in sorted(skipped):
            yield from skipped[number]

    def _shards(
        self, ray: Any, ranking: Ranking, files: Sequence[ImageFile], model: str
    ) -> Iterator[tuple[int, Outcomes]]:
        request = ranking.request
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        actors = max(1, gpus or int(resources.get("CPU", 1)))
        batch = request.batch_size
        most = math.ceil(len(files) / (_SHARDS_AN_ACTOR * actors * batch))
        size = batch * min(_BATCHES, max(1, most))
        items = [
            {"number": number, "files": pickle.dumps(_absolute(files[start : start + size]))}
            for number, start in enumerate(range(0, len(files), size))
        ]
        content = model if url_of(model) else Path(model).read_bytes()
        scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(ray.put(content), ranking.judge.roi, request, bool(gpus)),
            batch_size=1,
            concurrency=min(actors, len(items)),
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
        )
        try:
            for row in scored.iter_rows():
                yield int(row["number"]), pickle.loads(row["outcomes"])
        except ray.exceptions.RayError as error:
            raise _failure(error) from error


class _Actor:
    """Loads the model once, and scores one shard after the other."""

    def __init__(self, model: Any, roi: Roi | None, request: ScoreRequest, on_gpu: bool) -> None:
        import ray

        content = ray.get(model)
        runtime = Runtime.resolve("cuda" if on_gpu else "cpu", "float32", 1).measuring()
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            if isinstance(content, bytes):
                path = folder / "model.safetensors"
                path.write_bytes(content)
            else:
                path = store.to_read(content)[0]
            read, _ = Model.read(path, runtime)
        self._ranking = Ranking(Judge(read, runtime, roi), request, None, None, _silent)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        shards = [list(self._ranking.stream(pickle.loads(files))) for files in batch["files"]]
        return {"number": list(batch["number"]), "outcomes": list(map(pickle.dumps, shards))}


def _silent(progress: Progress) -> None:
    """Report nothing: the driver does."""


def _check(files: Sequence[ImageFile]) -> None:
    for image in files:
        url = url_of(image.path) if image.remote else None
        if image.in_memory or (url is not None and scheme_of(url) == "memory"):
            raise UsageError(
                f"{image.path} is in the memory of this process, where Ray's workers cannot be.",
                hint="Score it with --engine local.",
            )


def _absolute(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Return files as a worker finds them, which has another working folder."""
    return [
        image if image.remote else dataclasses.replace(image, file=image.file.absolute())
        for image in files
    ]


@contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Connect to the cluster of ``$RAY_ADDRESS``, or start one here until the context ends."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # notes of Ray about its own workings
    try:
        import ray
        import ray.data
    except ImportError:
        raise AnoscanError(
            "--engine ray needs Ray.", hint="Install it: python -m pip install 'anoscan[ray]'"
        ) from None
    started = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS")
    if started:
        own = {"num_cpus": workers or os.cpu_count(), "object_store_memory": _STORE}
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else own | {"include_dashboard": False}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AnoscanError(
                f"the Ray cluster {address or 'here'} cannot be used ({type(error).__name__}).",
                hint="RAY_ADDRESS names a cluster that runs; without it, one is started here.",
            ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        with redirect_stdout(sys.stderr):  # Ray prints what it says of lost workers
            yield ray
    finally:
        if started:
            ray.shutdown()


def _failure(error: Exception) -> AnoscanError:
    """Return the error of this program that an actor raised, or one that names Ray's."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, AnoscanError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return AnoscanError(f"Ray fails: {type(error).__name__}.", hint="Its logs say more.")


def _write(file: Path, outcomes: Sequence[ImageScore | Skipped]) -> None:
    """Write the results of a shard; ranks and q-values need all images, and are not in it."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        {
            "path": found.path,
            "score": getattr(found, "score", None),
            "p_value": getattr(found, "p_value", None),
            "verdict": getattr(found, "verdict", "skipped"),
            "reason": getattr(found, "reason", None),
            "terms": [{"name": k, "value": v} for k, v in getattr(found, "terms", {}).items()],
            "regions": list(map(dataclasses.asdict, getattr(found, "regions", ()))),
        }
        for found in outcomes
    ]
    with replacing(file) as stream:
        parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
