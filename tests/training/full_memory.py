"""``python full_memory.py BASE FOLDER ROOM``: a run of two jobs, of which one needs more memory
than there is. ``ROOM`` megabytes are left to the process once the jobs are there.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

from lorafusion.training.events import Events
from tests.training.runs import run, write_rows


class Limit(Events):
    """Takes the memory away when both jobs are ready."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._ready = 0

    def ready(self, *_: Any, **__: Any) -> None:
        """A job is there."""
        self._ready += 1
        if self._ready == 2:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + self._room
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(base: Path, folder: Path, room: int) -> None:
    """Train, in this process."""
    jobs = [
        {
            "name": name,
            "dataset": {
                "path": write_rows(folder / f"{name}.jsonl", rows=rows, longest=90, seed=1)
            },
            "adapter": {"r": 2},
            "global_batch_size": rows,
            "max_steps": 3,
            "max_seq_len": 200,
        }
        for name, rows in (("large", 1000), ("small", 2))
    ]
    run(folder / "out", base, jobs, events=Limit(room), capacity=200_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) * 1_000_000)
