"""A tiny benchmark: two jobs on a tiny base, one thread, float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.runs import write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tokens of these tests out of the user's cache."""
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def job_file(tiny_base: Path, tmp_path: Path) -> Path:
    """Two unlike jobs; the first sees its data more than once, with a short last batch."""
    jobs = [
        {
            "name": "wide",
            "dataset": {"path": write_rows(tmp_path / "wide.jsonl", rows=7, longest=12, seed=1)},
            "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
            "learning_rate": 2e-2,
            "lr_scheduler": "linear",
            "warmup_steps": 1,
            "max_grad_norm": 0.5,
            "weight_decay": 0.1,
            "global_batch_size": 4,
            "max_steps": 9,
            "eval": {"val_size": 1},
        },
        {
            "name": "narrow",
            "dataset": {"path": write_rows(tmp_path / "narrow.jsonl", rows=20, longest=6, seed=2)},
            "adapter": {"r": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
            "learning_rate": 1e-2,
            "max_grad_norm": None,
            "global_batch_size": 2,
            "seed": 5,
        },
    ]
    run = {"base_model": str(tiny_base), "dtype": "float32", "threads": 1, "jobs": jobs}
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(run))
    return file
