"""Fine-tune many LoRA adapters at once over one frozen base, each as if it were trained alone.

What stands in ``__all__`` is the Python API; docs/python-api.md shows its use. Nothing is imported
before it is asked for: torch and transformers take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafusion.adapters.lora import LoraConfig as LoraConfig
    from lorafusion.api.callbacks import Callback as Callback
    from lorafusion.api.callbacks import StopJob as StopJob
    from lorafusion.api.callbacks import StopRun as StopRun
    from lorafusion.api.job import Job as Job
    from lorafusion.api.run import Run as Run
    from lorafusion.api.run import stream as stream
    from lorafusion.api.run import train as train
    from lorafusion.api.settings import load_jobs as load_jobs
    from lorafusion.errors import LorafusionError as LorafusionError
    from lorafusion.jobs.schema import DatasetConfig as DatasetConfig
    from lorafusion.jobs.schema import EvalConfig as EvalConfig
    from lorafusion.training.records import EvalRecord as EvalRecord
    from lorafusion.training.records import JobReady as JobReady
    from lorafusion.training.records import StepRecord as StepRecord
    from lorafusion.training.result import JobResult as JobResult
    from lorafusion.training.result import RunResult as RunResult

__version__ = "0.1.0"

_HOMES = {
    "Job": "api.job",
    "LoraConfig": "adapters.lora",
    "DatasetConfig": "jobs.schema",
    "EvalConfig": "jobs.schema",
    "train": "api.run",
    "stream": "api.run",
    "Run": "api.run",
    "load_jobs": "api.settings",
    "Callback": "api.callbacks",
    "StopJob": "api.callbacks",
    "StopRun": "api.callbacks",
    "StepRecord": "training.records",
    "EvalRecord": "training.records",
    "JobReady": "training.records",
    "JobResult": "training.result",
    "RunResult": "training.result",
    "LorafusionError": "errors",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lorafusion.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
