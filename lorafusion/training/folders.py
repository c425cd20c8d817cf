"""The output folders of a run: checked and claimed before anything else is done."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from lorafusion.errors import FolderInUseError, OutputError
from lorafusion.training.checkpoint import clear
from lorafusion.training.metrics import METRICS_FILE, TENSORBOARD_FOLDER

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
_LOCK = ".lorafusion.lock"


@contextmanager
def claim_folder(folder: Path) -> Generator[None]:
    """Make ``folder`` and hold it: two runs must not write into one.

    Raises:
        OutputError: It is a file, cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be used: {error.strerror or error}; allowed: a folder "
            "that can be written, or a path where one can be made."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FolderInUseError(
            f"output folder {folder} is in use by another run. Wait for it, or choose another."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def prepare_job_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix a new run with an old one's results.

    Raises:
        OutputError: The folder holds results and neither ``resume`` nor ``overwrite`` is set, or
            it cannot be made.
    """
    results = [folder / name for name in (METRICS_FILE, TENSORBOARD_FOLDER, CHECKPOINTS, ADAPTER)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [path for path in results if path.exists()]
        if present and not (resume or overwrite):
            raise OutputError(
                f"output folder {folder} holds an earlier run ({_names(present)}). "
                "Continue it with --resume (in Python resume=True), replace it with --overwrite "
                "(overwrite=True), or choose another folder."
            )
        if overwrite:
            clear(folder / CHECKPOINTS)  # manifests first: cut short, it leaves none to resume
            _remove(present)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be used: {error.strerror or error}; allowed: a folder "
            "that can be written, or a path where one can be made."
        ) from error


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
