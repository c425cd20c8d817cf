"""The profile: what was measured, for what it holds, as a JSON file that can be looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from lorafusion.errors import OutputError, PlanError, ProfileError
from lorafusion.files import home, write_text_atomic
from lorafusion.planner.parts import PartCosts
from lorafusion.profiling.key import ProfileKey

__all__ = ["Pass", "Profile", "find_profile", "profiles_folder", "read_profile", "write_profile"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Pass:
    """What was measured with one number of threads.

    Attributes:
        threads: Of each stage.
        parts: The costs that were fitted.
        error: Median size of the relative errors of held-out microbatches, 0.05 for 5%.
        probes: Each microbatch: counts, measured and predicted seconds, ``held_out``.
    """

    threads: int
    parts: PartCosts
    error: float
    probes: tuple[Mapping[str, Any], ...]

    @property
    def worst(self) -> float:
        """The largest of these errors."""
        held = [probe for probe in self.probes if probe["held_out"]]
        took = [probe["forward_s"] + probe["backward_s"] for probe in held]
        pairs = zip(held, took, strict=True)
        return max(abs(probe["predicted_s"] / seconds - 1) for probe, seconds in pairs)


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine and a base.

    Attributes:
        key: For what it holds.
        base_model: As the run called it.
        made: When, in ISO form.
        machine: Of :func:`lorafusion.machine.describe_machine`.
        seconds: That it took.
        peak_flops: Of matrix products here; None: not known.
        peak_source: How that is known.
        passes: One for each number of threads.
    """

    key: ProfileKey
    base_model: str
    made: str
    machine: Mapping[str, Any]
    seconds: float
    peak_flops: float | None
    peak_source: str
    passes: tuple[Pass, ...]

    def parts(self, threads: int) -> PartCosts:
        """The costs with so many threads a stage.

        Raises:
            ProfileError: They were measured with others.
        """
        for one in self.passes:
            if one.threads == threads:
                return one.parts
        measured = ", ".join(str(one.threads) for one in self.passes)
        raise ProfileError(
            f"the profile was measured with {measured} threads a stage, and the run has {threads}. "
            "Measure with the same --stages as the run's."
        )

    def to_json(self) -> str:
        """Indented, for people to read."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)


def profiles_folder() -> Path:
    """Where profiles are kept: ``profiles`` under ``$LORAFUSION_HOME``."""
    return home() / "profiles"


def write_profile(profile: Profile, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, profile.to_json() + "\n")
    except OSError as error:
        raise OutputError(
            f"profile {path} cannot be written: {error.strerror or error}; allowed: a file in a "
            "folder that can be written. Choose another with --output."
        ) from error


def find_profile(key: ProfileKey) -> Path | None:
    """The file that was kept for this key; None where there is none."""
    path = profiles_folder() / f"{key.name}.json"
    return path if path.exists() else None


def read_profile(path: Path) -> Profile:
    """Read what :func:`write_profile` wrote.

    Raises:
        ProfileError: There is no such file, or it holds something else.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is no profile of format {FORMAT}")
        return _profile(cast("dict[str, Any]", document))
    except FileNotFoundError as error:
        raise ProfileError(
            f"profile {path}: there is no such file. Measure one with `lorafusion profile FILE`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ProfileError(
            f"profile {path} cannot be used: {what}. Measure it again with `lorafusion profile "
            "FILE`."
        ) from error


def _profile(document: dict[str, Any]) -> Profile:
    key = dict(document["key"])
    key["targets"] = tuple(key["targets"])
    passes = tuple(
        Pass(
            threads=int(one["threads"]),
            parts=PartCosts.from_fields(one["parts"], f"passes[{index}].parts"),
            error=float(one["error"]),
            probes=tuple(one["probes"]),
        )
        for index, one in enumerate(document["passes"])
    )
    if not passes:
        raise PlanError("passes is empty; allowed: at least one.")
    names = ("base_model", "made", "machine", "seconds", "peak_flops", "peak_source")
    return Profile(ProfileKey(**key), passes=passes, **{name: document[name] for name in names})
