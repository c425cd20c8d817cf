"""The microbatches that are measured: of the sizes asked for, and enough unlike each other."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from lorafusion.profiling.design import SHARE, Probe, held_out, to_fit

RANKS = (64, 4, 8)


@pytest.mark.parametrize(("most", "longest"), [(128, 128), (128, 9), (2048, 512), (9000, 4096)])
def test_counts_add_up(most: int, longest: int) -> None:
    for probe in (*to_fit(most, longest, RANKS), *held_out(most, longest, RANKS)):
        assert 0 < probe.counts.tokens <= most
        for part in probe.segments:
            assert part.rank in RANKS
            assert min(part.lengths) >= 1
            assert all(
                1 <= rows <= length
                for rows, length in zip(part.labelled, part.lengths, strict=True)
            )


@pytest.mark.parametrize("most", [256, 2048])
def test_every_coefficient_can_be_told_from_the_others(most: int) -> None:
    """Also with one adapter rank and short samples: the counts' columns are far from dependent."""
    rows = np.array([(1.0, *astuple(p.counts)) for p in to_fit(most, most // 4, RANKS)])
    scaled = rows / np.linalg.norm(rows, axis=0)
    assert np.linalg.cond(scaled) < 60


def test_held_out_ones_are_other_ones() -> None:
    def mean_length(probe: Probe) -> float:
        return probe.counts.tokens / sum(len(part.lengths) for part in probe.segments)

    fitted, held = to_fit(2048, 512, RANKS), held_out(2048, 512, RANKS)
    assert not {*map(mean_length, fitted)} & {*map(mean_length, held)}
    jobs = [{len(probe.segments) for probe in probes} for probes in (fitted, held)]
    assert len(jobs[1] - jobs[0]) >= 3


def test_a_round_is_about_its_share() -> None:
    probes = (*to_fit(4096, 512, RANKS), *held_out(4096, 512, RANKS))
    assert sum(probe.counts.tokens for probe in probes) == pytest.approx(4096 * SHARE, rel=0.01)
