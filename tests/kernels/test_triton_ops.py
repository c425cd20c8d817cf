"""The Triton kernels in the interpreter, against the definition and the reference in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from lorafusion.errors import KernelError  # noqa: E402
from lorafusion.kernels import launch_configs  # noqa: E402
from lorafusion.kernels.backend import implementation  # noqa: E402
from lorafusion.kernels.launch_configs import LaunchConfig  # noqa: E402

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype)[6:])
# What the interpreter costs is programs and steps: few, large tiles; and what they must not change.
TILES = {
    "large": {
        "down": LaunchConfig(BM=64, BK=128),
        "up": LaunchConfig(BM=64, BN=128, BK=64),
        "grad_down": LaunchConfig(BM=64, BN=64, span=64, atomic=False),
        "grad_input": LaunchConfig(BM=64, BN=64, BK=128),
        "grad_a": LaunchConfig(BM=64, BK=64, span=128),
    },
    "small": {
        "down": LaunchConfig(BM=16, BK=32),
        "up": LaunchConfig(BM=32, BN=32, BK=32, group=2, BR=16),
        "grad_down": LaunchConfig(BM=32, BN=16, span=32, BR=16, atomic=False),
        "grad_input": LaunchConfig(BM=16, BN=32, BK=64, group=1),
        "grad_a": LaunchConfig(BM=16, BK=32, span=16),
    },
    "atomic": {"grad_down": LaunchConfig(BM=32, BN=32, span=64, atomic=True)},
    "persistent": {
        "up": LaunchConfig(BM=32, BN=32, BK=32, group=2, tma=True),
        "grad_input": LaunchConfig(BM=32, BN=64, BK=32, group=4, tma=True),
    },
}


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Choose the tiles of every op: the large ones until told otherwise."""

    def choose(name):
        table = TILES["large"] | TILES[name]
        for op in launch_configs.OPS:
            module = implementation(op, "triton")
            monkeypatch.setattr(module, "choose_config", lambda op, *_: table[op])
            monkeypatch.delattr(implementation(op, "cpu"), op, raising=False)  # no way round

    choose("large")
    return choose


def parts(result) -> dict[str, torch.Tensor | None]:
    """Every tensor of a result, by a name to show when it differs."""
    named = {"Y": result.y, "dX": result.dx}
    for slot, (da, db) in result.factors.items():
        named |= {f"dA of slot {slot}": da, f"dB of slot {slot}": db}
    return named


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = ""):
    """Relative, by norm."""
    assert found.shape == expected.shape, name
    assert found.isfinite().all(), name
    difference = (found.double() - expected.double()).norm()
    assert difference <= tolerance * expected.double().norm(), f"{name}: {difference}"


def check(case, dtype, *, training=True):
    """Y, dX and each dA and dB of a case in this dtype, against autograd in float64."""
    case = case.to(dtype, torch.float32)
    found = parts(case.run("triton", training=training))
    expected = parts(case.expect(training=training))
    for name, tensor in expected.items():
        if found[name] is None:  # a job without rows
            assert tensor is None or not tensor.any(), name
            continue
        assert found[name].dtype == (dtype if name in ("Y", "dX") else torch.float32)
        assert_close(found[name], tensor, TOLERANCE[dtype], name)


# --- the definition: outputs and all gradients


@DTYPES
@pytest.mark.parametrize("rows", [1, 63, 257])
def test_one_job(make_case, job, dtype, rows):
    check(make_case([job(0, 16, [rows], [3], p=0.1)], K=60, N=100), dtype)


@DTYPES
def test_mixed_ranks_and_dropouts(make_case, job, dtype):
    jobs = [
        job(3, 5, [40, 22, 1], [1, 5, 9], p=0.25),
        job(-1, None, [6], [0]),
        job(0, 130, [33], [2], p=0.5, scale=-0.3, seed=3),
        job(7, None, [1], [2], p=0.5),
        job(1, 1, [], []),
        job(5, 1, [64], [2], p=0.0, step=1),
        job(2, 64, [1], [8], p=0.9),
    ]
    check(make_case(jobs, K=60, N=100), dtype)


@DTYPES
def test_no_dropout_no_bias(make_case, job, dtype):
    jobs = [job(0, 8, [30], [1]), job(1, 16, [17], [2])]
    check(make_case(jobs, K=36, N=33, bias=False), dtype)


def test_dropout_is_off_outside_of_training(make_case, job):
    case = make_case([job(0, 4, [9], [1], p=0.5)])
    check(case, torch.float32, training=False)


