"""A base cut into stages in one process, and what it computes there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lorafusion.adapters.bank import AdapterBank, ResidentAdapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models.load import Base, load_base
from lorafusion.models.part import Part
from lorafusion.models.stage import Stage
from tests.models.families import FAMILIES, WINDOW

LAYERS = 5
LENGTHS = (2 * WINDOW + 3, 1, WINDOW, 3 * WINDOW)
# Ranks differ between jobs; the second one adapts few layers of some stages, none of others.
CONFIGS = (
    LoraConfig(r=3, lora_dropout=0.2),
    LoraConfig(r=2, lora_dropout=0.1, target_modules=r".*\.[13]\..*(q_proj|c_attn|dense|qkv).*"),
)


def write_family(name: str, folder: Path, *, tied: bool) -> None:
    """A model of 5 layers; where types of layers are listed, two of one type stand together."""
    family = FAMILIES[name]
    changes: dict[str, Any] = {"num_hidden_layers": LAYERS, "tie_word_embeddings": tied}
    if "layer_types" in family.settings:
        sliding, full = "sliding_attention", "full_attention"
        changes["layer_types"] = [sliding, sliding, full, sliding, sliding]
    family.write(folder, **changes)


def cut(total: int, *cuts: int) -> list[Part]:
    """The parts between these layers."""
    return [Part(range(a, b), total) for a, b in pairwise((0, *cuts, total))]


@dataclass
class Piece:
    """A stage with two jobs' adapters on it."""

    base: Base
    stage: Stage
    bank: AdapterBank
    adapters: list[ResidentAdapter]

    @classmethod
    def load(
        cls,
        folder: Path,
        part: Part,
        *,
        dtype: str = "float64",
        recompute: bool = False,
        targets: str = "",
    ) -> Piece:
        """Adapters' B is not zero, as it is at first: then A has a gradient too.

        Args:
            folder: Of the base.
            part: Of the base.
            dtype: Of the base.
            recompute: See :class:`Stage`.
            targets: Instead of both jobs' own.
        """
        base = load_base(str(folder), dtype, part)
        stage = Stage(base, recompute=recompute)
        bank = AdapterBank(base.model, base.names, stage.shared_inputs)
        adapters: list[ResidentAdapter] = []
        for seed, config in enumerate(CONFIGS):
            wanted = bank.match(targets or config.target_modules)
            here = [name for name in wanted if name in bank.linears]
            adapters.append(bank.add(config, here, seed=seed))
            for name, tensor in adapters[-1].parameters().items():
                if name.endswith("lora_B"):
                    own = torch.Generator().manual_seed(hash_of(name))
                    tensor.data.copy_(0.1 * torch.randn(tensor.shape, generator=own))
        return cls(base, stage, bank, adapters)

    def layout(self, step: int = 3) -> AdapterLayout:
        """Two samples of each job."""
        segments = [
            Segment(adapter.slot, seed, step, [7, 2], LENGTHS[2 * seed : 2 * seed + 2])
            for seed, adapter in enumerate(self.adapters)
        ]
        modules = self.bank.modules(adapter.slot for adapter in self.adapters)
        return AdapterLayout.build(segments, modules, training=True)

    def gradients(self) -> dict[str, torch.Tensor]:
        """``<job>.<module>.lora_A`` -> gradient, of all parameters here."""
        return {
            f"{job}.{name}": tensor.grad
            for job, adapter in enumerate(self.adapters)
            for name, tensor in adapter.parameters().items()
            if tensor.grad is not None
        }

    def clear(self) -> None:
        """Forget the gradients."""
        for adapter in self.adapters:
            for tensor in adapter.parameters().values():
                tensor.grad = None


def hash_of(name: str) -> int:
    """Of the name alone: on whichever stage it is."""
    return int.from_bytes(name.encode()[-24:], "little") % (1 << 60)


@dataclass
class Result:
    """Of one forward and backward through all stages."""

    hidden: list[torch.Tensor]
    """What each stage gives, without its graph."""
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def tokens() -> torch.Tensor:
    """Those of the samples, one after the other."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 320, (sum(LENGTHS),), generator=generator)


def forward(pieces: Sequence[Piece]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What each stage takes, a leaf but on the first one, and what it gives."""
    taken: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    for piece in pieces:
        taken.append(given[-1].detach().requires_grad_() if given else tokens())
        given.append(piece.stage(taken[-1], piece.layout()))
    return taken, given


def run(pieces: Sequence[Piece]) -> Result:
    """Through all stages and back, gradients handed over by hand."""
    taken, given = forward(pieces)
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(sum(LENGTHS), generator=generator)
    loss, _ = pieces[-1].stage.loss(given[-1], tokens().roll(-1), weights)
    loss.backward()
    for entering, leaving in zip(taken[:0:-1], given[-2::-1], strict=True):
        leaving.backward(entering.grad)
    return Result([h.detach() for h in given], loss.detach(), merged(p.gradients() for p in pieces))


def merged(by_stage: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All in one; no two stages have a name in common."""
    found: dict[str, Any] = {}
    for entries in by_stage:
        assert not found.keys() & entries.keys()
        found.update(entries)
    return found
