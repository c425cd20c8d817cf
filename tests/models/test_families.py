"""Every family of docs/models.md: equal to PEFT, together equal to alone, rules that bind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.peft_format import load_adapter
from lorafusion.cli.generate import add_loaded
from lorafusion.errors import ModelError
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.kernels.native.library import VARIABLE
from lorafusion.models import attention
from lorafusion.models import stage as stage_module
from lorafusion.models.generate import generate
from lorafusion.models.head import head_of
from lorafusion.models.load import load_base
from lorafusion.models.stage import Stage
from tests.models.families import FAMILIES, WINDOW
from tests.models.measure import Measured
from tests.models.table import PAGE, markdown
from tests.training import runs

BaseOf = Callable[[str], Path]
LENGTHS = (2 * WINDOW + 3, 1, WINDOW, 3 * WINDOW)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_trains_as_peft_does_and_as_alone(
    family: str, measured_family: Callable[[str], Measured], family_base: BaseOf
) -> None:
    measured = measured_family(family)
    runs.figure(f"{family}, worst difference to PEFT", measured.peft)
    runs.figure(f"{family}, worst difference together and alone", measured.alone)
    assert measured.peft <= 1e-9
    assert measured.alone <= 1e-9
    generates_what_peft_generates(family_base(family), measured.folder / "all" / "adapter")


def generates_what_peft_generates(folder: Path, adapter: Path) -> None:
    """With the exported adapter; the prompt is longer than the window."""
    prompt = torch.arange(3, 3 + 2 * WINDOW)
    base = load_base(str(folder), "float64")
    Stage(base)  # its packed attention must not stay in the way
    bank = AdapterBank(base.model)
    slot = add_loaded(bank, base, load_adapter(adapter)).slot
    ours = logits_of(base.model)
    answer = generate(
        base, prompt.tolist(), max_new_tokens=6, slot=slot, modules=bank.modules([slot])
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    theirs = logits_of(model)
    model = peft.PeftModel.from_pretrained(model, str(adapter)).to(torch.float64).eval()
    expected = model.generate(input_ids=prompt[None], max_new_tokens=6, do_sample=False)
    assert answer == expected[0, len(prompt) :].tolist()
    assert len(ours) == len(theirs) == len(answer)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-7, atol=1e-7)
    plain = generate(base, prompt.tolist(), max_new_tokens=1)
    assert len(plain) == 1
    assert not torch.allclose(ours[0], ours[-1], atol=1e-3), "the adapter does nothing"


def logits_of(model: Any) -> list[torch.Tensor]:
    """Filled with the last row's logits at each forward."""
    seen: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: seen.append(output[0, -1].detach())
    )
    return seen


def samples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 320, (length,), generator=generator) for length in LENGTHS]


def packed_logits(stage: Stage, pieces: list[torch.Tensor]) -> torch.Tensor:
    lengths = [len(piece) for piece in pieces]
    layout = AdapterLayout.build([Segment(-1, 0, 0, range(4), lengths)], {}, training=False)
    with torch.no_grad():
        return stage.head.logits(stage(torch.cat(pieces), layout))


def own_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return torch.cat([model(input_ids=sample[None]).logits[0] for sample in samples()])


