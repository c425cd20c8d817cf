"""Rank 0's part of one job's checkpoints: the manifest, once all shards are on the disk."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lorafusion.errors import CheckpointError
from lorafusion.files import write_text_atomic
from lorafusion.training.checkpoint import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    Json,
    at_step,
    body_checksum,
    cannot_write,
    clear_after,
    remove,
    step_folder,
    steps,
)
from lorafusion.training.in_order import InOrder
from lorafusion.training.shard_writer import Shard


@dataclass
class _Parts:
    """What is here of a checkpoint: the state as JSON, the shards by name."""

    state: str | None = None
    shards: dict[str, Shard] = field(default_factory=dict[str, Shard])


class ManifestWriter:
    """Makes the checkpoints of one job count. For one thread of rank 0.

    An error of a write is raised once, by the next :meth:`expect`, :attr:`written` or
    :meth:`close`, as :class:`CheckpointError`; other jobs' writers do not see it.
    """

    def __init__(
        self,
        root: Path,
        executor: Executor,
        shards: Collection[str],
        fingerprint: Mapping[str, Json],
        keep: int = 2,
    ) -> None:
        """Nothing is written yet.

        Args:
            root: The job's checkpoint folder, which all ranks share.
            executor: Where the writing happens; the caller shuts it down.
            shards: Names of a checkpoint's shards, one for each stage.
            fingerprint: What the result depends on.
            keep: How many checkpoints to keep. Older ones go once the new one counts.
        """
        assert keep >= 1, "a writer that keeps nothing would delete what it has just written"
        self._root = root
        self._names = tuple(shards)
        self._fingerprint = json.dumps(fingerprint)
        self._keep = keep
        self._order = InOrder[int](executor)
        self._parts: dict[int, _Parts] = {}
        self._writes: deque[Future[int]] = deque()
        self._started = False
        self._dropped = False
        self._written: int | None = None

    def start(self, step: int) -> None:
        """Go on after the checkpoint of ``step``, 0 for none, before any rank saves a shard.

        What an earlier attempt left of later steps is removed, since the ranks will write into the
        same folders: its manifest must not be there while they do.

        Raises:
            CheckpointError: It cannot be removed.
        """
        try:
            clear_after(self._root, step)
        except OSError as error:
            raise CheckpointError(
                f"checkpoints after step {step} in {self._root} cannot be removed: {error}. They "
                "are of a run that was cut short. Make the folder writable, then resume."
            ) from error
        self._started, self._written = True, step or None

    def expect(self, step: int, state: Mapping[str, Json]) -> None:
        """All stages save ``step``; ``state`` goes into its manifest as it is now.

        Floats in ``state`` keep every bit (NaN too).
        """
        assert self._started, "what an earlier attempt left may still be there"
        self._collect(waiting=False)
        self._part(step).state = json.dumps(state)
        self._write_if_complete(step)

    def add(self, step: int, shard: Shard) -> None:
        """A stage's shard is on the disk; it may be here before :meth:`expect`. Never raises."""
        assert shard.name in self._names, f"{shard.name} is the shard of no stage"
        self._part(step).shards[shard.name] = shard
        self._write_if_complete(step)

    @property
    def written(self) -> int | None:
        """The newest step whose checkpoint counts, by now; does not wait.

        Raises:
            CheckpointError: One could not be written.
        """
        self._collect(waiting=False)
        return self._written

    def newest(self) -> Checkpoint:
        """The checkpoint of :attr:`written`, which must be there, read and checked anew."""
        assert self._written is not None, "no checkpoint has been written"
        return at_step(self._root, self._written)

    def drop(self) -> None:
        """The job has failed: nothing more is made to count, whatever shards still arrive."""
        self._dropped = True
        self._parts.clear()
        self._writes = deque(write for write in self._writes if not write.cancel())

    def close(self) -> None:
        """Wait until each checkpoint whose parts are here is on the disk."""
        self._collect(waiting=True)

    def _part(self, step: int) -> _Parts:
        return self._parts.setdefault(step, _Parts())

    def _write_if_complete(self, step: int) -> None:
        parts = self._parts[step]
        if self._dropped:
            del self._parts[step]
        elif parts.state is not None and len(parts.shards) == len(self._names):
            del self._parts[step]
            self._writes.append(self._order.submit(partial(self._write, step, parts)))

    def _collect(self, *, waiting: bool) -> None:
        while self._writes and (waiting or self._writes[0].done()):
            self._written = self._writes.popleft().result()

    def _write(self, step: int, parts: _Parts) -> int:
        folder = step_folder(self._root, step)
        for shard in parts.shards.values():
            _check_is_here(folder, shard)
        try:
            write_text_atomic(folder / MANIFEST, self._manifest(step, parts))
            self._prune(step)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return step

    def _manifest(self, step: int, parts: _Parts) -> str:
        assert parts.state is not None
        shards = {name: parts.shards[name] for name in self._names}
        body: dict[str, Json] = {
            "format": FORMAT,
            "step": step,
            "fingerprint": json.loads(self._fingerprint),
            "state": json.loads(parts.state),
            "shards": {n: {"sha256": s.sha256, "bytes": s.bytes} for n, s in shards.items()},
        }
        return json.dumps({**body, "sha256": body_checksum(body)}, indent=1) + "\n"

    def _prune(self, step: int) -> None:
        # Of earlier steps alone: other ranks may be writing shards of later ones.
        older = sorted(other for other in steps(self._root) if other < step)
        complete = [s for s in older if (step_folder(self._root, s) / MANIFEST).exists()]
        kept = complete[len(complete) - (self._keep - 1) :]
        for other in older:
            if other not in kept:
                remove(step_folder(self._root, other))


def _check_is_here(folder: Path, shard: Shard) -> None:
    """Refuse to name a shard that only the rank that wrote it can see."""
    try:
        found = (folder / shard.name).stat().st_size
    except OSError:
        found = None
    if found != shard.bytes:
        raise CheckpointError(
            f"checkpoint {folder}: {shard.name} was written ({shard.bytes} bytes), but rank 0 "
            f"{'does not see it' if found is None else f'sees {found} bytes'}. The output folder "
            "must lie on a file system that all nodes share, and no other run may write there."
        )
