"""One job's checkpoints, each of which counts only once a manifest names its shards.

``<root>/step-00000020/{stage-0.safetensors, stage-1.safetensors, manifest.json}``. Each stage
writes its shard (:mod:`lorafusion.training.shard_writer`). The manifest holds a checksum of each
shard and of itself and is renamed into place last (:mod:`lorafusion.training.manifest`), so
processes killed at any instant leave either a complete checkpoint or one that does not exist.
Tensors are found by name, so any number of stages reads what any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafusion.errors import CheckpointError
from lorafusion.files import fsync_folder

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

FORMAT = 1
MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose checksums were right when it was found.

    Attributes:
        folder: Where it lies.
        step: The last step it contains.
        state: What the manifest was given of the job, beside its tensors.
        fingerprint: What the result depends on, see :func:`check_fingerprint`.
        shards: Names of its safetensors files.
    """

    folder: Path
    step: int
    state: Mapping[str, Json]
    fingerprint: Mapping[str, Json]
    shards: tuple[str, ...]

    def tensors(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors by name, on the CPU, read from the disk at each call.

        Args:
            names: Read these alone, from whichever shards they are in. None: all.

        Raises:
            CheckpointError: A name is in no shard, or a shard cannot be read.
        """
        wanted = None if names is None else set(names)
        found: dict[str, Tensor] = {}
        for shard in self.shards:
            found |= _read_tensors(self.folder / shard, wanted)
        missing = sorted((wanted or set()) - found.keys())
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(
                f"checkpoint {self.folder} has no tensor {', '.join(missing[:3])}{more}. It was "
                "made for another adapter or base: start afresh with another --output or "
                "--overwrite."
            )
        return found


def newest(root: Path, *, report: Callable[[str], None] = logger.warning) -> Checkpoint | None:
    """The newest complete checkpoint under ``root``, or None.

    Args:
        root: The job's checkpoint folder; it may be missing.
        report: Called with a sentence for each newer one that is incomplete or damaged.

    Raises:
        CheckpointError: A sound checkpoint has a format that this version does not know.
    """
    found = sorted(steps(root), reverse=True)
    for step in found:
        folder = step_folder(root, step)
        try:
            return _read(folder)
        except _DamagedError as damage:
            instead = "the one before is taken instead"
            if step == found[-1]:
                instead = "there is none before it, and the job begins anew"
            report(f"checkpoint {folder} is not used: {damage}; {instead}.")
    return None


def at_step(root: Path, step: int) -> Checkpoint:
    """The checkpoint of a step that is known to be complete, because rank 0 said so or wrote it.

    Raises:
        CheckpointError: It is not complete, not sound, or of another format.
    """
    folder = step_folder(root, step)
    try:
        return _read(folder)
    except _DamagedError as damage:
        raise CheckpointError(
            f"checkpoint {folder} cannot be used: {damage}. It was complete a moment ago: see "
            "whether something else writes there, and whether all nodes share this folder."
        ) from damage


def clear(root: Path) -> None:
    """Remove all checkpoints under ``root``, so that a run that starts afresh finds none."""
    clear_after(root, -1)


def clear_after(root: Path, step: int) -> None:
    """Remove what lies under ``root`` of later steps than ``step``, complete or not."""
    for later in sorted(steps(root)):
        if later > step:
            remove(step_folder(root, later))


def check_fingerprint(checkpoint: Checkpoint, current: Mapping[str, Json]) -> None:
    """Refuse to resume from a checkpoint of other settings, data or base.

    Raises:
        CheckpointError: Names each field that differs, as it was and as it is.
    """
    was = _flatten(checkpoint.fingerprint)
    now = _flatten(current)
    lines = [
        f"  {name}: was {was.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if lines:
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} was made with other settings:\n"
            + "\n".join(lines)
            + "\nSet these back to resume, or start afresh with another --output or --overwrite."
        )


# What the writers share.


def cannot_write(folder: Path, error: OSError) -> CheckpointError:
    """What a writer says when the disk is full or not writable."""
    return CheckpointError(
        f"checkpoint {folder} cannot be written: {error}. Free space there or make it writable, "
        "then resume."
    )


def body_checksum(body: Mapping[str, Json]) -> str:
    """Of a manifest without its own checksum."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def remove(folder: Path) -> None:
    """Remove a checkpoint; cut short, it leaves none that claims to be complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    fsync_folder(folder)
    shutil.rmtree(folder)


def steps(root: Path) -> list[int]:
    """Those with a folder under ``root``, complete or not, in no order."""
    return [int(path.name[5:]) for path in root.glob(f"step-{8 * '[0-9]'}")]


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return root / f"step-{step:08d}"


class _DamagedError(Exception):
    """A checkpoint is incomplete or not as it was written."""


def _read(folder: Path) -> Checkpoint:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        claimed = manifest.pop("sha256")
    except FileNotFoundError:
        raise _DamagedError(f"it has no {MANIFEST}, so its writing was cut short") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _DamagedError(f"its {MANIFEST} cannot be read ({error!r})") from error
    if claimed != body_checksum(manifest):
        raise _DamagedError(f"its {MANIFEST} does not match its own checksum")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {manifest['format']}; this version reads {FORMAT}. "
            "Resume with the version that wrote it, or start afresh with another --output."
        )
    for name, expected in manifest["shards"].items():
        _check_shard(folder / name, expected["sha256"])
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        state=manifest["state"],
        fingerprint=manifest["fingerprint"],
        shards=tuple(manifest["shards"]),
    )


def _check_shard(path: Path, checksum: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _DamagedError(f"{path.name} cannot be read ({error})") from error
    if found != checksum:
        raise _DamagedError(f"{path.name} does not match its checksum")


def _read_tensors(path: Path, wanted: Collection[str] | None) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # Copied: what is mapped into memory would go with the file, which is pruned one day.
            return {
                name: file.get_tensor(name).clone()
                for name in file.keys()  # noqa: SIM118 (it is no mapping)
                if wanted is None or name in wanted
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _flatten(value: Json, name: str = "") -> dict[str, str]:
    """Nested mappings as dotted names; leaves as JSON text, where a tuple is a list."""
    if isinstance(value, Mapping) and value:
        parts = [_flatten(v, f"{name}.{k}" if name else k) for k, v in value.items()]
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {name: json.dumps(value, sort_keys=True)}
