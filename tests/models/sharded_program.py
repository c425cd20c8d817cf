"""Ranks that share a base's weights, beside the same computation with all of them.

``sharded_program.py FOLDER...``: bases; torchrun's variables say which rank this is. Every second
one is recomputed, and offloaded. Each line of the output names what was equal, bit by bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models.load_sharded import load_sharded
from lorafusion.models.part import Part
from lorafusion.models.zero import Zero
from lorafusion.training.passes import OwnPasses, Passes, SharedPasses
from tests.models import pieces
from tests.models.pieces import LAYERS, Piece

CPU = torch.device("cpu")


class PlantedError(Exception):
    """Raised where a scenario wants it."""


@dataclass
class Walker:
    """A whole base on this rank, with its passes."""

    piece: Piece
    passes: Passes

    def forward(self, seed: int, *, jobs: Sequence[int] = (0, 1)) -> torch.Tensor:
        """The loss of samples that depend on ``seed``."""
        tokens, layout = self._samples(seed, jobs)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(len(tokens), generator=generator)
        with self.passes.forward():
            hidden = self.piece.stage(tokens, layout)
            return self.piece.stage.loss(hidden, tokens.roll(-1), weights)[0]

    def backward(self, loss: torch.Tensor) -> None:
        """Adds to the gradients."""
        with self.passes.backward():
            loss.backward()

    def _samples(self, seed: int, jobs: Sequence[int]) -> tuple[torch.Tensor, AdapterLayout]:
        adapters = [self.piece.adapters[job] for job in jobs]
        lengths = [(7 + seed, 3), (5, 4 + seed)]
        segments = [
            Segment(adapter.slot, job, seed, [1, 2], lengths[job])
            for job, adapter in zip(jobs, adapters, strict=True)
        ]
        modules = self.piece.bank.modules(adapter.slot for adapter in adapters)
        layout = AdapterLayout.build(segments, modules, training=True)
        generator = torch.Generator().manual_seed(seed)
        rows = len(layout.row_position_T)
        return torch.randint(3, 320, (rows,), generator=generator), layout


Scenario = Callable[[Walker, int], list[torch.Tensor]]


def alike(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Both ranks run a place, with samples of their own."""
    loss = walker.forward(3 + rank)
    walker.backward(loss)
    return [loss]


