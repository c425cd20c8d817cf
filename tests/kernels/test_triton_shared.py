"""The Triton kernels of several linears on one X, in the interpreter, against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from lorafusion.kernels.backend import implementation  # noqa: E402
from lorafusion.kernels.launch_configs import LaunchConfig  # noqa: E402
from lorafusion.kernels.shared_input import triton as shared  # noqa: E402
from tests.kernels.shared_case import (  # noqa: E402
    SharedCase,
    assert_near,
    build_shared,
    mixed,
    parts,
)

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype)[6:])
TILES = {
    "large": {
        "shared_down": LaunchConfig(BM=64, BK=128),
        "shared_up": LaunchConfig(BM=64, BN=128, BK=64),
        "shared_grad_input": LaunchConfig(BM=64, BN=64, BK=128),
        "shared_grad_a": LaunchConfig(BM=64, BK=64, span=128),
    },
    "small": {
        "shared_down": LaunchConfig(BM=16, BK=32, BR=16),
        "shared_up": LaunchConfig(BM=32, BN=32, BK=32, group=2, BR=16),
        "shared_grad_input": LaunchConfig(BM=16, BN=32, BK=64, group=1),
        "shared_grad_a": LaunchConfig(BM=16, BK=32, span=16, BR=16),
    },
}


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Choose the tiles of every part: the large ones until told otherwise."""

    def choose(name):
        monkeypatch.setattr(shared, "shared_config", lambda op, _: TILES[name][op])
        monkeypatch.delattr(implementation("shared_input", "cpu"), "down", raising=False)

    choose("large")
    return choose


