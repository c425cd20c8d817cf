"""A model of transformers without the layers, embedding and head that other stages hold.

The model's own class does the loading, so that renamed, merged and tied weights are read as they
are for the whole model; it finds only this part's modules to fill. Which modules of the decoder
belong to its beginning and which to its end is seen from the order in which its forward calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn

from lorafusion.models import attention
from lorafusion.models.layers import find_layers, uncuttable
from lorafusion.models.part import Part


class Absent(nn.Module):
    """Stands where another stage has a module: gives back a hidden state, adds nothing to one."""

    def __init__(self, module: nn.Module | None = None) -> None:
        """Decoders ask their layers for settings, such as the type of attention: keep them."""
        super().__init__()
        for name, value in vars(module).items() if module is not None else ():
            if not name.startswith("_") and not isinstance(value, nn.Module | torch.Tensor):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The hidden state that it is given; 0 where it would make one from something else."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        # [1, T, D]: OPT's learned positions are given a mask of floats [1, T].
        if isinstance(hidden, torch.Tensor) and hidden.is_floating_point() and hidden.ndim == 3:
            return hidden
        return torch.zeros(())

    def named_modules(self, *_args: Any, **_options: Any) -> Generator[tuple[str, nn.Module]]:
        """None: nobody who looks through the model's modules takes it for the one that it had."""
        yield from ()


def part_class(model_class: Any, part: Part) -> Any:
    """``model_class`` whose models hold ``part`` alone."""

    def init(self: Any, config: Any, *args: Any, **options: Any) -> None:
        model_class.__init__(self, config, *args, **options)
        _prune(self, part)

    members = {
        "__init__": init,
        "__module__": model_class.__module__,
        # The files hold the other stages' weights too, which is nothing to warn of.
        "_keys_to_ignore_on_load_unexpected": [r".*"],
    }
    return type(model_class.__name__, (model_class,), members)


def _prune(model: Any, part: Part) -> None:
    decoder = model.get_decoder()
    name = find_layers(decoder, part.total)
    before, after = sides(model, name)
    layers = getattr(decoder, name)
    for index, layer in enumerate(layers):
        if index not in part.layers:
            layers[index] = Absent(layer)
    kept = {*(before if part.first else ()), *(after if part.last else ())}
    tied = part.last and model.config.get_text_config().tie_word_embeddings
    for side in (*before, *after):
        module = getattr(decoder, side)
        is_head = tied and module is model.get_input_embeddings()
        if side not in kept and not is_head and any(True for _ in module.parameters()):
            setattr(decoder, side, Absent(module))
    head = model.get_output_embeddings()
    if not part.last and head is not None:
        owner = next(name for name, module in model.named_modules() if module is head)
        model.set_submodule(owner, Absent())
        model.all_tied_weights_keys = {}  # the only tie is that of the head


def sides(model: Any, layers_name: str) -> tuple[list[str], list[str]]:
    """The decoder's modules that it calls before its layers, and those that it calls behind them.

    Found by a forward without numbers, on torch's meta device.
    """
    decoder = model.get_decoder()
    called: list[str] = []
    layers = getattr(decoder, layers_name)
    own = dict(decoder.named_children())
    chosen = model.config._attn_implementation
    attention.register()
    model.set_attn_implementation(attention.NAME)  # then it makes no masks, which need numbers
    try:
        for name, module in own.items():
            if name == layers_name:
                stand_ins = [_Noting(layer, layers_name, called) for layer in layers]
                setattr(decoder, name, nn.ModuleList(stand_ins))
            elif any(True for _ in module.parameters()):
                setattr(decoder, name, _Noting(module, name, called, run=module))
            elif any(buffer.ndim == 1 for buffer in module.buffers()):
                # Rotary frequencies: some kinds look at the positions, of which there are none.
                setattr(decoder, name, _Noting(module, name, called))
        _follow(decoder)
    finally:
        for name, module in own.items():
            setattr(decoder, name, module)
        model.set_attn_implementation(chosen)
    first, last = called.index(layers_name), len(called) - called[::-1].index(layers_name)
    return called[:first], called[last:]


def _follow(decoder: Any) -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    # Without a mask some decoders look for padding among the tokens, of which there are none.
    given = {"input_ids": ids, "position_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with torch.device("meta"), torch.no_grad():
            decoder(**given, use_cache=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise uncuttable(decoder, f"looks at numbers before its layers ({reason})") from error


class _Noting(nn.Module):
    """Notes that it is called; runs ``run`` then, or gives back what it is given."""

    def __init__(
        self,
        like: nn.Module,
        name: str,
        called: list[str],
        *,
        run: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self._like = [like]  # in a list: not a module of this one
        self._name = name
        self._called = called
        self._run = [run]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._like[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._called.append(self._name)
        if self._run[0] is not None:
            return self._run[0](*args, **kwargs)
        return args[0] if args else kwargs["hidden_states"]
