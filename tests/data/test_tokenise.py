"""The targets are the answers and what closes them, to the token."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from lorafusion.data import tokenise
from lorafusion.data.dataset import Sample
from lorafusion.data.formats import Conversation, Message, PromptCompletion, Row
from lorafusion.data.rows import PlacedRow
from lorafusion.data.sources import FilePart
from lorafusion.errors import DataError

HEADER = "<|im_start|>assistant\n"
END = "<|im_end|>"


def tokenise_rows(rows: list[Row], tokenizer: Any, **settings: Any) -> Iterator[Sample]:
    part = FilePart(Path("a.jsonl"))
    placed = [PlacedRow(row, part, line) for line, row in enumerate(rows, start=1)]
    return tokenise.tokenise_rows(placed, tokenizer, name="a.jsonl", **settings)


def _pairs(*pairs: tuple[str, str]) -> list[Row]:
    return [PromptCompletion(*pair) for pair in pairs]


def _chats(*chats: str) -> list[Row]:
    """Each chat is written as ``user: hi | assistant: no``."""
    conversations: list[Row] = []
    for chat in chats:
        turns = [turn.split(": ", 1) for turn in chat.split(" | ")]
        conversations.append(Conversation(tuple(Message(*turn) for turn in turns)))
    return conversations


def _text(tokenizer: Any, sample: Sample) -> str:
    return tokenizer.decode(sample.input_ids.tolist())


def _trained(tokenizer: Any, sample: Sample) -> str:
    return tokenizer.decode(sample.input_ids[sample.trained].tolist())


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    """A fresh copy, which a test may change."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def test_completion_and_eos_are_trained(tokenizer: Any) -> None:
    (sample,) = tokenise_rows(_pairs(("the quick fox", " jumps 🦊")), tokenizer)
    prompt = tokenizer("the quick fox").input_ids
    answer = tokenizer(" jumps 🦊").input_ids
    assert sample.input_ids.tolist() == [*prompt, *answer, tokenizer.eos_token_id]
    assert sample.trained.tolist() == [False] * len(prompt) + [True] * (len(answer) + 1)


def test_a_tokenizer_whose_unknown_token_is_its_end_keeps_the_prompt() -> None:
    """The probe for a tokenizer that closes every text meets an unknown word here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"</s>": 0, "up": 1, "down": 2}, unk_token="</s>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="</s>")
    (sample,) = tokenise_rows(_pairs(("up up", "down")), words)
    assert sample.input_ids.tolist() == [1, 1, 2, 0]


def test_an_eos_in_the_completion_is_not_doubled(tokenizer: Any) -> None:
    (sample,) = tokenise_rows(_pairs(("the fox", "no" + END)), tokenizer)
    assert _trained(tokenizer, sample) == "no" + END


def test_special_tokens_that_the_tokenizer_adds(tokenizer: Any) -> None:
    """BOS stays in front; the EOS that it would put after the prompt goes, a written one stays."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    plain, ended = tokenise_rows(_pairs(("the fox", " no"), ("yes" + END, " no")), tokenizer)
    assert _text(tokenizer, plain) == "<|im_start|>the fox no<|im_end|>"
    assert _text(tokenizer, ended) == "<|im_start|>yes<|im_end|> no<|im_end|>"
    assert _trained(tokenizer, plain) == _trained(tokenizer, ended) == " no<|im_end|>"


def test_every_answer_of_a_conversation_is_trained(tokenizer: Any) -> None:
    chat = "system: the dog | user: or | assistant: the quick | user: fox | assistant: no 🦊"
    (sample,) = tokenise_rows(_chats(chat), tokenizer)
    assert _trained(tokenizer, sample) == f"the quick{END}no 🦊{END}"
    assert f"fox{END}\n{HEADER}no 🦊{END}" in _text(tokenizer, sample)


def test_tokens_are_those_of_the_template(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "the\n\nno "}]
    (sample,) = tokenise_rows(_chats("user: fox | assistant: the\n\nno "), tokenizer)
    expected = tokenizer.apply_chat_template(turns, return_dict=False)
    assert sample.input_ids.tolist() == list(expected)
    assert _trained(tokenizer, sample) == f"the\n\nno {END}"