def check(case: SharedCase, dtype: torch.dtype, *, training: bool = True) -> None:
    case = case.to(dtype, torch.float32)
    found = case.run("triton", training=training)
    for name, tensor in parts(found).items():
        if tensor is not None:
            narrow = dtype if name[0] == "Y" or name == "dX" else torch.float32
            assert tensor.dtype == narrow, name
    assert_near(found, case.expect(training=training), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("rows", [1, 130])
def test_one_job(job, dtype, rows):
    case = build_shared([job(0, None, [rows], [3], p=0.1)], [(16,)] * 3, K=60, N=(100, 40, 40))
    check(case, dtype)


@DTYPES
def test_mixed_ranks_and_dropouts(dtype):
    check(mixed(K=60, N=(100, 24, 36)), dtype)


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize(("K", "N"), [(64, (48, 16, 32)), (37, (33, 5, 1))], ids=str)
def test_tiles_and_shapes(tiles, name, K, N):
    tiles(name)
    check(mixed(K=K, N=N), torch.float32)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_other_numbers_of_linears(job, tiles, count):
    tiles("small")
    jobs = [job(0, None, [20, 4], [1, 0], p=0.3), job(1, None, [5], [2])]
    ranks = [(2 + number, 17) for number in range(count)]
    case = build_shared(jobs, ranks, K=40, N=(9, 24, 6, 48)[:count], bias=[True] * count)
    check(case, torch.float32)


def test_dropout_is_off_outside_of_training():
    check(mixed(), torch.float32, training=False)


def test_no_rows_and_no_adapters(job):
    empty = build_shared([job(0, None, [], [])], [(2,)] * 3).to(torch.float32)
    assert [tuple(result.y.shape) for result in empty.run("triton")] == [(0, 7), (0, 3), (0, 5)]
    check(build_shared([job(-1, None, [3], [0])], [(None,)] * 3, K=64), torch.float32)
    check(build_shared([job(1, None, [3], [0])], [(4,), (None,), (None,)], K=64), torch.float32)


def test_a_weight_stored_the_other_way_round():
    case = mixed(K=64, N=(48, 16, 32))
    q, *rest = case.cases
    turned = replace(q, weight=q.weight.T.contiguous().T)
    check(SharedCase([turned, *rest]), torch.float32)
    turned_back = SharedCase([turned, *rest]).to(torch.float32)
    kept = replace(turned_back.cases[0], weight=turned.weight.float().T.contiguous().T)
    found = SharedCase([kept, *turned_back.cases[1:]])
    assert found.cases[0].weight.stride() == (1, 48)
    assert_near(found.run("triton"), case.to(torch.float32).expect(), 2e-6)


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_job_alone_has_the_bits_it_has_among_others(job, tiles, name, dtype):
    tiles(name)
    jobs = [job(i, None, [20 + 7 * i, 9], [i, 4], p=0.2 * i, seed=i) for i in range(3)]
    case = build_shared(jobs, [(16, 4, 16), (3, 16, 8), (16, None, 5)], K=40, N=(36, 12, 20))
    case = case.to(dtype, torch.float32)
    among = case.run("triton")
    for slot in range(3):
        rows = case.rows(slot)
        for one, all_ in zip(case.alone(slot).run("triton"), among, strict=True):
            assert torch.equal(one.y, all_.y[rows])
            assert one.dx is None or torch.equal(one.dx, all_.dx[rows])
            for found, expected in zip(
                one.factors.get(slot, ()), all_.factors.get(slot, ()), strict=True
            ):
                assert torch.equal(found, expected)


def test_all_but_dx_has_the_bits_of_separate_kernels(tiles, monkeypatch):
    """The same tiles: the same sums in the same order."""
    tiles("small")
    for op in ("down", "up", "grad_down", "grad_input", "grad_a"):
        config = TILES["small"].get(f"shared_{op}", LaunchConfig(BM=32, BN=16, span=32, BR=16))
        monkeypatch.setattr(implementation(op, "triton"), "choose_config", lambda *_, c=config: c)
    case = mixed(K=40, N=(36, 12, 20)).to(torch.float32)
    together, apart = case.run("triton"), case.apart("triton")
    for name, tensor in parts(together).items():
        if tensor is not None and name != "dX":
            assert torch.equal(tensor, parts(apart)[name]), name
    assert_near(together, apart, 1e-6)


def test_two_runs_have_the_same_bits(tiles):
    tiles("large")
    case = mixed(K=40, N=(36, 12, 20)).to(torch.float32)
    first, again = parts(case.run("triton")), parts(case.run("triton"))
    for name, tensor in first.items():
        assert tensor is None or torch.equal(tensor, again[name]), name


@pytest.mark.parametrize("name", ["large", "small"])
def test_a_neighbours_nan_stays_with_it(job, tiles, name):
    tiles(name)
    jobs = [job(i, None, [21 - 6 * i], [1], p=0.25 * i) for i in range(3)]
    case = build_shared(jobs, [(16, 5, 16)] * 3, K=40, N=(36, 12, 20)).to(torch.float32)
    expected = case.run("triton")
    case.x.data[case.rows(1)] = float("nan")
    found = case.run("triton")
    for slot in (0, 2):
        rows = case.rows(slot)
        assert torch.equal(found[0].dx[rows], expected[0].dx[rows])
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.y[rows], other.y[rows])
            for a, b in zip(one.factors[slot], other.factors[slot], strict=True):
                assert torch.equal(a, b)


def inside_nan(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a view, with NaN before, behind and, in two dimensions, beside it."""
    room = [length + 2 * 16 for length in tensor.shape]
    view = tensor.new_full(room, float("nan"))[tuple(slice(16, -16) for _ in room)]
    view.copy_(tensor.detach())
    return view.requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize(
    ("name", "K", "N"), [("large", 64, (48, 16, 32)), ("small", 60, (40, 3, 5))], ids=str
)
def test_nothing_outside_is_read(tiles, name, K, N):
    tiles(name)
    case = mixed(K=K, N=N).to(torch.float32)
    expected = case.run("triton")
    x = inside_nan(case.x)
    inside = [
        replace(
            single,
            x=x,
            weight=inside_nan(single.weight),
            bias=None if single.bias is None else inside_nan(single.bias),
            factors={
                slot: (inside_nan(A), inside_nan(B)) for slot, (A, B) in single.factors.items()
            },
        )
        for single in case.cases
    ]
    assert_near(SharedCase(inside).run("triton"), expected, 1e-6)