def test_seventeen_jobs(make_case, job):
    jobs = [
        job(40 - i, (1, 5, 16, 64)[i % 4], [1 + i % 5], [i], p=i % 3 / 4, scale=i / 7, seed=i)
        for i in range(17)
    ]
    check(make_case(jobs, K=60, N=100), torch.float32)


@pytest.mark.parametrize("name", ["small", "atomic", "persistent"])
def test_other_tiles(make_case, job, tiles, name):
    tiles(name)
    jobs = [
        job(0, 80, [50, 30], [1, 2], p=0.3),
        job(2, None, [5], [1]),
        job(1, 5, [35], [7], p=0.6),
        job(4, 16, [1], [3]),
    ]
    check(make_case(jobs, K=80, N=112), torch.float32)


@pytest.mark.parametrize("name", ["large", "persistent"])
def test_a_weight_stored_the_other_way_round(make_case, job, tiles, name):
    tiles(name)
    case = make_case([job(0, 5, [40], [1], p=0.3), job(1, 8, [3], [1])], K=64, N=48)
    check(replace(case, weight=case.weight.T.contiguous().T), torch.float32)


def test_descriptors_are_not_used_where_they_cannot_load(make_case, job, tiles):
    # Rows of 60 and 100 float16 are no multiple of 16 bytes.
    tiles("persistent")
    check(make_case([job(0, 5, [40], [1], p=0.3)], K=60, N=100), torch.float16)


def test_no_rows_and_no_adapters(make_case, job, tiles):
    for name in ("large", "persistent"):
        tiles(name)
        assert make_case([job(0, 2, [], [])]).to(torch.float32).run("triton").y.shape == (0, 7)
        check(make_case([job(-1, None, [3], [0]), job(4, None, [2], [1])], K=64), torch.float32)


def test_float64_is_refused(packed):
    with pytest.raises(KernelError, match="not float64"):
        packed.run("triton")


SEGMENT = st.tuples(
    st.sampled_from([None, 1, 3, 5, 16, 17, 70]),
    st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from([0.0, 0.1, 0.7]),
)


@given(
    segments=st.lists(SEGMENT, min_size=1, max_size=5),
    K=st.integers(1, 70),
    N=st.integers(1, 70),
    bias=st.booleans(),
    small=st.booleans(),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_layout(make_case, job, tiles, segments, K, N, bias, small):
    tiles("small" if small else "large")
    jobs = [
        job(slot, rank, lengths, range(len(lengths)), p=p)
        for slot, (rank, lengths, p) in enumerate(segments)
    ]
    check(make_case(jobs, K=K, N=N, bias=bias), torch.float32)


# --- one op at a time


@pytest.fixture
def several(make_case, job):
    """Three jobs and rows without one, of few rows, in float32."""
    jobs = [
        job(0, 16, [50], [1], p=0.25),
        job(-1, None, [3], [1]),
        job(2, 5, [9, 1], [4, 5], p=0.5),
        job(1, 70, [5], [2], scale=0.25),
    ]
    return make_case(jobs, K=40, N=36).to(torch.float32)


def test_columns_above_a_rank_are_zero(several):
    layout, adapters = several.layout(), several.adapters
    s = implementation("down", "triton").down(several.x.detach(), layout, adapters)
    ds, _ = implementation("grad_down", "triton").grad_down(
        several.dy, s, layout, adapters, slots=[0]
    )
    for tensor in (s, ds):
        assert tensor.dtype == torch.float32
        assert not tensor[several.rows(0), 16:].any()
        assert not tensor[several.rows(-1)].any()
        assert not tensor[several.rows(2), 5:].any()
        assert not tensor[several.rows(1), 70:].any()
        assert tensor[several.rows(1), :70].all()


@pytest.mark.parametrize("slots", [[], [2], [0, 1]], ids=str)
@pytest.mark.parametrize("name", ["large", "small", "atomic"])
def test_only_wanted_gradients_are_made(several, tiles, name, slots):
    tiles(name)
    layout, adapters = several.layout(), several.adapters
    s = implementation("down", "triton").down(several.x.detach(), layout, adapters)

    def make(slots):
        ds, db = implementation("grad_down", "triton").grad_down(
            several.dy, s, layout, adapters, slots=slots
        )
        return db, implementation("grad_a", "triton").grad_a(
            ds, several.x.detach(), layout, adapters, slots=slots
        )

    for some, every in zip(make(slots), make([0, 1, 2]), strict=True):
        assert some.keys() == set(slots)
        for slot in slots:
            assert_close(some[slot], every[slot], 1e-6)


def test_partial_sums_are_added_in_one_order(several, tiles):
    tiles("small")
    first, again = several.run("triton"), several.run("triton")
    for name, tensor in parts(first).items():
        assert torch.equal(tensor, parts(again)[name]), name


@pytest.mark.parametrize(
    ("rank", "rows", "deterministic", "atomic"),
    [
        (16, 128, False, True),  # 2 shares of 16 ranks in float32: 50% of 128 rows
        (16, 128, True, False),
        (8, 128, False, False),  # 25%
        (64, 64, False, False),  # one tile: its share is the gradient
    ],
)
def test_when_db_is_added_in_any_order(make_case, job, rank, rows, deterministic, atomic):
    module = implementation("grad_down", "triton")
    case = make_case([job(0, rank, [rows], [1])], K=16, N=64).to(torch.float32, torch.float32)
    layout, adapters, dtype = case.layout(), case.adapters, torch.bfloat16
    s = implementation("down", "triton").down(case.x.detach().to(dtype), layout, adapters)
    launched, original = [], module.grad_down_kernel

    class Spy:
        def __getitem__(self, grid):
            return lambda *args, **options: (
                launched.append(options["ATOMIC"]),
                original[grid](*args, **options),
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "grad_down_kernel", Spy())
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
        config = LaunchConfig(BM=64, BN=64, span=64)
        module.grad_down(case.dy.to(dtype), s, layout, adapters, slots=[0], config=config)
    assert launched == [atomic]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["large", "small"])
