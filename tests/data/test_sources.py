"""Where rows come from: files of each kind, folders, and what ``datasets`` finds, all offline."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorafusion.data.formats import PromptCompletion
from lorafusion.data.load import load_dataset
from lorafusion.data.rows import read_rows
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig

ROWS = [{"prompt": f'the fox {i},\n"or"', "completion": f" NA {i}"} for i in range(5)]
EXPECTED = [PromptCompletion(row["prompt"], row["completion"]) for row in ROWS]


@pytest.fixture(autouse=True)
def cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def write_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[Any], new: Any = pa.ipc.new_stream) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_feather(path: Path, rows: list[Any]) -> None:
    write_arrow(path, rows, pa.ipc.new_file)


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    "a.jsonl": write_jsonl,
    "a.json": write_json,
    "lines.json": write_jsonl,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "b.arrow": write_feather,
}


def read(path: Path | str, **settings: Any) -> list[Any]:
    return [placed.row for placed in read_rows(DatasetConfig(path=str(path), **settings))]


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    assert read(tmp_path / name) == EXPECTED
    assert read(tmp_path / name, split="train") == EXPECTED


@pytest.mark.parametrize("name", WRITERS)
def test_a_bad_row_is_named_by_its_place(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [*ROWS[:2], {"prompt": "the fox", "completion": " "}])
    # The cells of a csv hold a line end each: the third row begins on line 6.
    places = {"a.jsonl": ":3", "lines.json": ":3", "a.csv": ":6"}
    message = refusal(tmp_path / name)
    assert "1 of 3 rows cannot be used" in message
    assert f"{name}{places.get(name, ': row 3')}: completion is empty" in message


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.arrow"])
@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (7, "completion is a number; it must be a string"),
        (None, "completion is null"),
        ({"text": "a"}, "completion is an object"),
        ([], "completion is a list"),
    ],
)
def test_wrong_types(tmp_path: Path, name: str, cell: Any, why: str) -> None:
    WRITERS[name](tmp_path / name, [{"prompt": "a", "completion": cell}])
    assert f"{name}: row 1: {why}" in refusal(tmp_path / name)


def test_binary_data_and_dates_are_no_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"text": b"ab"}])
    assert "text is binary data; it must be a string" in refusal(tmp_path / "a.parquet")


def test_conversations_in_parquet(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": None}]
    write_parquet(tmp_path / "a.parquet", [{"messages": turns}])
    assert len(read(tmp_path / "a.parquet")[0].messages) == 2
    turns[0]["weight"] = 0.5  # pyarrow gives every turn the key, null where it has none
    write_parquet(tmp_path / "a.parquet", [{"messages": turns}])
    assert "row 1: messages[0] has weight; only role" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ".csv: has no rows"),
        ("prompt,completion\n", ".csv: has no rows"),
        ("prompt,text2\na,b\n", ".csv:2: has the columns prompt, text2; needed: text; or prompt"),
        ("prompt,completion\na,b,c\n", ".csv:2: has 3 cells, and the header names 2 columns"),
        ("prompt,prompt\na,b\n", ".csv:1: the header names prompt twice"),
        ('prompt,completion\n"a"b,c\n', ".csv:2: is not csv that can be read"),
        ("prompt,completion\na," + "b" * 200_000, ".csv:2: is not csv that can be read: field"),
        ("prompt,completion\na,caf\udce9\n", ".csv:2: is not UTF-8 (byte 6)"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert why in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", b'[{"text": "a"},\n {"text"}]', "a.json:2: is not JSON: Expecting ':'"),
        ("a.json", b'[{"text": "a"},\n {"text": "\xe9"}]', "a.json:2: is not UTF-8"),
        ("a.json", b"[]", "a.json: has no rows"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json: row 2: is a number"),
        ("a.json", b'{\n"rows": []}', "a.json:1: is not JSON"),
        ("a.parquet", b"PAR1 no", "a.parquet: cannot be read as parquet: "),
        ("a.arrow", b"ARROW1 no", "a.arrow: cannot be read as arrow: "),
        ("a.arrow", b"", "a.arrow: cannot be read as arrow: "),
    ],
)
def test_files_that_are_not_what_they_are_called(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert why in refusal(tmp_path / name)


def test_a_folder_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write_jsonl(tmp_path / "b.jsonl", ROWS[2:3])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "below" / "c.jsonl", ROWS[3:])
    write_csv(tmp_path / ".hidden.csv", ROWS)
    (tmp_path / "README.md").write_text("about")
    assert read(tmp_path) == EXPECTED
    assert read(tmp_path, data_files="?.jsonl") == EXPECTED[:3]
    assert read(tmp_path, data_files=("b.jsonl", "a.jsonl")) == [EXPECTED[2], *EXPECTED[:2]]
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "a"}])
    assert f"{tmp_path}/b.jsonl:1: has no column completion" in refusal(tmp_path)


def test_a_folder_of_several_kinds_or_none(tmp_path: Path) -> None:
    assert "is a folder without a data file (.jsonl, .json, .csv" in refusal(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_csv(tmp_path / "a.csv", ROWS)
    assert "several kinds (.csv, .jsonl); say which" in refusal(tmp_path)
    assert read(tmp_path, data_files="*.csv") == EXPECTED
    missing = refusal(tmp_path, data_files="*.parquet")
    assert "no file matches data_files '*.parquet' (found a.csv, a.jsonl" in missing
    assert "is no pattern of files in it" in refusal(tmp_path, data_files="/a.csv")
    assert "data_files picks files of a folder" in refusal(tmp_path / "a.csv", data_files="a.csv")


def test_splits_are_told_by_names(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    write_jsonl(tmp_path / "train-00000.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "my_test.jsonl", ROWS[2:3])
    write_jsonl(tmp_path / "dev" / "part1.jsonl", ROWS[3:])
    assert read(tmp_path) == read(tmp_path, split="train") == EXPECTED[:2]
    assert read(tmp_path, split="test") == EXPECTED[2:3]
    assert read(tmp_path, split="validation") == EXPECTED[3:]
    assert "has no split tset; there are: test, train, validation" in refusal(
        tmp_path, split="tset"
    )
    assert "the only split is train" in refusal(tmp_path / "my_test.jsonl", split="test")
    assert "nothing has a revision" in refusal(tmp_path, revision="main")


def test_slices_and_subsets_go_through_datasets(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ROWS)
    assert read(tmp_path / "a.parquet", split="train[1:3]") == EXPECTED[1:3]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("one", "two"):
        write_jsonl(folder / f"{name}.jsonl", ROWS if name == "one" else ROWS[:1])
    configs = [{"config_name": name, "data_files": f"{name}.jsonl"} for name in ("one", "two")]
    (folder / "README.md").write_text("---\n" + json.dumps({"configs": configs}) + "\n---\n")
    assert read(folder, name="two") == EXPECTED[:1]
    assert "three" in refusal(folder, name="three")
    assert "Should be one of ['train']" in refusal(folder, name="one", split="test[:1]")


def test_readers_of_datasets(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"prompt": "a", "completion": None}])
    file = str(tmp_path / "a.jsonl")
    message = refusal("json", data_files=file)
    assert "1 of 6 rows cannot be used\njson: row 6: completion is null" in message
    nothing = refusal("json", data_files=str(tmp_path / "none.jsonl"))
    assert "json: `datasets` cannot load it: " in nothing
    assert "none.jsonl" in nothing


def test_what_datasets_saved(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == EXPECTED
    datasets.DatasetDict({"train": dataset, "held": dataset.select([0])}).save_to_disk(
        tmp_path / "two"
    )
    assert read(tmp_path / "two", split="held") == EXPECTED[:1]
    assert "has no split test; there are: train, held" in refusal(tmp_path / "two", split="test")
    assert "is one saved dataset" in refusal(tmp_path / "one", split="test")
    assert "it has no name" in refusal(tmp_path / "one", name="x")


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fail(path: str, **settings: Any) -> None:
        asked.update(settings, path=path)
        raise ConnectionError("Couldn't reach 'someone/rows' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refusal(
        "someone/rows", name="en", split="test", revision="v1", data_files=("a.csv", "b.csv")
    )
    assert asked == {
        "path": "someone/rows",
        "name": "en",
        "split": "test",
        "revision": "v1",
        "data_files": ["a.csv", "b.csv"],
    }
    assert "someone/rows, en, test: is no file or folder here" in message
    assert "Couldn't reach 'someone/rows' on the Hub. Check the id, the network" in message
    for path in ("data/rows.jsonl", "./rows", str(tmp_path / "rows")):
        assert "no such file" in refusal(path)


def test_equal_rows_of_any_kind_have_equal_tokens_and_their_own_cache(
    tmp_path: Path, tiny_base: Path
) -> None:
    tokenizer, cache = load_tokenizer(str(tiny_base)), tmp_path / "cache"

    def load(path: Path | str, **settings: Any) -> Any:
        config = DatasetConfig(path=str(path), **settings)
        return load_dataset(config, tokenizer, max_seq_len=64, cache_dir=cache)

    hashes: set[str] = set()
    for name, write in WRITERS.items():
        write(tmp_path / name, ROWS)
        hashes.add(load(tmp_path / name).content_hash)
    hashes.add(load("parquet", data_files=str(tmp_path / "a.parquet")).content_hash)
    assert len(hashes) == 1
    assert len(list(cache.rglob("*.safetensors"))) == len(WRITERS)  # a.jsonl is lines.json
    report = load("parquet", data_files=str(tmp_path / "a.parquet")).report
    assert (report.path, report.type, report.trains) == (
        "parquet",
        "prompt_completion",
        "completions",
    )


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorafusion.data import load

    write_jsonl(tmp_path / "a.jsonl", ROWS)

    def change(*_: Any, **__: Any) -> Any:
        write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
        return tokenise(*_, **__)

    tokenise = load.tokenise_rows
    monkeypatch.setattr(load, "tokenise_rows", change)
    config = DatasetConfig(path=str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="was changed while it was read"):
        load_dataset(config, load_tokenizer(str(tiny_base)), max_seq_len=64, cache_dir=tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []
