"""A history of scorings: a CSV or Parquet file with a row for each run."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from anoscan.core.errors import InputError, UsageError
from anoscan.core.files import cannot_write, check_writable, defused, encodable, replacing
from anoscan.core.results import ModelReference, PastRun
from anoscan.report.alarms import Tally

COLUMNS = tuple(field.name for field in dataclasses.fields(PastRun))
_TEXTS = ("time", "model", "sha256", "folder")
_COUNTS = ("calibration_images", "scored", "anomalous", "skipped")
_PATIENCE = 60.0  # seconds to wait for another run that appends


def run_of(tally: Tally, model: ModelReference, folder: str) -> PastRun:
    """Return the row of a run that ends now; `folder` names the images that were scored."""
    scores, p_values = tally.scores, tally.p_values
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return PastRun(
        time=now.isoformat(),
        model=encodable(model.name),
        sha256=model.sha256,
        folder=encodable(folder),
        threshold=tally.threshold.score,
        false_alarm_rate=tally.threshold.effective_rate,
        calibration_images=tally.threshold.calibration_images,
        scored=tally.scored,
        anomalous=tally.anomalous,
        skipped=tally.skipped,
        score_median=_quantile(scores, 0.5),
        score_q95=_quantile(scores, 0.95),
        p_value_median=_quantile(p_values, 0.5),
    )


def _quantile(values: np.ndarray, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None


def check(path: Path, option: str = "--append") -> None:
    """Check before a long job that a row can be appended to a history; leave nothing behind.

    Raises
    ------
    UsageError
        When the extension is unknown, its package is missing, or the file cannot be written.
    InputError
        When there is a file that is no history.
    """
    _check_kind(path, option)
    check_writable(path, option)
    if path.exists() and path.stat().st_size:
        read(path)


def _check_kind(path: Path, option: str) -> None:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"{option} {path}: a history is named .csv or .parquet.")
    if _is_parquet(path) and find_spec("pyarrow") is None:
        raise UsageError(
            f"{option} {path}: pyarrow is not installed.",
            hint="Install it: python -m pip install 'anoscan[parquet]'",
        )


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def append(path: Path, run: PastRun) -> None:
    """Append a row to a history, which is created if need be.

    Runs that append at the same time wait for each other, so that no row is lost. The file is
    replaced as a whole: whoever reads it never sees half a row.

    Raises
    ------
    InputError
        When the file is no history, cannot be written, or stays locked for a minute.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_PATIENCE):
            before = path.read_bytes() if path.exists() else b""
            if before:
                read(path)  # it may have changed since the job began
            whole = (_parquet if _is_parquet(path) else _csv)(before, run)
            with replacing(path) as stream:
                stream.write(whole)
    except Timeout:
        raise InputError(f"cannot write {path}: another run holds its lock.") from None
    except OSError as error:
        raise cannot_write(path, error) from error


def _csv(before: bytes, run: PastRun) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not before:
        writer.writerow(COLUMNS)
    writer.writerow(map(_cell, dataclasses.astuple(run)))
    joint = b"\n" if before and not before.endswith(b"\n") else b""
    return before + joint + text.getvalue().encode("utf-8")


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return defused(value) if isinstance(value, str) else repr(value)


def _parquet(before: bytes, run: PastRun) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    def kind(name: str) -> Any:
        if name == "time":
            return pa.timestamp("s", tz="UTC")
        return pa.string() if name in _TEXTS else pa.int64() if name in _COUNTS else pa.float64()

    row = dataclasses.asdict(run) | {"time": datetime.datetime.fromisoformat(run.time)}
    schema = pa.schema([(name, kind(name)) for name in COLUMNS])
    table = pa.Table.from_pylist([row], schema=schema)
    if before:
        known = _table(before).select(list(COLUMNS))
        table = pa.concat_tables([known.cast(schema), table])
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _table(data: bytes) -> Any:
    """Read a Parquet file without threads, which now and then abort a process that ends."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    return ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def read(path: Path) -> tuple[PastRun, ...]:
    """Read a history; the runs are in the order in which they were appended.

    Raises
    ------
    InputError
        When the file cannot be read, or is no history.
    UsageError
        When its extension is unknown, or pyarrow is missing.
    """
    _check_kind(path, "history")
    try:
        rows = _read_parquet(path) if _is_parquet(path) else _read_csv(path)
        return tuple(_run(row) for row in rows)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no history of runs, or a row of it is damaged: {error}.",
            hint="Name a new file, or mend this one.",
        ) from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    # Of a file that a spreadsheet saved, the first bytes are a byte order mark.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError("its header is not that of a history")
    return rows


def _read_parquet(path: Path) -> Sequence[dict[str, Any]]:
    import pyarrow as pa

    data = path.read_bytes()
    try:
        found = _table(data)
    except pa.ArrowException as error:
        raise ValueError(str(error).rstrip(".")) from error
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _run(row: Mapping[str, Any]) -> PastRun:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        value = row[name]
        if name == "time":
            when = value if isinstance(value, datetime.datetime) else None
            when = when or datetime.datetime.fromisoformat(value)
            values[name] = when.astimezone(datetime.UTC).isoformat()
        elif name in _TEXTS:
            values[name] = value
        elif value in (None, ""):
            values[name] = None
        else:
            values[name] = int(value) if name in _COUNTS else float(value)
    missing = [name for name in COLUMNS if values[name] is None and name not in COLUMNS[-3:]]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    return PastRun(**values)
