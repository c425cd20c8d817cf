"""ZeRO-3 beside the whole base and beside stages: memory of a rank and time, on this machine's CPU.

Every turn is a run of ``lorafusion train`` on a Llama of random weights, stored in bfloat16 as most
are and run in float32, so that no way reads its weights out of a mapped file. Its vocabulary is
small: of a large base the embedding is a small part too. The ways take turns. From the root of a
checkout::

    python -m lorafusion.bench.zero -o docs/zero -w docs/zero.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import lorafusion
from lorafusion.bench import results, zero_table
from lorafusion.bench.memory import MMAP_THRESHOLD
from lorafusion.bench.memory_cases import WORDS, make_spec
from lorafusion.errors import BenchError, WrongResultError
from lorafusion.jobs.schema import RunSpec

__all__ = ["CONFIG", "WAYS", "Way", "main", "measure"]

CONFIG: Mapping[str, int] = {
    "vocab_size": 512,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
STEP_TOKENS, CAPACITY = 512, 256
"""A step of all jobs, and a microbatch: every replica has one of each step."""
LIMIT_S = 900
# Losses of float32 runs that compute the same, see the promises.
SAME_LOSS = 1e-4
_STUDY = "zero"


@dataclass(frozen=True, slots=True)
class Way:
    """How a run is spread over processes.

    Attributes:
        name: What the table calls it.
        options: Of ``lorafusion train``.
        parallel: Of the job file.
    """

    name: str
    options: tuple[str, ...] = ()
    parallel: Mapping[str, object] | None = None


_REPLICAS = ("--replicas", "2", "--replica-mode", "spread")
WAYS = (
    Way("whole base, 1 process"),
    Way("whole base, 2 replicas", _REPLICAS),
    Way("ZeRO-3, 2 replicas", _REPLICAS, {"zero": 3}),
    Way("2 stages", ("--stages", "2")),
)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 3,
    layers: Annotated[int, typer.Option(min=2, help="Of the base.")] = CONFIG["num_hidden_layers"],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-zero"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Measure, write, and print the table."""
    config = {**CONFIG, "num_hidden_layers": layers}
    with tempfile.TemporaryDirectory(prefix="lorafusion-zero-") as name:
        work = Path(name)
        folder = _make_base(config, work / "base")
        spec = make_spec(folder, STEP_TOKENS, work).model_copy(update={"capacity": CAPACITY})
        turns = [
            {"way": way.name, **measure(way, spec, work / f"{turn}-{way.name}")}
            for turn in range(rounds)
            for way in WAYS
        ]
    _same_losses(turns)
    found = results.result(_STUDY, config=config, capacity=CAPACITY, turns=turns)
    results.write(found, output)
    if write is not None:
        results.put_into(write, found, zero_table.markdown)
    typer.echo(zero_table.markdown(found))


def measure(way: Way, spec: RunSpec, work: Path) -> dict[str, Any]:
    """Train in processes of their own; bytes are those of the rank that has most.

    Raises:
        BenchError: It failed.
    """
    work.mkdir(parents=True)
    file = work / "run.json"
    run = json.loads(spec.model_dump_json(exclude_unset=True))
    file.write_text(json.dumps({**run, "parallel": way.parallel or {}}), encoding="utf-8")
    _train([str(file), "--output", str(work / "run"), *way.options], work)
    result = json.loads((work / "run" / "result.json").read_text(encoding="utf-8"))
    kinds = [_fullest(trace) for trace in sorted((work / "run" / "trace").glob("rank-*.jsonl"))]
    return {
        "seconds": result["training_s"],
        "peak": max(stage["peak_rss_mb"] for stage in result["stages"]) * 1e6,
        "kinds": max(kinds, key=lambda found: found["total"]),
        "losses": {job["name"]: job["loss_last"] for job in result["jobs"]},
    }


def _train(arguments: Sequence[str], work: Path) -> None:
    command = [sys.executable, "-m", "lorafusion", "train", *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(lorafusion.__file__).parents[1]),
        "LORAFUSION_HOME": str(work / "home"),
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD),  # see docs/memory.md
    }
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(arguments)}: no end after {LIMIT_S} s") from error
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise BenchError(f"training ended with code {done.returncode}:\n{last}")


def _fullest(trace: Path) -> dict[str, int]:
    """What filled a rank's memory when it was fullest, by kind."""
    lines = map(json.loads, trace.read_text(encoding="utf-8").splitlines())
    looks = [line for line in lines if line["kind"] == "memory"]
    fullest = max(looks, key=lambda line: line["total"])
    return {kind: size for kind, size in fullest.items() if kind not in ("kind", "at")}


def _same_losses(turns: Sequence[Mapping[str, Any]]) -> None:
    expected = turns[0]["losses"]
    for turn in turns:
        for job, loss in turn["losses"].items():
            if not abs(loss - expected[job]) <= SAME_LOSS * abs(expected[job]):
                raise WrongResultError(
                    f"{turn['way']}: job {job} ends with loss {loss}, and in {turns[0]['way']} "
                    f"with {expected[job]}: they do not train the same."
                )


def _make_base(config: Mapping[str, int], folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<end>", "<unknown>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes: Any = {**config, "tie_word_embeddings": True}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    typer.run(main)
