"""Rows that Hugging Face's ``datasets`` finds: on the hub, in named subsets, or saved by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lorafusion.data.readers import ROWS_AT_ONCE, Numbered
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig

_KINDS = (
    "json",
    "csv",
    "parquet",
    "arrow",
    "text",
)  # its readers of data_files, named like a hub id


@dataclass(frozen=True, eq=False)
class DatasetsPart:
    """One split of a dataset, as ``datasets`` keeps it: in files that are mapped into memory."""

    name: str
    dataset: Any

    @classmethod
    def load(cls, config: DatasetConfig) -> DatasetsPart:
        """Find, download and prepare the split; without ``split``, ``train``.

        Raises:
            DataError: There is no such dataset, subset, split or file, or it cannot be reached.
        """
        names = (config.path, config.name, config.split)
        name = ", ".join(filter(None, names))
        try:
            found = _from_disk(config) if _saved(config.path) else _load(config)
        except DataError:
            raise
        # It raises some twenty kinds, of its own, of the hub's client and of pyarrow.
        except Exception as error:
            raise DataError(f"{name}: {_reason(config, error)}") from error
        return cls(name, found)

    def rows(self) -> Numbered:
        """The rows, numbered from 1; images and sounds stay as they are stored."""
        number = 0
        for table in self.dataset.with_format("arrow").iter(ROWS_AT_ONCE):
            for row in table.to_pylist():
                number += 1
                yield number, row

    def place(self, number: int) -> str:
        """The dataset and the row."""
        return f"{self.name}: row {number}"

    def stamp(self) -> object:
        """``datasets`` has its own copy, which nobody writes to."""
        return None

    def identity(self) -> str:
        """The fingerprint that ``datasets`` gives to files, revision and split."""
        return str(self.dataset._fingerprint)


def _load(config: DatasetConfig) -> Any:
    import datasets  # takes a second to import

    path, files = config.path, config.data_files
    if Path(path).is_file():
        kind = Path(path).suffix.lower().removeprefix(".")
        path, files = {"jsonl": "json"}.get(kind, kind), config.path
    return cast(Any, datasets).load_dataset(
        path,
        name=config.name,
        data_files=list(files) if isinstance(files, tuple) else files,
        split=config.split or "train",
        revision=config.revision,
    )


def _saved(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _from_disk(config: DatasetConfig) -> Any:
    """What ``save_to_disk`` wrote: one dataset, or several by their split."""
    import datasets

    unused = [key for key in ("name", "revision", "data_files") if getattr(config, key) is not None]
    if unused:
        raise DataError(
            f"{config.path}: was saved by `datasets`; it has no {', '.join(unused)}, so remove it"
        )
    found = cast(Any, datasets).load_from_disk(config.path)
    wanted = config.split or "train"
    if isinstance(found, datasets.DatasetDict):
        splits: dict[str, Any] = {str(split): part for split, part in found.items()}
        if wanted not in splits:
            raise DataError(f"{config.path}: has no split {wanted}; there are: {', '.join(splits)}")
        return splits[wanted]
    if config.split not in (None, "train"):
        raise DataError(f"{config.path}: is one saved dataset, without splits; remove `split`")
    return found


def _reason(config: DatasetConfig, error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    if Path(config.path).exists() or config.path in _KINDS or isinstance(error, ValueError):
        return f"`datasets` cannot load it: {said}{cause}"
    return (
        f"is no file or folder here ({Path.cwd()}), and as a dataset of the hub it could not be "
        f"loaded: {said}{cause}. Check the id, the network, and `hf auth login` for private data"
    )
