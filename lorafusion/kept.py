"""Small results kept between runs, under a hash of all that they were computed from.

``lorafusion validate`` finds here what it would need torch, or a parse of every row, to find again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from lorafusion.files import home, write_bytes_atomic

T = TypeVar("T")
_PACKAGE = Path(__file__).parent
_log = logging.getLogger(__name__)


def kept(kind: type[T], key: Iterable[bytes], make: Callable[[], T]) -> T:
    """What ``make()`` returns, read from the cache folder where it was made before.

    Args:
        kind: The type of the result; a kept one that is not of it is made again.
        key: All that the result depends on. The order counts.
        make: Its errors are passed on, and not kept.
    """
    found = recall(kind, key)
    if found is None:
        found = make()
        keep(kind, key, found)
    return found


def recall(kind: type[T], key: Iterable[bytes]) -> T | None:
    """The result kept under ``key``; None if there is none, or it is damaged."""
    try:
        return TypeAdapter(kind).validate_json(_file(kind, key).read_bytes())
    except (OSError, ValidationError):
        return None


def keep(kind: type[T], key: Iterable[bytes], result: T) -> None:
    """Keep ``result`` for the runs that follow; a cache that cannot be written costs time only."""
    file = _file(kind, key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(file, TypeAdapter(kind).dump_json(result))
    except OSError as error:
        _log.info("%s is not kept for the next run: %s", kind.__name__, error)


def code_digest(*parts: str) -> bytes:
    """A hash of our own source files, so that a change of the code makes a result anew.

    Reading and hashing twenty files takes about 1 ms, and unlike a format number it cannot be
    forgotten.

    Args:
        parts: Folders or files of the package, such as ``models`` or ``adapters/targets.py``.
    """
    digest = hashlib.sha256()
    for part in parts:
        place = _PACKAGE / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.digest()


def _file(kind: type[object], key: Iterable[bytes]) -> Path:
    digest = hashlib.sha256(kind.__name__.encode())
    for part in key:
        digest.update(hashlib.sha256(part).digest())  # of equal length: no two keys run together
    return home() / "cache" / "kept" / f"{digest.hexdigest()}.json"
