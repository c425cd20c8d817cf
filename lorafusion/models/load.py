"""Load the base: a causal LM from a folder or a hub, frozen and in eval mode.

``check_base`` and ``meta_model`` look at the config alone, so that a job file can be checked before
any weight is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from lorafusion.errors import ModelError
from lorafusion.models.part import Part
from lorafusion.models.prune import part_class
from lorafusion.models.refusals import check_config
from lorafusion.module_names import ModuleNames, module_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from lorafusion.models.sharded import ShardedWeights
    from lorafusion.models.zero import Zero

# At once: what is copied of a tensor that is on a GPU, or is not contiguous.
_HASHED_BYTES = 2**24
# Of whatever torch allocates on a CPU; on a GPU it is more.
_ALIGNMENT = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Sharded:
    """What a base has besides where its weights are cut over ranks.

    Attributes:
        weights: They.
        hashes: Of each whole one, by name, as it was read.
        zero: Gathers them.
    """

    weights: ShardedWeights
    hashes: Mapping[str, str]
    zero: Zero


@dataclass(frozen=True)
class Base:
    """A loaded base, or a part of one.

    ``tensors`` names every weight that is here as its model does, before any wrapping.
    """

    name: str
    model: PreTrainedModel
    tensors: dict[str, torch.Tensor]
    attention: str
    """What transformers chose for the model's own forward, such as ``sdpa``."""
    part: Part
    """The layers that are here."""
    names: ModuleNames
    """The modules of the whole model, whatever part is here."""
    sharded: Sharded | None = None
    """Where its weights are cut over ranks; ``tensors`` then has what this rank keeps."""

    @property
    def dtype(self) -> torch.dtype:
        """What the base computes in."""
        return self.model.dtype

    def open(self, name: str) -> None:
        """Have the weights of the module with this full name whole; see :class:`ShardedWeights`."""
        if self.sharded is not None:
            self.sharded.weights.open(name)

    def tensor_hashes(self) -> dict[str, str]:
        """Name -> SHA-256 over the dtype, shape and bytes of each weight that is here."""
        return {name: tensor_hash(tensor) for name, tensor in self.tensors.items()}

    def whole_hashes(self) -> dict[str, str]:
        """The same of whole weights, where those that are here may be cut over ranks."""
        return self.tensor_hashes() if self.sharded is None else dict(self.sharded.hashes)

    def fingerprint(self) -> str:
        """One hash over all weights that are here: it never changes in a run."""
        return combined_hash(self.tensor_hashes())


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One hash of :meth:`Base.tensor_hashes`, merged over the parts: that of the whole base."""
    lines = [f"{name} {digest}\n" for name, digest in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 over its dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    rows = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    row_bytes = max(1, rows[:1].nbytes)
    for piece in rows.split(max(1, _HASHED_BYTES // row_bytes)):  # copied from a GPU, or as it is
        digest.update(piece.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_base(base_model: str) -> PreTrainedConfig:
    """Read the config of ``base_model`` (a folder or a hub id).

    Raises:
        ModelError: There is no such model, or it is none that can be packed, see
            :mod:`lorafusion.models.refusals`.
    """
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, base_model)
    check_config(config, base_model)
    return config


def meta_model(base_model: str) -> nn.Module:
    """The model's modules without weights, on torch's meta device.

    Raises:
        ModelError: As :func:`check_base`.
    """
    from transformers import AutoModelForCausalLM

    config = check_base(base_model)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load_base(
    base_model: str,
    dtype: str,
    part: Part | None = None,
    device: torch.device | None = None,
    *,
    aligned: bool = False,
) -> Base:
    """Load, freeze, and put into eval mode (the base's own dropouts are off).

    Args:
        base_model: A folder or a hub id.
        dtype: A key of ``DTYPES``.
        part: The layers to load; no other tensor is read. None: all.
        device: Where they go; the CPU if None.
        aligned: Copy weights that lie askew in a mapped file, so that no bit of a product depends
            on where the file has them.

    Raises:
        ModelError: As :func:`check_base`, or weights are missing from the checkpoint.
    """
    config = check_base(base_model)
    total = config.get_text_config().num_hidden_layers
    part = part or Part.whole(total)
    whole = meta_model(base_model)
    model, info = _from_pretrained(
        part_class(type(whole), part) if len(part.layers) < total else type(whole),
        base_model,
        dtype=DTYPES[dtype],
        output_loading_info=True,
    )
    _refuse_missing(base_model, info)
    if device is not None:
        model.to(device)
    model.eval().requires_grad_(False)
    if aligned:
        for weight in model.parameters():
            weight.data = _aligned(weight.data)
    model.config.use_cache = False
    attention: str = model.config._attn_implementation
    tensors = dict(model.named_parameters())
    return Base(base_model, model, tensors, attention, part, module_names(whole))


def _aligned(weight: torch.Tensor) -> torch.Tensor:
    """The weight where torch would put it.

    A safetensors header's length is a multiple of 8. MKL's products of one row differed in their
    last bits between weights at 8 and at 0 bytes beyond a multiple of 16.
    """
    return weight.clone() if weight.data_ptr() % _ALIGNMENT else weight


def load_as_stored(base_model: str) -> tuple[PreTrainedModel, list[str]]:
    """The model in the number format of its files and with its own settings, to be saved again.

    Returns:
        The model, and the names of tensors in its files that it has no use for.

    Raises:
        ModelError: There is no such causal LM, it is quantised, or weights are missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if getattr(_from_pretrained(AutoConfig, base_model), "quantization_config", None) is not None:
        raise ModelError(
            f"base_model {base_model!r} is quantised, so its weights cannot be changed a little; "
            "allowed: weights in float32, bfloat16, float16 or float64. Give the model that it was "
            "quantised from."
        )
    model, info = _from_pretrained(
        AutoModelForCausalLM, base_model, dtype="auto", output_loading_info=True
    )
    _refuse_missing(base_model, info)
    return model, sorted(info["unexpected_keys"])


def _refuse_missing(base_model: str, info: Any) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"base_model {base_model!r}: {len(missing)} weights are not in the checkpoint, such as "
            f"{missing[0]}; they would be random. Fetch the model again."
        )


def _from_pretrained(auto_class: Any, base_model: str, **options: Any) -> Any:
    folder = Path(base_model)
    if folder.is_absolute() and not (folder / "config.json").is_file():
        raise ModelError(
            f"base_model {base_model!r}: no folder with a config.json there; allowed: the folder "
            "of a Hugging Face model, or a hub id. `lorafusion fetch demo` fetches the demo's."
        )
    try:
        return auto_class.from_pretrained(base_model, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"base_model {base_model!r} needs code of its own from its folder, which is never "
                "run here; allowed: models that transformers itself has. Choose another base."
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"base_model {base_model!r} cannot be loaded ({reason}); allowed: the folder of a "
            "Hugging Face model, or a hub id that can be reached or is in the local cache."
        ) from error
