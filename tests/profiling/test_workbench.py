"""Probes run as training runs them, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch

from lorafusion.models.load import Base
from lorafusion.profiling.design import Probe, Segment, to_fit
from lorafusion.profiling.workbench import Workbench

TWO = Probe((Segment(4, (9, 5), (3, 5)), Segment(8, (7,), (1,))))


def test_a_probe_is_a_place(bench: Workbench) -> None:
    with bench.placed([TWO]) as (place,):
        assert place.kind == "train"
        assert [segment.lengths for segment in place.segments] == [(9, 5), (7,)]
        assert [segment.labelled for segment in place.segments] == [(3, 5), (1,)]
        assert len(place.completes) == 2
        timing = bench.run(place)
    assert 0 < timing.loss < timing.forward
    assert timing.backward > 0
    assert timing.steps > 0
    assert timing.microbatch == timing.forward + timing.backward


def test_probes_can_be_run_again_and_in_any_order(bench: Workbench) -> None:
    probes = to_fit(64, 16, (2, 4, 8))
    with bench.placed(probes) as places:
        for place in (*places, *reversed(places)):
            assert bench.run(place).microbatch > 0
            assert bench.saved_bytes(place) == bench.saved_bytes(place)


def test_nothing_is_left(bench: Workbench, base: Base) -> None:
    """The base is as it was, and slots are free: a hundred probes take no more memory than one."""
    before = base.fingerprint()
    slots: set[int] = set()
    for _ in range(5):
        with bench.placed([TWO]) as (place,):
            bench.run(place)
            slots |= {shard.slot for shard in bench.shards.values()}
        assert not bench.shards
    assert slots == {0, 1}
    assert base.fingerprint() == before


def test_what_goes_wrong_is_raised(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe must not be timed without its adapter, as a job that failed would run on."""

    def broken(*_: object) -> torch.Tensor:
        raise ValueError("planted")

    with bench.placed([TWO]) as (place,):
        monkeypatch.setattr("lorafusion.training.compute.build_targets", broken)
        with pytest.raises(RuntimeError, match="planted"):
            bench.run(place)


def test_saved_bytes_are_those_of_the_graph(bench: Workbench, base: Base) -> None:
    """Twice the samples hold twice the bytes, labelled rows those of the head, and no weight."""
    one, two = Probe((Segment(4, (8,), (4,)),)), Probe((Segment(4, (8, 8), (4, 4)),))
    with bench.placed([one, two]) as places:
        single, double = (bench.saved_bytes(place) for place in places)
    width, each = 32, 4
    # The loss keeps its gradient to the hidden state, at labelled rows.
    assert single[1] == 4 * width * each
    assert double[1] == 2 * single[1]
    assert double[0] == pytest.approx(2 * single[0], rel=0.02)
    weights = sum(tensor.nbytes for tensor in base.tensors.values())
    assert single[0] < weights
