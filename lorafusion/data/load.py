"""Load a dataset: read, tokenise, cut, and keep the tokens in a cache by what they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lorafusion.data.dataset import (
    DatasetReport,
    TokenisedDataset,
    build_dataset,
    hash_content,
)
from lorafusion.data.formats import describe_trained
from lorafusion.data.rows import Rows, read_rows
from lorafusion.data.template import read_template
from lorafusion.data.tokenise import tokenise_rows
from lorafusion.data.tokenizer import Tokenizer, is_fast, tokenizer_identity
from lorafusion.files import write_bytes_atomic
from lorafusion.jobs.schema import DatasetConfig

# Raise it when the same file and tokenizer would give other samples than before.
CACHE_FORMAT = 2
_ARRAYS = ("input_ids", "trained", "offsets", "rows")
_log = logging.getLogger(__name__)


def load_dataset(
    config: DatasetConfig,
    tokenizer: Tokenizer,
    *,
    max_seq_len: int,
    cache_dir: Path | None,
) -> TokenisedDataset:
    """Load and tokenise a dataset, or take its tokens from ``cache_dir / "tokens"``.

    Args:
        config: The file and its type.
        tokenizer: The base's tokenizer.
        max_seq_len: Longer samples lose their end, at least 1.
        cache_dir: Where tokens are kept between runs; None keeps none.

    Raises:
        DataError: The file, a row of it, or the tokenizer cannot be used, or nothing is left to
            train on. The message names file, line, and what is needed.
    """
    assert max_seq_len >= 1
    template = read_template(config.chat_template)
    rows = read_rows(config, chat=bool(template or tokenizer.chat_template))
    name = rows.source.name
    file = None
    if cache_dir is not None and is_fast(tokenizer):  # a slow one cannot be written down as a key
        key = _cache_key(rows, config, tokenizer, template=template, max_seq_len=max_seq_len)
        file = cache_dir / "tokens" / f"{key}.safetensors"
        cached = _read_cache(file, path=name)
        if cached is not None:
            return cached
    samples = tokenise_rows(
        rows, tokenizer, name=name, train_on=config.trained, chat_template=template
    )
    dataset = build_dataset(samples, path=name, max_seq_len=max_seq_len)
    rows.source.check_unchanged()
    report = dataclasses.replace(
        dataset.report, type=rows.type, trains=describe_trained(rows.type, config.trained)
    )
    dataset = dataclasses.replace(dataset, report=report)
    if file is not None:
        _write_cache(file, dataset)
    return dataset


def _cache_key(
    rows: Rows,
    config: DatasetConfig,
    tokenizer: Tokenizer,
    *,
    template: str | None,
    max_seq_len: int,
) -> str:
    parts = {
        "format": CACHE_FORMAT,
        "rows": rows.source.identity(),
        "type": rows.type,
        "columns": dict(config.columns),
        "train_on": config.trained,
        "chat_template": template,
        "max_seq_len": max_seq_len,
        "tokenizer": tokenizer_identity(tokenizer),
        "versions": [version("transformers"), version("tokenizers")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_cache(file: Path, *, path: str) -> TokenisedDataset | None:
    """The dataset in ``file``, or None if there is none or it is damaged."""
    if not file.exists():
        return None
    try:
        with cast(Any, safe_open(file, framework="numpy")) as stored:
            metadata: dict[str, str] = stored.metadata()
            arrays: dict[str, Any] = {name: stored.get_tensor(name) for name in _ARRAYS}
        counts: dict[str, Any] = json.loads(metadata["report"])
        report = dataclasses.replace(DatasetReport(**counts), path=path)
        content_hash = metadata["content_hash"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("token cache %s is damaged (%s); it is made again", file, error)
        return None
    if hash_content(*(arrays[name] for name in _ARRAYS)) != content_hash:
        _log.warning("token cache %s is damaged (wrong checksum); it is made again", file)
        return None
    return TokenisedDataset(**arrays, report=report, content_hash=content_hash)


def _write_cache(file: Path, dataset: TokenisedDataset) -> None:
    metadata = {
        "report": json.dumps(dataclasses.asdict(dataset.report)),
        "content_hash": dataset.content_hash,
    }
    data = save({name: getattr(dataset, name) for name in _ARRAYS}, metadata=metadata)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(file, data)
    except OSError as error:  # a full disk costs the next run some seconds, not this one its data
        _log.warning("tokens of %s are not cached: %s", dataset.report.path, error)
