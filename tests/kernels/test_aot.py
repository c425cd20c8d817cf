"""Kernels compiled for GPUs that are not here: they compile, fit, and use the matrix units."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lorafusion.bench import aot_table, pages
from lorafusion.errors import BenchError
from lorafusion.kernels import aot
from lorafusion.kernels.aot import TARGETS, Outcome, Report, Request, compile_all
from lorafusion.kernels.elementwise_configs import example_configs
from lorafusion.kernels.launch_configs import (
    ELEMENTWISE_OPS,
    LOSS_OPS,
    OPS,
    SHARED_OPS,
    LaunchConfig,
)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
# Every op on every target, and float32 where the matrix units would round it.
SHORT = [
    *(Request.default(op, target, rank=16, dtype="bf16") for target in TARGETS for op in OPS),
    *(Request.default(op, name, rank=16, dtype="bf16") for name in TARGETS for op in SHARED_OPS),
    *(Request.default(op, name, rank=16, dtype="bf16") for name in TARGETS for op in LOSS_OPS),
    Request.default("up", "sm_80", rank=16, dtype="fp32"),
    Request.default("shared_grad_input", "sm_90", rank=16, dtype="fp32"),
    Request.default("up", "gfx942", rank=16, dtype="fp32"),
]
# One width of each: the others take minutes.
SHORT_ELEMENTWISE = [
    Request(op, target, 0, "bf16", False, example_configs(op, torch.bfloat16)[0])
    for target in TARGETS
    for op in ELEMENTWISE_OPS
]


@pytest.fixture(scope="module")
def compiled() -> dict[Request, Outcome]:
    return dict(zip(SHORT, compile_all(SHORT), strict=True))


@needs_triton
@pytest.mark.multiproc
@pytest.mark.parametrize("request_", SHORT, ids=str)
def test_an_op_fits_its_target(compiled, request_):
    outcome = compiled[request_]
    assert not outcome.problems, "\n".join(outcome.problems)
    assert outcome.reports[0].registers > 0
    assert outcome.reports[0].shared > 0


@needs_triton
@pytest.mark.multiproc
def test_elementwise_ops_fit_their_targets():
    for outcome in compile_all(SHORT_ELEMENTWISE):
        assert not outcome.problems, "\n".join(outcome.problems)
        assert all(report.registers > 0 for report in outcome.reports)


@needs_triton
@pytest.mark.aot
@pytest.mark.multiproc
def test_elementwise_ops_of_all_widths_fit_their_targets():
    requests = aot.elementwise_requests(dtypes=("bf16", "fp16", "fp32"))
    assert len(set(requests)) == len(requests)
    problems = [problem for outcome in compile_all(requests) for problem in outcome.problems]
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="module")
def everything() -> list[Outcome]:
    return compile_all(aot.default_requests(dtypes=("bf16", "fp16", "fp32")))


@needs_triton
@pytest.mark.aot
@pytest.mark.multiproc
def test_every_default_fits_its_target(everything):
    problems = [problem for outcome in everything for problem in outcome.problems]
    assert not problems, "\n".join(problems)


@needs_triton
@pytest.mark.aot
@pytest.mark.multiproc
def test_atomics_compile():
    requests = [Request.default("grad_down", name, rank=64, dtype="bf16") for name in TARGETS]
    requests = [
        dataclasses.replace(request, config=dataclasses.replace(request.config, atomic=True))
        for request in requests
    ]
    problems = [problem for outcome in compile_all(requests) for problem in outcome.problems]
    assert not problems, "\n".join(problems)


# --- what a report is judged by


REPORT = Report(
    kernel="gemm_kernel",
    main=True,
    seconds=1.0,
    registers=200,
    spilled=0,
    shared=96 * 1024,
    tensor_memory=0,
    products={"wgmma": 5},
    tf32=0,
)
UP = Request.default("up", "sm_90", rank=16, dtype="bf16")
UP_FP32 = Request.default("up", "sm_90", rank=16, dtype="fp32")


@pytest.mark.parametrize(
    ("request_", "change", "problem"),
    [
        (UP, {}, None),
        (UP, {"spilled": 8}, "spills 8 bytes"),
        (UP, {"shared": 227 * 1024 + 1}, "bytes of shared memory, and there are 232448"),
        (UP, {"registers": 256}, "256 registers"),
        (UP, {"tensor_memory": 513}, "513 columns"),
        (UP, {"products": {"mma.sync": 80}}, "no wgmma, but {'mma.sync': 80}"),
        (UP, {"products": {"mma.sync": 80}, "main": False}, None),
        (dataclasses.replace(UP, op="down"), {"products": {"mma.sync": 8}}, None),
        (dataclasses.replace(UP, op="down"), {"products": {}}, "no matrix instruction"),
        (UP_FP32, {"products": {}}, None),
        (dataclasses.replace(UP, op="cross_entropy"), {"products": {}}, None),
        (SHORT_ELEMENTWISE[0], {"products": {}, "shared": 0}, None),
        (SHORT_ELEMENTWISE[0], {"spilled": 8}, "spills 8 bytes"),
        (UP_FP32, {"tf32": 3}, "3 tf32 instructions"),
        (dataclasses.replace(UP, target="sm_100"), {}, "no tcgen05"),
        (dataclasses.replace(UP, target="gfx942"), {"shared": 1}, "no mfma"),
    ],
)
def test_problems(request_, change, problem):
    outcome = Outcome(request_, (dataclasses.replace(REPORT, **change),))
    if problem is None:
        assert outcome.problems == []
    else:
        assert len(outcome.problems) == 1
        assert problem in outcome.problems[0]
        assert outcome.problems[0].startswith(str(request_))


def test_defaults_are_each_compiled_once():
    requests = aot.default_requests()
    assert len(requests) == len(set(requests))
    assert {request.target for request in requests} == set(TARGETS)
    assert {request.op for request in requests} == set(OPS)
    assert {request.chunk for request in requests} == {16, 64}, "256 runs in chunks of 64"
    loads = {request.config.tma for request in requests if request.target == "sm_90"}
    assert loads == {True, False}


# --- processes


WORKER = """
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "up":
        print("Assertion failed: bits", file=sys.stderr, flush=True)
        os.abort()
    if request["op"] == "down":
        print(json.dumps({"error": "CompilationError: at 7:4"}), flush=True)
    else:
        assert "TRITON_INTERPRET" not in os.environ
        print(json.dumps({"reports": [REPORT]}), flush=True)
