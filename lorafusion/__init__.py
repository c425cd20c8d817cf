"""Fine-tune many LoRA adapters at once over one frozen base, each as if it were trained alone.

What stands in ``__all__`` is the Python API; docs/python-api.md shows its use. Nothing is imported
before it is asked for: torch and transformers take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafusion.adapters.lora import LoraConfig
    from lorafusion.api.callbacks import Callback, StopJob, StopRun
    from lorafusion.api.job import Job
    from lorafusion.api.run import Run, stream, train
    from lorafusion.api.settings import load_jobs
    from lorafusion.errors import LorafusionError
    from lorafusion.jobs.schema import DatasetConfig, EvalConfig
    from lorafusion.kernels.patch_peft import adapter_rows, patch_peft, unpatch_peft
    from lorafusion.training.records import EvalRecord, JobReady, StepRecord
    from lorafusion.training.result import JobResult, RunResult

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
    "patch_peft": "kernels.patch_peft",
    "unpatch_peft": "kernels.patch_peft",
    "adapter_rows": "kernels.patch_peft",
}

__all__ = [
    "Job",
    "LoraConfig",
    "DatasetConfig",
    "EvalConfig",
    "train",
    "stream",
    "Run",
    "load_jobs",
    "Callback",
    "StopJob",
    "StopRun",
    "StepRecord",
    "EvalRecord",
    "JobReady",
    "JobResult",
    "RunResult",
    "LorafusionError",
    "patch_peft",
    "unpatch_peft",
    "adapter_rows",
    "__version__",
]

if not TYPE_CHECKING:  # a type checker would take any name for an Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"lorafusion.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
