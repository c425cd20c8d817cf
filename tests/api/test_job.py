"""Jobs in Python: the job file's fields, whatever stands for a dataset, every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import lorafusion
from lorafusion.api.job import JobSettings
from lorafusion.errors import JobError, JobFileError
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import JobSpec

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "dé"}]


def bare(hint: object) -> object:
    """A type without its bounds; a path may also be a ``Path``, which becomes text."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    parts = {bare(part) for part in get_args(hint)} - {Path}
    return frozenset(parts) if parts and get_origin(hint) is not None else hint


def union(hint: object) -> object:
    found = bare(hint)
    return found if isinstance(found, frozenset) else frozenset({found})


def test_every_public_name_is_there() -> None:
    assert all(getattr(lorafusion, name) is not None for name in lorafusion.__all__)
    assert set(lorafusion.__all__) <= set(dir(lorafusion))
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        _ = lorafusion.tarin  # pyright: ignore[reportAttributeAccessIssue]


def test_settings_are_the_fields_of_a_job_file() -> None:
    own = {"name", "dataset", "adapter", "eval", "sweep"}  # the last: only a file's jobs have one
    fields = get_type_hints(JobSpec, include_extras=True)
    settings = get_type_hints(JobSettings)
    assert settings.keys() == fields.keys() - own - {"model_config"}
    different = [name for name, hint in settings.items() if union(hint) != union(fields[name])]
    assert not different


def test_it_is_what_the_same_yaml_says(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(
        "base_model: b\njobs:\n- {name: x, dataset: {path: a.jsonl}, adapter: {r: 4}, "
        "learning_rate: 1e-3, eval: {val_size: 2}, num_epochs: 2, max_grad_norm: null}\n"
    )
    job = lorafusion.Job(
        "x",
        Path("a.jsonl"),
        adapter=lorafusion.LoraConfig(r=np.int64(4).item()),
        learning_rate=np.float32(1e-3).astype(float).round(6),
        eval={"val_size": 2},
        num_epochs=np.int64(2),  # pyright: ignore[reportArgumentType]
        max_grad_norm=None,
    )
    expected = load_run_file(file).jobs[0]
    assert job.model_dump() == expected.model_dump()
    assert job.model_fields_set == expected.model_fields_set
    assert lorafusion.load_jobs(str(file)) == load_run_file(file)


def test_a_dataset_in_every_form(own_cache: Path) -> None:
    import datasets

    config = lorafusion.DatasetConfig(path="rows.jsonl", type="messages")
    assert lorafusion.Job("x", config).dataset == config
    assert lorafusion.Job("x", {"path": "rows.jsonl", "type": "messages"}).dataset == config
    assert lorafusion.Job("x", "rows.jsonl").dataset.path == "rows.jsonl"
    from_list = lorafusion.Job("x", ROWS).dataset.path
    assert Path(from_list).parent == own_cache / "cache" / "rows"
    assert [json.loads(line) for line in Path(from_list).read_text().splitlines()] == ROWS
    assert lorafusion.Job("y", datasets.Dataset.from_list(ROWS)).dataset.path == from_list
    assert lorafusion.Job("x", ROWS[:1]).dataset.path != from_list
    held_out = lorafusion.Job("x", "a.jsonl", eval={"dataset": ROWS, "every": 2}).eval
    assert held_out.dataset is not None and held_out.dataset.path == from_list


def test_a_config_of_peft() -> None:
    import peft

    theirs = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_dropout=0.1,
        target_modules=["v_proj", "q_proj"],
        use_rslora=True,
        rank_pattern={"v_proj": 2},
    )
    ours = lorafusion.LoraConfig(
        r=4,
        lora_alpha=8,  # PEFT's default, not ours
        lora_dropout=0.1,
        target_modules=("q_proj", "v_proj"),
        use_rslora=True,
        rank_pattern={"v_proj": 2},
    )
    assert lorafusion.Job("x", "a.jsonl", adapter=theirs).adapter == ours
    whole = peft.LoraConfig(target_modules="all-linear")
    assert lorafusion.Job("x", "a.jsonl", adapter=whole).adapter.target_modules == "all-linear"
    refused = peft.LoraConfig(
        use_dora=True, bias="all", task_type="SEQ_CLS", init_lora_weights=False
    )
    with pytest.raises(JobError) as caught:
        lorafusion.Job("x", "a.jsonl", adapter=refused)
    assert {problem.where for problem in caught.value.problems} == {
        f"adapter.{name}"
        for name in ("use_dora", "bias", "task_type", "init_lora_weights", "target_modules")
    }


