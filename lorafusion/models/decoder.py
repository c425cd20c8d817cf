"""A decoder of transformers taken apart: what it does before its layers, the layers, what follows.

How a family embeds (scales, learned positions), what it passes to each of its layers (rotary
positions, one set for all or one per type of layer), and which norm comes last, is learned from the
decoder's own forward: it runs with recorders in place of the layers, which note how they are called
and return what they are given. No family is named here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.models.layers import find_layers, uncuttable, unfit
from lorafusion.models.part import Part


class LayerCall(NamedTuple):
    """How the decoder calls one of its layers, apart from the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Opening(NamedTuple):
    """What comes before the first layer."""

    hidden: torch.Tensor
    """[1, T, D], what the first layer takes."""
    calls: list[LayerCall]
    """For every layer of the decoder, whichever of them a stage holds."""


class Decoder:
    """The decoder of a causal LM: :meth:`open`, then the layers one by one, then :meth:`close`."""

    def __init__(self, decoder: nn.Module, part: Part, width: int) -> None:
        """Learn the parts, with packed attention already chosen.

        Args:
            decoder: A model of transformers without its head.
            part: Which of its layers are here.
            width: Columns D of the hidden state.

        Raises:
            ModelError: It has no such list of layers, makes masks of its own, or does something
                between its layers.
        """
        self._decoder = decoder
        self._part = part
        self._name = find_layers(decoder, part.total)
        self._tail: tuple[str, ...] = ()
        self._skipped: tuple[str, ...] = ()
        self._learn(width)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order; where another stage has one, what stands for it."""
        return getattr(self._decoder, self._name)

    def open(self, entering: torch.Tensor, positions_T: torch.Tensor) -> Opening:
        """Embed, and prepare every layer's arguments, without running a layer.

        Args:
            entering: int64 [T], the tokens; where the embedding is not here, a hidden state [T, D].
                What becomes of that is of no use: it comes from a layer, not from an embedding.
            positions_T: int64 [T], each row's position in its sample.
        """
        recorders, _ = self._record(entering, positions_T, [])
        return Opening(recorders[0].hidden, [recorder.call for recorder in recorders])

    def close(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, T, D] after the last layer -> what the head takes, by the final norm.

        Where the last layer is not here, the hidden state as it is.
        """
        for name in self._tail:
            hidden = getattr(self._decoder, name)(hidden)
        return hidden

    def _record(
        self, entering: torch.Tensor, positions_T: torch.Tensor, called: list[str]
    ) -> tuple[list[_Recorder], torch.Tensor]:
        """The recorders after one run, and what the decoder made of the last one's output."""
        recorders = [_Recorder(layer, self._name, called) for layer in self.layers]
        # A shallow copy that shares every other module: the decoder itself is not touched. Made
        # anew each time, since modules beside the layers may have been wrapped in the meantime.
        shell = copy.copy(self._decoder)
        vars(shell)["_modules"] = dict(vars(shell)["_modules"])
        setattr(shell, self._name, nn.ModuleList(recorders))
        for name in self._skipped:  # of 2,048 rows the norm alone took half of this run
            setattr(shell, name, nn.Identity())
        name = "input_ids" if self._part.first else "inputs_embeds"
        options = {name: entering[None], "position_ids": positions_T[None], "use_cache": False}
        output = shell(**options)
        return recorders, output.last_hidden_state

    @torch.no_grad()
    def _learn(self, width: int) -> None:
        """Find the modules that the decoder calls after its last layer, and what does not fit."""
        called: list[str] = []
        hooks = [
            module.register_forward_hook(_append_to(called, name))
            for name, module in self._decoder.named_children()
            if name != self._name
        ]
        some = next(self._decoder.parameters())
        positions = torch.arange(2, device=some.device)
        entering = torch.zeros_like(positions)
        if not self._part.first:
            entering = torch.linspace(-1, 1, 2 * width).view(2, width).to(some)
        try:
            recorders, output = self._record(entering, positions, called)
        except (RuntimeError, ValueError, TypeError) as error:
            if self._part.first:
                raise
            raise uncuttable(
                self._decoder, "needs more than a hidden state behind a cut"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if called.count(self._name) != len(recorders):
            raise unfit(self._decoder, "does not call each of its layers once")
        hidden = recorders[0].hidden
        if any(not torch.equal(recorder.hidden, hidden) for recorder in recorders):
            raise unfit(self._decoder, "changes the hidden state between its layers")
        if any(_tensor_mask(recorder.call) for recorder in recorders):
            raise unfit(self._decoder, "makes attention masks of its own")
        first, last = called.index(self._name), len(called) - called[::-1].index(self._name)
        self._tail = tuple(called[last:])
        # Some decoders call one norm at both ends.
        self._skipped = tuple(name for name in self._tail if name not in called[:first])
        if not torch.equal(self.close(hidden), output):
            raise unfit(self._decoder, "does more after its last layer than call modules")
        if not self._part.last:
            # A norm without weights, or one that the first part needs too, is here all the same.
            self._tail = ()


class _Recorder(nn.Module):
    """Stands in a layer's place: notes how it is called, and gives back the hidden state."""

    hidden: torch.Tensor
    call: LayerCall

    def __init__(self, layer: nn.Module, name: str, called: list[str]) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: not a module of this one
        self._name = name
        self._called = called

    def __getattr__(self, name: str) -> Any:
        # Some decoders ask their layers for a setting, such as the type of attention.
        return getattr(self._layer[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._called.append(self._name)
        hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
        self.hidden = hidden
        self.call = LayerCall(tuple(rest), kwargs)
        return hidden


def _append_to(names: list[str], name: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        names.append(name)

    return hook


def _tensor_mask(call: LayerCall) -> bool:
    return isinstance(call.kwargs.get("attention_mask"), torch.Tensor)
