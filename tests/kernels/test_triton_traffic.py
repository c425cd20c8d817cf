"""The counted bytes are those that the kernels load and store: the interpreter is listened to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from lorafusion.kernels.backend import implementation  # noqa: E402
from lorafusion.kernels.launch_configs import OPS, LaunchConfig  # noqa: E402
from lorafusion.kernels.traffic import (  # noqa: E402
    Bytes,
    SegmentShape,
    Shape,
    compulsory,
    issued,
    partial_bytes,
    uses_atomics,
)

TILES = {
    "down": LaunchConfig(BM=32, BK=32),
    "up": LaunchConfig(BM=32, BN=64, BK=32, group=2),
    "grad_down": LaunchConfig(BM=32, BN=32, span=64),
    "grad_input": LaunchConfig(BM=32, BN=32, BK=64),
    "grad_a": LaunchConfig(BM=16, BK=32, span=32),
}
ONE_TILE = {
    "down": LaunchConfig(BM=64, BK=64),
    "up": LaunchConfig(BM=64, BN=128, BK=64),
    "grad_down": LaunchConfig(BM=64, BN=128, span=128),
    "grad_input": LaunchConfig(BM=64, BN=64, BK=128),
    "grad_a": LaunchConfig(BM=64, BK=64, span=64),
}


@dataclass
class Counter:
    """Bytes of elements that no mask leaves out."""

    loads: int = 0
    stores: int = 0
    adds: int = 0

    def take(self) -> Bytes:
        found = Bytes(self.loads, self.stores, self.adds)
        self.loads = self.stores = self.adds = 0
        return found


@contextmanager
def listening() -> Generator[Counter]:
    from triton.runtime import interpreter

    builder, counter = interpreter.InterpreterBuilder, Counter()

    def bytes_of(pointers, mask) -> int:
        element = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        return int(np.broadcast_to(mask.data, pointers.data.shape).sum()) * element

    load, store = builder.create_masked_load, builder.create_masked_store
    atomic = builder.create_atomic_rmw

    def counted_load(self, pointers, mask, *rest, **options):
        counter.loads += bytes_of(pointers, mask)
        return load(self, pointers, mask, *rest, **options)

    def counted_store(self, pointers, value, mask, *rest):
        counter.stores += bytes_of(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_atomic(self, op, pointers, value, mask, *rest):
        counter.adds += bytes_of(pointers, mask)
        return atomic(self, op, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", counted_load)
        patch.setattr(builder, "create_masked_store", counted_store)
        patch.setattr(builder, "create_atomic_rmw", counted_atomic)
        yield counter


def count(case, configs, slots) -> dict[str, Bytes]:
    """Run the five ops on a case; what each moved."""
    layout, adapters = case.layout(), case.adapters
    x, weight = case.x.detach(), case.weight
    run = {op: getattr(implementation(op, "triton"), op) for op in OPS}
    found = {}
    with listening() as counter:
        s = run["down"](x, layout, adapters, config=configs["down"])
        found["down"] = counter.take()
        run["up"](x, weight, case.bias, s, layout, adapters, config=configs["up"])
        found["up"] = counter.take()
        ds, _ = run["grad_down"](
            case.dy, s, layout, adapters, slots=slots, config=configs["grad_down"]
        )
        found["grad_down"] = counter.take()
        run["grad_input"](case.dy, weight, ds, layout, adapters, config=configs["grad_input"])
        found["grad_input"] = counter.take()
        run["grad_a"](ds, x, layout, adapters, slots=slots, config=configs["grad_a"])
        found["grad_a"] = counter.take()
    return found


def shape_of(case, slots) -> Shape:
    return Shape(
        segments=[
            SegmentShape(sum(job.lengths), job.rank or 0, wanted=job.slot in slots)
            for job in case.jobs
        ],
        K=case.x.shape[1],
        N=case.weight.shape[0],
        size=case.x.element_size(),
        dropout=any(job.p for job in case.jobs if job.rank and sum(job.lengths)),
        bias=case.bias is not None,
    )


def assert_counted(found: Bytes, expected: Bytes, op: str):
    for kind in ("loads", "stores", "adds"):
        measured, formula = getattr(found, kind), getattr(expected, kind)
        assert abs(measured - formula) <= 0.01 * measured, f"{op}, {kind}: {measured}, {formula}"


@pytest.mark.parametrize(
    ("change", "dtype", "p"),
    [
        ({}, torch.float32, 0.1),
        ({}, torch.bfloat16, 0.0),
        ({"BR": 16}, torch.float32, 0.1),
        ({"atomic": True}, torch.float32, 0.0),
        ({"atomic": False}, torch.float16, 0.0),
        ({"tma": True}, torch.float32, 0.1),
    ],
    ids=str,
)
def test_issued_bytes(make_case, job, change, dtype, p):
    jobs = [
        job(0, 16, [40, 30], [1, 2], p=p),
        job(-1, None, [7], [1]),
        job(2, 70, [33], [1], p=p and 0.5),
        job(1, 5, [], []),
        job(3, 5, [1], [1]),
    ]
    case = make_case(jobs, K=80, N=100 if not change.get("tma") else 104, bias=p > 0)
    case = case.to(dtype, torch.float32)
    slots = [0, 2, 3] if p else [0, 3]
    configs = {
        op: LaunchConfig(**(vars(config) | change))
        if "tma" not in change or op in ("up", "grad_input")
        else config
        for op, config in TILES.items()
    }
    shape = shape_of(case, slots)
    for op, found in count(case, configs, slots).items():
        assert_counted(found, issued(op, shape, configs[op]), op)
        assert issued(op, shape, configs[op]).total >= compulsory(op, shape).total


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_one_tile_moves_what_is_compulsory(make_case, job, p):
    case = make_case([job(4, 13, [50], [3], p=p)], K=60, N=100).to(torch.float32)
    shape = shape_of(case, [4])
    for op, found in count(case, ONE_TILE, [4]).items():
        assert found == compulsory(op, shape) == issued(op, shape, ONE_TILE[op]), op


@pytest.mark.parametrize(("height", "atomic"), [(16, True), (64, False), (128, False)])
def test_the_choice_of_atomics_is_the_counted_one(make_case, job, height, atomic):
    # Of 5 ranks in 16-bit rows, shares are 4·5 bytes for 2·height: 62%, 16% and, of one tile, none.
    case = make_case([job(0, 5, [128], [1])], K=16, N=64).to(torch.float16, torch.float32)
    config = LaunchConfig(BM=height, BN=32, span=64)
    with listening() as counter:
        implementation("grad_down", "triton").grad_down(
            case.dy, torch.zeros(128, 16), case.layout(), case.adapters, slots=[0], config=config
        )
    shape = shape_of(case, [0])
    assert (counter.adds > 0) == uses_atomics(shape, config) == atomic
    assert partial_bytes(shape, config) == (0 if height == 128 else 128 // height * 5 * 64 * 4)
