"""Where memory runs out on a rank: what filled it, as JSON beside the traces.

The first time in a session, where the part that ran out is then cut in two, and each time that a
job fails of it.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorafusion.files import write_text_atomic
from lorafusion.planner.plan import Place
from lorafusion.training.memory import device_memory, peak_rss_mb
from lorafusion.training.memory_kinds import MemoryKinds

FORMAT = 1
# Of the allocator's snapshot, the largest: what is beside them is small by then.
MOST_BLOCKS = 2000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch's allocator of a GPU, or that of the CPU had no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "memory: you tried to allocate" in str(error)


class OutOfMemory:
    """Writes ``out-of-memory-rank-N.json``; a later one replaces it."""

    def __init__(
        self, folder: Path, rank: int, device: torch.device, memory: Callable[[], MemoryKinds]
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: Of the traces.
            rank: This one.
            device: Where it computes.
            memory: Says what is there by kind.
        """
        self._path = folder / f"out-of-memory-rank-{rank}.json"
        self._rank = rank
        self._device = device
        self._memory = memory
        self.written = False
        """Whether there is one of this session."""

    def report(self, what: str, part: Place | None, error: BaseException) -> str:
        """To be called while the error is handled: what it has filled is still there then.

        Args:
            what: Was being done.
            part: The samples it was done with, where it was with some.
            error: What came of it.

        Returns:
            Words that lead to the file, to be put behind the error's.
        """
        document = {
            "format": FORMAT,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rank": self._rank,
            "device": str(self._device),
            "doing": what,
            "error": f"{type(error).__name__}: {error}",
            "place": None if part is None else _describe(part),
            "memory": self._memory().to_dict(),
            "limits": _limits(self._device),
            "cuda": _cuda(self._device) if self._device.type == "cuda" else None,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self._path, json.dumps(document, indent=2, default=str) + "\n")
        except (OSError, MemoryError) as failed:
            return f" (what filled the memory could not be written: {failed})"
        self.written = True
        return f". What filled the memory stands in {self._path}."


def _describe(part: Place) -> dict[str, Any]:
    jobs = [
        {
            "job": segment.job,
            "step": segment.step,
            "samples": len(segment.samples),
            "tokens": sum(segment.lengths),
            "longest": max(segment.lengths, default=0),
        }
        for segment in part.segments
    ]
    return {"kind": part.kind, "tokens": part.tokens, "jobs": jobs}


def _limits(device: torch.device) -> dict[str, float | None]:
    """Bytes that may be used, None where nothing limits them."""
    soft = {
        name: resource.getrlimit(number)[0]
        for name, number in (
            ("address_space", resource.RLIMIT_AS),
            ("data", resource.RLIMIT_DATA),
        )
    }
    return {
        **{name: None if soft[name] == resource.RLIM_INFINITY else soft[name] for name in soft},
        "address_space_used": _mapped(),
        "control_group": _of_group(),
        "most_resident": round(peak_rss_mb() * 1e6),
        "free" if device.type == "cpu" else "of_the_device": device_memory(device, 1),
    }


def _of_group() -> int | None:
    """What the control group of a container may use, in its second version."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text().strip() if path.exists() else "max"
    return None if text == "max" else int(text)


def _mapped() -> int | None:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else None


def _cuda(device: torch.device) -> dict[str, Any]:
    """What torch's allocator says: its table, its counters, and its largest blocks."""
    return {
        "summary": torch.cuda.memory_summary(device),
        "stats": dict(torch.cuda.memory_stats(device)),
        "snapshot": bounded_snapshot(torch.cuda.memory._snapshot(device)),  # pyright: ignore
    }


def bounded_snapshot(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """The largest blocks of the allocator's snapshot, and how many there are."""
    blocks = [
        {
            "bytes": block["size"],
            "state": block["state"],
            "segment": segment["address"],
            "stream": segment["stream"],
        }
        for segment in snapshot["segments"]
        for block in segment["blocks"]
    ]
    blocks.sort(key=lambda block: -block["bytes"])
    return {
        "segments": len(snapshot["segments"]),
        "reserved": sum(segment["total_size"] for segment in snapshot["segments"]),
        "blocks": len(blocks),
        "largest": blocks[:MOST_BLOCKS],
    }
