"""The tables of ``lorafusion bench train``, as docs/benchmarks.md shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.settings import LIMIT, NO_BASELINES, OURS

__all__ = ["markdown"]

Row = Mapping[str, Any]


def markdown(result: Row) -> str:
    """Speeds and losses at each dropout, from what ``bench.json`` holds."""
    settings = result["settings"]
    tokens = sum(job["tokens"] for job in result["jobs"])
    threads = settings["threads"]
    about = (
        f"torch {result['versions']['torch']}, {settings['dtype']}, {threads} "
        f"thread{'' if threads == 1 else 's'}; {len(result['jobs'])} jobs of at most "
        f"{settings['steps']} steps, {tokens:,} tokens in all; rounds: {settings['rounds']}; "
        f"{_noise(result)}"
    )
    lines = [measured_on(result, about)]
    for comparison in result["comparisons"]:
        lines += ["", f"Dropout {comparison['dropout']:g}:", "", *_speeds(comparison)]
        if _limited(comparison):
            lines += ["", _ceilings(comparison)]
        lines += ["", *_losses(comparison)]
    return "\n".join(lines)


def _noise(result: Row) -> str:
    """Of the busiest turn, since the ratios rest on all of them."""
    found = [turn["noise"]["other_cores"] for turn in result["turns"] if turn["noise"]]
    known = [cores for cores in found if cores is not None]
    if not known:
        return "other load unknown"
    return f"other processes kept at most {max(known):.1f} cores busy in a turn"


def _speeds(comparison: Row) -> list[str]:
    rows: list[list[str]] = []
    for way in comparison["ways"]:
        speed, ratio, peak = way["tokens_per_s"], way["ratio"], way["peak_rss_mb"]
        rows.append(
            [
                f"`{way['way']}`",
                f"{speed['median']:,.0f} ({speed['low']:,.0f} to {speed['high']:,.0f})",
                "" if ratio is None else f"**{ratio['median']:.2f}×**",
                "" if ratio is None else f"{ratio['low']:.2f} to {ratio['high']:.2f}",
                *([_share(way)] if _limited(comparison) else []),
                "-" if peak is None or way["way"] == LIMIT else f"{peak / 1e3:.1f}",
            ]
        )
    shares = ["of the limit"] if _limited(comparison) else []
    return table(["way", "tokens/s", "ours is", "of which", *shares, "peak memory, GB"], rows)


def _limited(comparison: Row) -> bool:
    """Whether the limit was measured, as it was not always."""
    return any(way["way"] == LIMIT for way in comparison["ways"])


def _share(way: Row) -> str:
    share = way["of_limit"]
    if share is None:
        return ""
    shown = f"{share['median']:.0%}"
    return f"**{shown}**" if way["way"] == OURS else shown


def _ceilings(comparison: Row) -> str:
    """How many times as fast as each baseline anything could be that makes these products."""
    found = [
        f"{1 / way['of_limit']['median']:.2f} times `{way['way']}`"
        for way in comparison["ways"]
        if way["way"] not in NO_BASELINES
    ]
    return f"The limit is {', '.join(found)}."


def _losses(comparison: Row) -> list[str]:
    """Mean losses by job and way, and how far apart two ways of the same batches ever are."""
    by_job: dict[str, list[Row]] = {}
    for loss in comparison["losses"]:
        by_job.setdefault(loss["job"], []).append(loss)
    others = [loss["way"] for loss in next(iter(by_job.values()))]
    rows: list[list[str]] = []
    for job, losses in by_job.items():
        worst = [loss["worst_step"] for loss in losses if loss["worst_step"] is not None]
        means = [losses[0]["ours"], *(loss["theirs"] for loss in losses)]
        rows.append([job, *(f"{mean:.3f}" for mean in means)])
        rows[-1].append(f"{max(worst):.1e}" if worst else "-")
    head = ["mean loss", OURS, *others, "worst step, same batches and masks"]
    return table(head, rows)
