"""Conversations -> tokens, through a chat template.

The answers are found by rendering the conversation up to each of them, and the text is tokenised
once (in pieces where a token would join a header with its answer).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from jinja2.exceptions import TemplateError

from lorafusion.data.dataset import Sample
from lorafusion.data.encode import encode
from lorafusion.data.formats import Conversation
from lorafusion.data.rows import PlacedRow
from lorafusion.data.template import with_fixed_date
from lorafusion.data.tokenizer import Tokenizer, is_fast, special_token_ids
from lorafusion.errors import DataError
from lorafusion.jobs.schema import TrainOn

Span = tuple[int, int]
Turns = list[dict[str, str]]


class Chat:
    """Conversations through one tokenizer's template.

    Raises:
        DataError: There is no template, or the tokenizer cannot say where tokens stand.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos: int,
        name: str,
        train_on: TrainOn = "assistant",
        template: str | None = None,
    ) -> None:
        if not (template or tokenizer.chat_template):
            raise DataError(
                f"{name}: a conversation needs a chat template, and the tokenizer of the base has "
                "none; name a jinja file in `chat_template`, use an instruct model's tokenizer, or "
                "columns prompt and completion"
            )
        if not is_fast(tokenizer):
            raise DataError(
                f"{name}: a conversation needs a fast tokenizer (one with a tokenizer.json), "
                "which tells where each token stands; convert it, or use prompt and completion"
            )
        template = template or cast(str, tokenizer.get_chat_template())
        self._template = with_fixed_date(template)
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._eos = eos
        self._eos_text = str(cast(Any, tokenizer).eos_token)
        self._special = np.asarray([*special_token_ids(tokenizer), eos], dtype=np.int32)

    def samples(self, rows: list[PlacedRow]) -> Iterator[Sample]:
        """Tokenise conversations, at full length.

        Raises:
            DataError: The template refuses one, or hides where its answers are.
        """
        found = [self._answers(row) for row in rows]
        texts = [text for text, _ in found]
        encoded = encode(self._tokenizer, texts, add_special_tokens=False, offsets=True)
        for (text, spans), ids, places in zip(
            found, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            tokens = np.asarray(ids, np.int32), np.asarray(places)
            if _straddles(tokens[1], spans):
                tokens = self._encode_pieces(text, [start for start, _ in spans])
            yield self._sample(text, spans, *tokens)

    def _answers(self, row: PlacedRow) -> tuple[str, list[Span]]:
        """The text up to the last answer, and the characters of each answer to learn."""
        conversation = cast(Conversation, row.row)
        messages = conversation.messages
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        if self._train_on == "all":
            text = self._render(turns, row)
            return text, [(0, len(text))]
        answers = [i for i, turn in enumerate(messages) if turn.role == "assistant"]
        # What follows the last answer cannot change a loss, but some templates look at it.
        turns = turns[: answers[-1] + 1]
        text = self._render(turns, row)
        if self._train_on == "last":
            answers = answers[-1:]
        return text, [
            self._span(row, turns, i, text) for i in answers if i >= conversation.learn_from
        ]

    def _span(self, row: PlacedRow, turns: Turns, i: int, text: str) -> Span:
        """The characters that assistant turn ``i`` adds after its header."""
        head = self._render(turns[:i], row, header=True)
        upto = self._render(turns[: i + 1], row) if i + 1 < len(turns) else text
        if not text.startswith(upto):
            # Phi-3's closes the whole conversation once more, wherever it ends.
            upto = upto.rstrip().removesuffix(self._eos_text)
        if not (text.startswith(upto) and upto.startswith(head)):
            raise DataError(_rewrites(row, i, last=i + 1 == len(turns)))
        added, content = upto[len(head) :], turns[i]["content"]
        if not _holds(added, content):
            raise DataError(
                f"{row.place}: the chat template leaves out a part of messages[{i}] (as some do "
                "with thoughts), so it cannot be learnt; remove that part from the row, or name "
                "another template in `chat_template`"
            )
        before = _before(added, content)
        # A template that knows no generation prompt writes the header with the answer. (One
        # that knows it may begin the answer with its own marks, which the model then learns.)
        if before and head == self._render(turns[:i], row):
            head += before
        return len(head), len(upto)

    def _render(self, turns: Turns, row: PlacedRow, *, header: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=header,
                chat_template=self._template,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{row.place}: the chat template refuses this conversation: {error}{_hint(turns)}"
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
        encoded = encode(self._tokenizer, pieces, add_special_tokens=False, offsets=True)
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


def _holds(added: str, content: str) -> bool:
    """Whether a turn's text has all of its content, white space aside."""
    return content in added or "".join(content.split()) in "".join(added.split())


def _rewrites(row: PlacedRow, i: int, *, last: bool) -> str:
    remedy = "write one row per answer" if last else "train the last answer alone (train_on: last)"
    return (
        f"{row.place}: the chat template rewrites earlier turns when messages[{i}] is "
        f"{'added' if last else 'followed by others'}, so its answer cannot be told from the "
        f"prompt; {remedy}, or name another template in `chat_template`"
    )


def _hint(turns: Turns) -> str:
    """What a template is likely to mind."""
    roles = [turn["role"] for turn in turns]
    if "system" in roles:
        return "; if it knows no system role, put that text in front of the first user turn"
    if roles[:1] == ["assistant"]:
        return "; if it minds that an assistant turn comes first, remove that turn"
    return ""
