"""Rows of each format: found by their columns, renamed, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lorafusion.data.dataset import TokenisedDataset
from lorafusion.data.formats import (
    COLUMNS,
    KEYS,
    OPTIONAL,
    Conversation,
    Message,
    PromptCompletion,
    Text,
)
from lorafusion.data.load import load_dataset
from lorafusion.data.rows import read_rows
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig

HUMAN, GPT = {"from": "human", "value": "the fox"}, {"from": "gpt", "value": "jumps"}
USER, ANSWER = {"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}
ALPACA = {"instruction": "the fox", "input": "", "output": "jumps"}
PAIR = (Message("user", "the fox"), Message("assistant", "jumps"))


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(*rows: Any, chat: bool = True, **settings: Any) -> list[Any]:
        config = _config(tmp_path, *rows, **settings)
        return [placed.row for placed in read_rows(config, chat=chat)]

    return read


def _config(folder: Path, *rows: Any, **settings: Any) -> DatasetConfig:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetConfig(path=str(path), **settings)


@pytest.mark.parametrize(
    ("row", "type_", "expected"),
    [
        ({"text": "the fox", "id": 1}, "text", Text("the fox")),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", PromptCompletion("a", "b")),
        (
            {"prompt": [USER], "completion": [ANSWER]},
            "prompt_completion",
            Conversation(PAIR, learn_from=1),
        ),
        ({"messages": [USER, ANSWER], "prompt": "a"}, "messages", Conversation(PAIR)),
        ({"conversations": [HUMAN, GPT]}, "sharegpt", Conversation(PAIR)),
        (
            {"conversations": [GPT, HUMAN, GPT], "system": "dog", "tools": "[]"},
            "sharegpt",
            Conversation((Message("system", "dog"), PAIR[1], *PAIR)),
        ),
        (
            {"conversations": [GPT, HUMAN, GPT], "system": None},
            "sharegpt",
            Conversation((PAIR[1], *PAIR), learn_from=1),
        ),
        (ALPACA, "alpaca", Conversation(PAIR)),
        ({**ALPACA, "text": "all of it"}, "alpaca", Conversation(PAIR)),
        (
            {**ALPACA, "input": "over", "system": "dog", "history": [["yes", "no"]]},
            "alpaca",
            Conversation(
                (
                    Message("system", "dog"),
                    Message("user", "yes"),
                    Message("assistant", "no"),
                    Message("user", "the fox\n\nover"),
                    PAIR[1],
                )
            ),
        ),
    ],
)
def test_types_are_found_by_columns(
    tmp_path: Path, row: dict[str, Any], type_: Any, expected: Any
) -> None:
    for given in (None, type_):
        rows = read_rows(_config(tmp_path, row, type=given))
        assert rows.type == type_
        assert [placed.row for placed in rows] == [expected]


def test_alpaca_without_a_chat_template(read: Any) -> None:
    expected = "### Instruction:\nthe fox\n\n### Response:\n"
    assert read(ALPACA, chat=False) == [PromptCompletion(expected, "jumps")]
    expected = "### Instruction:\nthe fox\n\n### Input:\nover\n\n### Response:\n"
    assert read({**ALPACA, "input": "over"}, chat=False) == [PromptCompletion(expected, "jumps")]
    for column, value in {"system": "dog", "history": [["a", "b"]]}.items():
        with pytest.raises(DataError, match=f":1: {column} needs a chat template"):
            read({**ALPACA, column: value}, chat=False)


def test_columns_and_keys_can_be_renamed(read: Any) -> None:
    row = {"question": "a", "answer": "b"}
    columns = {"prompt": "question", "completion": "answer"}
    assert read(row, columns=columns) == [PromptCompletion("a", "b")]
    turns = [{"who": "user", "says": "the fox"}, {"who": "assistant", "says": "jumps"}]
    columns = {"messages": "chat", "role": "who", "content": "says"}
    assert read({"chat": turns}, columns=columns) == [Conversation(PAIR)]
    columns = {"conversations": "messages"}
    assert read({"messages": [HUMAN, GPT]}, columns=columns, type="sharegpt") == [
        Conversation(PAIR)
    ]
    columns = {"instruction": "question", "output": "answer"}
    turns = (Message("user", "a"), Message("assistant", "b"))
    assert read(row, columns=columns) == [Conversation(turns)]


@pytest.mark.parametrize(
    ("row", "settings", "why"),
    [
        ({"prompt": "a", "answer": "b"}, {"columns": {"completion": "anwser"}}, "anwser"),
        (ALPACA, {"columns": {"input": "context"}}, "no column context, which `columns` gives for"),
        (ALPACA, {"columns": {"prompt": "x"}}, "type alpaca, which has no prompt for `columns`"),
        ({**ALPACA, "messages": []}, {}, "several types (messages, alpaca); say which"),
        ({"a": 1}, {}, "needed: text; or prompt and completion; or messages; or conversations"),
        ({"text": "a"}, {"train_on": "last"}, "type text, which has no turns for `train_on: last`"),
        ({**ALPACA, "output": None}, {}, ":1: output is null"),
        ({**ALPACA, "input": 7}, {}, ":1: input is a number"),
        ({**ALPACA, "history": "a"}, {}, "history is a string; it must be a list of [question"),
        ({**ALPACA, "history": [["a"]]}, {}, "history[0] must be a list of two texts"),
        ({**ALPACA, "history": [["a", None]]}, {}, "history[0][1] is null"),
        ({"conversations": [USER, ANSWER]}, {}, "`type: messages` and `columns: {messages: conv"),
        ({"messages": [HUMAN]}, {}, "`type: sharegpt` and `columns: {conversations: messages}`"),
        ({"conversations": [HUMAN, {"from": "observation", "value": "x"}]}, {}, "tool calls"),
        ({"conversations": [HUMAN, GPT], "tools": '[{"a": 1}]'}, {}, "has tools"),
        ({"messages": [USER, ANSWER], "tools": [{"a": 1}]}, {}, "has tools"),
        ({"conversations": [{"from": "system", "value": "x"}, GPT], "system": "y"}, {}, "twice"),
        ({"conversations": "[]"}, {}, "a csv cell cannot hold one"),
        ({"conversations": [GPT]}, {}, "begins with an assistant turn, which answers nothing"),
        ({"prompt": [USER], "completion": "b"}, {}, "prompt is a list; it must be a string"),
        ({"prompt": [], "completion": [ANSWER]}, {}, "prompt is an empty list"),
        ({"prompt": [USER], "completion": [USER]}, {}, "completion has no assistant turn"),
    ],
)
def test_what_cannot_be_read(read: Any, row: Any, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError) as caught:
        read(row, **settings)
    assert why in str(caught.value)


def test_every_column_that_is_read_can_be_renamed() -> None:
    from typing import get_args

    from lorafusion.jobs.schema import Column

    read_ones = {name for group in (COLUMNS, OPTIONAL, KEYS) for t in group for name in group[t]}
    assert read_ones == set(get_args(Column))


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, "assistant"),
        ({"train_on_inputs": False}, "assistant"),
        ({"train_on": "last", "train_on_inputs": False}, "last"),
        ({"train_on_inputs": True}, "all"),
        ({"train_on": "all"}, "all"),
        ({"train_on": "all", "train_on_inputs": True}, "all"),
        ({"train_on": "all", "train_on_inputs": False}, None),
        ({"train_on": "last", "train_on_inputs": True}, None),
        ({"train_on": "assistant", "train_on_inputs": True}, None),
    ],
)
def test_what_is_trained_cannot_be_said_in_two_ways(
    settings: dict[str, Any], trained: str | None
) -> None:
    if trained is None:
        with pytest.raises(ValidationError, match="contradict each other; remove one"):
            DatasetConfig(path="a", **settings)
    else:
        assert DatasetConfig(path="a", **settings).trained == trained


END = "<|im_end|>"


def _load(folder: Path, base: Path, *rows: Any, **settings: Any) -> tuple[TokenisedDataset, Any]:
    tokenizer: Any = load_tokenizer(str(base))
    if settings.pop("no_template", False):
        tokenizer.chat_template = None
    config = _config(folder, *rows, **settings)
    return load_dataset(config, tokenizer, max_seq_len=200, cache_dir=folder), tokenizer


def _trained(loaded: tuple[TokenisedDataset, Any], i: int = 0) -> str:
    sample = loaded[0].sample(i)
    return loaded[1].decode(sample.input_ids[sample.trained].tolist())


def test_every_token_of_a_text_is_trained_but_the_first(tmp_path: Path, tiny_base: Path) -> None:
    loaded = _load(tmp_path, tiny_base, {"text": "the fox"}, {"text": "no dog" + END})
    ids = loaded[1]("the fox").input_ids
    assert loaded[0].sample(0).input_ids.tolist() == [*ids, loaded[1].eos_token_id]
    assert loaded[0].sample(0).trained.tolist() == [False] + [True] * len(ids)
    assert _trained(loaded, 1).count(END) == 1
    assert loaded[0].report.trains == "every token"


def test_a_tokenizer_that_closes_texts_itself(tmp_path: Path, tiny_base: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = load_tokenizer(str(tiny_base))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    config = _config(tmp_path, {"text": "the fox"}, {"text": "the fox" + END})
    dataset = load_dataset(config, tokenizer, max_seq_len=64, cache_dir=None)
    first, second = (dataset.sample(i).input_ids.tolist() for i in (0, 1))
    assert first == second
    assert first[0] == 1
    assert first.count(2) == 1


def test_a_completion_of_messages_is_learnt_after_its_prompt(
    tmp_path: Path, tiny_base: Path
) -> None:
    row = {"prompt": [USER, {**ANSWER, "content": "no"}, USER], "completion": [ANSWER]}
    assert _trained(_load(tmp_path, tiny_base, row)) == "jumps" + END
    assert _trained(_load(tmp_path, tiny_base, row, train_on_inputs=True)).count(END) == 4


def test_inputs_are_trained_on_request(tmp_path: Path, tiny_base: Path) -> None:
    row = {"prompt": "the quick fox", "completion": " jumps"}
    without, with_ = (
        _load(tmp_path, tiny_base, row, train_on_inputs=on)[0] for on in (False, True)
    )
    assert without.input_ids.tolist() == with_.input_ids.tolist()
    assert without.content_hash != with_.content_hash
    assert with_.trained.tolist() == [False] + [True] * (len(with_.input_ids) - 1)
    assert (without.report.trains, with_.report.trains) == ("completions", "every token")


def test_settings_that_change_tokens_have_a_cache_of_their_own(
    tmp_path: Path, tiny_base: Path
) -> None:
    turns = {"messages": [USER, ANSWER, USER, {**ANSWER, "content": "no"}]}
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    found = [
        _trained(_load(tmp_path, tiny_base, turns)),
        _trained(_load(tmp_path, tiny_base, turns, train_on="last")),
        _trained(_load(tmp_path, tiny_base, turns, chat_template=str(template))),
    ]
    assert found == [f"jumps{END}no{END}", f"no{END}", f"jumps{END}no{END}"]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_a_chat_template_for_a_base_without_one(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(DataError, match="name a jinja file in `chat_template`"):
        _load(tmp_path, tiny_base, {"messages": [USER, ANSWER]}, no_template=True)
    plain = _load(tmp_path, tiny_base, ALPACA, no_template=True)
    assert plain[1].decode(plain[0].input_ids.tolist()).startswith("### Instruction:\nthe fox")
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    for row in ({"messages": [USER, ANSWER]}, ALPACA):
        loaded = _load(tmp_path, tiny_base, row, no_template=True, chat_template=str(template))
        text = loaded[1].decode(loaded[0].input_ids.tolist())
        assert text == f"user: the fox\nassistant: jumps{END}"
        assert _trained(loaded) == "jumps" + END


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "t.jinja: cannot be read as a chat template: No such file"),
        (b" \n", "t.jinja: is empty"),
        (b"a\n{% for m in messages %}", "t.jinja:2: is no Jinja template: "),
        (b"\xff", "t.jinja: is not UTF-8"),
        (b"{{ messages.nothing.more }}", "a.jsonl:1: the chat template refuses"),
    ],
)
def test_bad_template_files(
    tmp_path: Path, tiny_base: Path, content: bytes | None, why: str
) -> None:
    template = tmp_path / "t.jinja"
    if content is not None:
        template.write_bytes(content)
    with pytest.raises(DataError) as caught:
        _load(tmp_path, tiny_base, {"messages": [USER, ANSWER]}, chat_template=str(template))
    assert why in str(caught.value)


def test_a_template_may_mark_what_transformers_trains(tmp_path: Path, tiny_base: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    )
    row = {"messages": [USER, ANSWER]}
    assert _trained(_load(tmp_path, tiny_base, row, chat_template=str(template))) == "jumps" + END
