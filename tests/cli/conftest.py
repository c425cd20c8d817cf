"""A tiny run for the tests of commands: two jobs, one thread, seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write_run(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a job file of tiny jobs over ``tiny_base`` and their data; returns its path."""
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    rows = [{"prompt": f"the quick {i}", "completion": " brown fox"} for i in range(14)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def write(*jobs: dict[str, Any], **settings: Any) -> Path:
        # JSON is YAML; repeated keys and the like are the job file's own tests.
        defaults = {
            "dataset": {"path": str(tmp_path / "rows.jsonl")},
            "adapter": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
            "eval": {"val_size": 2},
            "learning_rate": 0.01,
            "global_batch_size": 4,
            "max_steps": 2,
            "max_seq_len": 48,
        }
        run = {"base_model": str(tiny_base), "threads": 1, "capacity": 96, **settings}
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps({**run, "defaults": defaults, "jobs": list(jobs)}, indent=1))
        return file

    return write
