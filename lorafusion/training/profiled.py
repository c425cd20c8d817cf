"""A recorder that also lets torch's profiler watch some places of a run.

What is left is ``profile-rank-N.json.gz``, a Chrome trace for Perfetto in which places, layers,
attention, LoRA and loss have names, and ``operations-N.json``, the time by kind of operation.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lorafusion.files import write_text_atomic
from lorafusion.models.stage import Stage
from lorafusion.training.operations import sum_operations
from lorafusion.training.ranges import named_ranges
from lorafusion.training.stage_times import StageTimes
from lorafusion.training.team import Recorder, SpanKind

if TYPE_CHECKING:
    from lorafusion.training.memory_kinds import MemoryKinds

FORMAT = 1
# The first places load libraries and make the optimizers' state.
WARM_UP = 5
# A few steps of each of some jobs.
PLACES = 20
# Fewer places where they have many layers, or many samples in deterministic mode: one forward and
# backward of a layer is about 1,000 events, of 300 bytes each before compression.
MOST_LAYERS = 300
# Of gzip: a fifth of the time of the highest, for a file a tenth larger.
_LEVEL = 3


class ProfiledRecorder:
    """Passes everything on, and profiles. See :class:`lorafusion.training.team.Recorder`."""

    def __init__(self, inner: Recorder, folder: Path, rank: int) -> None:
        """Nothing is profiled before the first forward behind the warm-up.

        Args:
            inner: Is told everything.
            folder: Of the traces.
            rank: This one.
        """
        self._inner = inner
        self._folder = folder
        self._rank = rank
        self._stage: Stage | None = None
        self._window: _Window | None = None
        self._over = False
        self._problem: str | None = None

    @contextmanager
    def span(self, kind: SpanKind, place: int, name: str) -> Generator[None]:
        """Covers the time that ``kind`` takes at a place of the run."""
        if kind == "forward":
            self._reach(place)
        if self._window is None:
            with self._inner.span(kind, place, name):
                yield
        else:
            with record_function(f"{kind} {name} (place {place})"):
                with self._inner.span(kind, place, name):
                    yield

    def stepped(self, place: int, job: str, step: int, samples: Sequence[int]) -> None:
        """Passed on."""
        self._inner.stepped(place, job, step, samples)

    def look_at(self, stage: Stage, memory: Callable[[], MemoryKinds]) -> None:
        """Profile this stage."""
        self._stage = stage
        self._inner.look_at(stage, memory)

    def summary(self) -> StageTimes:
        """As ``inner`` has it."""
        return self._inner.summary()

    def close(self) -> None:
        """Write what there is."""
        if self._window is not None:
            self._end(self._window)
        elif not self._over:
            self._problem = f"no profile was written: the run has no place {WARM_UP}."
        self._over = True
        self._inner.close()

    @property
    def problem(self) -> str | None:
        """Why not all is kept; None while all is well."""
        problems = [self._inner.problem, self._problem]
        return " ".join(problem for problem in problems if problem) or None

    def _reach(self, place: int) -> None:
        """A forward is to begin."""
        if self._window is not None and self._window.full(place):
            self._end(self._window)
        if self._window is None and not self._over and self._stage and place >= WARM_UP:
            self._window = _Window(self._stage, place)
        if self._window is not None:
            self._window.behind = place + 1

    def _end(self, window: _Window) -> None:
        self._window, self._over = None, True
        window.stop()
        try:
            window.write(self._folder, self._rank)
        except Exception as error:  # a full disk ends the profile, not the run
            self._problem = f"the profile of rank {self._rank} was not written: {error}"


class _Window:
    """The places that are profiled."""

    def __init__(self, stage: Stage, first: int) -> None:
        self.first = first
        self.behind = first
        self._layers = 0
        self._device = stage.device
        # Its two lines on stderr for each profile are no news to anybody.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU]
        if stage.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._ranges = ExitStack()
        self._ranges.enter_context(named_ranges(stage, self._count))
        self._profile.start()
        self._began = time.perf_counter()

    def full(self, place: int) -> bool:
        return place - self.first >= PLACES or self._layers >= MOST_LAYERS

    def stop(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds = time.perf_counter() - self._began
        self._profile.stop()
        self._ranges.close()

    def write(self, folder: Path, rank: int) -> None:
        path = folder / f"profile-rank-{rank}.json.gz"
        raw, packed = (path.with_name(f".{path.stem}{end}") for end in ("", ".gz"))
        try:
            self._profile.export_chrome_trace(str(raw))
            with raw.open("rb") as source, gzip.open(packed, "wb", _LEVEL) as target:
                shutil.copyfileobj(source, target)
            packed.replace(path)
            events = json.loads(raw.read_bytes())["traceEvents"]
        finally:
            for part in (raw, packed):
                part.unlink(missing_ok=True)
        document = {
            "format": FORMAT,
            "places": [self.first, self.behind],
            "seconds": round(self._seconds, 6),
            "operations": sum_operations(events, on_gpu=self._device.type == "cuda"),
        }
        text = json.dumps(document, indent=2, allow_nan=False)
        write_text_atomic(folder / f"operations-{rank}.json", text + "\n")

    def _count(self) -> None:
        self._layers += 1
