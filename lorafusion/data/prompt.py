"""A user's prompt -> tokens, the same that training makes of the same prompt in a dataset."""

from __future__ import annotations

from typing import Any, cast

from jinja2.exceptions import TemplateError

from lorafusion.data.encode import adds_eos
from lorafusion.data.template import with_fixed_date
from lorafusion.data.tokenizer import Tokenizer, eos_token_id
from lorafusion.errors import DataError


def tokenise_prompt(tokenizer: Tokenizer, prompt: str, *, chat: bool) -> list[int]:
    """Tokenise a prompt up to where the answer begins.

    Args:
        tokenizer: The base's.
        prompt: The text.
        chat: As the user's turn of a conversation (messages), instead of as it is (prompt and
            completion).

    Raises:
        DataError: The chat template refuses it, or no token is left.
    """
    if chat:
        tokens = _encode(tokenizer, _in_template(tokenizer, prompt), special=False)
    else:
        tokens = _encode(tokenizer, prompt, special=True)
        # Some tokenizers close every text; an answer is to follow this one.
        eos = eos_token_id(tokenizer)
        if eos is not None and adds_eos(tokenizer, eos):
            tokens = tokens[:-1]
    if not tokens:
        raise DataError("the prompt has no tokens: give some text.")
    return tokens


def _in_template(tokenizer: Tokenizer, prompt: str) -> str:
    template = cast(str, tokenizer.get_chat_template())
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=with_fixed_date(template),
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(
            f"the chat template of the base refuses the prompt: {error}. --raw leaves it out."
        ) from error
    return cast(str, text)


def _encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    return cast(Any, tokenizer)(text, add_special_tokens=special, verbose=False)["input_ids"]
