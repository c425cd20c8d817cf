"""The token cache: a hit gives the same dataset, a change or a damage never goes unnoticed."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorafusion.data import load
from lorafusion.data.dataset import TokenisedDataset
from lorafusion.data.load import load_dataset
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.errors import DataError, ModelError
from lorafusion.jobs.schema import DatasetConfig

ROWS = [{"prompt": f"the quick fox {i}", "completion": " jumps" * (i + 1)} for i in range(5)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(str(tiny_base))


def _load(file: Path, tokenizer: Any, cache: Path | None, **changes: Any) -> TokenisedDataset:
    config = DatasetConfig(path=str(file), type=changes.pop("type", None))
    settings = {"max_seq_len": 64, **changes}
    return load_dataset(config, tokenizer, cache_dir=cache, **settings)


def _same(a: TokenisedDataset, b: TokenisedDataset) -> bool:
    names = ("input_ids", "trained", "offsets", "rows")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    equal = all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)
    return equal and a.content_hash == b.content_hash and a.report == b.report


def _cached(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def test_second_load_reads_no_row(
    file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(file, tokenizer, tmp_path / "cache")
    assert _same(first, _load(file, tokenizer, None))
    monkeypatch.delattr(load, "tokenise_rows")  # so that tokenising again would raise
    assert _same(first, _load(file, tokenizer, tmp_path / "cache"))
    assert _same(first, _load(file, tokenizer, tmp_path / "cache", type="prompt_completion"))


def test_a_hit_reports_the_file_that_was_asked_for(
    file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    _load(file, tokenizer, tmp_path / "cache")
    copy = tmp_path / "b.jsonl"
    copy.write_bytes(file.read_bytes())
    assert _load(copy, tokenizer, tmp_path / "cache").report.path == str(copy)
    assert len(_cached(tmp_path / "cache")) == 1


def test_whatever_changes_the_tokens_changes_the_key(
    file: Path, tokenizer: Any, tiny_base: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    _load(file, tokenizer, cache)
    _load(file, tokenizer, cache, max_seq_len=12)
    assert len(_cached(cache)) == 2
    other_eos = load_tokenizer(str(tiny_base))
    other_eos.eos_token = "<|endoftext|>"  # pyright: ignore
    assert _load(file, other_eos, cache).input_ids[-1] == 0
    other_template = load_tokenizer(str(tiny_base))
    other_template.chat_template = "{{ messages }}"  # pyright: ignore
    _load(file, other_template, cache)
    with_bos = load_tokenizer(str(tiny_base))
    _prepend_bos(with_bos)
    assert _load(file, with_bos, cache).input_ids[0] == 1
    file.write_text(file.read_text().replace("quick", "lazy"))
    _load(file, tokenizer, cache)
    assert len(_cached(cache)) == 6


def _prepend_bos(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "garbage", "report"])
def test_a_damaged_cache_is_made_again(
    file: Path, tokenizer: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = _load(file, tokenizer, cache)
    (stored,) = _cached(cache)
    whole = stored.read_bytes()
    damaged = {
        "cut": whole[:-7],
        "flip": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "empty": b"",
        "garbage": b"\xff" * len(whole),
        "report": whole.replace(b'\\"kept\\"', b'\\"keqt\\"'),
    }[damage]
    assert damaged != whole
    stored.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert _same(first, _load(file, tokenizer, cache))
    assert "is damaged" in caplog.text
    caplog.clear()
    assert _same(first, _load(file, tokenizer, cache))
    assert caplog.text == ""


def test_writers_at_once_leave_one_whole_file(file: Path, tokenizer: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(_load, file, tokenizer, cache) for _ in range(8)]
    found = [one.result() for one in loads]
    assert all(_same(found[0], dataset) for dataset in found)
    assert [path.name for path in (cache / "tokens").iterdir()] == [_cached(cache)[0].name]


def test_a_cache_that_cannot_be_written_costs_only_time(
    file: Path, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(_load(file, tokenizer, tmp_path / "cache")) == len(ROWS)
    assert "are not cached" in caplog.text


def test_cut_and_dropped_rows_are_reported(file: Path, tokenizer: Any, tmp_path: Path) -> None:
    lengths = _load(file, tokenizer, None).lengths
    heads = lengths - _load(file, tokenizer, None).trained_counts
    report = _load(file, tokenizer, None, max_seq_len=int(lengths[2])).report
    assert (report.rows, report.kept, report.cut, report.dropped) == (5, 5, 2, 0)
    rows = [*ROWS, {"prompt": "the quick fox " * 9, "completion": "no"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = _load(file, tokenizer, tmp_path, max_seq_len=int(lengths[2])).report
    assert (report.rows, report.kept, report.cut, report.dropped) == (6, 5, 2, 1)
    with pytest.raises(DataError, match=f"at least {heads.min() + 1} are needed"):
        _load(file, tokenizer, tmp_path, max_seq_len=2)


def test_bad_rows_leave_no_cache(file: Path, tokenizer: Any, tmp_path: Path) -> None:
    file.write_text(file.read_text() + '{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:6: has no column completion"):
        _load(file, tokenizer, tmp_path / "cache")
    assert _cached(tmp_path / "cache") == []


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded from the folder"):
        load_tokenizer(str(tmp_path))
