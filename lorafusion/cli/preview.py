"""``lorafusion preview FILE --job NAME``: which tokens of a job's samples are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafusion.data.dataset import DatasetReport, Sample, TokenisedDataset
from lorafusion.data.load import load_dataset
from lorafusion.data.order import split_held_out
from lorafusion.data.tokenizer import Tokenizer, load_tokenizer
from lorafusion.errors import JobFileError, Problem
from lorafusion.files import token_cache
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import JobSpec, RunSpec

TRAINED_STYLE, PROMPT_STYLE = "bold green", "dim"
OPEN, CLOSE = "⟦", "⟧"
# Control characters of the data would move the cursor; they are shown as their symbols.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def command(
    file: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    job: Annotated[str, typer.Option(help="Name of the job to look at.")],
    rows: Annotated[int, typer.Option(min=0, help="How many samples to show.")] = 3,
) -> None:
    """Show a job's samples as the model sees them, and which of their tokens are trained."""
    run = load_run_file(file)
    spec = _find_job(run, job, file=str(file))
    tokenizer = load_tokenizer(run.base_model)
    cache = token_cache()
    dataset = load_dataset(spec.dataset, tokenizer, max_seq_len=spec.max_seq_len, cache_dir=cache)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(f"job {spec.name}, base {run.base_model}")
    _show_reports(console, spec, dataset, tokenizer)
    _show_legend(console)
    for i in range(min(rows, len(dataset))):
        show_sample(console, dataset, i, tokenizer)


def show_reports(console: Console, reports: Mapping[str, DatasetReport], max_seq_len: int) -> None:
    """Print what became of each dataset's rows: a table on a terminal, lines elsewhere."""
    if not console.is_terminal:
        for use, report in reports.items():
            console.print(_in_lines(use, report, max_seq_len))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=True)
    table.add_column("")
    for use in reports:
        table.add_column(use, justify="right")
    cells = [_cells(report, max_seq_len) for report in reports.values()]
    for name in cells[0]:
        style = TRAINED_STYLE if name.startswith("trained") else ""
        table.add_row(name, *(column[name] for column in cells), style=style)
    console.print(table)


def _cells(report: DatasetReport, max_seq_len: int) -> dict[str, str]:
    return {
        "rows of": Path(report.path).name,
        "format": report.type,
        "rows": f"{report.rows:,}",
        "dropped": f"{report.dropped:,}",
        "kept": f"{report.kept:,}",
        f"cut to {max_seq_len}": f"{report.cut:,}",
        "tokens": f"{report.tokens:,}",
        "per sample": f"{report.tokens / report.kept:.0f}",
        "trained tokens": f"{report.trained_tokens:,}",
        "trained share": f"{report.share:.1%}",
        "trained part": report.trains,
    }


def _in_lines(use: str, report: DatasetReport, max_seq_len: int) -> str:
    return (
        f"{use}: {report.path}\n"
        f"  format {report.type}: trained are {report.trains}\n"
        f"  rows {report.rows:,}: kept {report.kept:,} (cut to {max_seq_len} tokens: "
        f"{report.cut:,}), dropped {report.dropped:,} (nothing to train on in them)\n"
        f"  tokens {report.tokens:,}: trained {report.trained_tokens:,} ({report.share:.1%}), "
        f"{report.tokens / report.kept:.0f} per sample"
    )


def show_sample(console: Console, dataset: TokenisedDataset, i: int, tokenizer: Tokenizer) -> None:
    """Print one sample, its trained text coloured on a terminal and bracketed elsewhere."""
    sample = dataset.sample(i)
    console.print()
    console.print(
        f"row {dataset.rows[i] + 1}: {len(sample.input_ids)} tokens, "
        f"{int(sample.trained.sum())} trained",
        style="cyan",
    )
    text = Text()
    for run, trained in decode_runs(sample, tokenizer):
        shown = run.translate(_VISIBLE)
        if _coloured(console):
            text.append(shown, TRAINED_STYLE if trained else PROMPT_STYLE)
        else:
            text.append(f"{OPEN}{shown}{CLOSE}" if trained else shown)
    console.print(text)


def decode_runs(sample: Sample, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """The text of a sample in runs of equal ``trained``.

    Each run is what it adds to the text before it: some tokenizers write the space of a word only
    where it is not the first.
    """
    edges = np.flatnonzero(np.diff(sample.trained)) + 1
    before = ""
    for end in [*(int(edge) for edge in edges), len(sample.input_ids)]:
        text = cast(
            str,
            tokenizer.decode(
                sample.input_ids[:end].tolist(),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            ),
        )
        yield text[len(before) :], bool(sample.trained[end - 1])
        before = text


def _find_job(run: RunSpec, name: str, *, file: str) -> JobSpec:
    for spec in run.jobs:
        if spec.name == name:
            return spec
    raise JobFileError(
        (
            Problem(
                file,
                line=1,
                where="jobs",
                found=f"no job named {name!r}",
                allowed=", ".join(spec.name for spec in run.jobs),
                fix="Give one of these names with --job.",
            ),
        )
    )


def _show_reports(
    console: Console, spec: JobSpec, dataset: TokenisedDataset, tokenizer: Tokenizer
) -> None:
    reports = {"dataset": dataset.report}
    if spec.eval.dataset is not None:
        held_out = load_dataset(
            spec.eval.dataset, tokenizer, max_seq_len=spec.max_seq_len, cache_dir=token_cache()
        )
        reports["held out, a dataset of its own"] = held_out.report
    show_reports(console, reports, spec.max_seq_len)
    if spec.eval.val_size:
        train, held = split_held_out(len(dataset), val_size=spec.eval.val_size, seed=spec.seed)
        console.print(f"held out {len(held):,} samples, {len(train):,} left to train on")


def _show_legend(console: Console) -> None:
    if _coloured(console):
        legend = Text("trained text is ").append("green", TRAINED_STYLE)
        console.print(legend.append(", what it is conditioned on is ").append("dim", PROMPT_STYLE))
    else:
        console.print(f"trained text stands in {OPEN}{CLOSE}")


def _coloured(console: Console) -> bool:
    return console.color_system is not None and not console.no_color
