"""A stage's part of one job's checkpoints, copied at once and written in the background."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import save
from torch import Tensor

from lorafusion.files import fsync_folder, write_bytes_atomic
from lorafusion.training.checkpoint import Json, cannot_write, step_folder
from lorafusion.training.in_order import InOrder

# Snapshots of one job that may wait in memory for a slow disk; then save() waits too.
MAX_WAITING = 2


@dataclass(frozen=True)
class Shard:
    """A file that is on the disk: its name in the step's folder, checksum and size."""

    name: str
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Json]:
        """For a message."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shard:
        """What :meth:`to_json` gave."""
        return cls(**value)


def shard_name(stage: int) -> str:
    """Name of the file that a stage writes."""
    return f"stage-{stage}.safetensors"


class ShardWriter:
    """Writes the shards of one job on one rank.

    The ranks write into the same folders, each a file of its own, whenever it is ready. None of
    them removes anything: what an earlier attempt left there is gone before they start, see
    :meth:`lorafusion.training.manifest.ManifestWriter.start`.
    """

    def __init__(self, root: Path, executor: Executor, name: str) -> None:
        """Nothing is written yet.

        Args:
            root: The job's checkpoint folder, which all ranks share; made when missing.
            executor: Where the writing happens, e.g. one ``ThreadPoolExecutor(max_workers=1)`` for
                all jobs. The caller shuts it down, which waits for what was saved.
            name: This rank's file, see :func:`shard_name`.
        """
        self._root = root
        self._name = name
        self._order = InOrder[Shard](executor)
        self._unfinished: deque[Future[Shard]] = deque()

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> Future[Shard]:
        """Take a copy of everything now and write it in the background, in order.

        The caller may change its tensors as soon as this returns. While two snapshots of the job
        wait already, this waits as well.

        Returns:
            The shard, once it is on the disk; or the :class:`CheckpointError` of its writing.
        """
        while len(self._unfinished) >= MAX_WAITING:
            wait([self._unfinished.popleft()])
        copies = {name: _host_copy(tensor) for name, tensor in tensors.items()}
        future = self._order.submit(partial(self._write, step, copies))
        self._unfinished.append(future)
        return future

    def _write(self, step: int, tensors: dict[str, Tensor]) -> Shard:
        folder = step_folder(self._root, step)
        # The same bytes as from safetensors.torch, in a third of its time.
        data = save({name: tensor.numpy() for name, tensor in tensors.items()})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(folder / self._name, data)
            # The folder's own entry, before a manifest makes it count; whoever made the folder may
            # have been killed before it came to this.
            fsync_folder(self._root)
            fsync_folder(self._root.parent)
        except OSError as error:
            with suppress(OSError):
                folder.rmdir()  # it is empty, unless another rank has more luck
            raise cannot_write(folder, error) from error
        return Shard(self._name, hashlib.sha256(data).hexdigest(), len(data))


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", copy=True).contiguous()
