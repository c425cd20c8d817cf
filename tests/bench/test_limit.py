"""The limit runs every product that ours needs of the base, and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lorafusion.bench.inputs import inputs_folder, write_inputs
from lorafusion.bench.limit import (
    PLACES_FILE,
    Products,
    Ran,
    linears_with_gradient,
    read_places,
    write_places,
)
from lorafusion.bench.settings import Settings
from lorafusion.jobs.loading import load_run_file
from lorafusion.models.load import Base, load_base
from lorafusion.planner.plan import Place, PlannedSegment

PLACES = (
    Place(
        "train",
        (
            PlannedSegment("wide", 1, (3, 4), (5, 7), (1, 2)),
            PlannedSegment("narrow", 1, (0,), (4,), (4,)),
        ),
        (("narrow", 1),),
    ),
    Place("eval", (PlannedSegment("wide", 0, (9,), (6,), (1,)),), (("wide", 0),)),
    Place("noop"),
    Place("train", (PlannedSegment("wide", 1, (5,), (9,), (3,)),), (("wide", 1),)),
)
TOKENS = {("wide", 1): 24, ("narrow", 1): 5}


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base), "float32")


def layer_of(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


def test_places_are_kept_as_they_were_run(tmp_path: Path) -> None:
    write_places(tmp_path / "p.json", PLACES, TOKENS)
    assert read_places(tmp_path / "p.json") == [
        Ran(16, 7, ("wide", "narrow"), (("narrow", 1, 5),)),
        Ran(9, 3, ("wide",), (("wide", 1, 24),)),
    ]


def test_only_what_lies_behind_an_adapter_has_a_gradient(base: Base) -> None:
    linears = base.names.linears
    first = {name for name in linears if layer_of(name) == 0}
    everywhere = linears_with_gradient(base, linears)
    without = {name.rpartition(".")[2] for name in set(linears) - everywhere}
    assert without == {"q_proj", "k_proj", "v_proj"} and set(linears) - everywhere < first
    low = linears_with_gradient(base, [name for name in first if name.endswith("up_proj")])
    assert {n.rpartition(".")[2] for n in low & first} == {"down_proj"}
    assert low - first == set(linears) - first
    high = [name for name in linears if layer_of(name) == 1 and name.endswith("up_proj")]
    assert not linears_with_gradient(base, high) & first


def test_it_multiplies_as_much_as_the_base_needs(base: Base) -> None:
    some = {name for name in base.names.linears if layer_of(name) == 1}
    sizes = {name: base.tensors[f"{name}.weight"].numel() for name in base.names.linears}
    head = base.model.get_output_embeddings().weight.numel()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        products = Products(base, 50)
        products.layers(37, some)
        products.head(11)
    forward, backward = sum(sizes.values()), sum(sizes[name] for name in some)
    assert counted.get_total_flops() == 2 * (37 * (forward + backward) + 11 * 2 * head)


def test_its_process_says_what_ours_says(job_file: Path, tmp_path: Path) -> None:
    asked = Settings(job_file, load_run_file(job_file), ("peft",), 1, 1, (0.0,), tmp_path)
    write_inputs(asked, tmp_path, status=lambda text: None)
    folder = inputs_folder(tmp_path, 0.0)
    write_places(folder / PLACES_FILE, PLACES, TOKENS)
    command = [sys.executable, "-m", "lorafusion.bench.limit", str(folder)]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    *steps, last = map(json.loads, done.stdout.splitlines())
    assert [(step["job"], step["step"], step["tokens"]) for step in steps] == [
        ("narrow", 1, 5),
        ("wide", 1, 24),
    ]
    assert 0 < steps[0]["s"] < steps[1]["s"]
    assert last["event"] == "done"
