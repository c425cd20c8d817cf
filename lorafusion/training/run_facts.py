"""``run.json`` among the traces: what of a run its figures depend on. For rank 0.

Written anew at the start of each session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorafusion.adapters.initial import ResolvedAdapter
from lorafusion.errors import PlanError
from lorafusion.files import write_text_atomic
from lorafusion.jobs.schema import RunSpec
from lorafusion.machine import describe_machine, versions
from lorafusion.module_names import ModuleNames
from lorafusion.planner.shape import ModelShape
from lorafusion.training.cut import Cut
from lorafusion.training.peak import Peak

FILE = "run.json"
FORMAT = 1
# Of a row and a weight: a multiply and an add in the forward, and twice as much in the backward.
_FLOPS = 6


@dataclass(frozen=True)
class RunFacts:
    """A session of a run, before its first place.

    Attributes:
        spec: The run.
        config: Of the base.
        names: The modules of the whole base.
        device: Where rank 0 computes; the others have one of their own each, of the same kind.
        threads: CPU threads of a rank.
        cut: Layers of the stages.
        capacity: Most tokens of a microbatch.
        peak: What one rank can do at most.
    """

    spec: RunSpec
    config: Any
    names: ModuleNames
    device: torch.device
    threads: int
    cut: Cut
    capacity: int
    peak: Peak

    def job(self, name: str, folder: Path, adapter: ResolvedAdapter) -> dict[str, Any]:
        """A job's entry; its adapter is counted on all stages.

        ``token_flops`` are those of its own product, per token: 6·r·(in + out) over its linears.
        """
        columns = dict(zip(self.names.linears, map(sum, self.names.shapes), strict=True))
        ranks = {target: adapter.config.rank_of(target) for target in adapter.targets}
        parameters = sum(rank * columns[target] for target, rank in ranks.items())
        return {
            "name": name,
            "folder": str(folder),
            "rank": max(ranks.values(), default=0),
            "adapter_parameters": parameters,
            "token_flops": _FLOPS * parameters,
            "sweep": sweeps_of(self.spec).get(name),
        }

    def document(self, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All of it, for JSON; ``jobs`` are those that are trained."""
        machine = describe_machine()
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else machine["cpu"]
        return {
            "format": FORMAT,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "base_model": self.spec.base_model,
            "dtype": self.spec.dtype,
            "device": {"kind": self.device.type, "name": name},
            "machine": machine,
            "versions": versions(),
            "threads": self.threads,
            "stages": len(self.cut.layers),
            "layers": [[layers.start, layers.stop] for layers in self.cut.layers],
            "recompute": self.cut.recompute,
            "deterministic": self.spec.deterministic,
            "capacity": self.capacity,
            "peak_flops": self.peak.flops,
            "peak_source": self.peak.source,
            "shape": self._shape(),
            "jobs": list(jobs),
        }

    def _shape(self) -> dict[str, int] | None:
        try:
            shape = ModelShape.from_config(self.config.to_dict(), self.spec.dtype)
        except PlanError:  # experts, or sizes by other names
            return None
        return {
            "hidden": shape.hidden,
            "layers": shape.layers,
            "vocab": shape.vocab,
            "query": shape.query,
            "layer_parameters": shape.layer_parameters,
            "parameters": shape.parameters,
        }


def sweeps_of(spec: RunSpec) -> dict[str, dict[str, Any]]:
    """By the names of the jobs that are of a sweep: which choice of which they are, for JSON."""
    return {job.name: job.sweep.model_dump() for job in spec.jobs if job.sweep is not None}


def write_facts(folder: Path, document: Mapping[str, Any]) -> str | None:
    """Write :meth:`RunFacts.document`; returns why it could not be, None where it was."""
    path = folder / FILE
    try:
        write_text_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        return f"{path} cannot be written: {error}. The run goes on without it."
    return None
