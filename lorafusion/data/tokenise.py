"""Rows -> tokens, and which of them are trained: the answers and what closes them, nothing else.

A prompt with its completion is tokenised in two parts, so that the prompt's tokens are those that
a model sees at inference. A conversation goes through the tokenizer's own chat template; the
answers are found by rendering the conversation up to each of them, and the text is tokenised once
(in pieces where a token would join a header with its answer).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from jinja2.exceptions import TemplateError

from lorafusion.data.dataset import Sample
from lorafusion.data.formats import Conversation, Message, PromptCompletion
from lorafusion.data.rows import Rows
from lorafusion.data.tokenizer import Tokenizer, eos_token_id, is_fast, special_token_ids
from lorafusion.errors import DataError

ROWS_AT_ONCE = 1024  # bounds the memory of the tokenizer's intermediate results

# Some templates (Llama 3's) write today's date. Tokens must be a function of the file and the
# tokenizer alone, or a run resumed the next day would train on others, so the date is the one that
# those templates fall back to.
FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}"
    "{% endmacro %}"
)

Span = tuple[int, int]


def tokenise_rows(rows: Rows, tokenizer: Tokenizer) -> Iterator[Sample]:
    """Tokenise checked rows, in order and at full length.

    Raises:
        DataError: The tokenizer lacks what the rows need (an end-of-sequence token, a usable chat
            template, offsets), or its template refuses a conversation: file and line are named.
    """
    eos = eos_token_id(tokenizer)
    if eos is None:
        raise DataError(
            f"{rows.path}: the tokenizer of the base has no end-of-sequence token, so no answer "
            "could be closed; use a base whose tokenizer defines eos_token"
        )
    if rows.type == "messages":
        yield from _Chat(tokenizer, eos, rows.path).samples(rows)
        return
    for start in range(0, len(rows.rows), ROWS_AT_ONCE):
        chunk = cast(list[PromptCompletion], list(rows.rows[start : start + ROWS_AT_ONCE]))
        yield from _prompt_completions(chunk, tokenizer, eos)


def _prompt_completions(
    rows: list[PromptCompletion], tokenizer: Tokenizer, eos: int
) -> Iterator[Sample]:
    # Asked of a neutral text: a prompt that itself ends with the token must keep it.
    adds_eos = _encode(tokenizer, ["a"], add_special_tokens=True)["input_ids"][0][-1] == eos
    prompts = _encode(tokenizer, [row.prompt for row in rows], add_special_tokens=True)
    answers = _encode(tokenizer, [row.completion for row in rows], add_special_tokens=False)
    for prompt, answer in zip(prompts["input_ids"], answers["input_ids"], strict=True):
        head = prompt[:-1] if adds_eos else prompt
        tail = answer if answer[-1:] == [eos] else [*answer, eos]
        yield Sample(
            input_ids=np.asarray(head + tail, dtype=np.int32),
            trained=np.arange(len(head) + len(tail)) >= len(head),
        )


class _Chat:
    """Conversations through one tokenizer's template."""

    def __init__(self, tokenizer: Tokenizer, eos: int, path: str) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{path}: type messages needs a chat template, and the tokenizer of the base has "
                "none; use an instruct model's tokenizer, or columns prompt and completion"
            )
        if not is_fast(tokenizer):
            raise DataError(
                f"{path}: type messages needs a fast tokenizer (one with a tokenizer.json), "
                "which tells where each token stands; convert it, or use prompt and completion"
            )
        template = cast(str, tokenizer.get_chat_template())
        self._template = FIXED_DATE + template if "strftime_now" in template else template
        self._tokenizer = tokenizer
        self._path = path
        self._eos = eos
        self._special = np.asarray([*special_token_ids(tokenizer), eos], dtype=np.int32)

    def samples(self, rows: Rows) -> Iterator[Sample]:
        for start in range(0, len(rows.rows), ROWS_AT_ONCE):
            chunk = slice(start, start + ROWS_AT_ONCE)
            found = [
                self._answers(cast(Conversation, row).messages, line)
                for row, line in zip(rows.rows[chunk], rows.lines[chunk], strict=True)
            ]
            texts = [text for text, _ in found]
            encoded = _encode(self._tokenizer, texts, add_special_tokens=False, offsets=True)
            for (text, spans), ids, places in zip(
                found, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                tokens = np.asarray(ids, np.int32), np.asarray(places)
                if _straddles(tokens[1], spans):
                    tokens = self._encode_pieces(text, [start for start, _ in spans])
                yield self._sample(text, spans, *tokens)

    def _answers(self, messages: tuple[Message, ...], line: int) -> tuple[str, list[Span]]:
        """The whole text, and the characters that each assistant turn adds after its header."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        text = self._render(turns, line)
        spans: list[Span] = []
        for i, turn in enumerate(messages):
            if turn.role != "assistant":
                continue
            head = self._render(turns[:i], line, header=True)
            upto = self._render(turns[: i + 1], line) if i + 1 < len(turns) else text
            if not (text.startswith(upto) and upto.startswith(head)):
                raise DataError(
                    f"{self._path}:{line}: the chat template of the base rewrites earlier turns "
                    f"when messages[{i}] is added, so its answer cannot be told from the prompt; "
                    "write one row per answer, or set another chat template in the base's folder"
                )
            before = _before(upto[len(head) :], turn.content)
            # A template that knows no generation prompt writes the header with the answer. (One
            # that knows it may begin the answer with its own marks, which the model then learns.)
            if before and head == self._render(turns[:i], line):
                head += before
            spans.append((len(head), len(upto)))
        return text, spans

    def _render(self, turns: list[dict[str, str]], line: int, *, header: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=header,
                chat_template=self._template,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{self._path}:{line}: the chat template of the base refuses this conversation: "
                f"{error}"
            ) from error
        return cast(str, text)

    def _encode_pieces(
        self, text: str, cuts: list[int]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Tokenise so that no token joins a header's end with its answer's first characters.

        At inference the header is tokenised alone, so the joined token would never be asked for.
        """
        edges = [0, *cuts, len(text)]
        pieces = [text[a:b] for a, b in pairwise(edges)]
        encoded = _encode(self._tokenizer, pieces, add_special_tokens=False, offsets=True)
        ids = [np.asarray(piece, np.int32) for piece in encoded["input_ids"]]
        places = [
            np.asarray(piece, np.int64).reshape(-1, 2) + start
            for piece, start in zip(encoded["offset_mapping"], edges[:-1], strict=True)
        ]
        return np.concatenate(ids), np.concatenate(places)

    def _sample(
        self,
        text: str,
        spans: list[Span],
        ids: npt.NDArray[np.int32],
        places: npt.NDArray[np.int64],
    ) -> Sample:
        trained = np.zeros(len(ids), dtype=np.bool_)
        special = np.isin(ids, self._special)
        closed = False
        for start, end in spans:
            inside = _inside(places, start, end)
            closers = np.flatnonzero(inside & special)
            # What closes the turn is its last special token, if only white space follows it.
            closed = len(closers) > 0 and not text[places[closers[-1], 1] : end].strip()
            if closed:
                inside[closers[-1] + 1 :] = False
            else:
                inside = _inside(places, start, start + len(text[start:end].rstrip()))
            trained |= inside
        if closed:
            return Sample(ids, trained)
        length = int(np.flatnonzero(trained)[-1]) + 1
        return Sample(
            np.append(ids[:length], np.int32(self._eos)), np.append(trained[:length], np.True_)
        )


def _inside(places: npt.NDArray[np.int64], start: int, end: int) -> npt.NDArray[np.bool_]:
    """Tokens that cover a character of start..end; one without characters counts by its place."""
    return (np.maximum(places[:, 1], places[:, 0] + 1) > start) & (places[:, 0] < end)


def _straddles(places: npt.NDArray[np.int64], spans: list[Span]) -> bool:
    """Whether a token reaches over the first character of an answer."""
    starts = np.asarray([start for start, _ in spans])
    return bool(((places[:, :1] < starts) & (places[:, 1:] > starts)).any())


def _before(added: str, content: str) -> str:
    """What a turn's text holds before its content, if more than white space."""
    before = added[: max(added.find(content.strip()), 0)]
    return before if before.strip() else ""


def _encode(
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    add_special_tokens: bool,
    offsets: bool = False,
) -> dict[str, list[list[Any]]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        verbose=False,  # else it warns of samples longer than the model; we cut them ourselves
    )
    return cast(dict[str, list[list[Any]]], encoded)
