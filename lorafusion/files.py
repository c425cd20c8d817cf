"""Files that are whole or absent: temporary name, fsync, rename. And where the cache lives."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """The cache folder: ``$LORAFUSION_HOME``, by default ``~/.cache/lorafusion``."""
    configured = os.environ.get("LORAFUSION_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "lorafusion"


def expand_path(text: str) -> str:
    """Expand ``~``, ``$LORAFUSION_HOME`` (defined even when unset) and other ``$VARIABLES``."""
    for spelling in ("${LORAFUSION_HOME}", "$LORAFUSION_HOME"):
        text = text.replace(spelling, str(home()))
    return os.path.expanduser(os.path.expandvars(text))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds the old content or the whole new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
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
    absent with the old one still on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            fsync_folder(file)
        fsync_folder(temporary)
        os.chmod(temporary, 0o777 & ~_umask())
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old / path.name)
        os.replace(temporary, path)
        fsync_folder(path.parent)
        if old is not None:
            shutil.rmtree(old)
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


def _umask() -> int:
    # There is no call that reads the umask without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
