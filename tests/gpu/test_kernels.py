"""The kernels on a real GPU, against the definition in float64 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafusion.kernels.backend import implementation
from lorafusion.kernels.config_files import defaults
from lorafusion.kernels.dropout import keep_mask, threshold
from lorafusion.kernels.launch_configs import OPS, architecture, rank_chunk
from lorafusion.kernels.layout import FusedForm, ModuleAdapters
from lorafusion.kernels.tune import candidates
from tests.kernels.conftest import Case, Job, build_case, leaf

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype)[6:])


def moved(case: Case) -> Case:
    """The same case on the GPU."""

    def to_gpu(tensor: torch.Tensor) -> torch.Tensor:
        return leaf(tensor).detach().to(DEVICE).requires_grad_(tensor.requires_grad)

    return replace(
        case,
        x=to_gpu(case.x),
        weight=to_gpu(case.weight),
        bias=None if case.bias is None else to_gpu(case.bias),
        factors={slot: (to_gpu(a), to_gpu(b)) for slot, (a, b) in case.factors.items()},
        dy=to_gpu(case.dy),
    )


def parts(result) -> dict[str, torch.Tensor | None]:
    named = {"Y": result.y, "dX": result.dx}
    for slot, (da, db) in result.factors.items():
        named |= {f"dA of slot {slot}": da, f"dB of slot {slot}": db}
    return named


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = ""):
    found, expected = found.double().cpu(), expected.double().cpu()
    assert found.isfinite().all(), name
    difference = (found - expected).norm()
    assert difference <= tolerance * expected.norm(), f"{name}: {difference}"


def check(case: Case, dtype: torch.dtype) -> None:
    case = case.to(dtype, torch.float32)
    found, expected = parts(moved(case).run("triton")), parts(case.expect())
    for name, tensor in expected.items():
        if found[name] is None:  # a job without rows
            assert tensor is None or not tensor.any(), name
        else:
            assert_near(found[name], tensor, TOLERANCE[dtype], name)


@DTYPES
@pytest.mark.parametrize("rows", [1, 63, 257])
@pytest.mark.parametrize("rank", [1, 5, 16, 64, 130])
@pytest.mark.parametrize(("K", "N"), [(60, 100), (256, 384)])
def test_one_job(dtype, rows, rank, K, N):
    check(build_case([Job(0, rank, [rows], [3], p=0.1)], K=K, N=N), dtype)


@DTYPES
@pytest.mark.parametrize(("K", "N"), [(60, 100), (192, 256)])
def test_mixed_jobs(dtype, K, N):
    jobs = [
        Job(3, 5, [40, 22, 1], [1, 5, 9], p=0.25),
        Job(-1, None, [6], [0]),
        Job(0, 130, [133], [2], p=0.5, scale=-0.3, seed=3),
        Job(7, None, [1], [2], p=0.5),
        Job(1, 1, [], []),
        Job(5, 1, [64], [2], p=0.0, step=1),
        Job(2, 64, [1], [8], p=0.9),
        *(Job(10 + i, 16, [3 + i], [i], p=i / 20, seed=i) for i in range(10)),
    ]
    check(build_case(jobs, K=K, N=N), dtype)


def test_masks_are_the_same_bits():
    jobs = [Job(4, 62, [20, 1], [5, 9], p=0.25), Job(2, 62, [33], [2**40], p=0.5, seed=2**63 + 11)]
    case = build_case(jobs, K=62, N=8).to(torch.float32)
    layout = case.layout()
    unit = ModuleAdapters(
        case.adapters.key,
        {
            job.slot: FusedForm(
                torch.eye(62, device=DEVICE),
                torch.zeros(8, 62, device=DEVICE),
                1.0,
                threshold(job.p),
            )
            for job in jobs
        },
    )
    x = torch.ones(54, 62, device=DEVICE)
    kept = implementation("down", "triton").down(x, layout, unit)[:, :62].cpu() != 0
    for job in jobs:
        rows = case.rows(job.slot)
        keys = layout.row_keys(unit.key, rows.start, rows.stop)
        assert torch.equal(kept[rows], keep_mask(keys, 62, threshold(job.p)))


@DTYPES
def test_a_job_alone_has_the_bits_it_has_among_others(dtype):
    jobs = [Job(i, 16, [120 + 77 * i, 9], [i, 4], p=0.2 * i, seed=i) for i in range(4)]
    case = moved(build_case(jobs, K=256, N=512).to(dtype, torch.float32))
    among = case.run("triton")
    for slot in range(4):
        alone = case.alone(slot).run("triton")
        assert torch.equal(alone.y, among.y[case.rows(slot)])
        assert torch.equal(alone.dx, among.dx[case.rows(slot)])


@DTYPES
def test_a_large_linear_equals_the_reference(dtype):
    generator = torch.Generator().manual_seed(0)
    jobs = [Job(i, (8, 16, 64, 256)[i], [1000 + i, 23], [1, 2], p=0.1 * i) for i in range(4)]
    case = build_case(jobs, K=1024, N=1536)
    case = replace(case, weight=torch.randn(1536, 1024, generator=generator) / 32)
    case = moved(case.to(dtype, torch.float32))
    expected = moved(case.to(torch.float32)).run("reference")
    for name, tensor in parts(expected).items():
        tolerance = max(TOLERANCE[dtype], 5e-6)  # the reference's own products, in float32
        assert_near(parts(case.run("triton"))[name], tensor, tolerance, name)


@pytest.mark.parametrize("op", OPS)
def test_configurations_around_the_default(op, monkeypatch):
    """Every eighth candidate of ``lorafusion tune``: those that run are right."""
    module = implementation(op, "triton")
    arch = architecture(torch.device(DEVICE, 0))
    jobs = [Job(0, 16, [300], [1], p=0.1), Job(1, 16, [77], [2])]
    case = build_case(jobs, K=256, N=512).to(torch.bfloat16, torch.float32)
    expected, ran = parts(case.expect()), 0
    for config in candidates(op, "half", arch, rank_chunk(16))[::8]:
        monkeypatch.setattr(module, "choose_config", lambda *_, config=config: config)
        try:
            found = parts(moved(case).run("triton"))
        except Exception as error:  # does not fit this GPU: tuning skips it too
            assert "OutOfResources" in type(error).__name__, error
            continue
        ran += 1
        for name, tensor in expected.items():
            assert_near(found[name], tensor, 1e-2, f"{config}: {name}")
    assert ran


def test_the_defaults_fit_this_gpu():
    arch = architecture(torch.device(DEVICE, 0))
    assert len(defaults(arch)) == 2 * len(OPS)
    for dtype in TOLERANCE:
        for rank in (16, 64, 256):
            check(build_case([Job(0, rank, [140], [3], p=0.1)], K=256, N=512), dtype)
