"""Two ranks: the gradients of one step by our pipeline, and by torch.distributed.pipelining.

``pipelining_program.py BASE FOLDER``: each rank writes ``rank-N.json`` into FOLDER, the greatest
relative difference by parameter.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from lorafusion.adapters.bank import AdapterBank
from lorafusion.data.dataset import Sample, build_dataset
from lorafusion.data.order import BatchOrder
from lorafusion.jobs.schema import JobSpec
from lorafusion.launch.team import TeamOptions, join_team
from lorafusion.launch.world import World
from lorafusion.models.load import load_base
from lorafusion.models.part import Part
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.training.compute import Compute
from lorafusion.training.data import JobData
from lorafusion.training.executor import Executor
from lorafusion.training.follow import follow_places
from lorafusion.training.job_setup import resolve
from lorafusion.training.residents import Residents
from lorafusion.training.revision import Revision
from lorafusion.training.shard import JobShard
from lorafusion.training.team import Team
from lorafusion.training.turn import Turn

STAGES, LAYERS = 2, 4
# Rows of a sample, samples of a microbatch, microbatches of a step.
ROWS, SAMPLES, MICROBATCHES = 12, 2, 4
BATCH = SAMPLES * MICROBATCHES
VOCABULARY, BETA = 320, 0.9
SPEC = JobSpec.model_validate(
    {
        "name": "a",
        "dataset": {"path": "made-up"},
        "adapter": {"r": 3, "lora_alpha": 12, "lora_dropout": 0.0},
        "global_batch_size": BATCH,
        "max_steps": 2,
        "max_grad_norm": None,
        "adam_beta1": BETA,
        "warmup_ratio": 0.0,
    }
)


def main(base: str, folder: Path) -> int:
    """Fork the ranks; returns what to exit with."""
    torch.set_num_threads(1)
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    worlds = [World(r, STAGES, r, STAGES, f"localhost:{port}", "here") for r in range(STAGES)]
    children = [fork(world, base, folder) for world in worlds]
    return max(os.waitpid(child, 0)[1] for child in children) and 1


def fork(world: World, base: str, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with join_team(TeamOptions(world, start_timeout_s=30, hang_timeout_s=30)) as team:
            compare(team, base, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def compare(team: Team, base: str, folder: Path) -> None:
    data = make_data()
    values, ours = our_gradients(team, base, data)
    assert all(gradient.abs().max() > 0 for gradient in ours.values())
    found: dict[str, Any] = {}
    for schedule in (ScheduleGPipe, Schedule1F1B):
        theirs = their_gradients(team, base, data, values, schedule)
        assert theirs.keys() == ours.keys()
        found[schedule.__name__] = {
            name: float((ours[name] - gradient).norm() / gradient.norm())
            for name, gradient in theirs.items()
        }
    (folder / f"rank-{team.stage}.json").write_text(json.dumps(found))


def make_data() -> JobData:
    """Samples of equal length, each with as many labels: microbatches of one static shape."""
    rng = np.random.default_rng(0)
    rows = 2 * BATCH

    def sample() -> Sample:
        ids = rng.integers(0, VOCABULARY, ROWS + 1, dtype=np.int32)
        return Sample(ids, np.arange(ROWS + 1) > ROWS // 3)

    dataset = build_dataset((sample() for _ in range(rows)), path="made-up", max_seq_len=ROWS + 1)
    order = BatchOrder(np.arange(rows), BATCH, seed=0, max_steps=2)
    return JobData(dataset, dataset, (), order)


def layers_of(stage: int) -> range:
    return range(stage * LAYERS // STAGES, (stage + 1) * LAYERS // STAGES)


# Ours.


def our_gradients(
    team: Team, path: str, data: JobData
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """This stage's A and B, and the gradients of the first step, summed over its microbatches."""
    base = load_base(path, "float64", Part(layers_of(team.stage), LAYERS))
    stage = Stage(base)
    bank = AdapterBank(base.model, base.names, stage.shared_inputs)
    residents = Residents(bank, lambda _: None)
    spec, adapter = resolve(SPEC, base.names)
    resident = bank.add(adapter.config, [n for n in adapter.targets if n in bank.linears], seed=1)
    shard = JobShard(spec, data, resident, deterministic=False)
    for name, parameter in shard.parameters.items():
        if name.endswith("lora_B"):  # zeros at first, and then A would have no gradient
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.data.normal_(std=0.05, generator=generator)
    residents.join(shard)
    values = {name: tensor.detach().clone() for name, tensor in shard.parameters.items()}
    compute = Compute(stage, bank, residents, deterministic=False, on_failed=give_up)
    executor = Executor(compute, residents, team, stage.width, torch.float64)
    if team.first:
        lead(executor, team, make_plan(data))
    else:
        follow_places(executor, residents, team)
    assert shard.step == 1
    # The first moment of AdamW's first step is (1 - beta) times the gradient.
    tensors = shard.tensors()
    return values, {name: tensors[f"{name}.exp_avg"] / (1 - BETA) for name in values}


