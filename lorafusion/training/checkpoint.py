"""Checkpoints of one job: written in the background, and counted only once a manifest names them.

``<root>/step-00000020/{stage-0.safetensors, manifest.json}``. The manifest holds a checksum of each
shard and of itself and is renamed into place last, so a process killed at any instant leaves either
a complete checkpoint or one that does not exist.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load, save
from torch import Tensor

from lorafusion.errors import CheckpointError
from lorafusion.files import fsync_folder, write_bytes_atomic, write_text_atomic

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

FORMAT = 1
MANIFEST = "manifest.json"
SHARD = "stage-0.safetensors"
# Snapshots of one job that may wait in memory for a slow disk; then save() waits too.
MAX_WAITING = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose checksums were right when it was found.

    Attributes:
        folder: Where it lies.
        step: The last step it contains.
        state: What :meth:`CheckpointWriter.save` was given.
        fingerprint: What the result depends on, see :func:`check_fingerprint`.
        shards: Names of its safetensors files.
    """

    folder: Path
    step: int
    state: Mapping[str, Json]
    fingerprint: Mapping[str, Json]
    shards: tuple[str, ...]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, read from the disk at each call."""
        merged: dict[str, Tensor] = {}
        for name in self.shards:
            try:
                merged |= load((self.folder / name).read_bytes())
            except OSError as error:
                raise CheckpointError(f"{self.folder / name} cannot be read: {error}") from error
        return merged


@dataclass(frozen=True)
class _Snapshot:
    """A checkpoint by value, waiting to be written."""

    step: int
    tensors: dict[str, Tensor]
    state: str
    fingerprint: str


class CheckpointWriter:
    """Writes the checkpoints of one job on an executor that all jobs share.

    Args:
        root: The job's checkpoint folder; made when missing.
        executor: Where the writing happens, e.g. one ``ThreadPoolExecutor(max_workers=1)`` for the
            whole process. A job's checkpoints are written one after another, in order, however many
            workers there are. The caller shuts it down after closing the writers.
        keep: How many checkpoints to keep. Older ones go once the new one counts.

    An error of a write is raised by the next :meth:`save`, :meth:`flush` or :meth:`close` of this
    writer, once, as :class:`CheckpointError`; other jobs' writers do not see it.
    """

    def __init__(self, root: Path, executor: Executor, *, keep: int = 2) -> None:
        assert keep >= 1, "a writer that keeps nothing would delete what it has just written"
        self._root = root
        self._executor = executor
        self._keep = keep
        self._snapshots: deque[_Snapshot] = deque()
        self._one_at_a_time = threading.Lock()
        self._futures: deque[Future[None]] = deque()

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Json],
        fingerprint: Mapping[str, Json],
    ) -> None:
        """Take a copy of everything now and write it in the background.

        The caller may change its tensors and mappings as soon as this returns. Floats in ``state``
        keep every bit (NaN too). While two snapshots of the job wait already, this waits as well.
        """
        self._collect(waiting=MAX_WAITING - 1)
        copies = {name: _host_copy(tensor) for name, tensor in tensors.items()}
        self._snapshots.append(_Snapshot(step, copies, json.dumps(state), json.dumps(fingerprint)))
        self._futures.append(self._executor.submit(self._write_next))

    def flush(self) -> None:
        """Wait until everything saved so far is on the disk."""
        self._collect(waiting=0)

    def close(self) -> None:
        """:meth:`flush`, at the end of the job."""
        self.flush()

    def _collect(self, *, waiting: int) -> None:
        """Wait until at most ``waiting`` writes are left, and raise the first error among the done.

        Errors of the later ones stay for the next call.
        """
        while self._futures and (len(self._futures) > waiting or self._futures[0].done()):
            self._futures.popleft().result()

    def _write_next(self) -> None:
        # The snapshot is taken under the lock: with several workers the order is still save()'s.
        with self._one_at_a_time:
            snapshot = self._snapshots.popleft()
            folder = _folder(self._root, snapshot.step)
            try:
                _write(folder, snapshot)
                _prune(self._root, newest_step=snapshot.step, keep=self._keep)
            except OSError as error:
                if not (folder / MANIFEST).exists():
                    shutil.rmtree(folder, ignore_errors=True)
                raise CheckpointError(
                    f"checkpoint {folder} cannot be written: {error}. Free space there or make it "
                    "writable, then resume."
                ) from error


def newest(root: Path, *, report: Callable[[str], None] = logger.warning) -> Checkpoint | None:
    """The newest complete checkpoint under ``root``, or None.

    Args:
        root: The job's checkpoint folder; it may be missing.
        report: Called with a sentence for each newer one that is incomplete or damaged.

    Raises:
        CheckpointError: A sound checkpoint has a format that this version does not know.
    """
    for step in sorted(_steps(root), reverse=True):
        folder = _folder(root, step)
        try:
            return _read(folder)
        except _DamagedError as damage:
            report(f"checkpoint {folder} is not used: {damage}; the one before is taken instead.")
    return None


def clear(root: Path) -> None:
    """Remove all checkpoints under ``root``, so that a run that starts afresh finds none."""
    for step in sorted(_steps(root)):
        _remove(_folder(root, step))


def check_fingerprint(checkpoint: Checkpoint, current: Mapping[str, Json]) -> None:
    """Refuse to resume from a checkpoint of other settings, data or base.

    Raises:
        CheckpointError: Names each field that differs, as it was and as it is.
    """
    was = _flatten(checkpoint.fingerprint)
    now = _flatten(current)
    lines = [
        f"  {name}: was {was.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if lines:
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} was made with other settings:\n"
            + "\n".join(lines)
            + "\nSet these back to resume, or start afresh with another --output or --overwrite."
        )


class _DamagedError(Exception):
    """A checkpoint is incomplete or not as it was written."""


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", copy=True).contiguous()


def _write(folder: Path, snapshot: _Snapshot) -> None:
    if folder.exists():  # left by a process that was killed, or damaged: newest() passed it over
        _remove(folder)
    folder.mkdir(parents=True)
    data = save(snapshot.tensors)
    write_bytes_atomic(folder / SHARD, data)
    checksum = hashlib.sha256(data).hexdigest()
    body: dict[str, Json] = {
        "format": FORMAT,
        "step": snapshot.step,
        "fingerprint": json.loads(snapshot.fingerprint),
        "state": json.loads(snapshot.state),
        "shards": {SHARD: {"sha256": checksum, "bytes": len(data)}},
    }
    manifest = {**body, "sha256": _body_checksum(body)}
    fsync_folder(folder.parent)  # the folder's own entry, before the manifest makes it count
    fsync_folder(folder.parent.parent)
    write_text_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _read(folder: Path) -> Checkpoint:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        claimed = manifest.pop("sha256")
    except FileNotFoundError:
        raise _DamagedError(f"it has no {MANIFEST}, so its writing was cut short") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _DamagedError(f"its {MANIFEST} cannot be read ({error!r})") from error
    if claimed != _body_checksum(manifest):
        raise _DamagedError(f"its {MANIFEST} does not match its own checksum")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {manifest['format']}; this version reads {FORMAT}. "
            "Resume with the version that wrote it, or start afresh with another --output."
        )
    for name, expected in manifest["shards"].items():
        _check_shard(folder / name, expected["sha256"])
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        state=manifest["state"],
        fingerprint=manifest["fingerprint"],
        shards=tuple(manifest["shards"]),
    )


def _check_shard(path: Path, checksum: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _DamagedError(f"{path.name} cannot be read ({error})") from error
    if found != checksum:
        raise _DamagedError(f"{path.name} does not match its checksum")


def _body_checksum(body: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _prune(root: Path, *, newest_step: int, keep: int) -> None:
    # A later step belongs to a run that was given up: resume takes the newest that is sound.
    older = sorted(step for step in _steps(root) if step < newest_step)
    complete = [step for step in older if (_folder(root, step) / MANIFEST).exists()]
    kept = {newest_step, *complete[len(complete) - (keep - 1) :]}
    for step in _steps(root):
        if step not in kept:
            _remove(_folder(root, step))


def _remove(folder: Path) -> None:
    # Manifest first: a removal cut short must not leave a checkpoint that claims to be complete.
    (folder / MANIFEST).unlink(missing_ok=True)
    fsync_folder(folder)
    shutil.rmtree(folder)


def _steps(root: Path) -> list[int]:
    return [int(path.name[5:]) for path in root.glob(f"step-{8 * '[0-9]'}")]


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _flatten(value: Json, name: str = "") -> dict[str, str]:
    """Nested mappings as dotted names; leaves as JSON text, where a tuple is a list."""
    if isinstance(value, Mapping) and value:
        parts = [_flatten(v, f"{name}.{k}" if name else k) for k, v in value.items()]
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {name: json.dumps(value, sort_keys=True)}
