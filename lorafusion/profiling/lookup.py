"""Finds the measured costs that a run may be planned with."""

from __future__ import annotations

from pathlib import Path

from lorafusion.base_names import base_module_names
from lorafusion.errors import ProfileError
from lorafusion.jobs.schema import RunSpec
from lorafusion.planner.parts import PartCosts
from lorafusion.profiling.profile import find_profile, profiles_folder, read_profile
from lorafusion.profiling.session import profiled_device, run_key, stage_threads

__all__ = ["AUTO", "measured_parts"]

AUTO = "auto"


def measured_parts(
    spec: RunSpec, source: str, *, stages: int = 1, any_profile: bool = False
) -> PartCosts:
    """The costs of a run's base on this machine, as a profile has them.

    Args:
        spec: The run.
        source: File of a profile; ``auto``: the one that was kept for this machine and base.
        stages: Of the run; their threads must have been measured.
        any_profile: Take a file of another machine, base or version too.

    Raises:
        ProfileError: There is none, or it is of something else; says what differs.
    """
    key = run_key(spec, base_module_names(spec.base_model), profiled_device("auto"))
    path = find_profile(key) if source == AUTO else Path(source)
    if path is None:
        raise ProfileError(
            f"no profile of this machine and base is kept in {profiles_folder()} (one of another "
            "version, number format or of other adapted linears does not count). Measure one with "
            "`lorafusion profile FILE`."
        )
    profile = read_profile(path)
    if any_profile:
        one = next((p for p in profile.passes if p.threads == stage_threads(spec, stages)), None)
        return (one or profile.passes[0]).parts
    profile.key.check(key)
    return profile.parts(stage_threads(spec, stages))