def test_logits_are_the_models_own_in_any_order(
    family: str, family_base: BaseOf, float64_softmax: None
) -> None:
    expected = own_logits(family_base(family))
    stage = Stage(load_base(str(family_base(family)), "float64"))
    found = packed_logits(stage, samples())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    order = [2, 3, 0, 1]
    moved = packed_logits(stage, [samples()[i] for i in order])
    back = dict(zip(order, moved.split([LENGTHS[i] for i in order]), strict=True))
    torch.testing.assert_close(
        torch.cat([back[i] for i in range(4)]), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("loops", ["0", "1"])
def test_float32_logits_are_near_the_models_own(
    loops: str,
    family: str,
    family_base: BaseOf,
    float64_softmax: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the compiled loops and without them: windows, softcaps and scales of scores."""
    monkeypatch.setenv(VARIABLE, loops)
    found = packed_logits(Stage(load_base(str(family_base(family)), "float32")), samples())
    expected = own_logits(family_base(family))
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_in_other_dtypes_and_keeps_its_weights(
    dtype: str, family: str, family_base: BaseOf
) -> None:
    base = load_base(str(family_base(family)), dtype)
    before = base.fingerprint()
    stage = Stage(base)
    logits = packed_logits(stage, samples())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert base.fingerprint() == before
    assert base.tensors.keys() == dict(base.model.named_parameters()).keys()


WINDOWED = ("qwen2", "mistral", "gemma2", "gemma3", "phi3")


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, "window") for name in WINDOWED), ("gemma2", "softcap"), ("gemma2", "scaling")],
)
def test_a_rule_of_attention_that_is_ignored_is_seen(
    name: str, rule: str, family_base: BaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the samples of these tests, and by the check when a stage is built."""
    expected = own_logits(family_base(name))
    read = attention._read_rules
    ignored = FAMILIES[name].config().head_dim ** -0.5 if rule == "scaling" else None
    monkeypatch.setattr(
        attention, "_read_rules", lambda *args: read(*args)._replace(**{rule: ignored})
    )
    with pytest.raises(ModelError, match="other logits"):
        Stage(load_base(str(family_base(name)), "float32"))
    monkeypatch.setattr(stage_module, "check_stage", lambda *_args, **_options: None)
    found = packed_logits(Stage(load_base(str(family_base(name)), "float64")), samples())
    assert (found - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_softcap_of_logits_that_is_ignored_is_seen(
    name: str, family_base: BaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stage_module, "head_of", lambda model: head_of(model)._replace(softcap=None)
    )
    with pytest.raises(ModelError, match="other logits of its final hidden state"):
        Stage(load_base(str(family_base(name)), "bfloat16"))


def test_tied_and_untied_heads(family: str, tmp_path: Path, float64_softmax: None) -> None:
    """Whichever of the two the family's own default is not."""
    config = FAMILIES[family].config()
    FAMILIES[family].write(tmp_path, tie_word_embeddings=not config.tie_word_embeddings)
    base = load_base(str(tmp_path), "float64")
    found = packed_logits(Stage(base), samples())
    torch.testing.assert_close(found, own_logits(tmp_path), rtol=1e-10, atol=1e-10)
    tied = base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight
    assert tied is not config.tie_word_embeddings


def test_a_window_of_the_base_is_put_back_after_the_check(family_base: BaseOf) -> None:
    base = load_base(str(family_base("gemma3")), "float32")
    base.model.config.sliding_window = 99
    for module in base.model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 99
    Stage(base)
    windows = [getattr(module, "sliding_window", None) for module in base.model.modules()]
    assert {window for window in windows if window is not None} == {99}
    assert base.model.config.sliding_window == 99


def test_longrope_up_to_its_original_length(family_base: BaseOf, tmp_path: Path) -> None:
    """Where packed samples and a sample alone take the same frequencies; beyond it is refused."""
    family = FAMILIES["phi3"]
    settings = {**family.settings, "original_max_position_embeddings": 12}
    settings["rope_parameters"] = {
        **family.settings["rope_parameters"],
        "original_max_position_embeddings": 12,
    }
    replace(family, settings=settings).write(tmp_path)
    stage = Stage(load_base(str(tmp_path), "float64"))
    assert max(LENGTHS) == 12
    found = packed_logits(stage, samples())
    torch.testing.assert_close(found, own_logits(tmp_path), rtol=1e-10, atol=1e-10)
    longer = [*samples()[:3], torch.arange(13)]
    with pytest.raises(ModelError, match="13 tokens, and the base takes up to 12"):
        packed_logits(stage, longer)


def test_learned_positions_end_where_their_table_does(family_base: BaseOf) -> None:
    stage = Stage(load_base(str(family_base("gpt2")), "float32"))
    with pytest.raises(ModelError, match="257 tokens, and the base takes up to 256"):
        packed_logits(stage, [*samples()[:3], torch.arange(257)])


def test_the_table_in_the_docs_is_what_was_measured(
    measured_family: Callable[[str], Measured],
) -> None:
    """``python -m tests.models.table`` writes it."""
    assert PAGE.read_text() == markdown({name: measured_family(name) for name in FAMILIES})
