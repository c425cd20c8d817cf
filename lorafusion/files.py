"""Files that are whole or absent: temporary name, fsync, rename. And where the cache lives."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lorafusion.errors import OutputError


def home() -> Path:
    """The cache folder: ``$LORAFUSION_HOME``, by default ``~/.cache/lorafusion``."""
    configured = os.environ.get("LORAFUSION_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "lorafusion"


def token_cache() -> Path:
    """Where tokenised datasets are kept."""
    return home() / "cache"


def expand_path(text: str) -> str:
    """Expand ``~``, ``$LORAFUSION_HOME`` (defined even when unset) and other ``$VARIABLES``."""
    text = re.sub(r"\$(LORAFUSION_HOME\b|\{LORAFUSION_HOME\})", lambda _: str(home()), text)
    return os.path.expanduser(os.path.expandvars(text))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds the old content or the whole new one, never a part.

    A link is followed: what it points to is replaced.
    """
    path = path.resolve()
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """:func:`write_bytes_atomic` for UTF-8 text."""
    write_bytes_atomic(path, text.encode("utf-8"))


@contextmanager
def replace_folder_atomic(path: Path) -> Generator[Path]:
    """Yield a temporary folder beside ``path``; when the block ends well it becomes ``path``.

    Every file in it is fsynced first. An older folder at ``path`` is moved aside and removed after
    the rename, so at any instant ``path`` is the old folder, the new one, or (between two renames)
    absent with both still on the disk. An error leaves the old folder. A link is followed.

    Raises:
        OutputError: ``path`` is a file.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and a folder is to be written there; move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            fsync_folder(entry)
        fsync_folder(temporary)
        _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def fsync_folder(path: Path) -> None:
    """Flush a file's or folder's entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path`` and remove what stood there, or leave that in place."""
    old = _temporary(path)
    existed = path.exists()
    if existed:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if existed:
            os.replace(old, path)
        raise
    fsync_folder(path.parent)
    # The new folder stands: an old one that cannot be removed is no reason to fail.
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    # Not tempfile: its files are private (0600), and the umask cannot be read to widen them
    # without setting it for all threads.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")
