"""``lorafusion bench kernels --op attention``: packed attention, and what else one could run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from lorafusion.bench.attention_ways import Engine, Padded, check, make_ways
from lorafusion.bench.linear import take_turns
from lorafusion.bench.op_run import (
    OVER_OURS,
    Done,
    OpRun,
    both,
    nobody,
    ratio,
    spread,
    where,
)
from lorafusion.bench.pages import table
from lorafusion.kernels.attention import AttentionRules
from lorafusion.kernels.attention.engines import FLASH, FLEX, SAMPLES, VARLEN

__all__ = ["MARK", "RESULT_FILE", "AttentionCase", "Engine", "Padded", "markdown", "run"]

MARK = "bench: attention"
RESULT_FILE = "attention.json"
OURS, PADDED = "lorafusion", "padded"
WAYS = {
    OURS: "all samples in one call of the op",
    SAMPLES: "torch's SDPA sample by sample; softcaps and sinks written out",
    PADDED: "torch's SDPA with a mask, padded to the longest; softcaps and sinks written out",
    VARLEN: "torch.nn.attention.varlen",
    FLASH: "flash-attn's varlen",
    FLEX: "torch's flex attention, compiled",
}


@dataclass(frozen=True)
class AttentionCase:
    """One layer's attention on one microbatch.

    Attributes:
        lengths: Rows of each sample.
        heads: Of the queries.
        kv_heads: Of keys and values.
        width: Of a head.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        window: Rows that a row sees, or None.
        softcap: Of the scores, or None.
        sinks: Whether there is a sink for each head.
    """

    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    width: int
    dtype: str = "float32"
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def rules(self, device: str) -> AttentionRules:
        """As the op takes them."""
        return AttentionRules(
            tuple(accumulate(self.lengths, initial=0)),
            self.width**-0.5,
            self.window,
            self.softcap,
            torch.linspace(-1, 1, self.heads, device=device) if self.sinks else None,
        )

    @property
    def samples(self) -> str:
        """Such as ``40 x 25``."""
        if len(set(self.lengths)) == 1:
            return f"{len(self.lengths)} x {self.lengths[0]}"
        return f"{len(self.lengths)} of {min(self.lengths)} to {max(self.lengths)}"

    @property
    def asked(self) -> str:
        """The rules by name."""
        rules = {"window": self.window, "softcap": self.softcap}
        found = [f"{name} {value:g}" for name, value in rules.items() if value is not None]
        return ", ".join([*found, *(["sinks"] if self.sinks else [])]) or "causal"

    def __str__(self) -> str:
        return (
            f"{self.samples} rows, {self.heads} heads, {self.kv_heads} KV heads of {self.width}, "
            f"{self.dtype}, {self.asked}"
        )


MIXED = (12, 25, 31, 60, 97, 131, 180, 488)
SMOLLM2, WIDE = (9, 3, 64), (32, 8, 128)
GEMMA2, GPT_OSS = (8, 4, 256), (64, 8, 64)
CPU_CASES = (
    *(
        AttentionCase(lengths, *SMOLLM2)
        for lengths in ((25,) * 40, (256,) * 4, MIXED, (1024,), (2048,))
    ),
    *(AttentionCase(lengths, *WIDE) for lengths in ((25,) * 40, (256,) * 4, (1024,))),
    AttentionCase((1024,), *SMOLLM2, window=128),
    AttentionCase(MIXED, *GEMMA2, softcap=50.0),
    AttentionCase(MIXED, *GPT_OSS, window=128, sinks=True),
)
QUICK_CASES = (
    AttentionCase((20, 30, 14), 4, 2, 16),
    AttentionCase((20, 30, 14), 4, 2, 16, window=8, softcap=5.0, sinks=True),
)
GPU_CASES = (
    *(
        AttentionCase(lengths, *WIDE, dtype="bfloat16")
        for lengths in ((128,) * 64, (1024,) * 8, MIXED * 8, (8192,))
    ),
    AttentionCase((8192,), *WIDE, dtype="bfloat16", window=1024),
    AttentionCase(MIXED * 8, *GEMMA2, dtype="bfloat16", softcap=50.0),
    AttentionCase(MIXED * 8, *GPT_OSS, dtype="bfloat16", window=128, sinks=True),
)


def run(asked: OpRun, done: Done = nobody) -> dict[str, Any]:
    """Measure all cases, and write ``attention.json``. See :meth:`OpRun.measure`."""
    cases = asked.choose(cpu=CPU_CASES, quick=QUICK_CASES, gpu=GPU_CASES)
    return asked.measure(RESULT_FILE, WAYS, cases, _measure, done)


def _measure(case: AttentionCase, asked: OpRun) -> dict[str, Any]:
    ways = make_ways(case, asked.device)
    check(case, ways)
    forward, backward = take_turns(ways, rounds=asked.rounds, timer=asked.timer)
    return {
        **dataclasses.asdict(case),
        "forward_s": forward,
        "backward_s": backward,
        "forward_over_ours": _over_ours(forward),
        "backward_over_ours": _over_ours(backward),
        OVER_OURS: _over_ours(both(forward, backward)),
    }


def _over_ours(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """By way but ours: how many times as long it takes, a round at a time."""
    return {way: ratio(found, times[OURS]) for way, found in times.items() if way != OURS}


def markdown(result: Mapping[str, Any]) -> str:
    """Other ways over ours; medians, and of forward and backward together ranges."""
    run_ways = [w for w in WAYS if any(w in case["over_ours"] for case in result["cases"])]
    head = ["samples", "heads, KV, width", "rules", f"{SAMPLES}: forward", "backward"]
    head += [f"{way} / {OURS}" for way in run_ways]
    rows = [_row(case, run_ways) for case in result["cases"]]
    return "\n".join([where(result), "", *table(head, rows, left=3)])


def _row(found: Mapping[str, Any], ways: Sequence[str]) -> list[str]:
    fields: dict[str, Any] = {
        field.name: found[field.name] for field in dataclasses.fields(AttentionCase)
    }
    fields["lengths"] = tuple(fields["lengths"])
    case = AttentionCase(**fields)
    halves = (found[f"{half}_over_ours"][SAMPLES]["median"] for half in ("forward", "backward"))
    return [
        case.samples,
        f"{case.heads}, {case.kv_heads}, {case.width}",
        case.asked if case.dtype == "float32" else f"{case.asked}, {case.dtype}",
        *(f"{half:.2f}" for half in halves),
        *(spread(found["over_ours"].get(way)) for way in ways),
    ]
