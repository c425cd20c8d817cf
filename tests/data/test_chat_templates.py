"""Templates that behave like those of real models: what is trained, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorafusion.data import tokenise
from lorafusion.data.dataset import Sample, fit
from lorafusion.data.formats import Conversation, Message, Row
from lorafusion.data.rows import PlacedRow
from lorafusion.data.sources import FilePart
from lorafusion.errors import DataError

MARKS = (
    "<|begin|> <|start_header|> <|end_header|> <|eot|> <start_of_turn> <end_of_turn> "
    "<|user|> <|assistant|> <|system|> <|end|> <s> </s>"
).split()

# A date, trimmed contents, a header of two marks.
LLAMA_3 = (
    "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    "{% for m in messages %}<|start_header|>{{ m.role }}<|end_header|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}"
)
# A system prompt of its own.
QWEN_2_5 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nhelp<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Thoughts are written for the last answer alone, an empty one if it has none.
QWEN_3 = (
    "{% for m in messages %}{% set parts = m.content.split('</think>') %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ parts[0].replace('<think>', '') | trim if parts|length > 1 }}"
    "\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No system role, turns in strict alternation, another name for the assistant.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# No generation prompt; the system prompt moves to the last user turn.
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] if system else messages %}"
    "{% set users = turns | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in turns %}{% if m.role == 'user' %}[INST] "
    "{% if system and m is sameas users[-1] %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The end of text after the whole, wherever it ends.
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
# The thoughts of every answer are left out.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = "user: the fox | assistant: jumps  | user: or | assistant: no"
WITH_SYSTEM = "system: lazy | " + CHAT
ENDS = {
    "llama-3": (LLAMA_3, "jumps<|eot|>", "no<|eot|>"),
    "qwen-2.5": (QWEN_2_5, "jumps <|im_end|>", "no<|im_end|>"),
    "gemma": (GEMMA, "jumps<end_of_turn>", "no<end_of_turn>"),
    "mistral": (MISTRAL, " jumps<|im_end|>", " no<|im_end|>"),
    "phi-3": (PHI_3, "jumps <|end|>", "no<|end|>\n<|im_end|>"),
    "zephyr": (ZEPHYR, "jumps <|im_end|>", "no<|im_end|>"),
}


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    return tokenizer


def samples(chat: str, tokenizer: Any, template: str, **settings: Any) -> list[Sample]:
    turns = [turn.split(": ", 1) for turn in chat.split(" | ")]
    greeting = turns[0][0] == "assistant"
    row = Conversation(tuple(Message(*turn) for turn in turns), learn_from=int(greeting))
    return list(_samples(row, tokenizer, chat_template=template, **settings))


def _samples(row: Row, tokenizer: Any, **settings: Any) -> Iterator[Sample]:
    placed = PlacedRow(row, FilePart(Path("a.jsonl")), 7)
    for sample in tokenise.tokenise_rows([placed], tokenizer, name="a.jsonl", **settings):
        whole = fit(sample, 10**6)  # which leaves out what follows the last target
        assert whole is not None
        yield whole


def text(tokenizer: Any, sample: Sample) -> str:
    return tokenizer.decode(sample.input_ids.tolist())


def trained(tokenizer: Any, sample: Sample) -> str:
    return tokenizer.decode(sample.input_ids[sample.trained].tolist())


def rendered(tokenizer: Any, chat: str, template: str) -> str:
    turns = [
        dict(zip(("role", "content"), t.split(": ", 1), strict=True)) for t in chat.split(" | ")
    ]
    return tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template)


@pytest.mark.parametrize("model", ENDS)
def test_every_answer_and_its_end(tokenizer: Any, model: str) -> None:
    template, first, last = ENDS[model]
    (sample,) = samples(CHAT, tokenizer, template)
    assert trained(tokenizer, sample) == first + last
    if model != "llama-3":  # which writes the date
        assert text(tokenizer, sample) == rendered(tokenizer, CHAT, template).rstrip()


@pytest.mark.parametrize("model", ENDS)
def test_the_last_answer_alone(tokenizer: Any, model: str) -> None:
    template, _, last = ENDS[model]
    (sample,) = samples(CHAT, tokenizer, template, train_on="last")
    assert trained(tokenizer, sample) == last
    (all_answers,) = samples(CHAT, tokenizer, template)
    assert sample.input_ids.tolist() == all_answers.input_ids.tolist()


@pytest.mark.parametrize("model", ENDS)
def test_every_token(tokenizer: Any, model: str) -> None:
    template, _, last = ENDS[model]
    (sample,) = samples(CHAT, tokenizer, template, train_on="all")
    (all_answers,) = samples(CHAT, tokenizer, template)
    assert sample.input_ids.tolist() == all_answers.input_ids.tolist()
    assert sample.trained[1:].all()
    assert text(tokenizer, sample).endswith(last)


def test_qwen_3_trains_the_last_answer_as_it_is_asked_for(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"a.jsonl:7: .*rewrites earlier turns.*train_on: last"):
        samples(CHAT, tokenizer, QWEN_3)
    (sample,) = samples(CHAT, tokenizer, QWEN_3, train_on="last")
    assert trained(tokenizer, sample) == "<think>\n\n</think>\n\nno<|im_end|>"
    one = "user: the fox | assistant: <think>\nlazy\n</think>\n\nno"
    (sample,) = samples(one, tokenizer, QWEN_3)
    assert trained(tokenizer, sample) == "<think>\nlazy\n</think>\n\nno<|im_end|>"
    (sample,) = samples(CHAT, tokenizer, QWEN_3, train_on="all")
    assert "jumps <|im_end|>" in trained(tokenizer, sample)


def test_what_follows_the_last_answer_does_not_change_it(tokenizer: Any) -> None:
    for template in (QWEN_3, *(template for template, _, _ in ENDS.values())):
        (sample,) = samples(CHAT, tokenizer, template, train_on="last")
        (followed,) = samples(CHAT + " | user: lazy dog", tokenizer, template, train_on="last")
        assert sample.input_ids.tolist() == followed.input_ids.tolist()


def test_mistral_moves_the_system_prompt(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"messages\[2\] is followed by others"):
        samples(WITH_SYSTEM, tokenizer, MISTRAL)
    (sample,) = samples(WITH_SYSTEM, tokenizer, MISTRAL, train_on="last")
    assert text(tokenizer, sample).endswith("[INST] lazy\n\nor[/INST] no<|im_end|>")
    assert trained(tokenizer, sample) == " no<|im_end|>"


def test_gemma_refuses_a_system_prompt_and_a_greeting(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"System role not supported; .*first user turn"):
        samples(WITH_SYSTEM, tokenizer, GEMMA)
    with pytest.raises(DataError, match=r"must alternate; .*assistant turn comes first"):
        samples("assistant: yes | " + CHAT, tokenizer, GEMMA)


def test_a_greeting_is_context(tokenizer: Any) -> None:
    (sample,) = samples("assistant: yes | " + CHAT, tokenizer, QWEN_2_5)
    assert "assistant\nyes<|im_end|>" in text(tokenizer, sample)
    assert trained(tokenizer, sample) == "jumps <|im_end|>no<|im_end|>"


def test_thoughts_that_a_template_leaves_out_are_not_lost_silently(tokenizer: Any) -> None:
    (sample,) = samples(CHAT, tokenizer, DEEPSEEK)
    assert trained(tokenizer, sample) == "jumps <|im_end|>no<|im_end|>"
    chat = "user: the fox | assistant: <think>lazy</think>no"
    with pytest.raises(DataError, match=r"a.jsonl:7: .*leaves out a part of messages\[1\]"):
        samples(chat, tokenizer, DEEPSEEK)
