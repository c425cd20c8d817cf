"""The ways to run one case of attention, from the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F

from lorafusion.bench.linear import forget
from lorafusion.bench.op_run import check_close
from lorafusion.kernels.attention import AttentionRules, packed_attention
from lorafusion.kernels.attention import samples as by_sample
from lorafusion.kernels.attention.engines import ENGINES, SAMPLES, Asked, machine_of, why_not
from lorafusion.kernels.attention.reference import attend, seen

Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionRules], torch.Tensor]


class Case(Protocol):
    """What is asked of a case; see :class:`lorafusion.bench.attention.AttentionCase`."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each sample."""
        ...

    @property
    def heads(self) -> int:
        """Of the queries."""
        ...

    @property
    def kv_heads(self) -> int:
        """Of keys and values."""
        ...

    @property
    def width(self) -> int:
        """Of a head."""
        ...

    @property
    def dtype(self) -> str:
        """Of all."""
        ...

    def rules(self, device: str) -> AttentionRules:
        """As the op takes them."""
        ...


class Engine:
    """A function of the op's contract on packed rows."""

    def __init__(self, case: Case, device: str, run: Run) -> None:
        self._tensors, self._dy = draw(case, device)
        self._rules, self._run = case.rules(device), run

    def prepare(self) -> None:
        """Gradients of the call before are dropped."""
        forget(*self._tensors)

    def forward(self) -> torch.Tensor:
        """[T, heads, width]."""
        query, key, value = self._tensors
        self._out = self._run(query, key, value, self._rules)
        return self._out

    def backward(self) -> None:
        """From the gradient of the output."""
        self._out.backward(self._dy)

    def results(self) -> list[torch.Tensor]:
        """The output and the gradients of q, k and v, of a turn."""
        self.prepare()
        self.forward()
        self.backward()
        gradients = [tensor.grad for tensor in self._tensors if tensor.grad is not None]
        return [self._out.detach(), *gradients]


class Padded:
    """What a padded batch runs, with a mask; padding is not timed."""

    def __init__(self, case: Case, device: str) -> None:
        packed, dy = draw(case, device)
        self._lengths, self._rules = case.lengths, case.rules(device)
        self._tensors = [self._pad(tensor.detach()).requires_grad_() for tensor in packed]
        self._dy = self._pad(dy.transpose(0, 1))
        row = torch.arange(max(case.lengths), device=device)
        real = row < torch.tensor(case.lengths, device=device)[:, None]
        causal = seen(row, row, self._rules.window)
        # As transformers makes it; a padded row sees itself, so that no softmax is of nothing.
        self._mask = causal & real[:, None] | torch.eye(len(row), dtype=torch.bool, device=device)

    def _pad(self, tensor: torch.Tensor) -> torch.Tensor:
        """[heads, T, width] -> [samples, heads, longest, width]."""
        pieces = [piece.transpose(0, 1) for piece in tensor.split(self._lengths, dim=1)]
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).transpose(1, 2)

    def prepare(self) -> None:
        """Gradients of the call before are dropped."""
        forget(*self._tensors)

    def forward(self) -> torch.Tensor:
        """[samples, heads, longest, width]."""
        query, key, value = self._tensors
        if self._rules.written_out:
            rows = zip(query, key, value, self._mask, strict=True)
            self._out = torch.stack([attend(*sample, self._rules) for sample in rows])
        else:
            self._out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=self._mask[:, None],
                scale=self._rules.scaling,
                enable_gqa=True,
            )
        return self._out

    def backward(self) -> None:
        """From the gradient of the output, 0 in padded rows."""
        self._out.backward(self._dy)

    def results(self) -> list[torch.Tensor]:
        """As :meth:`Engine.results`, without the padding."""
        self.prepare()
        self.forward()
        self.backward()
        gradients = [tensor.grad for tensor in self._tensors if tensor.grad is not None]
        out, *rest = (self._packed(tensor) for tensor in (self._out.detach(), *gradients))
        return [out.transpose(0, 1), *rest]

    def _packed(self, tensor: torch.Tensor) -> torch.Tensor:
        pairs = zip(tensor, self._lengths, strict=True)
        return torch.cat([sample[:, :length] for sample, length in pairs], dim=1)


Way = Engine | Padded


def draw(case: Case, device: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """q, k and v as transformers passes them, transposed in memory, and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    dtype: torch.dtype = getattr(torch, case.dtype)

    def one(heads: int) -> torch.Tensor:
        shape = (sum(case.lengths), heads, case.width)
        return torch.randn(shape, generator=generator).to(device, dtype)

    counts = (case.heads, case.kv_heads, case.kv_heads)
    return [one(count).transpose(0, 1).requires_grad_() for count in counts], one(case.heads)


def make_ways(case: Case, device: str) -> dict[str, Way]:
    """By name: ours first, what it replaces, a padded batch, and on a GPU each engine that runs."""
    ways: dict[str, Way] = {
        "lorafusion": Engine(case, device, packed_attention),
        SAMPLES: Engine(case, device, by_sample.packed_attention),
        "padded": Padded(case, device),
    }
    if device == "cuda":
        from lorafusion.kernels.attention.gpu import RUN

        machine = machine_of(torch.device(device, torch.cuda.current_device()))
        for engine in ENGINES:
            if engine.name not in ways and why_not(engine, _asked(case), machine) is None:
                ways[engine.name] = Engine(case, device, RUN[engine.name])
    return ways


def _asked(case: Case) -> Asked:
    rules, dtype = case.rules("cpu"), getattr(torch, case.dtype)
    capped, sunk = rules.softcap is not None, rules.sinks is not None
    return Asked(dtype, case.width, case.width, capped, sunk, deterministic=False)


def check(case: Case, ways: Mapping[str, Way]) -> None:
    """All ways give the first one's output and gradients.

    Raises:
        WrongResultError: One does not.
    """
    (name_of_first, first), *others = ways.items()
    expected = first.results()
    for name, way in others:
        check_close(case, case.dtype, (name, name_of_first), way.results(), expected)
