"""Which part may import which, and what is loaded only when it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = ("kernels", "planner", "launch", "jobs")

# cli -> launch -> training -> {models, adapters, data} -> kernels. planner and jobs hold plain data
# that those above may read.
BASE = {"errors", "files"}
PLAIN = BASE | {"planner", "jobs"}
ALLOWED = {
    "errors": set[str](),
    "files": {"errors"},
    "planner": BASE,
    "jobs": BASE,
    "plans": {"planner", *BASE},
    "reports": {"plans", "training", *PLAIN},
    "kernels": BASE,
    "module_names": BASE,
    "machine": set[str](),
    "models": {"kernels", "module_names", *BASE},
    "adapters": {"kernels", "module_names", *BASE},
    "data": {"kernels", "jobs", *BASE},
    "kept": {"files"},
    "base_names": {"module_names", "models", "adapters", "kept", *BASE},
    "row_counts": {"data", "jobs", "kept", *BASE},
    "preflight": {"module_names", "base_names", "row_counts", "models", "adapters", "data", *PLAIN},
    "training": {"machine", "module_names", "models", "adapters", "data", "kernels", *PLAIN},
    "launch": {"training", "models", "adapters", "data", "kernels", "preflight", *PLAIN},
    "profiling": {
        "base_names",
        "machine",
        "module_names",
        "launch",
        "training",
        "models",
        "adapters",
        "data",
        *PLAIN,
    },
    "merging": {"module_names", "models", "adapters", *BASE},
    "bench": {
        "machine",
        "profiling",
        "module_names",
        "launch",
        "training",
        "models",
        "adapters",
        "data",
        "kernels",
        "plans",
        *PLAIN,
    },
    # Of the training side it imports nothing but in child processes: it may be what is broken.
    "doctor": {
        "module_names",
        "launch",
        "training",
        "models",
        "adapters",
        "data",
        "kernels",
        *PLAIN,
    },
    "api": {"launch", "training", "data", "adapters", *PLAIN},
    "__main__": {"cli"},
    "cli": {
        "plans",
        "reports",
        "profiling",
        "bench",
        "doctor",
        "merging",
        "launch",
        "training",
        "models",
        "adapters",
        "data",
        "kernels",
        "preflight",
    }
    | PLAIN,
}
# The config of an adapter method lives with the method; these files import torch late.
ADAPTER_CONFIGS = {
    "lorafusion.adapters.patterns",
    "lorafusion.adapters.registry",
    "lorafusion.adapters.lora",
}
# Started by torchrun on each rank: a command, though it is named for what it launches.
COMMANDS = {"launch/__main__.py"}
WITHOUT_TORCH = ("planner", "jobs")
HEAVY = {"torch", "transformers", "peft", "deepspeed", "triton", "safetensors", "tokenizers"}


def source_files() -> list[tuple[str, Path]]:
    """Each Python file with the part of the package that it belongs to."""
    files = [(name, path) for name in TOP_LEVEL for path in sorted((ROOT / name).rglob("*.py"))]
    for path in sorted((ROOT / "lorafusion").iterdir()):
        if path.is_dir() and not path.is_symlink():
            files += [(path.name, file) for file in sorted(path.rglob("*.py"))]
        elif path.suffix == ".py" and path.stem != "__init__":
            files.append((path.stem, path))
    return files


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: relative import"
            if node.module == "lorafusion":
                yield from ((node.lineno, f"lorafusion.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def loaded_by(code: str) -> set[str]:
    """Top-level names in ``sys.modules`` after running ``code`` in a process of its own."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    return set(subprocess.check_output(command, cwd=ROOT, text=True).split())


def import_all(*parts: str) -> str:
    """Code that does it; alembic alone runs what is in a folder of migrations."""
    names = [
        f"lorafusion.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}"
        for part, path in source_files()
        if part in parts and path.stem != "__init__" and "migrations" not in path.parts
    ]
    names = [name.replace("lorafusion.lorafusion.", "lorafusion.") for name in names]
    assert names, parts
    return "\n".join(f"import {name}" for name in names)


def test_the_files_are_all_seen() -> None:
    parts = {part for part, _ in source_files()}
    assert parts <= ALLOWED.keys(), "a new part: say above what it may import"
    assert {"planner", "jobs", "kernels", "models", "training", "cli"} <= parts


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {part} may not import {name}"
        for part, path in source_files()
        for line, name in imported(path)
        if name.startswith("lorafusion.")
        and name.split(".")[1] not in {part, *ALLOWED[part]}
        and not (part == "jobs" and name in ADAPTER_CONFIGS)
        and str(path.relative_to(ROOT)) not in COMMANDS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_planner_and_jobs_name_no_heavy_module(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for owner, path in source_files()
        if owner == part
        for line, name in imported(path)
        if name.partition(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_planner_and_jobs_load_no_heavy_module() -> None:
    assert not loaded_by(import_all(*WITHOUT_TORCH)) & HEAVY


def test_the_python_api_is_there_without_torch() -> None:
    assert not loaded_by("import lorafusion") & (HEAVY | {"pydantic", "numpy"})
    names = "\n".join(
        ["import lorafusion", "for name in lorafusion.__all__:", " getattr(lorafusion, name)"]
    )
    assert not loaded_by(names) & HEAVY


def test_the_command_line_starts_without_torch() -> None:
    assert not loaded_by("import lorafusion.cli") & HEAVY


def test_a_file_that_was_looked_at_is_validated_without_torch(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at a base needs torch to list its linears; what follows must not wait."""
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    job = {"name": "a", "dataset": {"path": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "run.yaml").write_text(json.dumps({"base_model": str(tiny_base), "jobs": [job]}))
    code = (
        "import sys, lorafusion.cli as cli\n"
        f"sys.argv[1:] = ['validate', {str(tmp_path / 'run.yaml')!r}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    assert not end.code"
    )
    assert "torch" in loaded_by(code)
    assert not loaded_by(code) & (HEAVY | {"numpy", "datasets", "pyarrow", "pandas"})


def test_doctor_loads_nothing_that_may_be_broken() -> None:
    code = "import lorafusion.cli.doctor"
    assert not loaded_by(code) & (HEAVY | {"numpy", "datasets", "pydantic", "yaml", "packaging"})


def test_peft_deepspeed_and_triton_are_loaded_only_when_used() -> None:
    # torch's own build decides whether it loads triton: what it loads alone does not count.
    code = "import torch, transformers\n"
    ours = loaded_by(code + import_all("cli", "training", "launch", "models", "adapters", "data"))
    assert not (ours - loaded_by(code)) & {"peft", "deepspeed", "triton"}
