"""Stages and replicas on nodes: which hops leave a node, and what a reduction takes."""

from __future__ import annotations

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Linear, StageCost
from lorafusion.planner.devices import find_device
from lorafusion.planner.machines import Machines, with_reduction

H100 = find_device("h100")
TWO_NODES = Machines(H100, nodes=2, gpus=8)


def test_every_device_is_used() -> None:
    assert TWO_NODES.stage_counts(80) == (1, 2, 4, 8, 16)
    assert TWO_NODES.stage_counts(6) == (1, 2, 4)
    assert Machines(H100, 3, 2).stage_counts(80) == (1, 2, 3, 6)


@pytest.mark.parametrize(
    ("nodes", "gpus", "stages", "hops", "replicas"),
    [
        (1, 8, 8, False, False),
        (2, 8, 4, False, True),
        (2, 8, 8, False, True),
        (2, 8, 16, True, False),
        # Of three replicas of four stages on nodes of six, the second stands in both.
        (2, 6, 4, True, True),
    ],
)
def test_links(nodes: int, gpus: int, stages: int, hops: bool, replicas: bool) -> None:
    machines = Machines(H100, nodes, gpus)
    assert machines.hops_across(stages) is hops
    assert machines.replicas_across(stages) is replicas
    expected = H100.network if replicas else H100.link
    assert machines.reduction_bandwidth(stages) == expected


def test_a_ring_of_replicas() -> None:
    stage = StageCost(Linear(fixed=1.0), Linear(fixed=2.0), step_fixed_s=0.1, step_rank_s=0.01)
    cost = CostModel((stage, stage))
    cut = (range(3), range(3, 4))
    found = with_reduction(cost, cut, TWO_NODES, columns=1000)
    # 8 replicas: 14 messages, each an eighth of 4 bytes a parameter, over 50 GB/s.
    for now, layers in zip(found.stages, cut, strict=True):
        assert now.step_fixed_s == pytest.approx(0.1 + 14e-5)
        assert now.step_rank_s == pytest.approx(0.01 + 14 / 8 * 4 * 1000 * len(layers) / 50e9)
    assert with_reduction(cost, cut, Machines(H100, 1, 2), columns=1000) == cost


def test_no_machine() -> None:
    with pytest.raises(PlanError, match="0 nodes of 8 devices; allowed: 1 or more"):
        Machines(H100, 0, 8)
