"""Launch configurations on the disk: the defaults of each architecture, and what was tuned here.

``configs/*.json`` are part of the package, a file an architecture. ``lorafusion tune`` writes a
file of its own for each GPU into ``$LORAFUSION_HOME/kernels``, by classes of shapes. Both carry the
version of the kernels they are for; a tuned file of another one is not read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lorafusion.files import home, write_text_atomic
from lorafusion.kernels.launch_configs import OPS, LaunchConfig

VERSION = 1
"""Of the kernels: raised when a configuration of the old ones may not suit the new."""
FOLDER = Path(__file__).with_name("configs")
HALF, SINGLE = "half", "float32"
"""bfloat16 and float16 share their configurations."""
# Architectures without a file -> the one whose limits they keep.
_LIKE = (
    (r"cpu", "sm_80"),
    (r"sm_8[69]|sm_7\d|sm_12\d", "sm_120"),  # 99 KB of shared memory or less, as sm_120
    (r"sm_8\d", "sm_80"),
    (r"sm_1[01]\d", "sm_100"),
    (r"gfx95\w*", "gfx950"),
    (r"gfx\w*", "gfx942"),
)
logger = logging.getLogger(__name__)


class ShapeClass(NamedTuple):
    """Launches that share a configuration: sizes are rounded up to powers of two."""

    op: str
    dtype: str
    rows: int
    inner: int
    """Columns of X or dY, whichever the op reads."""
    outer: int
    """Columns of Y or dX, where the op writes one."""
    ranks: int
    """See :func:`lorafusion.kernels.launch_configs.rank_chunk`."""

    @classmethod
    def of(cls, op: str, dtype: str, sizes: tuple[int, int, int], ranks: int) -> ShapeClass:
        """The class of rows, inner and outer columns; below 256 all are alike."""
        rows, inner, outer = (max(256, 1 << max(size - 1, 0).bit_length()) for size in sizes)
        return cls(op, dtype, rows, inner, outer, ranks)

    def __str__(self) -> str:
        sizes = f"rows={self.rows} inner={self.inner} outer={self.outer}"
        return f"{self.op} {self.dtype} {sizes} ranks={self.ranks}"

    @classmethod
    def parse(cls, text: str) -> ShapeClass:
        """What ``str`` has made."""
        op, dtype, *sizes = text.split()
        rows, inner, outer, ranks = (int(size.partition("=")[2]) for size in sizes)
        return cls(op, dtype, rows, inner, outer, ranks)


@dataclass
class TunedFile:
    """What is known of one GPU.

    Attributes:
        gpu: Its name.
        triton: The version that compiled the candidates.
        best: Class -> configuration.
        seconds: Class -> the best's time, and the default's.
        failed: Class -> candidates that cannot run (as JSON) -> why.
        compared: Shape -> seconds of the unfused way, of the base alone, and ours.
    """

    gpu: str
    triton: str
    best: dict[ShapeClass, LaunchConfig] = field(default_factory=dict[ShapeClass, LaunchConfig])
    seconds: dict[ShapeClass, dict[str, float]] = field(
        default_factory=dict[ShapeClass, dict[str, float]]
    )
    failed: dict[ShapeClass, dict[str, str]] = field(
        default_factory=dict[ShapeClass, dict[str, str]]
    )
    compared: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "version": VERSION,
            "gpu": self.gpu,
            "triton": self.triton,
            "best": {str(key): to_dict(config) for key, config in self.best.items()},
            "seconds": {str(key): value for key, value in self.seconds.items()},
            "failed": {str(key): value for key, value in self.failed.items()},
            "compared": self.compared,
        }
        write_text_atomic(path, json.dumps(content, indent=1) + "\n")


def tuned_path(gpu: str) -> Path:
    """Where the file of a GPU lies, by its name."""
    return home() / "kernels" / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def read_tuned(gpu: str, triton: str) -> TunedFile:
    """What was tuned on a GPU; empty, with a note in the log, where that is for other versions."""
    path, empty = tuned_path(gpu), TunedFile(gpu, triton)
    if not path.exists():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = (content["version"], content["gpu"], content["triton"])
        if found != (VERSION, gpu, triton):
            logger.warning(
                "%s is not used: it was tuned for kernels %s on %s with triton %s, and these are "
                "kernels %s on %s with triton %s; `lorafusion tune` makes it anew",
                *(path, *found, VERSION, gpu, triton),
            )
            return empty
        return TunedFile(
            gpu,
            triton,
            _by_class(content["best"], from_dict),
            _by_class(content["seconds"], dict),
            _by_class(content["failed"], dict),
            content["compared"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not used: it cannot be read (%s)", path, error)
        return empty


@functools.cache
def defaults(arch: str) -> Mapping[tuple[str, str], LaunchConfig]:
    """(dtype, op) -> configuration on an architecture, or on the nearest one that has a file."""
    path = FOLDER / f"{arch}.json"
    if not path.exists():
        like = (name for pattern, name in _LIKE if re.fullmatch(pattern, arch))
        path = FOLDER / f"{next(like, 'sm_120')}.json"  # the least shared memory
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["version"] == VERSION, path
    return {(dtype, op): from_dict(content[dtype][op]) for dtype in (HALF, SINGLE) for op in OPS}


def to_dict(config: LaunchConfig) -> dict[str, Any]:
    """The fields that are not the default's."""
    ordinary = {f.name: f.default for f in dataclasses.fields(LaunchConfig)}
    return {name: value for name, value in vars(config).items() if value != ordinary[name]}


def from_dict(content: Mapping[str, Any]) -> LaunchConfig:
    """Read a configuration.

    Raises:
        ValueError: A size is no power of two from 16, or a field is unknown.
    """
    try:
        config = LaunchConfig(**content)
    except TypeError as error:
        raise ValueError(f"{dict(content)} is no configuration: {error}") from error
    for name in ("BM", "BN", "BK", "BR", "span"):
        size = getattr(config, name)
        if type(size) is not int or size & (size - 1) or 0 < size < 16 or size < 0:
            raise ValueError(f"{name} is {size!r}; allowed: a power of two, at least 16")
    return config


def _by_class(content: Mapping[str, Any], read: Any) -> dict[ShapeClass, Any]:
    return {ShapeClass.parse(key): read(value) for key, value in content.items()}