def test_every_problem_at_once() -> None:
    wrong: dict[str, Any] = {
        "lr": 1e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 0,
        "adapter": {"r": 0, "use_dora": True, "target_modules": ["lm_head"]},
        "eval": {"every": 3},
        "warmup_steps": 2,
        "warmup_ratio": 0.5,
        "seed": True,
    }
    with pytest.raises(JobError) as caught:
        lorafusion.Job("a b", [{"prompt": "x"}, {"prompt": {1}}], **wrong)
    assert isinstance(caught.value, JobFileError)
    assert {problem.where for problem in caught.value.problems} == {
        "name",
        "dataset[1]",
        "lr",
        "per_device_train_batch_size",
        "max_steps",
        "adapter.r",
        "adapter.use_dora",
        "adapter.target_modules[0]",
        "eval.every",
        "warmup_steps",
        "seed",
    }
    text = str(caught.value)
    assert "It is called `learning_rate`." in text
    assert "Give `global_batch_size`" in text
    assert "line 0" not in text, "there is no file"
    assert all(line.startswith("Job 'a b': ") for line in text.splitlines())


@pytest.mark.parametrize(
    ("dataset", "where", "found"),
    [
        ([], "dataset", "no rows"),
        ([1], "dataset[0]", "a int"),
        ([{"prompt": float("nan")}], "dataset[0]", "no JSON"),
        ([{"prompt": "\ud800"}], "dataset[0]", "no JSON"),
        ((row for row in ROWS), "dataset", "a builtins.generator"),
        (7, "dataset", "a builtins.int"),
    ],
)
def test_what_is_no_dataset(dataset: Any, where: str, found: str, own_cache: Path) -> None:
    before = list(own_cache.rglob("*"))
    with pytest.raises(JobError) as caught:
        lorafusion.Job("x", dataset)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert found in caught.value.problems[0].found
    assert list(own_cache.rglob("*")) == before


def test_streamed_datasets_are_refused() -> None:
    import datasets

    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(JobError, match=r"IterableDataset.*Order and resuming need all rows"):
        lorafusion.Job("x", streamed)  # pyright: ignore[reportArgumentType]


def test_settings_of_the_run_are_checked_before_anything_is_loaded() -> None:
    job = lorafusion.Job("x", "a.jsonl")
    wrong: dict[str, Any] = {"dtpe": "float32", "capacity": 1, "threads": 0, "output": "o"}
    with pytest.raises(JobError) as caught:
        lorafusion.train([job, lorafusion.Job("X", "b.jsonl")], "b", **wrong)
    found = {problem.where for problem in caught.value.problems}
    assert found >= {"dtpe", "threads", "jobs[1].name", "jobs[0].max_seq_len"}
    both: dict[str, Any] = {"resume": True, "overwrite": True}
    with pytest.raises(JobError) as caught:
        lorafusion.train([job, {"name": "y"}], None, **both)  # pyright: ignore[reportArgumentType]
    assert [problem.where for problem in caught.value.problems] == [
        "resume",
        "base",
        "jobs[1]",
        "output",
    ]
    with pytest.raises(JobError, match=r"callbacks\[0\].*give an object of it"):
        lorafusion.train(job, "b", output="o", callbacks=[lorafusion.Callback])  # pyright: ignore


def test_a_loaded_model_is_refused_with_its_path(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with pytest.raises(JobError, match="a loaded model") as caught:
        lorafusion.train(lorafusion.Job("x", ROWS), model, output="o")
    assert f'base="{tiny_base}"' in caught.value.problems[0].fix
