"""Bytes of one decoder layer's linears, ours and others': arithmetic, nothing measured.

Others' are the sums of their operations, each operand moved once by each; see docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafusion.bench import canvas
from lorafusion.bench.pages import table
from lorafusion.kernels.launch_configs import OPS, SHARED_OPS
from lorafusion.kernels.shared_traffic import shared_compulsory
from lorafusion.kernels.traffic import Shape, compulsory, unfused

MARKS = "bytes of a layer"
PLOT_FILE = "layer.png"
ROWS, JOBS, RANK = 8192, 4, 16
MIB = 1 << 20
# Llama-3.1-8B: linears by what they are given, as columns in and out.
LAYER = {
    "q, k, v": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate, up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
PEFT, PEFT_ONE, PAPER, MERGED, APART, OURS = (
    "PEFT, job by job",
    "PEFT, one job",
    "the paper's",
    "the paper's, q, k, v merged",
    "ours, one by one",
    "ours",
)
WAYS = (PEFT, PEFT_ONE, PAPER, MERGED, APART, OURS)


@dataclass(frozen=True)
class Group:
    """Linears of one input."""

    name: str
    K: int
    widths: tuple[int, ...]

    def shapes(self, jobs: int = JOBS) -> list[Shape]:
        """Each linear's."""
        return [Shape.even(ROWS, self.K, N, jobs=jobs, rank=RANK) for N in self.widths]

    def bytes_of(self, way: str) -> int:
        """Forward and backward."""
        if way in (PEFT, PEFT_ONE):
            shapes = self.shapes(JOBS if way == PEFT else 1)
            return sum(unfused(shape, backward=back) for shape in shapes for back in (False, True))
        if way in (PAPER, MERGED):
            merged = way == MERGED and self.name == "q, k, v"
            widths = (sum(self.widths),) if merged else self.widths
            return sum(paper_bytes(Shape.even(ROWS, self.K, N, rank=RANK)) for N in widths)
        if way == OURS and len(self.widths) > 1:
            shared = sum(shared_compulsory(op, self.shapes()).total for op in SHARED_OPS.values())
            return shared + sum(compulsory("grad_down", shape).total for shape in self.shapes())
        return sum(compulsory(op, shape).total for op in OPS for shape in self.shapes())


GROUPS = tuple(Group(name, *sizes) for name, sizes in LAYER.items())


def paper_bytes(shape: Shape) -> int:
    """Bytes of the operations of Zhu et al. 2025 (arXiv:2510.00206) on a linear, each operand once.

    Forward, dropout that writes its mask, X̂Aᵀ, and the fused product: 4x + y + m + w + 2s + a + b.
    Backward, dS and dB, dA, and the fused product: 2x + 2y + m + w + 3s + 2a + b, and dB and dS in
    float32, filled with zeros, read and cast. W once for all jobs; S of each job's own rows alone,
    though its product makes those of all jobs on all rows.
    """
    rows, size = shape.rows, shape.size
    x, y, mask = rows * shape.K * size, rows * shape.N * size, rows * shape.K
    w = shape.N * shape.K * size
    s = sum(segment.rows * segment.rank for segment in shape.segments) * size
    ranks = sum(segment.rank for segment in shape.segments)
    a, b = ranks * shape.K * size, ranks * shape.N * size
    scratch = (ranks * shape.N + s // size) * (4 + 4 + size)
    return 6 * x + 3 * y + 2 * mask + 2 * w + 5 * s + 3 * a + 2 * b + scratch


def total(way: str) -> int:
    """Of the layer."""
    return sum(group.bytes_of(way) for group in GROUPS)


def markdown() -> str:
    """MiB of each group of linears and way, and what ours is of each."""
    rows = [
        [group.name, *(f"{group.bytes_of(way) / MIB:,.0f}" for way in WAYS)] for group in GROUPS
    ]
    rows.append(["layer", *(f"{total(way) / MIB:,.0f}" for way in WAYS)])
    rows.append(["ours of it", *(f"{total(OURS) / total(way):.3f}" for way in WAYS)])
    return "\n".join(table(["linears", *WAYS], rows))


def draw(path: Path) -> None:
    """Write a PNG: a bar a way, made of the groups."""
    figure = canvas.make_figure(8, 3.2)
    panel: Any = figure.subplots()
    colours: Sequence[str] = (canvas.OURS, "#5c6770", canvas.PALE, "#b8c4ce")
    for place, way in enumerate(WAYS):
        left = 0.0
        for group, colour in zip(GROUPS, colours, strict=True):
            size = group.bytes_of(way) / 1024**3
            panel.barh(place, size, left=left, height=0.7, color=colour)
            left += size
        share = total(OURS) / total(way)
        note = f" {left:.1f} GiB" + ("" if way == OURS else f", ours is {share:.2f} of it")
        panel.text(left, place, note, va="center", fontsize=8)
    panel.set_yticks(range(len(WAYS)), WAYS, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.4 * total(PEFT) / 1024**3)
    panel.set_xlabel("GiB, each operand once, forward and backward", fontsize=8)
    canvas.tidy(panel, axis="x")
    handles = [panel.barh(0, 0, color=colour) for colour in colours]
    names = [group.name for group in GROUPS]
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    panel.set_title(
        f"A layer of Llama-3.1-8B: {ROWS} rows, {JOBS} jobs of rank {RANK}, bfloat16, dropout",
        fontsize=9,
    )
    canvas.save(figure, path)
