"""Rows -> tokens, and which of them are trained: the answers and what closes them, unless told.

A prompt with its completion is tokenised in two parts, so that the prompt's tokens are those that
a model sees at inference. Conversations are in ``chat.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import cast

import numpy as np

from lorafusion.data.chat import Chat
from lorafusion.data.dataset import Sample
from lorafusion.data.encode import adds_eos, encode
from lorafusion.data.formats import Conversation, PromptCompletion, Text
from lorafusion.data.rows import PlacedRow
from lorafusion.data.tokenizer import Tokenizer, eos_token_id
from lorafusion.errors import DataError
from lorafusion.jobs.schema import TrainOn

ROWS_AT_ONCE = 1024  # bounds the memory of the tokenizer's intermediate results


def tokenise_rows(
    rows: Iterable[PlacedRow],
    tokenizer: Tokenizer,
    *,
    name: str,
    train_on: TrainOn = "assistant",
    chat_template: str | None = None,
) -> Iterator[Sample]:
    """Tokenise checked rows, in order and at full length.

    Args:
        rows: The rows, read as they are needed.
        tokenizer: The base's.
        name: The dataset, as errors name it.
        train_on: Which tokens are targets.
        chat_template: Jinja text, instead of the tokenizer's own template.

    Raises:
        DataError: The tokenizer lacks what the rows need (an end-of-sequence token, a usable chat
            template, offsets), or its template refuses a conversation: the row is named.
    """
    eos = eos_token_id(tokenizer)
    if eos is None:
        raise DataError(
            f"{name}: the tokenizer of the base has no end-of-sequence token, so no answer "
            "could be closed; use a base whose tokenizer defines eos_token"
        )
    chat = None
    for kind, group in groupby(rows, key=lambda placed: type(placed.row)):
        while chunk := list(islice(group, ROWS_AT_ONCE)):
            if kind is Conversation:
                chat = chat or Chat(tokenizer, eos, name, train_on, chat_template)
                yield from chat.samples(chunk)
            elif kind is Text:
                yield from _texts(chunk, tokenizer, eos)
            else:
                pairs = _pairs(chunk, tokenizer, eos)
                yield from map(_all_trained, pairs) if train_on == "all" else pairs


def _texts(rows: list[PlacedRow], tokenizer: Tokenizer, eos: int) -> Iterator[Sample]:
    closes = adds_eos(tokenizer, eos)
    texts = [cast(Text, placed.row).text for placed in rows]
    for ids in encode(tokenizer, texts, add_special_tokens=True)["input_ids"]:
        # A text that was written with its end keeps one end, whoever adds another.
        while closes and ids[-2:] == [eos, eos]:
            ids.pop()
        whole = ids if ids[-1:] == [eos] else [*ids, eos]
        yield Sample(np.asarray(whole, dtype=np.int32), np.ones(len(whole), dtype=np.bool_))


def _pairs(rows: list[PlacedRow], tokenizer: Tokenizer, eos: int) -> Iterator[Sample]:
    closes = adds_eos(tokenizer, eos)
    pairs = [cast(PromptCompletion, placed.row) for placed in rows]
    prompts = encode(tokenizer, [pair.prompt for pair in pairs], add_special_tokens=True)
    answers = encode(tokenizer, [pair.completion for pair in pairs], add_special_tokens=False)
    for prompt, answer in zip(prompts["input_ids"], answers["input_ids"], strict=True):
        head = prompt[:-1] if closes else prompt
        tail = answer if answer[-1:] == [eos] else [*answer, eos]
        yield Sample(
            input_ids=np.asarray(head + tail, dtype=np.int32),
            trained=np.arange(len(head) + len(tail)) >= len(head),
        )


def _all_trained(sample: Sample) -> Sample:
    return Sample(sample.input_ids, np.ones(len(sample.input_ids), dtype=np.bool_))
