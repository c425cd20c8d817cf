"""The one way in which texts become token ids."""

from __future__ import annotations

from typing import Any, cast

from lorafusion.data.tokenizer import Tokenizer


def encode(
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    add_special_tokens: bool,
    offsets: bool = False,
) -> dict[str, list[list[Any]]]:
    """Tokenise a batch of texts.

    Args:
        tokenizer: The base's.
        texts: At least one.
        add_special_tokens: Whether it may add its own, such as a BOS.
        offsets: Also give ``offset_mapping``, the characters of each token.
    """
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        verbose=False,  # else it warns of samples longer than the model; we cut them ourselves
    )
    return cast(dict[str, list[list[Any]]], encoded)


def adds_eos(tokenizer: Tokenizer, eos: int) -> bool:
    """Whether the tokenizer closes every text with ``eos`` by itself.

    Asked of a neutral text, since some prompts end with the token; and compared with the text's own
    tokens, since a word that a tokenizer does not know may be the same token.
    """
    own, whole = (
        encode(tokenizer, ["a"], add_special_tokens=special)["input_ids"][0]
        for special in (False, True)
    )
    return whole[-1] == eos and whole[-1 - len(own) : -1] == own
