"""Kernels compiled ahead of time, for GPUs that need not be here: what the binaries need and use.

Compiling can end a process (an assertion in the compiler aborts), and a kernel that was imported
for the interpreter cannot be compiled. So both happen in processes of their own, :mod:`aot_worker`.
This file asks them, and judges what they answer. It needs no triton.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from lorafusion.kernels.elementwise_configs import example_configs
from lorafusion.kernels.launch_configs import (
    ELEMENTWISE_OPS,
    OPS,
    PASSES,
    LaunchConfig,
    default_config,
    rank_chunk,
)

KB = 1024
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RANKS = (16, 64, 256)
GEMMS = ("up", "grad_input", "shared_up", "shared_grad_input")


@dataclass(frozen=True)
class Target:
    """What a GPU allows one program, by the vendors' programming guides.

    Attributes:
        backend: Triton's: ``cuda`` or ``hip``.
        arch: As Triton names it.
        warp: Threads in a warp.
        shared: Most bytes of shared memory (LDS).
        registers: Most a thread can address.
        product: The instruction that multiplies matrices of 16-bit numbers.
    """

    backend: str
    arch: int | str
    warp: int
    shared: int
    registers: int
    product: str


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * KB, 255, "mma.sync"),
    "sm_90": Target("cuda", 90, 32, 227 * KB, 255, "wgmma"),
    "sm_100": Target("cuda", 100, 32, 227 * KB, 255, "tcgen05"),
    "sm_120": Target("cuda", 120, 32, 99 * KB, 255, "mma.sync"),
    "gfx942": Target("hip", "gfx942", 64, 64 * KB, 512, "mfma"),
    "gfx950": Target("hip", "gfx950", 64, 160 * KB, 512, "mfma"),
}
# sm_100: columns of tensor memory, where tcgen05 keeps its accumulators.
TENSOR_MEMORY = 512


@dataclass(frozen=True)
class Request:
    """One op, as a launch on a target would compile it.

    Attributes:
        op: One of ``OPS``, ``SHARED_OPS`` or ``PASSES``.
        target: One of ``TARGETS``.
        chunk: See :func:`lorafusion.kernels.launch_configs.rank_chunk`.
        dtype: One of ``DTYPES``.
        dropout: Whether any job drops elements.
        config: How the op is cut.
    """

    op: str
    target: str
    chunk: int
    dtype: str
    dropout: bool
    config: LaunchConfig

    @classmethod
    def default(cls, op: str, target: str, *, rank: int, dtype: str, tma: bool = True) -> Request:
        """What the op runs with where nothing was tuned; ``tma`` off: where it cannot be used."""
        config = default_config(op, DTYPES[dtype], target)
        if not tma:
            config = dataclasses.replace(config, tma=False)
        return cls(op, target, rank_chunk(rank), dtype, True, config)

    def __str__(self) -> str:
        if self.op in ELEMENTWISE_OPS:
            tile = f"{self.config.BM} x {self.config.BN}"
            return f"{self.op} for {self.target}, {self.dtype}, {tile}"
        tma = ", descriptors" if self.config.tma else ""
        return f"{self.op} for {self.target}, {self.dtype}, ranks by {self.chunk}{tma}"


@dataclass(frozen=True)
class Report:
    """One compiled kernel.

    Attributes:
        kernel: Name of the function.
        main: Whether it does the op's work; else it adds up partial sums.
        seconds: The compilation took.
        registers: A thread needs.
        spilled: Bytes a thread keeps in memory for want of registers.
        shared: Bytes of shared memory (LDS) of a program.
        tensor_memory: Columns of sm_100's tensor memory.
        products: Matrix instruction -> how often it stands in the code.
        tf32: Instructions that would round float32 operands to 10 bits.
    """

    kernel: str
    main: bool
    seconds: float
    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    products: dict[str, int]
    tf32: int


@dataclass(frozen=True)
class Outcome:
    """What became of a request: reports of its kernels, or why there are none."""

    request: Request
    reports: tuple[Report, ...] = ()
    error: str | None = None

    @property
    def problems(self) -> list[str]:
        """What would fail, or be slow for sure, on the target."""
        if self.error is not None:
            return [f"{self.request}: does not compile: {self.error}"]
        return [
            f"{self.request}, {report.kernel}: {problem}"
            for report in self.reports
            for problem in _problems(self.request, report)
        ]


def _problems(request: Request, report: Report) -> Iterator[str]:
    target = TARGETS[request.target]
    if report.spilled:
        yield f"spills {report.spilled} bytes a thread"
    if report.shared > target.shared:
        yield f"needs {report.shared} bytes of shared memory, and there are {target.shared}"
    if report.registers > target.registers:
        yield f"needs {report.registers} registers, and there are {target.registers}"
    if report.tensor_memory > TENSOR_MEMORY:
        yield f"needs {report.tensor_memory} columns of tensor memory, of {TENSOR_MEMORY}"
    if report.tf32:
        yield f"has {report.tf32} tf32 instructions, and float32 is to be IEEE's"
    if not report.main or request.dtype == "fp32" or request.op in PASSES:
        return
    if request.op in GEMMS and not report.products.get(target.product):
        yield f"has no {target.product}, but {report.products or 'no matrix instruction'}"
    elif not report.products:
        yield "has no matrix instruction"


def default_requests(
    targets: Iterable[str] = TARGETS,
    ranks: Iterable[int] = RANKS,
    dtypes: Iterable[str] = ("bf16", "fp32"),
    ops: Iterable[str] = OPS,
) -> list[Request]:
    """The ops' default configurations, each once; also without descriptors where they have them."""
    return list(
        dict.fromkeys(
            Request.default(op, target, rank=rank, dtype=dtype, tma=tma)
            for target in targets
            for dtype in dtypes
            for op in ops
            for rank in ranks
            for tma in (True, False)
        )
    )