def idle(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Rank 1 has a no-op."""
    return alike(walker, 0) if rank == 0 else []


def in_parts(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Rank 1 runs its jobs one by one, and forgets a graph before its backward."""
    if rank == 0:
        return alike(walker, 0)
    losses = [walker.forward(2, jobs=[job]) for job in (0, 1)]
    walker.backward(losses[0])
    losses[1] = walker.forward(2, jobs=[1])
    walker.backward(losses[1])
    return losses


def evaluated(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Rank 0 evaluates, rank 1 trains."""
    if rank == 1:
        return alike(walker, 1)
    with torch.no_grad():
        return [walker.forward(6)]


def ends_early(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Rank 0's backward ends at layer 1, rank 1's at layer 0."""
    if rank == 1:
        return alike(walker, 1)
    loss = walker.forward(4, jobs=[1])
    walker.backward(loss)
    return [loss]


def raises_forward(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Rank 1 raises in layer 2 of its forward, and runs it again."""
    if rank == 0:
        return alike(walker, 0)
    with raising(walker.piece.stage.layers[2]), must_raise():
        walker.forward(5)
    return alike(walker, 1)


def raises_backward(walker: Walker, rank: int) -> list[torch.Tensor]:
    """Rank 0 raises in its backward before layer 2, and runs both again."""
    if rank == 1:
        return alike(walker, 1)
    with raising(walker.piece.stage.layers[2], in_backward=True):
        loss = walker.forward(5)
    with must_raise():
        walker.backward(loss)
    walker.piece.clear()
    return alike(walker, 0)


@contextmanager
def must_raise() -> Iterator[None]:
    """What was planted comes out."""
    try:
        yield
    except PlantedError:
        return
    raise AssertionError("nothing was raised")


@contextmanager
def raising(layer: nn.Module, *, in_backward: bool = False) -> Iterator[None]:
    """The layer's forward raises; or what is made of its input in the backward does."""

    def fail(*_: Any) -> None:
        raise PlantedError

    def hook(_module: Any, args: Any) -> None:
        if not in_backward:
            fail()
        args[0].register_hook(fail)

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


SCENARIOS = (alike, idle, in_parts, evaluated, ends_early, raises_forward, raises_backward)


def main() -> None:
    """Compare, base by base."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group, rank = dist.new_group(backend="gloo"), dist.get_rank()
    for number, name in enumerate(sys.argv[1:]):
        recompute = number % 2 == 1
        compare(Path(name), Watched(group, offload=recompute), rank, recompute=recompute)
    dist.destroy_process_group()


class Watched(Zero):
    """Remembers what was gathered."""

    def __init__(self, group: Any, *, offload: bool) -> None:
        super().__init__(CPU, group, offload=offload)
        self._seen: list[StorageWeakRef] = []

    @contextmanager
    def gathered(self, weights: Sequence[nn.Parameter]) -> Iterator[None]:
        with super().gathered(weights):
            self._seen += [StorageWeakRef(weight.untyped_storage()) for weight in weights]
            yield

    def all_gone(self) -> bool:
        """Nothing that was gathered is left. gloo's thread lets go of the last a moment later."""
        until = time.monotonic() + 10
        while alive := sum(not seen.expired() for seen in self._seen):
            assert time.monotonic() < until, f"{alive} weights live on"
        return True


def compare(folder: Path, zero: Watched, rank: int, *, recompute: bool) -> None:
    """Every scenario on the cut base, and alone on the whole one."""
    part = Part.whole(LAYERS)
    whole = Piece.load(folder, part, recompute=recompute)
    base = load_sharded(str(folder), "float64", CPU, zero)
    assert base.whole_hashes() == whole.base.tensor_hashes()
    assert base.tensors.keys() == whole.base.tensors.keys()
    module: Any = pieces
    load, module.load_base = module.load_base, lambda *_: base
    piece = Piece.load(folder, part, recompute=recompute)
    module.load_base = load
    assert piece.stage.fused == whole.stage.fused
    assert piece.stage.shared_inputs == whole.stage.shared_inputs
    assert base.sharded is not None
    before = base.tensor_hashes()
    shared = Walker(piece, SharedPasses(base.sharded.weights, largest))
    for scenario in SCENARIOS:
        expected = outcome(Walker(whole, OwnPasses()), scenario, rank)
        found = outcome(shared, scenario, rank)
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected)), f"{folder} {scenario.__name__}"
        sys.stdout.write(f"{scenario.__name__} {len(found)}\n")
    keeps_no_weights(shared, zero)
    assert base.tensor_hashes() == before
    ungathered = [w for w in base.model.parameters() if w.ndim > 1]
    assert all(weight.isnan().all() for weight in ungathered)
    sys.stdout.write(f"{folder.name} is equal\n")


def largest(number: int) -> int:
    """Of both ranks."""
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def outcome(walker: Walker, scenario: Scenario, rank: int) -> list[torch.Tensor]:
    """Losses and gradients."""
    walker.piece.clear()
    losses = scenario(walker, rank)
    walker.passes.finish()
    return [*(loss.detach() for loss in losses), *walker.piece.gradients().values()]


def keeps_no_weights(walker: Walker, zero: Watched) -> None:
    """Between the forward and the backward no gathered weight is left."""
    loss = walker.forward(3)
    assert zero.all_gone()
    walker.backward(loss)
    walker.passes.finish()
    assert zero.all_gone()


if __name__ == "__main__":
    main()
