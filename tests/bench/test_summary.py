"""Ratios, medians and losses, from times that are written down here."""

from __future__ import annotations

import pytest

from lorafusion.bench.agreement import wrong_losses
from lorafusion.bench.settings import DETERMINISTIC, LIMIT, OURS, TOGETHER
from lorafusion.bench.summary import compare
from lorafusion.bench.turn import Step, Turn


def turn(way: str, number: int, seconds: float, *, dropout: float = 0.0, loss: float = 2.0) -> Turn:
    """Two jobs of 100 tokens in two steps each; ``seconds`` in all."""
    # Together, seconds count from the run's start; one after another, from each job's.
    ends = (seconds / 2, seconds) if way in TOGETHER else (seconds / 4, seconds / 2)
    steps = [
        Step(job, step, loss + step, 50, end)
        for job in ("a", "b")
        for step, end in enumerate(ends, 1)
    ]
    return Turn(way, number, dropout, steps, peak_rss_mb=1000.0 * number)


def test_tokens_per_second_of_jobs_together_and_one_after_another() -> None:
    for way in (OURS, "peft-padded"):
        assert turn(way, 1, 8.0).seconds == 8.0
        assert turn(way, 1, 8.0).tokens_per_s == 200 / 8


def test_ratios_are_paired_by_round() -> None:
    # The machine is four times slower in round 2: unpaired medians would say something else.
    times = {OURS: (1, 4, 2), "peft-padded": (3, 12, 4), "peft-sorted": (2, 10, 3)}
    turns = [turn(way, i, s) for way, many in times.items() for i, s in enumerate(many, 1)]
    (found,) = compare(turns)
    padded, best = found.ratio("peft-padded"), found.ratio("peft-sorted")
    assert (padded.median, padded.low, padded.high) == (3.0, 2.0, 3.0)
    assert (best.median, best.low, best.high) == (2.0, 1.5, 2.5)
    assert (found.strongest, found.weakest) == ("peft-sorted", "peft-padded")
    speeds = {way.way: way.tokens_per_s for way in found.ways}
    assert (speeds[OURS].median, speeds[OURS].low, speeds[OURS].high) == (100, 50, 200)
    assert {way.way: way.ratio is None for way in found.ways}[OURS]
    assert [way.peak_rss_mb for way in found.ways] == [3000.0] * 3


def test_the_limit_is_no_baseline_and_has_no_loss() -> None:
    times = {OURS: (4, 8), "peft-padded": (8, 32), DETERMINISTIC: (5, 9), LIMIT: (2, 6)}
    turns = [turn(way, i, s) for way, many in times.items() for i, s in enumerate(many, 1)]
    (found,) = compare(turns)
    shares = {way.way: way.of_limit for way in found.ways}
    assert found.share == shares[OURS]
    assert found.share is not None and found.share.low == 0.5 and found.share.high == 0.75
    assert shares["peft-padded"] is not None and shares["peft-padded"].low == 6 / 32
    assert shares[LIMIT] is None
    assert {way.way for way in found.ways if way.ratio is None} == {OURS, LIMIT}
    assert (found.strongest, found.weakest) == ("peft-padded", "peft-padded")
    assert {loss.way for loss in found.losses} == {"peft-padded", DETERMINISTIC}
    (alone,) = compare([one for one in turns if one.way in (OURS, LIMIT)])
    assert alone.strongest is None


def test_a_round_that_is_not_whole_is_left_out() -> None:
    turns = [turn(OURS, 1, 1), turn("trl", 1, 3), turn(OURS, 2, 1)]
    (found,) = compare(turns)
    assert found.ratio("trl").high == 3.0
    assert compare(turns[:1]) == ()


def test_losses_are_compared_step_by_step_only_where_batches_and_masks_are_the_same() -> None:
    turns = [
        turn(way, 1, 1, dropout=dropout, loss=2.0 if way == OURS else 2.5)
        for dropout in (0.0, 0.05)
        for way in (OURS, "peft-padded", "peft-sorted")
    ]
    plain, dropped = compare(turns)
    by_way = {loss.way: loss for loss in plain.losses if loss.job == "a"}
    assert (by_way["peft-padded"].ours, by_way["peft-padded"].theirs) == (3.5, 4.0)
    assert by_way["peft-padded"].worst_step == pytest.approx(0.5 / 3.5)  # the first step's
    assert by_way["peft-sorted"].worst_step is None
    assert {loss.worst_step for loss in dropped.losses} == {None}
    assert {loss.job for loss in dropped.losses} == {"a", "b"}


def test_losses_that_differ_are_wrong_results() -> None:
    """Not where batches or masks are others, nor in bfloat16, where a step may differ so much."""
    turns = [
        turn(way, 1, 1, dropout=dropout, loss=2.0 if way == OURS else 2.0 * (1 + off))
        for dropout, off in ((0.0, 0.01), (0.05, 0.5))
        for way in (OURS, "peft-padded", "peft-sorted")
    ]
    wrong = wrong_losses(compare(turns), "float32")
    assert len(wrong) == 2
    assert wrong[0].startswith("a: a step's loss differs by 6.6e-03 between lorafusion and peft-pa")
    assert not wrong_losses(compare(turns), "bfloat16")
    equal = [turn(way, 1, 1, loss=2.0) for way in (OURS, "peft-padded")]
    assert not wrong_losses(compare(equal), "float64")
