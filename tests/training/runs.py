"""Small runs through the entry point that users have, and what they leave behind."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.launch.local import StopRequest, run_local
from lorafusion.models.load import load_base
from lorafusion.training.checkpoint import newest
from lorafusion.training.events import Events
from lorafusion.training.metrics import read_metrics
from lorafusion.training.result import RunResult
from tests.conftest import WORDS

# Values of the metrics that say how fast it went, not what came of it.
TIMES = {"time", "tokens_per_s"}


def write_rows(path: Path, *, rows: int, longest: int, seed: int) -> str:
    """Prompts and completions of 1 to ``longest`` words each."""
    rng = random.Random(seed)

    def text() -> str:
        return "".join(f" {word}" for word in rng.choices(WORDS, k=rng.randint(1, longest)))

    lines = [json.dumps({"prompt": text(), "completion": text()}) for _ in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def four_jobs(folder: Path, *, steps: int = 20) -> list[dict[str, Any]]:
    """Jobs that differ in everything that a job can set; dropout is on in each."""
    files = [
        write_rows(folder / f"rows{i}.jsonl", rows=rows, longest=longest, seed=i)
        for i, (rows, longest) in enumerate([(20, 6), (33, 12), (9, 24), (26, 3)])
    ]
    return [
        {
            "name": "wide",
            "dataset": {"path": files[0]},
            "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
            "learning_rate": 2e-3,
            "warmup_ratio": 0.1,
            "max_grad_norm": 0.5,
            "global_batch_size": 3,
            "max_steps": steps,
            "seed": 1,
            "eval": {"val_size": 3, "every": 5},
        },
        {
            "name": "attention",
            "dataset": {"path": files[1]},
            "adapter": {
                "r": 3,
                "lora_dropout": 0.3,
                "target_modules": ["q_proj", "v_proj"],
                "use_rslora": True,
            },
            "lr_scheduler": "linear",
            "max_grad_norm": None,
            "weight_decay": 0.1,
            "global_batch_size": 5,
            "max_steps": steps - 3,
            "seed": 2,
        },
        {
            "name": "regex",
            "dataset": {"path": files[2]},
            "adapter": {
                "r": 16,
                "lora_dropout": 0.05,
                "target_modules": r"model\.layers\.1\.mlp\..*_proj",
            },
            "lr_scheduler": "constant",
            "warmup_steps": 2,
            "global_batch_size": 1,
            "max_steps": steps + 4,
            "seed": 3,
        },
        {
            "name": "narrow",
            "dataset": {"path": files[3]},
            "adapter": {"r": 1, "lora_dropout": 0.5, "target_modules": ["down_proj", "o_proj"]},
            "learning_rate": 5e-3,
            "adam_beta2": 0.95,
            "global_batch_size": 8,
            "max_steps": steps,
            "seed": 1,
            "eval": {"val_size": 2},
        },
    ]


class StopAfter(StopRequest):
    """Asks for a stop from the ``calls + 1``-th time it is asked on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls
        self.fired = False

    def reason(self) -> str | None:
        self.left -= 1
        self.fired = self.fired or self.left < 0
        return "the test" if self.fired else None


def make_spec(base: Path, jobs: Sequence[Mapping[str, Any]], **settings: Any) -> RunSpec:
    """A run on one thread: tests share their cores."""
    return RunSpec.model_validate(
        {"base_model": str(base), "capacity": 96, "threads": 1, "jobs": list(jobs), **settings}
    )


def run(
    output: Path,
    base: Path,
    jobs: Sequence[Mapping[str, Any]],
    *,
    resume: bool = False,
    stop: StopRequest | None = None,
    events: Events | None = None,
    **settings: Any,
) -> RunResult:
    """Train ``jobs`` together; ``settings`` go to the run."""
    return run_local(
        make_spec(base, jobs, **settings),
        output=output,
        events=events or Events(),
        stop=stop or StopRequest(),
        existing="resume" if resume else "refuse",
    )


def records(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What a job's metrics say, by kind and step, without times. No step stands there twice."""
    found = read_metrics(folder)
    keys = [(record["kind"], record["step"]) for record in found]
    assert len(keys) == len(set(keys)), f"steps recorded twice in {folder}: {keys}"
    kept = [{k: v for k, v in record.items() if k not in TIMES} for record in found]
    return dict(zip(keys, kept, strict=True))


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """Training and held-out losses, by kind and step."""
    return {key: record["loss"] for key, record in records(folder).items()}


def state(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's and the optimizer's tensors in the newest checkpoint, at full precision."""
    checkpoint = newest(folder / "checkpoints")
    assert checkpoint is not None, f"no checkpoint in {folder}"
    return checkpoint.tensors()


def initial(base: Path, job: Mapping[str, Any], dtype: str = "float32") -> dict[str, torch.Tensor]:
    """The parameters that ``job`` begins with, θ₀."""
    spec = JobSpec.model_validate(job)
    bank = AdapterBank(load_base(str(base), dtype).model)
    adapter = bank.add(spec.adapter, bank.match(spec.adapter.target_modules), seed=spec.seed)
    return {name: tensor.detach().clone() for name, tensor in adapter.parameters().items()}


def change(
    final: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """θ - θ₀ in float64, by parameter. No parameter stayed where it was."""
    moved = {name: final[name].double() - start[name].double() for name in start}
    still = [name for name, tensor in moved.items() if not tensor.abs().max() > 0]
    assert not still, f"parameters that did not move: {still}"
    return moved


def worst_difference(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> float:
    """The greatest relative difference ‖found - expected‖ / ‖expected‖ of a tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in expected.items()
    )


def total_difference(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> float:
    """The same, of all tensors taken as one vector."""
    assert found.keys() == expected.keys()
    apart = sum(float((found[n] - tensor).square().sum()) for n, tensor in expected.items())
    whole = sum(float(tensor.square().sum()) for tensor in expected.values())
    return (apart / whole) ** 0.5


def loss_difference(
    found: Mapping[tuple[str, int], float], expected: Mapping[tuple[str, int], float]
) -> float:
    """The greatest relative difference of two runs' losses, step by step."""
    assert found.keys() == expected.keys()
    return max(abs(found[key] - loss) / abs(loss) for key, loss in expected.items())


def assert_same_bytes(found: Path, expected: Path) -> None:
    """Two job folders hold the same losses, norms and tensors, bit for bit."""
    assert records(found) == records(expected)
    ours, theirs = state(found), state(expected)
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in theirs.items() if not same_bits(ours[name], tensor)]
    assert not different, f"{len(different)} tensors differ, such as {different[0]}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, the sign of zero and NaN included."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def figure(name: str, value: float) -> None:
    """Show a measured figure with ``pytest -rP`` or ``-s``."""
    sys.stdout.write(f"FIGURE {name}: {value:.3g}\n")
