"""The errors that a user can mend.

Every member says what is wrong, where, what is allowed and how to mend it, and also inherits the
standard type that existing ``except`` clauses look for. Our own invariants use ``assert`` instead.
"""

from __future__ import annotations

from dataclasses import dataclass


class LorafusionError(Exception):
    """Root of all errors that a user can mend."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job file, or with a call in Python.

    Attributes:
        file: The job file, or the call.
        line: Line in the file, counted from 1; 0 for a call.
        where: Path inside the YAML or of the argument, such as ``jobs[1].adapter.r``.
        found: What stands there.
        allowed: What may stand there.
        fix: How to mend it.
    """

    file: str
    line: int
    where: str
    found: str
    allowed: str
    fix: str

    def __str__(self) -> str:
        file = f"{self.file}:{self.line}" if self.line else self.file
        place = f"{file}: {self.where or 'top level'}"
        return f"{place}: found {self.found}; allowed: {self.allowed}. {self.fix}"


class JobFileError(LorafusionError, ValueError):
    """A job file cannot be used. ``problems`` holds every reason, not the first alone."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class JobError(JobFileError):
    """The same for jobs and settings that are given in Python."""


class DataError(LorafusionError, ValueError):
    """A dataset cannot be read or has nothing to train on."""


class ModelError(LorafusionError, ValueError):
    """A base model cannot be loaded, or does not fit."""


class AdapterError(LorafusionError, ValueError):
    """An adapter's settings do not fit the base, or its folder cannot be used."""


class KernelError(LorafusionError, ValueError):
    """An op was given tensors or a layout that it cannot run on, or no backend for them."""


class PlanError(LorafusionError, ValueError):
    """A plan cannot be made or breaks a rule."""


class ProfileError(LorafusionError, ValueError):
    """A profile cannot be measured or read, or is of something else."""


class OutputError(LorafusionError, OSError):
    """An output folder cannot be used."""


class FolderInUseError(OutputError):
    """Another run writes there."""


class CheckpointError(LorafusionError, RuntimeError):
    """A checkpoint cannot be written, read, or does not fit the job."""


class StepError(LorafusionError, ArithmeticError):
    """A job's optimizer step cannot be computed, or has left weights that are not finite."""


class LaunchError(LorafusionError, RuntimeError):
    """The processes of a run do not fit together, or cannot be started or reached."""


class LostRankError(LaunchError, ConnectionError):
    """A process of the run is gone, or does not answer any more."""


class StoreError(LorafusionError, OSError):
    """The store of jobs cannot be used, or does not have what is asked of it."""


class LostClaimError(StoreError):
    """A job is not this worker's any more."""


class FetchError(LorafusionError, RuntimeError):
    """Weights or data could not be fetched."""


class BenchError(LorafusionError, RuntimeError):
    """A benchmark cannot be started as asked."""


class TurnError(BenchError):
    """A turn of a benchmark has failed: the training in it ended badly."""


class WrongResultError(BenchError):
    """What a benchmark compares does not compute the same, so that its speeds say nothing."""
