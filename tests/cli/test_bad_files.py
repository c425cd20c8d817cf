"""Job files that are none, given to commands: exit code 2, lines of the file, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorafusion.cli import build_app
from tests.jobs.test_fuzz import BOMB

# Places, not names: what could be on the hub would be asked for there.
HEAD = b"base_model: /nowhere/m\njobs:\n"
FILES = {
    "empty": b"",
    "bytes": HEAD + b"  - {name: \xff, dataset: {path: /nowhere/x.jsonl}}\n",
    "zeros": b"\x00" * 50,
    "cut off": HEAD + b"  - {name: a, dataset: {pa",
    "deep": HEAD + b"[" * 5000,
    "bomb": BOMB.encode() + HEAD + b"  - {name: a, dataset: {path: /nowhere/x.jsonl}}\n",
    "twice": HEAD + b"  - {name: a, name: b, dataset: {path: /nowhere/x.jsonl}}\n",
    "not finite": HEAD
    + b"  - {name: a, dataset: {path: /nowhere/x.jsonl}, sweep: {learning_rate: [.nan, 1e999]}}\n",
    "sweep of sweeps": HEAD
    + b"  - {name: a, dataset: {path: /nowhere/x.jsonl}, sweep: {sweep: [{seed: [1]}]}}\n",
    "long": HEAD + b"  - {name: " + b"a" * 100_000 + b", dataset: {path: /nowhere/x.jsonl}}\n",
    "large": b"#" * (1 << 20) + HEAD,
    "object": b"!!python/object/apply:os.system [exit]\n",
}


@pytest.mark.parametrize("command", ["validate", "submit", "train"])
@pytest.mark.parametrize("name", FILES)
def test_ends_with_2_and_says_where(command: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(FILES[name])
    store = tmp_path / "store.db"
    more = ["--store", f"sqlite:///{store}"] if command == "submit" else []
    result = CliRunner().invoke(build_app(), [command, str(file), *more])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert f"{file}:" in result.output and "allowed:" in result.output
    assert max(map(len, result.output.splitlines())) < 2000
    assert not store.exists()
