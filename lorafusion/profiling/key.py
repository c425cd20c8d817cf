"""What a profile holds for: machine, base, number format, adapted linears, versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorafusion.errors import ProfileError
from lorafusion.machine import describe_machine, versions

__all__ = ["ProfileKey", "config_hash"]

# Packages whose kernels and layers do the work.
_PACKAGES = ("lorafusion", "torch", "transformers")
# Of a config: says nothing of the layers.
_NAMES = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """Two runs of equal keys take equal time, as far as a machine is ever the same.

    Attributes:
        processor: What computes.
        cores: Of the CPU, for this process.
        base: Its config, as :func:`config_hash`.
        dtype: Of the base in the run.
        targets: The linears that have adapters, sorted.
        versions: Package -> version.
    """

    processor: str
    cores: int
    base: str
    dtype: str
    targets: tuple[str, ...]
    versions: Mapping[str, str | None]

    @classmethod
    def here(
        cls,
        config: Mapping[str, Any],
        dtype: str,
        targets: Sequence[str],
        *,
        gpu: str | None = None,
    ) -> ProfileKey:
        """The key of a run on this machine; ``gpu`` names the device where it is no CPU."""
        machine, found = describe_machine(), versions()
        return cls(
            processor=gpu or str(machine["cpu"]),
            cores=int(machine["cores"]),
            base=config_hash(config),
            dtype=dtype,
            targets=tuple(sorted(targets)),
            versions={name: found[name] for name in _PACKAGES},
        )

    @property
    def name(self) -> str:
        """Of the file that is looked for: a hash of all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check(self, run: ProfileKey) -> None:
        """Refuse a run that this is no key of.

        Raises:
            ProfileError: Says what differs.
        """
        found = list(self.differences(run))
        if found:
            raise ProfileError(
                f"the profile was measured for something else: {'; '.join(found)}. Measure here "
                "with `lorafusion profile FILE`, or use it all the same with --any-profile."
            )

    def differences(self, run: ProfileKey) -> Iterator[str]:
        """Such as ``cores 2, here 4``."""
        mine, other = asdict(self), asdict(run)
        for name, value in mine.items():
            if name == "versions" or value == other[name]:
                continue
            if name == "base":
                yield "a base with another config"
            else:
                yield f"{name} {_shown(value)}, here {_shown(other[name])}"
        for name, version in self.versions.items():
            if run.versions.get(name) != version:
                yield f"{name} {version}, here {run.versions.get(name)}"


def config_hash(config: Mapping[str, Any]) -> str:
    """Of what a base's config says of its layers; not of its name, nor of the number format."""
    told = {key: value for key, value in config.items() if key not in _NAMES}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
