"""A training step of a PEFT model, as it comes and patched, timed in turns in one process.

``python -m lorafusion.bench.patched -o docs/peft -w docs/peft.md`` measures, and makes the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lorafusion.bench import pages, results
from lorafusion.bench.summary import Spread
from lorafusion.errors import WrongResultError
from lorafusion.kernels.patch_peft import adapter_rows, patch_peft, unpatch_peft

__all__ = ["MARK", "NAME", "main", "markdown", "measure"]

MARK, NAME = "bench: patched", "patched"
ADAPTERS = ("one", "two", "three", "four")
SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 1024,
}
"""A layer of SmolLM2-135M. The vocabulary is small: LoRA has no part in the head."""
_CLOSE = 1e-4


def measure(*, layers: int, length: int, rank: int, rounds: int, dropout: float) -> dict[str, Any]:
    """Processor seconds of forward and backward on one thread, a number a round, of each way.

    By the processor and not by the wall clock: on a shared machine the second says more of others.

    Four rows, of one adapter and of four. PEFT trains one adapter at a time, so there the four are
    four passes over one row each.

    Raises:
        WrongResultError: Without dropout, gradients differ between ways.
    """
    model, ids = _model(layers, rank, dropout), torch.randint(1, 1024, (4, length))
    ways: dict[str, Callable[[], None]] = {
        "one, peft": lambda: _one_adapter(model, ids),
        "one, patched": lambda: _patched(model, _one_adapter, ids),
        "four, peft": lambda: _in_turn(model, ids),
        "four, patched": lambda: _patched(model, _together, ids),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    names = list(ways)
    for number in range(-1, rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            _activate(model, ADAPTERS if name.startswith("four") else ADAPTERS[:1])
            model.zero_grad()
            started = time.process_time()
            ways[name]()
            seconds = time.process_time() - started
            if number >= 0:
                found[name].append(seconds)
            else:
                gradients[name] = _gradients(model)
    if not dropout:
        for kind in ("one", "four"):
            _compare(gradients[f"{kind}, patched"], gradients[f"{kind}, peft"])
    return {"dropout": dropout, "seconds": found}


def _model(layers: int, rank: int, dropout: float) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        r=rank, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False
    )
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, pad_token_id=0, **SHAPE))
    model = get_peft_model(base, config, adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        model.add_adapter(name, config)
    return model.train()


def _activate(model: Any, names: tuple[str, ...]) -> None:
    model.set_adapter(names[0])
    model.set_requires_grad(list(names))


def _loss(model: Any, ids: torch.Tensor, whole: int) -> torch.Tensor:
    return model(input_ids=ids, labels=ids).loss * (len(ids) / whole)


def _one_adapter(model: Any, ids: torch.Tensor) -> None:
    _loss(model, ids, len(ids)).backward()


def _in_turn(model: Any, ids: torch.Tensor) -> None:
    for name, row in zip(ADAPTERS, ids, strict=True):
        model.set_adapter(name)
        _loss(model, row[None], len(ids)).backward()


def _together(model: Any, ids: torch.Tensor) -> None:
    with adapter_rows(model, ADAPTERS):
        _loss(model, ids, len(ids)).backward()


def _patched(model: Any, step: Callable[[Any, torch.Tensor], None], ids: torch.Tensor) -> None:
    """Patching and undoing it take some milliseconds, which count against us here."""
    patch_peft(model)
    step(model, ids)
    unpatch_peft(model)


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _compare(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    if found.keys() != wanted.keys():
        raise WrongResultError("patched: gradients of other parameters than PEFT's.")
    for name, theirs in wanted.items():
        off = float((found[name] - theirs).norm() / theirs.norm())
        if not off <= _CLOSE:
            raise WrongResultError(
                f"patched: the gradient of {name} differs by {off:.1e} of its norm from PEFT's; "
                f"allowed: {_CLOSE:.0e}."
            )


def markdown(result: Mapping[str, Any]) -> str:
    """PEFT's time over that of the patched model: medians of the rounds, and ranges."""
    about = (
        f"torch {result['versions']['torch']}, CPU, 1 thread, processor time, "
        f"float32; {result['layers']} layers of "
        f"SmolLM2-135M's shape, 4 rows of {result['length']} tokens, rank {result['rank']} on all "
        f"linears; rounds: {result['rounds']}"
    )
    rows: list[list[str]] = []
    for case in result["cases"]:
        seconds = case["seconds"]
        for kind, label in (("one", "one adapter"), ("four", "four adapters, a row each")):
            theirs, ours = seconds[f"{kind}, peft"], seconds[f"{kind}, patched"]
            ratio = Spread.of(a / b for a, b in zip(theirs, ours, strict=True))
            times = [f"{Spread.of(values).median * 1e3:,.0f} ms" for values in (theirs, ours)]
            shown = f"**{ratio.median:.2f}** ({ratio.low:.2f}..{ratio.high:.2f})"
            rows.append([label, f"{case['dropout']:g}", *times, shown])
    head = ["batch", "dropout", "PEFT", "patched", "PEFT / patched"]
    return "\n".join([pages.measured_on(result, about), "", *pages.table(head, rows)])


def main(
    layers: Annotated[int, typer.Option(min=1)] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 256,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 15,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-patched"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Measure, write, and print the table."""
    torch.set_num_threads(1)
    settings = {"layers": layers, "length": length, "rank": rank, "rounds": rounds}
    cases = [measure(**settings, dropout=dropout) for dropout in (0.0, 0.1)]
    found = results.result(NAME, **settings, cases=cases)
    results.write(found, output)
    if write is not None:
        pages.put_into(write, MARK, markdown(found))
    typer.echo(markdown(found))


if __name__ == "__main__":
    typer.run(main)