def elementwise_requests(
    targets: Iterable[str] = TARGETS, dtypes: Iterable[str] = ("bf16", "fp32")
) -> list[Request]:
    """The elementwise ops, by the widths that models have."""
    return [
        Request(op, target, 0, dtype, False, config)
        for target in targets
        for dtype in dtypes
        for op in ELEMENTWISE_OPS
        for config in example_configs(op, DTYPES[dtype])
    ]


def compile_all(
    requests: Sequence[Request],
    *,
    workers: int = 2,
    done: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Compile in ``workers`` processes; nothing is kept on the disk.

    Args:
        requests: What to compile.
        workers: Processes. Each holds torch, triton and its compiler: about 0.7 GB.
        done: Called with each outcome as it comes, from one thread at a time.

    Returns:
        In the order of ``requests``. A compiler that crashes is an outcome as any other.
    """
    lock = threading.Lock()
    pool = _Pool()

    def compile_one(request: Request) -> Outcome:
        outcome = pool.run(request)
        with lock:
            done(outcome)
        return outcome

    with ThreadPoolExecutor(workers) as threads, pool:
        return list(threads.map(compile_one, requests))


class _Pool:
    """A worker process for each thread that asks, replaced when it dies."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.close()

    def run(self, request: Request) -> Outcome:
        worker: _Worker | None = getattr(self._local, "worker", None)
        if worker is None or worker.dead:
            worker = self._local.worker = _Worker()
            self._all.append(worker)
        return worker.run(request)


class _Worker:
    """A process that compiles, asked by lines of JSON."""

    def __init__(self) -> None:
        self._cache = tempfile.TemporaryDirectory(prefix="lorafusion-aot-")
        self._errors = Path(self._cache.name, "stderr")
        # The assembler's log comes with a compilation, not with what is found compiled.
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": self._cache.name,
            "TRITON_ALWAYS_COMPILE": "1",
        }
        environment.pop("TRITON_INTERPRET", None)
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lorafusion.kernels.aot_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    @property
    def dead(self) -> bool:
        return self._process.poll() is not None

    def run(self, request: Request) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(dataclasses.asdict(request)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            return Outcome(request, error=f"the compiler ended with code {code}; {self._last()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            return Outcome(request, error=answer["error"])
        return Outcome(request, tuple(Report(**report) for report in answer["reports"]))

    def close(self) -> None:
        """End the process by closing what it reads."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._cache.cleanup()

    def _last(self) -> str:
        lines = [line for line in self._errors.read_text(errors="replace").splitlines() if line]
        return " / ".join(lines[-3:])[-600:] or "it said nothing"
