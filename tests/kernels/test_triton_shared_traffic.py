"""The counted bytes of the shared parts are those that their kernels load and store."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from lorafusion.kernels.backend import implementation  # noqa: E402
from lorafusion.kernels.launch_configs import LaunchConfig  # noqa: E402
from lorafusion.kernels.shared_input import triton as shared  # noqa: E402
from lorafusion.kernels.shared_traffic import shared_compulsory, shared_issued  # noqa: E402
from lorafusion.kernels.traffic import Bytes, SegmentShape, Shape  # noqa: E402
from tests.kernels.shared_case import SharedCase, build_shared  # noqa: E402
from tests.kernels.test_triton_traffic import assert_counted, listening  # noqa: E402

OPS = ("down", "up", "grad_input", "grad_a")
TILES = {
    "down": LaunchConfig(BM=32, BK=32),
    "up": LaunchConfig(BM=32, BN=64, BK=32, group=2),
    "grad_input": LaunchConfig(BM=32, BN=32, BK=64),
    "grad_a": LaunchConfig(BM=16, BK=32, span=32),
}
ONE_TILE = {
    "down": LaunchConfig(BM=64, BK=64),
    "up": LaunchConfig(BM=64, BN=128, BK=64),
    "grad_input": LaunchConfig(BM=64, BN=64, BK=128),
    "grad_a": LaunchConfig(BM=64, BK=64, span=64),
}


def count(case: SharedCase, configs, slots) -> dict[str, Bytes]:
    """Run the parts on a case; what each moved."""
    layout, projections, x = case.layout(), case.projections, case.x.detach()
    dy = [single.dy for single in case.cases]
    found = {}
    with listening() as counter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "shared_config", lambda op, _: configs[op.removeprefix("shared_")])
        s = shared.down(x, projections, layout)
        found["down"] = counter.take()
        shared.up(x, projections, s, layout)
        found["up"] = counter.take()
        ds = [
            implementation("grad_down", "reference").grad_down(
                dy_TN, s_TR, layout, p.adapters, slots=[]
            )[0]
            for dy_TN, s_TR, p in zip(dy, s, projections, strict=True)
        ]
        counter.take()
        shared.grad_input(dy, projections, ds, layout)
        found["grad_input"] = counter.take()
        shared.grad_a(ds, x, projections, layout, slots=slots)
        found["grad_a"] = counter.take()
    return found


def shapes_of(case: SharedCase, slots) -> list[Shape]:
    return [
        Shape(
            segments=[
                SegmentShape(sum(job.lengths), job.rank or 0, wanted=job.slot in own)
                for job in single.jobs
            ],
            K=case.x.shape[1],
            N=single.weight.shape[0],
            size=case.x.element_size(),
            dropout=any(job.p for job in single.jobs if job.rank and sum(job.lengths)),
            bias=single.bias is not None,
        )
        for single, own in zip(case.cases, slots, strict=True)
    ]


@pytest.mark.parametrize(
    ("dtype", "p"), [(torch.float32, 0.1), (torch.bfloat16, 0.0)], ids=["dropout", "none"]
)
def test_issued_bytes(job, dtype, p):
    jobs = [
        job(0, None, [40, 30], [1, 2], p=p),
        job(-1, None, [7], [1]),
        job(2, None, [33], [1], p=p and 0.5),
        job(1, None, [], []),
    ]
    ranks = [(16, None, 70, 5), (5, None, None, 1), (None, None, 3, 2)]
    case = build_shared(jobs, ranks, K=80, N=(100, 40, 36)).to(dtype, torch.float32)
    slots = [[0, 2], [0], []]
    shapes = shapes_of(case, slots)
    for op, found in count(case, TILES, slots).items():
        assert_counted(found, shared_issued(op, shapes, TILES[op]), op)
        assert found.total >= shared_compulsory(op, shapes).total


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_one_tile_moves_what_is_compulsory(job, p):
    case = build_shared([job(4, None, [50], [3], p=p)], [(13,), (16,), (3,)], K=60, N=(100, 40, 8))
    case = case.to(torch.float32)
    slots = [[4]] * 3
    shapes = shapes_of(case, slots)
    for op, found in count(case, ONE_TILE, slots).items():
        expected = shared_compulsory(op, shapes)
        if op == "up":  # a program for each Y: two more read X
            expected += Bytes(loads=2 * 50 * 60 * 4)
        assert found == expected == shared_issued(op, shapes, ONE_TILE[op]), op
