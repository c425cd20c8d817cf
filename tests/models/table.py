"""Writes docs/models.md: ``python -m tests.models.table``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tests.models.families import FAMILIES
from tests.models.measure import Measured, exact_softmax, measure

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BOUND = 1e-9

OPENING = """\
# Models

Made by `python -m tests.models.table`, and held to by `tests/models`: edit that instead.

Any decoder-only causal LM of transformers is run that passes one hidden state from layer to layer
and takes its attention from transformers' attention interface. How a family embeds, what it hands
each layer and which norm comes last is learned from its own forward; no family is named in our
code. When a run starts, samples packed side by side must give the logits of the model's own
forward on each alone, or the base is refused. Windows are made a few tokens short for that check,
so that they bind.

Of each family below a tiny random model (3 layers; biases and norms random; windows of 4 tokens
and samples several times as long; caps low enough to bend) is trained in float64, three jobs at
once, and compared with a plain loop around PEFT's own model, and with the same jobs trained
alone. The figures are the worst relative difference of any step's loss and of the change of any
adapter tensor. Exported adapters are loaded by PEFT, and generate the same tokens from the same
logits.

| family | class of transformers | special | to PEFT | together to alone |
|---|---|---|---|---|
"""

REFUSED = {
    "quantised weights (bitsandbytes, GPTQ, AWQ, MXFP4, ...)": (
        "only plain weights are run; float16 is converted to the run's `dtype`"
    ),
    "dynamic rotary positions, also for one type of layer only": (
        "the frequencies depend on the longest sample of a microbatch, so on the neighbours"
    ),
    "longrope beyond its original length": (
        "as dynamic; up to `original_max_position_embeddings` all samples take the same "
        "frequencies, and `max_seq_len` is held to that"
    ),
    "chunked attention (Llama 4), and other types of layers than full and sliding": (
        "packed samples do not have them here"
    ),
    "ALiBi (BLOOM, MPT, Falcon with `alibi`)": (
        "positions are added to scores over the whole microbatch"
    ),
    "state space and recurrent layers (Mamba, RWKV, Jamba, ...)": (
        "the state would run on from one sample into the next"
    ),
    "encoder-decoders, cross attention": "only decoders are run",
    "attention in both directions": "only causal attention is run",
    "multimodal models (`Gemma3ForConditionalGeneration`, ...)": (
        "they wrap a text model with others; save the text model (`Gemma3ForCausalLM`) by itself"
    ),
    "attention code of a model's own (GPT-J, Falcon, ...)": (
        "it cannot be exchanged for packed attention"
    ),
    "code in the model's folder (`trust_remote_code`)": "never run",
    "experts as targets (Mixtral, Qwen-MoE)": (
        "all of a layer's matrices lie in one tensor, they are no linear layers; the attention of "
        "such a model can be adapted"
    ),
    "embeddings, head and norms as targets": "LoRA is on linear layers, `Conv1D` included",
    "anything else that changes logits when layers are called one by one": (
        "found by the comparison at the start of a run"
    ),
}


def markdown(measured: Mapping[str, Measured]) -> str:
    """The page, with bounds instead of digits: those differ from machine to machine."""
    rows = [
        f"| {family.title} | `{family.architecture}` | {family.special} "
        f"| {bound(measured[name].peft)} | {bound(measured[name].alone)} |"
        for name, family in FAMILIES.items()
    ]
    refused = [f"| {what} | {why} |" for what, why in REFUSED.items()]
    return "\n".join(
        [
            OPENING + "\n".join(rows),
            "",
            "Attention sinks (`s_aux`), scales of logits (Cohere, Granite) and a bias on the head "
            "(Phi) are done too.",
            "",
            "## Refused",
            "",
            "As early as the config allows, with the reason and what is allowed instead.",
            "",
            "| what | why |",
            "|---|---|",
            *refused,
            "",
        ]
    )


def bound(difference: float) -> str:
    """``< 1e-9`` where it is."""
    return f"< {BOUND:.0e}".replace("e-0", "e-") if difference < BOUND else f"{difference:.0e}"


def main() -> None:
    """Measure every family and write the page."""
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as text, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAFUSION_HOME", f"{text}/home")
        exact_softmax(patch)
        for name, family in FAMILIES.items():
            base, work = Path(text, name), Path(text, f"{name}-runs")
            base.mkdir()
            work.mkdir()
            make_tokenizer(base)
            family.write(base)
            measured[name] = measure(family, base, work)
    PAGE.write_text(markdown(measured))


if __name__ == "__main__":
    main()
