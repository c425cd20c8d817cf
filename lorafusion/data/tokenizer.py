"""The base's tokenizer: how it is loaded, and the part of its interface that datasets use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

from lorafusion.errors import ModelError


class Tokenizer(Protocol):
    """What we call of ``transformers.PreTrainedTokenizerBase``, whose own types are partial."""

    @property
    def chat_template(self) -> Any:
        """Jinja text, several of them by name, or None."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenise a list of texts."""
        ...

    def get_chat_template(self) -> Any:
        """The Jinja text that :meth:`apply_chat_template` uses by default."""
        ...

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Token ids to text."""
        ...


def load_tokenizer(base_model: str) -> Tokenizer:
    """Load the tokenizer of a base.

    Args:
        base_model: A folder, or an id on the Hugging Face hub.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    local = Path(base_model).is_dir()
    try:
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(base_model, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        kind = "the folder" if local else "the hub id (no such folder exists)"
        raise ModelError(
            f"base_model {base_model}: no tokenizer could be loaded from {kind}: {error}"
        ) from error
    return cast(Tokenizer, tokenizer)


def is_fast(tokenizer: Tokenizer) -> bool:
    """Whether it can say where each token stands in the text, and be written down as a whole."""
    return bool(cast(Any, tokenizer).is_fast)


def eos_token_id(tokenizer: Tokenizer) -> int | None:
    """The token that ends an answer, if the tokenizer names one."""
    return cast("int | None", cast(Any, tokenizer).eos_token_id)


def special_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that are control marks rather than text, ascending."""
    added = cast("dict[int, Any]", cast(Any, tokenizer).added_tokens_decoder)
    return sorted(id_ for id_, token in added.items() if token.special)


def tokenizer_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that decides what a fast tokenizer makes of a text, as plain data."""
    raw = cast(Any, tokenizer)
    return {
        "backend": raw.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "special_tokens": {name: str(t) for name, t in raw.special_tokens_map.items()},
    }