def test_a_job_alone_has_the_bits_it_has_among_others(make_case, job, tiles, name, dtype):
    tiles(name)
    jobs = [job(i, 16, [20 + 7 * i, 9], [i, 4], p=0.2 * i, seed=i) for i in range(4)]
    case = make_case(jobs, K=40, N=36).to(dtype, torch.float32)
    among = case.run("triton")
    for slot in range(4):
        alone = case.alone(slot).run("triton")
        assert torch.equal(alone.y, among.y[case.rows(slot)])
        assert torch.equal(alone.dx, among.dx[case.rows(slot)])
        for found, expected in zip(alone.factors[slot], among.factors[slot], strict=True):
            assert torch.equal(found, expected)


# --- memory: nothing is read or written that is not the call's own


class Guard:
    """Outputs full of NaN, between margins that must stay as they are."""

    MARGIN = 64
    MARK = 12345.0

    def __init__(self, monkeypatch):
        self.whole: list[torch.Tensor] = []
        original = torch.Tensor.new_empty

        def new_empty(tensor, *sizes, dtype=None, **options):
            shape = torch.Size(sizes if not sizes or isinstance(sizes[0], int) else sizes[0])
            whole = original(
                tensor, math.prod(shape) + 2 * self.MARGIN, dtype=dtype or tensor.dtype, **options
            )
            whole.fill_(self.MARK)
            inner = whole[self.MARGIN : len(whole) - self.MARGIN]
            if inner.is_floating_point():
                inner.fill_(float("nan"))
            self.whole.append(whole)
            return inner.view(shape)

        monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)

    def check(self):
        mark = torch.tensor(self.MARK)
        for whole in self.whole:
            for margin in (whole[: self.MARGIN], whole[len(whole) - self.MARGIN :]):
                assert (margin == mark.to(margin.dtype)).all()


def inside_nan(tensor: torch.Tensor, multiple: int = 1) -> torch.Tensor:
    """The same values as a view, with NaN before, behind and, in two dimensions, beside it."""
    room = [length + 2 * 16 for length in tensor.shape]
    view = tensor.new_full(room, float("nan"))[tuple(slice(16, -16) for _ in room)]
    view.copy_(tensor.detach())
    return view.requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("name", ["large", "small", "persistent"])
