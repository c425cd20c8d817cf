"""All ranks of one job, saving in one process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch

from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.shard_writer import Shard, ShardWriter, shard_name

FINGERPRINT = {"base": "abc", "job": {"learning_rate": 2e-4, "betas": [0.9, 0.999]}}


def tensors(step: int, size: int = 8) -> dict[str, torch.Tensor]:
    """What a job of five tensors may look like after ``step``."""
    values = {f"layer{i}": torch.full((size,), 10.0 * step + i) for i in range(4)}
    return {**values, "layer0.moment": torch.full((2, 3), -float(step))}


class Saver:
    """``after``: the step to go on after."""

    def __init__(
        self, root: Path, executor: Executor, *, stages: int = 1, keep: int = 2, after: int = 0
    ) -> None:
        names = [shard_name(stage) for stage in range(stages)]
        self.ranks = [ShardWriter(root, executor, name) for name in names]
        self.manifests = ManifestWriter(root, executor, names, FINGERPRINT, keep)
        self.manifests.start(after)
        self._shards: list[tuple[int, Future[Shard]]] = []

    def save(
        self, step: int, given: Mapping[str, torch.Tensor] | None = None, **state: Any
    ) -> None:
        """Let each rank save its part of ``given``, by default of :func:`tensors`."""
        self.manifests.expect(step, {"t": step, **state})
        items = list((tensors(step) if given is None else given).items())
        for stage, rank in enumerate(self.ranks):
            part = dict(items[stage :: len(self.ranks)])
            self._shards.append((step, rank.save(step, part)))

    def deliver(self) -> None:
        """Wait for the shards and tell rank 0 of them; raises the first error."""
        while self._shards:
            step, shard = self._shards.pop(0)
            self.manifests.add(step, Shard.from_json(shard.result().to_json()))

    def close(self) -> None:
        """Wait until everything saved so far counts."""
        self.deliver()
        self.manifests.close()


def steps_on_disk(root: Path) -> list[int]:
    """Complete or not."""
    return sorted(int(path.name.removeprefix("step-")) for path in root.iterdir())
