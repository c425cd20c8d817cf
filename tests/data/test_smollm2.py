"""The demo's tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafusion.data.load import load_dataset
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import DatasetConfig

END = "<|im_end|>"
CHATS = [
    [("user", "What is 2+2?"), ("assistant", "4, of course 🦊.")],
    [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "\n\nHello\n\n there "),
        ("user", "And   in\tFrench?"),
        ("assistant", "Salut, ça va? 你好\n"),
    ],
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return load_tokenizer(str(smollm2))


def _write(path: Path, rows: list[Any]) -> DatasetConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetConfig(path=str(path))


def test_conversations(tokenizer: Any, tmp_path: Path) -> None:
    turns = [[{"role": role, "content": text} for role, text in chat] for chat in CHATS]
    config = _write(tmp_path / "a.jsonl", [{"messages": chat} for chat in turns])
    dataset = load_dataset(config, tokenizer, max_seq_len=512, cache_dir=None)
    for i, chat in enumerate(turns):
        sample = dataset.sample(i)
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        # What the template writes after the last <|im_end|> is a newline that nothing learns from.
        assert tokenizer.decode(sample.input_ids) + "\n" == rendered
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        trained = tokenizer.decode(sample.input_ids[sample.trained])
        assert trained == "".join(answer + END for answer in answers)
    assert "helpful AI assistant named SmolLM" in tokenizer.decode(dataset.sample(0).input_ids)


def test_prompt_and_completion(tokenizer: Any, tmp_path: Path) -> None:
    row = {"prompt": "Message: doomsday clock\nAnswer:\n", "completion": "1"}
    config = _write(tmp_path / "a.jsonl", [row])
    sample = load_dataset(config, tokenizer, max_seq_len=512, cache_dir=None).sample(0)
    prompt = tokenizer(row["prompt"]).input_ids
    assert sample.input_ids[~sample.trained].tolist() == prompt
    assert tokenizer.decode(sample.input_ids[sample.trained]) == "1" + END


def test_the_example_of_all_formats(tokenizer: Any) -> None:
    examples = Path(__file__).parents[2] / "jobs" / "examples"
    shown: dict[str, tuple[str, str]] = {}
    for job in load_run_file(examples / "formats.yaml").jobs:
        report = load_dataset(job.dataset, tokenizer, max_seq_len=384, cache_dir=None).report
        shown[job.name] = report.type, report.trains
        assert report.dropped < report.rows / 20
        assert 0.002 < report.share < 1
    assert shown == {
        "text": ("text", "every token"),
        "prompt-completion": ("prompt_completion", "every token"),
        "renamed": ("prompt_completion", "completions"),
        "messages": ("messages", "last answers"),
        "sharegpt": ("sharegpt", "answers"),
        "alpaca": ("alpaca", "answers"),
    }
