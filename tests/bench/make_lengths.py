"""Write ``lorafusion/bench/demo_lengths.py``: lengths of the demo's samples, for simulated runs.

Run from the root of a checkout, after ``lorafusion fetch demo``::

    python tests/bench/make_lengths.py
"""

from __future__ import annotations

from pathlib import Path

from lorafusion.data.load import load_dataset
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.files import home, write_text_atomic
from lorafusion.jobs.schema import DatasetConfig

FILE = Path("lorafusion/bench/demo_lengths.py")
NAMES = ("sarcasm", "crepe", "alpaca", "logiqa")
KEPT = 256
HEAD = '''"""Lengths of samples of the demo's four datasets, by SmolLM2's tokenizer.

Made by tests/bench/make_lengths.py: 256 samples of each, evenly spaced in the file.
"""

from __future__ import annotations

__all__ = ["DEMO_LENGTHS"]

DEMO_LENGTHS = {
'''
END = '''}
"""Dataset -> tokens/labelled of each sample."""
'''


def main() -> None:
    tokenizer = load_tokenizer(str(home() / "models" / "SmolLM2-135M-Instruct"))
    lines: list[str] = []
    for name in NAMES:
        config = DatasetConfig(path=str(home() / "data" / f"{name}.jsonl"))
        dataset = load_dataset(config, tokenizer, max_seq_len=8192, cache_dir=None)
        pairs = list(zip(dataset.lengths.tolist(), dataset.trained_counts.tolist(), strict=True))
        kept = [pairs[index * len(pairs) // KEPT] for index in range(KEPT)]
        lines += [f'    "{name}": (', *wrapped([f"{n}/{rows}" for n, rows in kept]), "    ),"]
    write_text_atomic(FILE, HEAD + "\n".join(lines) + "\n" + END)


def wrapped(words: list[str]) -> list[str]:
    """The words as lines of adjacent string literals."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 86:
            lines.append("")
        lines[-1] += f"{word} "
    lines[-1] = lines[-1].rstrip()
    return [f'        "{line}"' for line in lines]


if __name__ == "__main__":
    main()
