"""Jobs on a stage without the loop around them: places are run by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.jobs.schema import JobSpec
from lorafusion.models.load import load_base
from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.training.alone import team_of_one
from lorafusion.training.job import TrainingJob
from lorafusion.training.job_setup import load_data, resolve
from lorafusion.training.judge import Report
from lorafusion.training.site import Site
from lorafusion.training.turn import Turn


class Bench:
    """A base with jobs beside it, built as a run builds them. Checkpoints are not written."""

    def __init__(
        self,
        base: Path,
        jobs: Sequence[Mapping[str, Any]],
        *,
        dtype: str = "float32",
        deterministic: bool = False,
    ) -> None:
        self.base = load_base(str(base), dtype)
        self.site = Site(
            self.base,
            team_of_one(),
            ThreadPoolExecutor(max_workers=1),
            recompute=False,
            deterministic=deterministic,
        )
        self.jobs: dict[str, TrainingJob] = {}
        tokenizer = load_tokenizer(str(base))
        for settings in jobs:
            spec = JobSpec.model_validate(settings)
            spec, data = load_data(spec, self.base.model.config, tokenizer)
            spec, adapter = resolve(spec, self.base.names)
            shard = self.site.join(spec, data, adapter, Path("unused"), None)
            self.jobs[spec.name] = TrainingJob(spec, data, shard)

    def randomise_b(self) -> None:
        """Give B values that depend on the parameter's name alone: at zero, A has no gradient."""
        for job in self.jobs.values():
            for name, parameter in job.shard.parameters.items():
                if name.endswith("lora_B"):
                    generator = torch.Generator().manual_seed(sum(name.encode()))
                    values = torch.empty(parameter.shape).normal_(std=0.05, generator=generator)
                    parameter.data.copy_(values)

    def first_step(self, name: str) -> PlannedSegment:
        """All samples of a job's next step."""
        job = self.jobs[name]
        batch = job.data.batch(job.shard.step + 1)
        return PlannedSegment(name, batch.step, batch.samples, batch.lengths)

    def place(self, name: str) -> Place:
        """The whole next step of one job as one place, which completes it."""
        segment = self.first_step(name)
        return Place("train", (segment,), ((name, segment.step),))

    def run(self, place: Place) -> Report:
        """Forward, loss and backward of one place, and the steps that it completes."""
        self.site.executor.forward(Turn((place,)), lambda: None)
        (report,) = self.site.executor.backward()
        return report
