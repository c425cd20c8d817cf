"""Keep the files that submitted jobs name inside one folder, links and ``..`` included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig, JobSpec

__all__ = ["check_inside", "paths_of"]


def check_inside(spec: JobSpec, folder: Path, workspace: Path) -> None:
    """See that a job reads and writes in the workspace alone.

    What names no file, such as the id of a dataset on the hub, is let through.

    Args:
        spec: The job.
        folder: Of its results.
        workspace: What is allowed.

    Raises:
        DataError: A path leads elsewhere; says which.
    """
    allowed = workspace.resolve()
    for field, path in (*paths_of(spec), ("its folder", str(folder))):
        named = Path(path)
        is_file = named.is_absolute() or ".." in named.parts or named.exists()
        if is_file and not named.resolve().is_relative_to(allowed):
            raise DataError(
                f"job {spec.name!r}: {field} is {path}, which leads out of {allowed}; this server "
                "allows what lies in there. Put the file there, and name that one."
            )


def paths_of(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Field and value of all paths that a job reads."""
    yield from _of_dataset("dataset", spec.dataset)
    if spec.eval.dataset is not None:
        yield from _of_dataset("eval.dataset", spec.eval.dataset)
    init_from = getattr(spec.adapter, "init_from", None)
    if init_from is not None:
        yield "adapter.init_from", init_from


def _of_dataset(field: str, dataset: DatasetConfig) -> Iterator[tuple[str, str]]:
    yield f"{field}.path", dataset.path
    if dataset.chat_template is not None:
        yield f"{field}.chat_template", dataset.chat_template
    files = dataset.data_files or ()
    for name in (files,) if isinstance(files, str) else files:
        yield f"{field}.data_files", str(Path(dataset.path, name))
