"""Memory by kind over time: a stacked area per stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from lorafusion.plans.quantities import duration, size
from lorafusion.reports.curves import MEMORY_POINTS, thin_memory
from lorafusion.reports.rank_lines import KINDS, MemorySample
from lorafusion.reports.svg import Box, area, chart, grid, ticks
from lorafusion.reports.tables import legend, table

__all__ = ["memory_section"]

_HINT = (
    "Sampled at the ends of forwards, at most every half second, when activations are alive: what "
    "a peak between two samples holds is not in it. On a CPU total is the resident set, runtime is "
    "what the process held before the base; on a GPU total is what torch has allocated. "
    "Activations are what is left of the total, scratch and caches among them."
)
# Of all stages, and of one; a point takes 150 bytes in six areas.
_ALL_POINTS, _LEAST = 4_800, 40
_GIB, _MIB = 2**30, 2**20


def memory_section(
    memory: Sequence[Sequence[MemorySample]], peaks: Sequence[Mapping[str, Any]]
) -> str:
    """HTML; all stages have one scale."""
    most = max(sample.total for samples in memory for sample in samples)
    end = max(samples[-1].at_s for samples in memory if samples)
    start = min(0.0, *(samples[0].at_s for samples in memory if samples))
    kinds = [(f"m{i}", kind) for i, kind in enumerate(KINDS)]
    points = max(_LEAST, min(MEMORY_POINTS, _ALL_POINTS // len(memory)))
    box = Box(start, end, 0, most * 1.06, 14, 150)
    charts = [
        f"<h3>Stage {stage}</h3>\n{_stage(stage, samples, box, points)}"
        for stage, samples in enumerate(memory)
        if samples
    ]
    heads = ["stage", "fullest sample", "at", *KINDS]
    rows = [
        [
            f"stage {peak['stage']}",
            size(peak["peak_bytes"]),
            duration(max(0.0, peak["peak_at_s"]), "s"),
            *(size(peak["peak"][kind]) for kind in KINDS),
        ]
        for peak in peaks
        if peak["peak"]
    ]
    return "\n".join(
        [
            f'<p class="hint">{_HINT}</p>',
            legend(kinds[::-1]),
            f'<div class="pair">{"".join(f"<div>{one}</div>" for one in charts)}</div>',
            table(heads, rows),
        ]
    )


def _stage(stage: int, samples: Sequence[MemorySample], box: Box, most: int) -> str:
    kept = thin_memory(samples, most)
    if len(kept) == 1:
        kept = [kept[0], kept[0].moved(max(box.right - kept[0].at_s, 1e-6))]
    xs = [sample.at_s for sample in kept]
    stacks = [[0, *accumulate(sample.kinds)] for sample in kept]
    unit, name = (_GIB, "GiB") if box.high > _GIB else (_MIB, "MiB")
    areas = [
        area(box, xs, [s[i] for s in stacks], [s[i + 1] for s in stacks], f"m{i}")
        for i in range(len(KINDS))
    ]
    marks = [(value * unit, f"{value:g} {name}") for value in ticks(0, box.high / unit)][1:]
    ends = [(max(0.0, box.left), "0 s"), (box.right, duration(box.right, "s"))]
    fullest = size(max(sample.total for sample in kept))
    label = f"Memory of stage {stage} by kind over time, at most {fullest}"
    return chart(box.top + box.height + 20, label, [*areas, grid(box, marks, ends)])