@pytest.mark.parametrize(("K", "N"), [(60, 100), (64, 48)])
def test_nothing_outside_is_read_or_written(make_case, job, tiles, monkeypatch, name, K, N):
    tiles(name)
    jobs = [
        job(0, 5, [37], [1], p=0.25),
        job(-1, None, [2], [1]),
        job(2, 17, [1], [4], p=0.5),
        job(1, 70, [40, 5], [2, 3]),
    ]
    case = make_case(jobs, K=K, N=N).to(torch.float32)
    expected = parts(case.run("triton"))
    inside = replace(
        case,
        x=inside_nan(case.x),
        weight=inside_nan(case.weight),
        bias=inside_nan(case.bias),
        factors={slot: (inside_nan(A), inside_nan(B)) for slot, (A, B) in case.factors.items()},
    )
    guard = Guard(monkeypatch)
    found = parts(inside.run("triton"))
    guard.check()
    assert len(guard.whole) >= 5
    for part, tensor in expected.items():
        assert_close(found[part], tensor, 1e-6, part)


@pytest.mark.parametrize("name", ["large", "small"])
def test_a_neighbours_nan_stays_with_it(make_case, job, tiles, name):
    tiles(name)
    jobs = [job(0, 16, [21], [1], p=0.25), job(1, 5, [9], [1]), job(2, 16, [30], [1], p=0.5)]
    case = make_case(jobs, K=40, N=36).to(torch.float32)
    expected = case.run("triton")
    for tensor in (case.x.data, case.dy):
        tensor[case.rows(1)] = float("nan")
    case.factors[1][0].data.fill_(float("inf"))
    found = case.run("triton")
    for slot in (0, 2):
        assert torch.equal(found.y[case.rows(slot)], expected.y[case.rows(slot)])
        assert torch.equal(found.dx[case.rows(slot)], expected.dx[case.rows(slot)])
        for one, other in zip(found.factors[slot], expected.factors[slot], strict=True):
            assert torch.equal(one, other)
    assert found.y[case.rows(1)].isnan().all()


# --- cast factors


def test_factors_are_cast_once_for_forward_and_backward(several, monkeypatch):
    from lorafusion.kernels import packed

    cast, original = [], packed._cast
    monkeypatch.setattr(packed, "_cast", lambda *args: cast.append(1) or original(*args))
    several.run("triton")
    assert len(cast) == 2 * 3


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_step_is_seen(several, monkeypatch, fused):
    from lorafusion.kernels.lora_linear import lora_linear

    monkeypatch.setenv("LORAFUSION_BACKEND", "triton")
    layout, adapters = several.layout(), several.adapters
    factors = [factor for pair in several.factors.values() for factor in pair]
    optimizer = torch.optim.AdamW(factors, lr=0.1, fused=fused)
    for _ in range(2):
        # Fused, it does not raise the versions of what it writes.
        y = lora_linear(several.x, several.weight, several.bias, layout, adapters)
        assert_close(y, several.expect().y, 2e-6)
        y.sum().backward()
        optimizer.step()


def test_inference_mode(several):
    from lorafusion.kernels.lora_linear import lora_linear

    expected = several.expect().y
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setenv("LORAFUSION_BACKEND", "triton")
        forms = {
            slot: form._replace(A=form.A.clone(), B=form.B.clone())
            for slot, form in several.forms.items()
        }
        adapters = replace(several.adapters, forms=forms)
        y = lora_linear(several.x, several.weight, several.bias, several.layout(), adapters)
    assert_close(y, expected, 2e-6)


# --- everything with everything


@pytest.mark.exhaustive
@DTYPES
@pytest.mark.parametrize("jobs", [1, 3, 17])
@pytest.mark.parametrize("rank", [1, 5, 16, 64, 130, None], ids=lambda rank: rank or "mixed")
@pytest.mark.parametrize("p", [0.0, 0.1, None], ids=lambda p: "each its own" if p is None else p)
@pytest.mark.parametrize("rows", [1, 63, 257])
@pytest.mark.parametrize(
    ("name", "K", "N"), [("large", 60, 100), ("atomic", 61, 99), ("persistent", 64, 72)]
)
def test_cross_product(make_case, job, tiles, dtype, name, jobs, rank, p, rows, K, N):
    tiles(name)
    lengths = [rows // jobs + (i < rows % jobs) for i in range(jobs)]
    segments = [
        job(
            i,
            rank or (1, 5, 16, 64, 130)[i % 5],
            [length],
            [i],
            p=i % 4 / 5 if p is None else p,
            scale=0.5 + i,
        )
        for i, length in enumerate(lengths)
    ]
    case = make_case(segments, K=K, N=N)
    if rows == 1:  # of one sum, which may cancel to less than what rounding its terms changes
        for pair in [(case.x, case.weight), (case.bias, case.dy), *case.factors.values()]:
            for tensor in pair:
                tensor.data.abs_()
    check(case, dtype)