def give_up(job: str, why: str) -> None:
    raise AssertionError(f"{job}: {why}")


def make_plan(data: JobData) -> Plan:
    batch = data.batch(1)
    places = [
        Place(
            "train",
            (PlannedSegment("a", 1, batch.samples[cut], batch.lengths[cut], batch.labelled[cut]),),
            (("a", 1),) if last else (),
        )
        for start in range(0, BATCH, SAMPLES)
        for cut, last in [(slice(start, start + SAMPLES), start + SAMPLES == BATCH)]
    ]
    return Plan(Limits(ROWS * SAMPLES, stages=STAGES), (*places, *[Place("noop")] * STAGES))


def lead(executor: Executor, team: Team, plan: Plan) -> None:
    team.post.publish(Revision(0, plan, last=True).message())
    for place in plan.places:
        executor.forward(Turn((place,)), lambda: None)
        if executor.full:
            executor.backward()
    while not executor.empty:
        executor.backward()


# torch's.


class PlainLora(nn.Module):
    """W x + s B A x, as the paper has it."""

    def __init__(self, base: nn.Linear, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.A, self.B = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (12 / 3) * (x @ self.A.T @ self.B.T)


class PlainStage(nn.Module):
    """Half of transformers' own model, called layer by layer."""

    def __init__(self, model: Any, layers: range) -> None:
        super().__init__()
        inner = model.model
        self.embed = inner.embed_tokens if layers.start == 0 else None
        self.layers = nn.ModuleList([inner.layers[index] for index in layers])
        self.rotary = inner.rotary_emb
        last = layers.stop == LAYERS
        self.norm, self.head = (inner.norm, model.lm_head) if last else (None, None)

    def forward(self, entering: torch.Tensor) -> torch.Tensor:
        hidden = entering if self.embed is None else self.embed(entering)
        positions = torch.arange(hidden.shape[1])[None]
        rotary = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary, position_ids=positions)
        return hidden if self.head is None else self.head(self.norm(hidden))


def their_gradients(
    team: Team, path: str, data: JobData, values: dict[str, torch.Tensor], schedule: Any
) -> dict[str, torch.Tensor]:
    """The same step by torch's schedule."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    model.eval().requires_grad_(False)
    plain = {
        name: PlainLora(
            model.get_submodule(name), values[f"{name}.lora_A"], values[f"{name}.lora_B"]
        )
        for name in dict.fromkeys(name.rpartition(".")[0] for name in values)
    }
    for name, module in plain.items():
        model.set_submodule(name, module)
    rows = [data.rows("train", index) for index in data.batch(1).samples]
    tokens = torch.tensor(np.stack([ids for ids, _ in rows]), dtype=torch.int64)
    targets = torch.tensor(np.stack([wanted for _, wanted in rows]), dtype=torch.int64)
    weight = 1 / data.trained_tokens(1)

    def loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        flat = logits.flatten(0, 1)
        return weight * nn.functional.cross_entropy(
            flat, wanted.flatten(), ignore_index=-1, reduction="sum"
        )

    stage = PipelineStage(PlainStage(model, layers_of(team.stage)), team.stage, STAGES, team.device)
    # Gradients are summed over the microbatches, as the loss is one sum over all of them.
    pipeline = schedule(stage, n_microbatches=MICROBATCHES, loss_fn=loss, scale_grads=False)
    if team.first:
        pipeline.step(tokens)
    else:
        pipeline.step(target=targets)
    gradients: dict[str, torch.Tensor] = {}
    for name, module in plain.items():
        for key, parameter in (("lora_A", module.A), ("lora_B", module.B)):
            assert parameter.grad is not None
            gradients[f"{name}.{key}"] = parameter.grad
    return gradients


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
