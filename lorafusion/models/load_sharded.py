"""Load a base whose weights are cut over ranks, some layers at a time: none ever has all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lorafusion.kernels.backend import choose_backend
from lorafusion.models.layers import find_layers
from lorafusion.models.load import Base, Sharded, load_base, meta_model, tensor_hash
from lorafusion.models.part import Part
from lorafusion.models.prune import sides
from lorafusion.models.sharded import ShardedWeights, Unit, is_cut
from lorafusion.models.zero import Zero
from lorafusion.module_names import module_names

# Parts that are read one after the other. Each takes a look at the whole model, .1 s and more, and
# holds its share of the base besides what this rank keeps.
PARTS = 16


def load_sharded(base_model: str, dtype: str, device: torch.device, zero: Zero) -> Base:
    """As :func:`load_base` with all layers, on every rank of ``zero`` at the same time.

    Raises:
        ModelError: As :func:`load_base`.
        LostRankError: Another rank is gone.
    """
    model: Any = meta_model(base_model)
    names = module_names(model)
    units = _units(model, device)
    filling = _Filling(model, zero)
    for part in _parts(model.config.get_text_config().num_hidden_layers):
        piece = load_base(base_model, dtype, part, device, aligned=True)
        filling.take(piece.model)
        del piece
    left = [name for name, tensor in _tensors(model) if tensor.is_meta]
    assert not left, f"no part of the base has {left}"
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    kept = {
        name: zero.part(weight) if is_cut(weight) else weight.data
        for name, weight in model.named_parameters()
    }
    sharded = Sharded(ShardedWeights(units(), zero.gathered), filling.hashes, zero)
    attention: str = model.config._attn_implementation
    whole = Part.whole(model.config.get_text_config().num_hidden_layers)
    return Base(base_model, model, kept, attention, whole, names, sharded)


class _Filling:
    """Puts what parts have into a model without weights, and cuts it."""

    def __init__(self, model: nn.Module, zero: Zero) -> None:
        self._model = model
        self._zero = zero
        self.hashes: dict[str, str] = {}
        """Of the whole weights that were taken."""

    def take(self, piece: nn.Module) -> None:
        """What ``piece`` has and the model has not. Two names of one weight stay one."""
        names: dict[nn.Parameter, list[str]] = {}
        for name, weight in piece.named_parameters(remove_duplicate=False):
            names.setdefault(weight, []).append(name)
        fresh: list[nn.Parameter] = []
        for weight, its_names in names.items():
            known = [w for w in map(self._model.get_parameter, its_names) if not w.is_meta]
            if not known:
                self.hashes[its_names[0]] = tensor_hash(weight)
                fresh.append(weight)
            for name in its_names:
                self._put("_parameters", name, known[0] if known else weight)
        self._zero.cut([weight for weight in fresh if is_cut(weight)])
        for name, tensor in piece.named_buffers():
            self._put("_buffers", name, tensor)

    def _put(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        getattr(self._model.get_submodule(owner), kind)[leaf] = tensor


def _parts(total: int) -> Iterator[Part]:
    layers = -(-total // PARTS)
    for start in range(0, total, layers):
        yield Part(range(start, min(start + layers, total)), total)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _units(model: Any, device: torch.device) -> Callable[[], list[Unit]]:
    """The base's units, in the order of its forward; to be asked for once it has its weights."""
    decoder = model.get_decoder()
    layers_name = find_layers(decoder, model.config.get_text_config().num_hidden_layers)
    before, after = sides(model, layers_name)
    head = model.get_output_embeddings()
    groups = [
        ([getattr(decoder, name) for name in dict.fromkeys(before)], False),
        *(([layer], True) for layer in getattr(decoder, layers_name)),
        ([getattr(decoder, name) for name in dict.fromkeys(after) if name not in before], True),
        # The op makes the gradient with the loss; in the reference autograd does it later.
        ([head] if head is not None else [], choose_backend(device) == "reference"),
    ]
    full_names = {module: name for name, module in model.named_modules()}

    def units() -> list[Unit]:
        found: list[Unit] = []
        for modules, in_backward in groups:
            cut = [module for module in modules if any(map(is_cut, module.parameters()))]
            if cut:
                weights = dict.fromkeys(w for m in cut for w in m.parameters() if is_cut(w))
                found.append(Unit(full_names[cut[0]], tuple(cut), tuple(weights), in_backward))
        return found

    return units
