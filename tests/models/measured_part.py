"""Load layers START to STOP of FOLDER and print the share in weights and the most memory, in MB.

Run in a process of its own as ``python measured_part.py FOLDER DTYPE START STOP TOTAL``. A tiny
base goes first, so that the libraries that loading and stages need are no part of the measure.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
from pathlib import Path

import torch

from lorafusion.models.load import load_base
from lorafusion.models.part import Part
from lorafusion.models.stage import Stage
from tests.conftest import make_llama


def memory_mb(field: str) -> float:
    """``VmRSS`` (now), ``VmHWM`` (the most), or ``RssAnon`` (now, nothing that lies in a file)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


class Sampler(threading.Thread):
    """Watches the memory that is not mapped from files: the kernel keeps no mark of that."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.002):
            self.most = max(self.most, memory_mb("RssAnon"))

    def stop(self) -> float:
        """The most that was seen."""
        self._end.set()
        self.join()
        return self.most


def load_all(folder: str, dtype: str, part: Part) -> float:
    """Load, build the stage, hash; returns the MB of weights."""
    base = load_base(folder, dtype, part)
    Stage(base)
    base.tensor_hashes()
    return sum(tensor.nbytes for tensor in base.tensors.values()) / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, dtype = sys.argv[1:3]
    start, stop, total = map(int, sys.argv[3:])
    with tempfile.TemporaryDirectory() as tiny:
        make_llama(Path(tiny), layers=3)
        for part in (Part(range(1), 3), Part(range(1, 2), 3), Part(range(2, 3), 3)):
            load_all(tiny, dtype, part)
    Path("/proc/self/clear_refs").write_text("5")
    before = {field: memory_mb(field) for field in ("VmRSS", "RssAnon")}
    sampler = Sampler()
    sampler.start()
    share = load_all(folder, dtype, Part(range(start, stop), total))
    found = {
        "share": share,
        "anonymous": sampler.stop() - before["RssAnon"],
        "all": memory_mb("VmHWM") - before["VmRSS"],
    }
    sys.stdout.write(json.dumps(found) + "\n")