def test_a_default_system_prompt_is_part_of_the_prompt(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nanswers<|im_end|>\n{% endif %}"
        + tokenizer.chat_template
    )
    (sample,) = tokenise_rows(_chats("user: fox | assistant: no"), tokenizer)
    assert _text(tokenizer, sample).startswith("<|im_start|>system\nanswers")
    assert _trained(tokenizer, sample) == "no" + END


def test_a_token_never_joins_a_header_with_its_answer(tokenizer: Any) -> None:
    """Here the header ends with a space, and " fox" is one token, so "assistant: fox" joins."""
    assert len(tokenizer(" fox").input_ids) == 1
    tokenizer.chat_template = OPEN_TEMPLATE
    chat = "user: yes | assistant: fox | user: or | assistant: dog"
    (sample,) = tokenise_rows(_chats(chat), tokenizer)
    parts = ["user: yes\nassistant: ", "fox", "\nuser: or\nassistant: ", "dog"]
    ids = [tokenizer(part).input_ids for part in parts]
    assert sample.input_ids.tolist() == [*chain.from_iterable(ids), tokenizer.eos_token_id]
    mask = [i % 2 == 1 for i, part in enumerate(ids) for _ in part]
    assert sample.trained.tolist() == [*mask, True]


OPEN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_turn_without_an_end_gets_a_trained_eos(tokenizer: Any) -> None:
    tokenizer.chat_template = OPEN_TEMPLATE
    (sample,) = tokenise_rows(_chats("user: fox | assistant: the dog | user: or"), tokenizer)
    assert _trained(tokenizer, sample) == "the dog" + END
    assert _text(tokenizer, sample) == "user: fox\nassistant: the dog" + END


def test_a_header_is_not_trained_without_a_generation_prompt(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("add_generation_prompt", "false")
    (sample,) = tokenise_rows(_chats("user: fox | assistant: no"), tokenizer)
    assert _trained(tokenizer, sample) == "no" + END


def test_a_template_with_todays_date_is_fixed(tokenizer: Any) -> None:
    dates = "{{ strftime_now('%d %b %Y') }}, {% set d = strftime_now('%Y-%m-%d') %}{{ d }}\n"
    tokenizer.chat_template = dates + tokenizer.chat_template
    (sample,) = tokenise_rows(_chats("user: fox | assistant: no"), tokenizer)
    assert _text(tokenizer, sample).startswith("26 Jul 2024, 2024-07-26\n<|im_start|>user")


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(DataError, match=r"a.jsonl:1: .*rewrites earlier turns.*messages\[1\]"):
        list(tokenise_rows(_chats("user: fox | assistant: no"), tokenizer))


def test_a_refusal_of_the_template_names_the_line(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + tokenizer.chat_template
    )
    good, bad = "user: fox | assistant: no", "system: dog | user: fox | assistant: no"
    with pytest.raises(DataError, match=r"a.jsonl:2: .*refuses this conversation: no system"):
        list(tokenise_rows(_chats(good, bad), tokenizer))


def test_tokenizers_that_cannot_be_used_are_refused(tokenizer: Any) -> None:
    class Slow:
        is_fast = False
        chat_template = "x"
        eos_token_id = 2

    with pytest.raises(DataError, match="needs a fast tokenizer"):
        list(tokenise_rows(_chats("user: a | assistant: b"), Slow()))  # pyright: ignore
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"needs a chat template.*has none"):
        list(tokenise_rows(_chats("user: a | assistant: b"), tokenizer))
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        list(tokenise_rows(_pairs(("a", "b")), tokenizer))


def test_more_rows_than_are_encoded_at_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafusion.data.tokenise.ROWS_AT_ONCE", 2)
    pairs = [("the fox", f" {i}") for i in range(5)]
    found = [_trained(tokenizer, sample) for sample in tokenise_rows(_pairs(*pairs), tokenizer)]
    assert found == [f" {i}{END}" for i in range(5)]
    chats = [f"user: fox | assistant: {i}" for i in range(5)]
    found = [_trained(tokenizer, sample) for sample in tokenise_rows(_chats(*chats), tokenizer)]
    assert found == [f"{i}{END}" for i in range(5)]