"""


def test_a_compiler_that_aborts_is_an_outcome(monkeypatch, tmp_path):
    script = tmp_path / "worker"
    script.write_text(
        f"#!{sys.executable}\n" + WORKER.replace("REPORT", repr(dataclasses.asdict(REPORT)))
    )
    script.chmod(0o700)
    monkeypatch.setattr(aot.sys, "executable", str(script))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ops = ["grad_a", "up", "down", "grad_a", "up", "grad_a"]
    requests = [Request(op, "sm_90", 16, "bf16", True, LaunchConfig(BM=16)) for op in ops]
    seen: list[Outcome] = []
    outcomes = compile_all(requests, done=seen.append)
    assert [outcome.request for outcome in outcomes] == requests
    assert sorted(map(str, seen)) == sorted(map(str, outcomes))
    for outcome in outcomes:
        if outcome.request.op == "up":
            assert outcome.error == f"the compiler ended with code {-6}; Assertion failed: bits"
        elif outcome.request.op == "down":
            assert outcome.problems == [
                f"{outcome.request}: does not compile: CompilationError: at 7:4"
            ]
        else:
            assert outcome.reports == (REPORT,)
    assert os.environ["TRITON_INTERPRET"] == "1"


# --- the table


def test_the_table(monkeypatch):
    monkeypatch.setattr(aot_table, "version", lambda _: "9.9")
    wide = dataclasses.replace(UP, chunk=64)
    spilling = dataclasses.replace(REPORT, registers=255, spilled=12)
    text = aot_table.markdown([Outcome(UP, (REPORT,)), Outcome(wide, (spilling,))])
    lines = text.splitlines()
    assert lines[0] == "By triton 9.9."
    assert lines[-1] == f"- {wide}, gemm_kernel: spills 12 bytes a thread"
    (row,) = [line for line in lines if line.startswith("| up")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "up, descriptors",
        "sm_90",
        "128 x 128 x 64",
        "8, 3",
        "200, 96 KB",
        "255, 96 KB, **12 B spilled**",
        "wgmma 5",
    ]
    assert "Nothing spills" in aot_table.markdown([Outcome(UP, (REPORT,))])


def test_the_table_goes_between_its_marks(tmp_path):
    page, (begin, end) = tmp_path / "page.md", pages.marks("name")
    page.write_text(f"a\n{begin}\nold\n{end}\nb\n")
    pages.put_into(page, "name", "| new |")
    assert pages.found_in(page, "name") == "| new |"
    assert page.read_text() == f"a\n{begin}\n\n| new |\n\n{end}\nb\n"
    with pytest.raises(BenchError, match="has no lines"):
        pages.put_into(page, "other", "| new |")


@needs_triton
@pytest.mark.aot
def test_the_page_holds_what_the_compiler_gives(everything):
    table = pages.found_in(PAGE, aot_table.MARKS)
    if f"By triton {version('triton')}." not in table:
        pytest.skip("the page's table is of another triton")
    shown = [outcome for outcome in everything if outcome.request.dtype != "fp16"]
    assert aot_table.markdown(shown) == table, "run `lorafusion bench kernels --aot --write PAGE`"


@pytest.fixture(scope="module")
def shared() -> list[Outcome]:
    return compile_all(aot.default_requests(dtypes=("bf16", "fp16", "fp32"), ops=SHARED_OPS))


@needs_triton
@pytest.mark.aot
@pytest.mark.multiproc
def test_every_shared_default_fits_its_target(shared):
    problems = [problem for outcome in shared for problem in outcome.problems]
    assert not problems, "\n".join(problems)


@needs_triton
@pytest.mark.aot
def test_the_page_holds_what_the_compiler_gives_of_shared_inputs(shared):
    table = pages.found_in(PAGE, aot_table.SHARED_MARKS)
    if f"By triton {version('triton')}." not in table:
        pytest.skip("the page's table is of another triton")
    shown = [outcome for outcome in shared if outcome.request.dtype != "fp16"]
    assert aot_table.markdown(shown) == table


@pytest.fixture(scope="module")
def loss() -> list[Outcome]:
    return compile_all(
        aot.default_requests(ranks=(16,), dtypes=("bf16", "fp16", "fp32"), ops=LOSS_OPS)
    )


@needs_triton
@pytest.mark.aot
@pytest.mark.multiproc
def test_the_loss_fits_every_target(loss):
    problems = [problem for outcome in loss for problem in outcome.problems]
    assert not problems, "\n".join(problems)
    table = pages.found_in(PAGE, aot_table.LOSS_MARKS)
    if f"By triton {version('triton')}." not in table:
        pytest.skip("the page's table is of another triton")
    shown = [outcome for outcome in loss if outcome.request.dtype != "fp16"]
    assert aot_table.markdown(shown) == table
