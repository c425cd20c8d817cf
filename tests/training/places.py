"""Jobs on a stage without the loop around them: places are run by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.files import home
from lorafusion.jobs.schema import JobSpec
from lorafusion.models.load import load_base
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.training.data import JobData
from lorafusion.training.executor import Executor
from lorafusion.training.job import TrainingJob


class Bench:
    """A base with jobs beside it, built as a run builds them."""

    def __init__(
        self,
        base: Path,
        jobs: Sequence[Mapping[str, Any]],
        *,
        dtype: str = "float32",
        deterministic: bool = False,
    ) -> None:
        self.base = load_base(str(base), dtype)
        self.stage = Stage(self.base)
        self.bank = AdapterBank(self.base.model)
        self.executor = Executor(self.stage, self.bank, deterministic=deterministic)
        self.jobs: dict[str, TrainingJob] = {}
        tokenizer = load_tokenizer(str(base))
        for settings in jobs:
            spec = JobSpec.model_validate(settings)
            adapter = self.bank.add(
                spec.adapter, self.bank.match(spec.adapter.target_modules), seed=spec.seed
            )
            data = JobData.load(spec, tokenizer, home() / "cache")
            self.jobs[spec.name] = TrainingJob(spec, data, adapter, deterministic=deterministic)

    def randomise_b(self) -> None:
        """Give B values that depend on the parameter's name alone: at zero, A has no gradient."""
        for job in self.jobs.values():
            for name, parameter in job.parameters.items():
                if name.endswith("lora_B"):
                    generator = torch.Generator().manual_seed(sum(name.encode()))
                    values = torch.empty(parameter.shape).normal_(std=0.05, generator=generator)
                    parameter.data.copy_(values)

    def first_step(self, name: str) -> PlannedSegment:
        """All samples of a job's next step."""
        job = self.jobs[name]
        batch = job.data.batch(job.step + 1)
        return PlannedSegment(name, batch.step, batch.samples, batch.lengths)

    def place(self, name: str) -> Place:
        """The whole next step of one job as one place."""
        segment = self.first_step(name)
        return Place("train", (segment,), ((name, segment.step),))

    def run(self, place: Place) -> None:
        """Forward, loss and backward of one place."""
        self.executor.run(place, self.jobs)
