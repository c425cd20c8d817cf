"""``python full_memory.py BASE FOLDER ROOM``: a run of three jobs, of which one has a sample that
needs more memory than there is, and one many samples that do together. ``ROOM`` megabytes are left
to the process once the jobs are there; 0: as many as there are.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from lorafusion.training.events import Events
from tests.conftest import WORDS
from tests.training.runs import run, write_rows

# Words; tokens are somewhat more. The rank makes them need 600 MB.
GIANT = 7_000
RANKS = {"large": 2, "small": 2, "giant": 512}


class Limit(Events):
    """Takes the memory away when all jobs are ready."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._ready = 0

    def ready(self, *_: Any, **__: Any) -> None:
        """A job is there."""
        self._ready += 1
        if self._ready == 3 and self._room:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + self._room
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def note(self, text: str) -> None:
        """Show it."""
        sys.stdout.write(f"{text}\n")


def main(base: Path, folder: Path, room: int) -> None:
    """Train, in this process."""
    sizes = {"large": 500, "small": 2, "giant": 3}
    files = {
        name: write_rows(folder / f"{name}.jsonl", rows=rows, longest=90, seed=1)
        for name, rows in sizes.items()
    }
    words = " ".join(WORDS * (GIANT // len(WORDS)))
    with (folder / "giant.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": " the", "completion": " " + words}) + "\n")
    jobs = [
        {
            "name": name,
            "dataset": {"path": files[name]},
            "adapter": {"r": RANKS[name]},
            "global_batch_size": rows,
            "max_steps": 3,
            "max_seq_len": 30_000 if name == "giant" else 200,
        }
        for name, rows in sizes.items()
    ]
    run(folder / "out", base, jobs, events=Limit(room), capacity=200_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) * 1_000_000)
