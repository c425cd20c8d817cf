"""``lorafusion generate --adapter DIR "prompt"``: try an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafusion.cli.quiet import quiet_transformers
from lorafusion.errors import AdapterError, DataError

if TYPE_CHECKING:
    from lorafusion.adapters.bank import AdapterBank, ResidentAdapter
    from lorafusion.adapters.peft_format import StoredAdapter
    from lorafusion.models.load import Base


def command(
    prompt: Annotated[str, typer.Argument(help="What to answer.")],
    adapter: Annotated[Path, typer.Option(help="The adapter's folder, ours or PEFT's.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 64,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the base, if not the adapter's own.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Give the prompt as it is, without the chat template: for adapters that were "
            "trained on prompt and completion.",
        ),
    ] = False,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Let the base answer alone, to compare.")
    ] = False,
) -> None:
    """Answer a prompt greedily with an adapter on its base. Prints the answer and nothing else."""
    from lorafusion.adapters.bank import AdapterBank
    from lorafusion.adapters.peft_format import load_adapter
    from lorafusion.data.prompt import tokenise_prompt
    from lorafusion.data.tokenizer import load_tokenizer
    from lorafusion.models.generate import generate
    from lorafusion.models.load import load_base

    quiet_transformers()
    loaded = load_adapter(adapter)
    name = base_model or loaded.base_model
    if not name:
        raise AdapterError(f"{adapter} does not name its base. Give it with --base-model.")
    tokenizer = load_tokenizer(name)
    chat = not raw and bool(tokenizer.chat_template)
    tokens = tokenise_prompt(tokenizer, prompt, chat=chat)
    base = load_base(name, "float32")
    _check_length(base, len(tokens) + max_new_tokens)
    bank = AdapterBank(base.model)
    slots = [] if no_adapter else [add_loaded(bank, base, loaded).slot]
    answer = generate(
        base,
        tokens,
        max_new_tokens=max_new_tokens,
        slot=slots[0] if slots else -1,
        modules=bank.modules(slots),
    )
    typer.echo(tokenizer.decode(answer, skip_special_tokens=True))


def add_loaded(bank: AdapterBank, base: Base, adapter: StoredAdapter) -> ResidentAdapter:
    """Put an adapter that was read from a folder into a slot.

    Raises:
        AdapterError: It does not fit the base.
    """
    from lorafusion.adapters.initial import check_fit

    check_fit(adapter, bank.names, base.name)
    resident = bank.add(adapter.config, adapter.modules, seed=0)
    tensors = {
        f"{name}.{key}": tensor
        for name, pair in adapter.modules.items()
        for key, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    resident.load(tensors)
    return resident


def _check_length(base: Base, tokens: int) -> None:
    longest = getattr(base.model.config, "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise DataError(
            f"prompt and answer may take {tokens} tokens, and the base was made for up to "
            f"{longest}. Shorten the prompt or lower --max-new-tokens."
        )
