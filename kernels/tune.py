"""Search of launch configurations on one GPU, by time.

The loop knows nothing of GPUs: it asks a :class:`Bench` for times, so that it can be tested without
one. What it finds is kept in a :class:`TunedFile`, written after every op.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

from lorafusion.kernels.aot import TARGETS
from lorafusion.kernels.config_files import ShapeClass, TunedFile, defaults, to_dict, tuned_path
from lorafusion.kernels.launch_configs import LaunchConfig, rank_chunk

# Of registers, for the accumulator alone; a thread has 255 and needs some for the rest.
_ACCUMULATOR = 192
_GEMM: dict[str, tuple[Any, ...]] = {
    "BM": (64, 128, 256),
    "BN": (64, 128, 256),
    "BK": (32, 64),
    "warps": (4, 8),
    "stages": (2, 3, 4),
}
_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "down": {"BM": (16, 32, 64), "BK": (64, 128, 256), "warps": (2, 4, 8), "stages": (2, 3, 4)},
    "grad_down": {
        "BM": (64, 128, 256),
        "BN": (32, 64, 128),
        "span": (256, 512, 1024),
        "warps": (4, 8),
        "stages": (2, 3),
    },
    "grad_a": {
        "BM": (32, 64, 128),
        "BK": (64, 128),
        "span": (512, 1024, 2048),
        "warps": (4, 8),
        "stages": (2, 3),
    },
}


@dataclass(frozen=True)
class TuneShape:
    """A linear to tune for: ``rows`` of ``jobs`` adapters of one rank, [rows, K] to [rows, N]."""

    rows: int
    K: int
    N: int
    jobs: int = 4
    rank: int = 16
    dtype: str = "half"

    def __str__(self) -> str:
        return f"{self.rows}x{self.K}x{self.N} {self.dtype} rank={self.rank} jobs={self.jobs}"

    def of(self, op: str) -> ShapeClass:
        """The class of an op's launch on it, as :func:`choose_config` looks it up."""
        sizes = {
            "up": (self.rows, self.K, self.N),
            "grad_input": (self.rows, self.N, self.K),
            "grad_down": (self.rows, self.N, 0),
        }.get(op, (self.rows, self.K, 0))
        return ShapeClass.of(op, self.dtype, sizes, rank_chunk(self.rank))


class Bench(Protocol):
    """Runs things on a GPU."""

    def time(self, op: str, shape: TuneShape, config: LaunchConfig) -> float:
        """Seconds of one op. Raises whatever went wrong, a wrong result included."""
        ...

    def compare(self, shape: TuneShape) -> dict[str, float]:
        """Seconds of a whole linear, forward and backward: ours, unfused, and the base alone."""
        ...


class Watcher:
    """Told how the search goes; does nothing unless overridden."""

    def begin(self, shape: TuneShape, op: str, count: int) -> None:
        """So many candidates will be timed."""

    def candidate(self, config: LaunchConfig, seconds: float | None, reason: str) -> None:
        """One was timed, or failed for a reason."""

    def end(self, shape: TuneShape, op: str, tuned: TunedFile) -> None:
        """The op has its configuration, or none could run."""

    def known(self, shape: TuneShape, op: str) -> None:
        """Found in the cache."""

    def compared(self, shape: TuneShape, seconds: dict[str, float]) -> None:
        """The shape's ops are done, and were measured against the others."""


def tune(
    shapes: Sequence[TuneShape],
    ops: Sequence[str],
    tuned: TunedFile,
    *,
    arch: str,
    bench: Bench,
    watcher: Watcher,
    again: bool = False,
) -> None:
    """Fill ``tuned`` and its file; what it holds already is not searched again unless ``again``."""
    path = tuned_path(tuned.gpu)
    for shape in shapes:
        for op in ops:
            key = shape.of(op)
            if key in tuned.best and not again:
                watcher.known(shape, op)
                continue
            _search(shape, op, tuned, arch=arch, bench=bench, watcher=watcher, again=again)
            tuned.write(path)
            watcher.end(shape, op, tuned)
        if again or str(shape) not in tuned.compared:
            tuned.compared[str(shape)] = bench.compare(shape)
            tuned.write(path)
        watcher.compared(shape, tuned.compared[str(shape)])


def _search(
    shape: TuneShape,
    op: str,
    tuned: TunedFile,
    *,
    arch: str,
    bench: Bench,
    watcher: Watcher,
    again: bool,
) -> None:
    """Time the candidates of one op. One that fails is noted at once, and is not tried twice."""
    key = shape.of(op)
    failed = {} if again else tuned.failed.get(key, {})
    tuned.failed[key] = failed
    todo = [
        config
        for config in candidates(op, shape.dtype, arch, rank_chunk(shape.rank))
        if _name(config) not in failed
    ]
    watcher.begin(shape, op, len(todo))
    default = defaults(arch)[shape.dtype, op]
    # The file gets the whole search's result or none: what is in it is not searched again.
    times: dict[LaunchConfig, float] = {}
    for config in todo:
        try:
            times[config] = bench.time(op, shape, config)
        except Exception as error:  # a compiler's or a launch's, of any kind: the next may run
            failed[_name(config)] = reason = f"{type(error).__name__}: {error}"[:200]
            tuned.write(tuned_path(tuned.gpu))
            watcher.candidate(config, None, reason)
        else:
            watcher.candidate(config, times[config], "")
    if times:
        best = min(times, key=times.__getitem__)
        tuned.best[key] = best
        tuned.seconds[key] = {"best": times[best]}
        if default in times:
            tuned.seconds[key]["default"] = times[default]


def candidates(op: str, dtype: str, arch: str, chunk: int) -> list[LaunchConfig]:
    """What may run on an architecture: the default first, then a grid around it."""
    default = defaults(arch)[dtype, op]
    grid = (config for config in _grid(op, default) if not why_illegal(op, config, arch, chunk))
    return list(dict.fromkeys([default, *grid]))


def why_illegal(op: str, config: LaunchConfig, arch: str, chunk: int) -> str:
    """Why a configuration cannot run, or would spill for sure; empty if it may run."""
    target = TARGETS.get(arch, TARGETS["sm_120"])
    size = 2  # float32 takes more; what then does not fit fails at its launch
    ranks = min(chunk, config.BR)
    step = {"grad_down": config.BN, "grad_a": config.BM}.get(op)
    if step and config.span % step:
        return "the span is no multiple of the tile"
    loaded = {
        "down": config.BK * (config.BM + ranks),
        "grad_down": config.BN * (config.BM + ranks),
        "grad_a": config.BM * (config.BK + 2 * ranks),
    }.get(op, config.BK * (config.BM + config.BN))
    # The last stage may be loaded into registers.
    shared = (config.stages - 1) * loaded * size
    if shared > target.shared:
        return f"{shared} bytes of shared memory, and there are {target.shared}"
    held = {"down": config.BM * ranks, "grad_down": (config.BM + config.BN) * ranks}
    elements = held.get(op, ranks * config.BK if op == "grad_a" else config.BM * config.BN)
    registers = elements // (config.warps * target.warp)
    if registers > _ACCUMULATOR:
        return f"{registers} registers for the accumulator alone"
    return ""


def _grid(op: str, default: LaunchConfig) -> Iterator[LaunchConfig]:
    grid = dict(_GRIDS.get(op, _GEMM))
    if default.tma:
        grid["tma"] = (True, False)
    for values in product(*grid.values()):
        yield replace(default, **dict(zip(grid, values, strict=True)))


def _name(config: LaunchConfig) -> str:
    return json.dumps(to_dict(config))
