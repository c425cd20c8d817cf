"""What all tests share: a tiny tokenizer and tiny random models, made here without a download."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lorafusion.files import home
from lorafusion.launch.environment import prepare_environment

prepare_environment()  # before torch is imported

# A busy machine fails no test: hypothesis gives an example 200 ms by itself.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = "the quick brown fox jumps over a lazy dog and answers every question yes or no".split()


def make_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer of 320 tokens with ChatML's template into ``folder``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_llama(folder: Path, *, tied: bool = True, seed: int = 0, layers: int = 2) -> None:
    """Write a random Llama of hidden size 32 (4 heads, 2 KV heads) into ``folder``, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=320,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=tied,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
                initializer_range=0.2,  # the default .02 leaves attention nearly uniform
            )
        )
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama (tied embeddings) and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_base")
    make_tokenizer(folder)
    make_llama(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo's model, which ``make test`` fetches."""
    folder = home() / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "tokenizer.json").exists():
        pytest.fail(f"{folder} is missing: run `lorafusion fetch demo` first", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base: Path):
    """The tokenizer of ``tiny_base``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)
