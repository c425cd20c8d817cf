"""How the base is cut, and whether its layers are recomputed, is predicted from its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.errors import PlanError
from lorafusion.jobs.schema import RunSpec
from lorafusion.models.load import check_base
from lorafusion.planner.devices import find_device
from lorafusion.training.cut import Cut, Ground, choose_cut
from lorafusion.training.data import JobData
from lorafusion.training.job_setup import load_data
from tests.conftest import make_llama, make_tokenizer
from tests.training import runs

PLENTY = 1e12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tokenizer(folder)
    make_llama(folder, layers=4)
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return runs.four_jobs(tmp_path_factory.mktemp("rows"))[:2]


def cut(
    base: Path, jobs: list[dict[str, Any]], memory: float, stages: int = 2, **settings: Any
) -> Cut:
    spec: RunSpec = runs.make_spec(base, jobs, capacity=10_000, **settings)
    config = check_base(str(base))
    tokenizer = load_tokenizer(str(base))
    data: list[JobData] = [load_data(job, config, tokenizer)[1] for job in spec.jobs]
    return choose_cut(spec, config, data, Ground(find_device("cpu"), memory, stages, 10_000))


def test_a_base_that_is_cut_over_ranks_leaves_more_room(
    base: Path, jobs: list[dict[str, Any]]
) -> None:
    """A base of 164 KB in float32, 41 KB of them words: of two ranks each has 123 KB at most."""
    spec: RunSpec = runs.make_spec(base, jobs)
    config, tokenizer = check_base(str(base)), load_tokenizer(str(base))
    data = [load_data(job, config, tokenizer)[1] for job in spec.jobs]

    def recomputed(memory: float, share: float) -> bool:
        ground = Ground(find_device("cpu"), memory, 1, capacity=96, share=share)
        return choose_cut(spec, config, data, ground).recompute

    def least(share: float) -> float:
        """Bytes with which nothing is recomputed."""
        low, high = 0.0, 1e9
        while high - low > 1:
            middle = (low + high) / 2
            low, high = (middle, high) if recomputed(middle, share) else (low, middle)
        return high

    whole = 4 * (4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) + 320 * 32)
    saved = whole / 2 - 4 * 320 * 32
    assert least(1.0) - least(0.5) == pytest.approx(saved, rel=0.01)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_all_layers_in_order(stages: int, base: Path, jobs: list[dict[str, Any]]) -> None:
    layers = cut(base, jobs, PLENTY, stages).layers
    assert len(layers) == stages
    assert [index for part in layers for index in part] == [0, 1, 2, 3]


def test_more_stages_than_layers(base: Path, jobs: list[dict[str, Any]]) -> None:
    with pytest.raises(PlanError, match="5 stages for 4 layers"):
        cut(base, jobs, PLENTY, 5)


def test_recomputed_where_memory_asks_for_it(base: Path, jobs: list[dict[str, Any]]) -> None:
    """10,000 rows of activations of a tiny base are some 50 MB, and its weights less than 1."""
    assert not cut(base, jobs, PLENTY).recompute
    found = cut(base, jobs, 2e7)
    assert found.recompute
    assert found.note is not None
    assert "10000 tokens" in found.note
    assert "recompute: false" in found.note


@pytest.mark.parametrize("memory", [2e7, PLENTY])
def test_what_the_job_file_says_counts(
    memory: float, base: Path, jobs: list[dict[str, Any]]
) -> None:
    for wanted in (True, False):
        found = cut(base, jobs, memory, recompute=wanted)
        assert (found.recompute, found.note) == (wanted, None)
