"""One job's metrics: a JSON line per record, which is the truth, and TensorBoard events."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from lorafusion.errors import OutputError
from lorafusion.files import write_bytes_atomic

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TENSORBOARD_VALUES = {
    "train": ("loss", "learning_rate", "grad_norm", "tokens_per_s"),
    "eval": ("loss",),
}
RESERVED = frozenset({"kind", "step", "time", "nonfinite"})

logger = logging.getLogger(__name__)


class _Board(Protocol):
    """What is used of TensorBoard's writer, which is imported late: that takes a second."""

    def add_scalar(
        self, tag: str, scalar_value: float, global_step: int, walltime: float
    ) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JobMetrics:
    """Appends a job's records to ``folder/metrics.jsonl`` and ``folder/tensorboard``.

    A record is ``{"kind": "train" | "eval", "step": t, "time": Unix seconds, **values}``. Floats
    keep every bit; one that is not finite is written as null and named under ``nonfinite``.

    Args:
        folder: The job's output folder; made when missing.
        resume_step: Last step of the checkpoint that the job resumes from: what the interrupted
            run wrote about later steps is removed. None starts afresh and removes everything.

    Raises:
        OutputError: From any method: the files cannot be written.
    """

    def __init__(self, folder: Path, *, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / METRICS_FILE
        with self._errors_named():
            folder.mkdir(parents=True, exist_ok=True)
            self._evaluated = _cut_after(self._path, resume_step)
            # Unbuffered: a line is in the file when write() returns, even if we are killed then.
            self._file = self._path.open("ab", buffering=0)
            self._board: _Board = SummaryWriter(
                str(folder / TENSORBOARD_FOLDER),
                purge_step=0 if resume_step is None else resume_step + 1,
            )

    def train(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record optimizer step ``step`` (1-based)."""
        self._write("train", step, values)

    def eval(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record the evaluation after step ``step`` (0: before training).

        A step that the interrupted run had evaluated already is left as it stands.
        """
        if step not in self._evaluated:
            self._evaluated.add(step)
            self._write("eval", step, values)

    def sync(self) -> None:
        """Put everything on the disk; call it before the checkpoint of the same step is saved."""
        with self._errors_named():
            self._check_is_there()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """:meth:`sync`, then close the files."""
        try:
            self.sync()
        finally:
            self._file.close()
            with self._errors_named():
                self._board.close()

    def _write(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
        assert not RESERVED & values.keys(), f"{RESERVED & values.keys()} are set here"
        now = time.time()
        nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
        record: dict[str, Any] = {"kind": kind, "step": step, "time": now, **values}
        if nonfinite:
            record |= {**dict.fromkeys(nonfinite), "nonfinite": nonfinite}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self._errors_named():
            self._check_is_there()
            while line:  # a disk that fills up takes a part, and refuses the rest
                line = line[self._file.write(line) :]
            for name in TENSORBOARD_VALUES[kind]:
                if name in values:
                    self._board.add_scalar(f"{kind}/{name}", values[name], step, walltime=now)

    def _check_is_there(self) -> None:
        """A file that was removed takes lines as ever, and so nobody would see that it is gone."""
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise FileNotFoundError(self._path)

    @contextmanager
    def _errors_named(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"metrics {self._path} cannot be written: {_why(error)}. "
                "Free space there, or choose another output folder."
            ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All records of ``folder/metrics.jsonl`` in order; none when there is no such file.

    A last line that is still being written is left out.

    Raises:
        OutputError: Another line is not a record.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = [_parse(line) for line in lines]
    if records and records[-1] is None:
        records.pop()
    for number, record in enumerate(records, 1):
        if record is None:
            raise OutputError(f"{path}:{number} is not a metrics record. Remove the line.")
    return [record for record in records if record is not None]


def _why(error: OSError) -> str:
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    return "the job's folder was removed or replaced" if gone else str(error)


def _cut_after(path: Path, step: int | None) -> set[int]:
    """Keep the records up to ``step`` and return the steps evaluated among them."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    parsed = [(line, _parse(line)) for line in lines]
    last = -1 if step is None else step
    kept = [(line, record) for line, record in parsed if record and record["step"] <= last]
    unreadable = sum(record is None for _, record in parsed)
    if unreadable and step is not None:
        logger.warning("%s: %d unreadable line(s) removed", path, unreadable)
    if len(kept) < len(lines):
        write_bytes_atomic(path, b"".join(line for line, _ in kept))
    return {record["step"] for _, record in kept if record["kind"] == "eval"}


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None when it is torn or not one of ours."""
    if not line.endswith(b"\n"):
        return None
    try:
        value: object = json.loads(line)
    except ValueError:
        return None
    record = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return record if "kind" in record and isinstance(record.get("step"), int) else None
