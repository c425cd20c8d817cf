"""What a rank's memory is full of, by kind: cheap enough to be asked while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from lorafusion.models.load import Base
from lorafusion.training.memory import held_bytes
from lorafusion.training.shard import JobShard


@dataclass(frozen=True, slots=True)
class MemoryKinds:
    """Bytes at one moment. What ``total`` has beside the others is activations and scratch.

    Attributes:
        total: All that the process holds of the device: on the CPU its resident set, on a GPU
            what torch has allocated there.
        runtime: On the CPU the resident set before the base was loaded; 0 on a GPU.
        base: This stage's tensors of the base. A CPU reads them from mapped files, so that the
            resident set has those that were touched.
        adapters: Parameters of all jobs that are here.
        gradients: Their sums of the running steps, and what is held until its turn.
        optimizer: Their moments.
    """

    total: int
    runtime: int
    base: int
    adapters: int
    gradients: int
    optimizer: int

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


class MemoryMeter:
    """Measures one rank. A call takes tens of microseconds, and 1 a job."""

    def __init__(
        self, base: Base, shards: Mapping[str, JobShard], device: torch.device, runtime: int
    ) -> None:
        """Nothing is measured yet.

        Args:
            base: The part that is here.
            shards: The jobs here by name, as they are at any time.
            device: Where this rank computes.
            runtime: Bytes that it held before the base was loaded, see :func:`runtime_bytes`.
        """
        self._base = sum(tensor.nbytes for tensor in base.tensors.values())
        self._shards = shards
        self._device = device
        self._runtime = runtime

    def __call__(self) -> MemoryKinds:
        """What is there now."""
        shards = self._shards.values()
        return MemoryKinds(
            total=held_bytes(self._device),
            runtime=self._runtime,
            base=self._base,
            adapters=sum(shard.adapter_bytes for shard in shards),
            gradients=sum(shard.gradients.nbytes for shard in shards),
            optimizer=sum(shard.optimizer_bytes for shard in shards),
        )


def runtime_bytes(device: torch.device) -> int:
    """What this rank holds before the base is loaded. A GPU's own share is in no allocation."""
    return 0 if device.type == "cuda" else held_bytes(device)
