"""What the kernel tests share: dropout in plain ints, and small packed cases with their answer.

Both are written from the definition of the operation, not from the code under test.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch

from lorafusion.kernels.dropout import threshold
from lorafusion.kernels.hashing import module_key
from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters, Segment
from lorafusion.kernels.lora_linear import lora_linear
from lorafusion.kernels.native import library

U64 = 2**64
NAME = "model.layers.3.mlp.up_proj"


class Plain:
    """The dropout mask in Python's own ints, as the design words it."""

    @staticmethod
    def splitmix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % U64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % U64
        return z ^ (z >> 31)

    @classmethod
    def hash(cls, *words: int) -> int:
        h = 0
        for word in words:
            h = cls.splitmix(((h ^ word % U64) + 0x9E3779B97F4A7C15) % U64)
        return h

    @staticmethod
    def module(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    @classmethod
    def keep(cls, row_key: int, columns: int, t: int) -> list[bool]:
        lanes = []
        for c in range((columns + 3) // 4):
            z = cls.splitmix((row_key + (c + 1) * 0x9E3779B97F4A7C15) % U64)
            lanes += [z % 65536, z >> 16 & 65535, z >> 32 & 65535, z >> 48]
        return [lane >= t for lane in lanes[:columns]]


class Job(NamedTuple):
    """One segment; ``rank`` None: no adapter on this module."""

    slot: int
    rank: int | None
    lengths: Sequence[int]
    samples: Sequence[int]
    p: float = 0.0
    scale: float = 1.5
    seed: int = 11
    step: int = 4


class Result(NamedTuple):
    y: torch.Tensor
    dx: torch.Tensor | None
    factors: dict[int, tuple[torch.Tensor | None, torch.Tensor | None]]
    """Slot -> (dA, dB)."""


@dataclass(frozen=True)
class Case:
    """A packed microbatch on one linear, and the gradient ``dy`` that comes back to it."""

    jobs: Sequence[Job]
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    factors: dict[int, tuple[torch.Tensor, torch.Tensor]]
    dy: torch.Tensor
    name: str = NAME

    @property
    def forms(self) -> dict[int, FusedForm]:
        return {
            job.slot: FusedForm(*self.factors[job.slot], job.scale, threshold(job.p))
            for job in self.jobs
            if job.slot in self.factors
        }

    @property
    def adapters(self) -> ModuleAdapters:
        return ModuleAdapters(module_key(self.name), self.forms)

    def layout(self, *, training: bool = True) -> AdapterLayout:
        segments = [Segment(j.slot, j.seed, j.step, j.samples, j.lengths) for j in self.jobs]
        return AdapterLayout.build(segments, {self.name: self.adapters}, training=training)

    def rows(self, slot: int) -> slice:
        """Where the job of a slot lies."""
        start = 0
        for job in self.jobs:
            if job.slot == slot:
                return slice(start, start + sum(job.lengths))
            start += sum(job.lengths)
        raise KeyError(slot)

    def alone(self, slot: int) -> Case:
        """The microbatch that holds the job of a slot and nothing else."""
        rows = self.rows(slot)
        jobs = [job for job in self.jobs if job.slot == slot]
        return replace(self, jobs=jobs, x=leaf(self.x[rows]), dy=self.dy[rows])

    def run(self, backend: str = "cpu", *, training: bool = True) -> Result:
        """Through the op, forward and backward."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LORAFUSION_BACKEND", backend)
            layout = self.layout(training=training)
            y = lora_linear(self.x, self.weight, self.bias, layout, self.adapters)
            return self._backward(y)  # here, as it looks for its backend too

    def expect(self, *, training: bool = True) -> Result:
        """The definition, sample by sample and row by row, by autograd in float64."""
        case = self.to(torch.float64)
        pieces, row = [case.x[:0] @ case.weight.T], 0
        for job in case.jobs:
            for sample, length in zip(job.samples, job.lengths, strict=True):
                x = case.x[row : row + length]
                y = x @ case.weight.T + (0 if case.bias is None else case.bias)
                if job.slot in case.factors:
                    A, B = case.factors[job.slot]
                    factor = dropout_factor(job, sample, x, self.name) if training else 1
                    y = y + job.scale * ((x * factor) @ A.T @ B.T)
                pieces.append(y)
                row += length
        return case._backward(torch.cat(pieces))

    def to(self, dtype: torch.dtype, factors: torch.dtype | None = None) -> Case:
        """A copy in another dtype; the factors in that of their own."""
        return replace(
            self,
            x=leaf(self.x, dtype),
            weight=self.weight.to(dtype),
            bias=None if self.bias is None else self.bias.to(dtype),
            factors={
                slot: (leaf(A, factors or dtype), leaf(B, factors or dtype))
                for slot, (A, B) in self.factors.items()
            },
            dy=self.dy.to(dtype),
        )

    def _backward(self, y: torch.Tensor) -> Result:
        slots = [job.slot for job in self.jobs if job.slot in self.factors]
        flat = [self.x, *(factor for slot in slots for factor in self.factors[slot])]
        asked = [tensor for tensor in flat if tensor.requires_grad]
        found = torch.autograd.grad(y, asked, self.dy, allow_unused=True) if asked else ()
        by_id = {id(tensor): grad for tensor, grad in zip(asked, found, strict=True)}
        dx, *rest = (by_id.get(id(tensor)) for tensor in flat)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return Result(y.detach(), dx, dict(zip(slots, pairs, strict=True)))


def leaf(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy that asks for a gradient iff the original does."""
    copy = tensor.detach().to(dtype or tensor.dtype, copy=True)
    return copy.requires_grad_(tensor.requires_grad)


def dropout_factor(job: Job, sample: int, x: torch.Tensor, name: str) -> torch.Tensor:
    """What each element of one sample is multiplied by: 0 or 1/(1-p)."""
    t = round(job.p * 65536)
    keys = [
        Plain.hash(job.seed, job.step, Plain.module(name), sample, position)
        for position in range(x.shape[0])
    ]
    keep = [Plain.keep(key, x.shape[1], t) for key in keys]
    return torch.tensor(keep, dtype=torch.float64).reshape(x.shape) / (1 - t / 65536)


def build_case(
    jobs: Sequence[Job], *, K: int = 13, N: int = 7, bias: bool = True, seed: int = 0
) -> Case:
    """Random float64 tensors for these jobs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = sum(sum(job.lengths) for job in jobs)
    return Case(
        jobs=jobs,
        x=draw(rows, K).requires_grad_(),
        weight=draw(N, K),
        bias=draw(N) if bias else None,
        factors={
            job.slot: (draw(job.rank, K).requires_grad_(), draw(N, job.rank).requires_grad_())
            for job in jobs
            if job.rank is not None
        },
        dy=draw(rows, N),
    )


@pytest.fixture(scope="session")
def plain() -> type[Plain]:
    """Dropout in plain ints."""
    return Plain


@pytest.fixture(scope="session")
def job() -> type[Job]:
    """The constructor of a case's jobs."""
    return Job


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """``make_case(jobs, K=, N=, bias=, seed=)`` -> :class:`Case`."""
    return build_case


@pytest.fixture
def packed() -> Case:
    """Five segments of different rank, dropout and length; two of them without an adapter."""
    jobs = [
        Job(3, 3, [4, 2], [5, 9], p=0.25, scale=0.5),
        Job(-1, None, [3], [0]),
        Job(0, 8, [1], [2], p=0.0, scale=2.0, seed=12),
        Job(6, None, [2], [4], p=0.5),
        Job(1, 1, [2, 5, 1], [7, 0, 3], p=0.6, scale=-1.25, step=9),
    ]
    return build_case(jobs)


@pytest.fixture
def build(request, monkeypatch) -> str:
    """Use one build; it may be too wide for this processor."""
    generic = library._path(library.BUILDS[0])
    if generic is None:
        assert not any(map(shutil.which, ("cc", "gcc", "clang"))), "a compiler is here: run setup"
        pytest.skip("the loops are not built: no compiler")
    level = ctypes.CDLL(str(generic)).lorafusion_level()
    wanted = next(key for key, name in library.BUILDS.items() if name == request.param)
    path = library._path(request.param)
    if wanted > level or path is None:
        pytest.skip(f"this processor does not run {request.param}")
    monkeypatch.setattr(library, "_load", lambda: ctypes.CDLL(str(path)))
    return request.param
