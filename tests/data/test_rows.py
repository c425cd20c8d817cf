"""Bad datasets are refused with file, line, and what is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorafusion.data import readers, rows
from lorafusion.data.formats import Conversation, Message, PromptCompletion, Row
from lorafusion.data.rows import read_rows
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig, DatasetType

GOOD = {"prompt": "the fox", "completion": " jumps"}
USER = {"role": "user", "content": "yes or no"}
ANSWER = {"role": "assistant", "content": "no"}


@dataclass
class Read:
    type: DatasetType
    rows: tuple[Row, ...]
    lines: tuple[int, ...]


def _read(path: str, type_: DatasetType | None) -> Read:
    rows = read_rows(DatasetConfig(path=path, type=type_))
    placed = list(rows)
    return Read(rows.type, tuple(p.row for p in placed), tuple(p.number for p in placed))


def _write(path: Path, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_prompt_completion_is_found_by_columns(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", {**GOOD, "id": 7}, "", GOOD)
    rows = _read(path, None)
    assert rows.type == "prompt_completion"
    assert rows.rows == (PromptCompletion("the fox", " jumps"),) * 2
    assert rows.lines == (1, 3)


def test_messages_are_found_by_columns(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", {"messages": [USER, {**ANSWER, "tool_calls": None}]})
    rows = _read(path, None)
    assert rows.type == "messages"
    assert rows.rows == (Conversation((Message("user", "yes or no"), Message("assistant", "no"))),)


def test_line_separators_of_unicode_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = json.dumps({"prompt": "a\u2028b\x85c", "completion": "d"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert _read(str(path), None).rows == (PromptCompletion("a\u2028b\x85c", "d"),)


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl: no such file"):
        _read(str(tmp_path / "nowhere.jsonl"), None)
    with pytest.raises(DataError, match="is a folder"):
        _read(str(tmp_path), None)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty.jsonl: has no rows"):
        _read(str(tmp_path / "empty.jsonl"), "messages")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"prompt": "a", "completion": "b"', r":2: is not JSON: .* at column 34"),
        ('[{"prompt": "a"},', r":2: is not JSON: .*each line must be one whole JSON object"),
        ("[" * 100_000, r":2: is not JSON that can be read"),
        ("[1]", r":2: is a list; each line must be one JSON object"),
        ("null", r":2: is null"),
        ({"prompt": "a", "text": "b"}, r":2: has no column completion \(found prompt, text\)"),
        ({"prompt": "a", "completion": ""}, r":2: completion is empty"),
        ({"prompt": " ", "completion": "b"}, r":2: prompt is empty"),
        ({"prompt": 1, "completion": "b"}, r":2: prompt is a number; it must be a string"),
        ({"prompt": "a", "completion": [ANSWER]}, r":2: completion is a list"),
        ({"prompt": "a", "completion": True}, r":2: completion is a boolean"),
        (r'{"prompt": "a", "completion": "\ud83e"}', r":2: completion holds half of a surrogate"),
    ],
)
def test_bad_prompt_completion_rows(tmp_path: Path, row: object, why: str) -> None:
    path = _write(tmp_path / "a.jsonl", GOOD, row, GOOD)
    with pytest.raises(DataError, match=why) as caught:
        _read(path, None)
    assert "1 of 3 rows cannot be used" in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hello", r"messages is a string; it must be a list"),
        ([], r"messages has no assistant turn"),
        ([USER], r"messages has no assistant turn"),
        ([ANSWER, USER], r"messages begins with an assistant turn"),
        ([USER, "no"], r"messages\[1\] is a string; it must be an object"),
        ([USER, {"role": "assistant"}], r"messages\[1\] has no 'content' \(found role\)"),
        ([{"from": "human", "value": "hi"}, ANSWER], r"messages\[0\] has no 'role'"),
        ([{"role": "human", "content": "hi"}, ANSWER], r"role is 'human'; allowed: system, user"),
        ([{"role": 3, "content": "hi"}, ANSWER], r"role is 3; allowed"),
        ([USER, {"role": "assistant", "content": None}], r"messages\[1\].content is null"),
        ([USER, {"role": "assistant", "content": ""}], r"messages\[1\].content is empty"),
        ([USER, {**ANSWER, "weight": 0}], r"messages\[1\] has weight; only role and content"),
    ],
)
def test_bad_conversations(tmp_path: Path, messages: object, why: str) -> None:
    path = _write(tmp_path / "a.jsonl", {"messages": [USER, ANSWER]}, {"messages": messages})
    with pytest.raises(DataError, match=":2: .*" + why):
        _read(path, None)


def test_the_first_row_must_show_its_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":1: has the columns txt; needed: text; or prompt and"):
        _read(_write(tmp_path / "a.jsonl", {"txt": "a"}), None)
    both = _write(tmp_path / "b.jsonl", {**GOOD, "messages": [USER, ANSWER]})
    with pytest.raises(DataError, match="columns of several types"):
        _read(both, None)
    assert _read(both, "messages").type == "messages"


def test_a_given_type_is_not_second_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":1: has no column messages \(found prompt, completion"):
        _read(_write(tmp_path / "a.jsonl", GOOD), "messages")


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n')
    with pytest.raises(DataError, match=r":2: is not UTF-8 \(byte 16\)"):
        _read(str(path), None)


def test_many_bad_rows_are_counted_and_ten_shown(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", GOOD, *[{"prompt": "a"}] * 25)
    with pytest.raises(DataError) as caught:
        _read(path, None)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("25 of 26 rows cannot be used")
    assert [f"{path}:{line}:" in lines[line - 1] for line in range(2, 12)] == [True] * 10
    assert lines[-1] == "... and 15 more"
    assert len(lines) == 12


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_sizes_are_bounded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server reads what others name."""
    monkeypatch.setattr(readers, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(readers, "LARGEST_ARRAY", 1 << 30)
    file = tmp_path / name
    start = {"rows.jsonl": b'{"text": "a"}\n', "rows.csv": b"text\na\n", "rows.json": b"["}[name]
    with file.open("wb") as out:
        out.write(start)
        out.truncate(5 << 30)  # a hole: no room on the disk, zeros to whoever reads it
    with pytest.raises(DataError, match=r"more than 1 [MG]iB"):
        list(read_rows(DatasetConfig(path=str(file))))


def test_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' * 3)
    assert len(list(read_rows(DatasetConfig(path=str(file))))) == 3
    file.write_text('{"text": "a"}\n' * 4)
    with pytest.raises(DataError, match=r"rows.jsonl:4: is one more than the 3 rows"):
        list(read_rows(DatasetConfig(path=str(file))))
