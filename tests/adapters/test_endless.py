"""Regexes that may take for ever are refused, and those that people write are not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.adapters.patterns import why_endless

NAME = "model.layers.10.self_attn.q_proj"
GOOD = [
    r".*\.(q|k|v)_proj",
    r"model\.layers\.(1[0-9]|2\d)\.(self_attn|mlp)\..*_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|attn|mlp).*?(?:q_proj|k_proj).*?)",
    r"model\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|up_proj))",
    r"[^*+]+\.[])(+]*x{2}y{2,4}",
    r"\(\*\+\)*",
    r"(?P<layer>\d+)\.(?!mlp).*",
    r"a{,b}{x}",
    r"(ab)+\.(x{3})*",
    "all-linear",
    "",
]
BAD = [
    r"((.+)+)+!",
    r"(a*)*b",
    r"(a|.)*b",
    r"(a?a?)+b",
    r"(?:x(y{1,3}))*",
    r"(a{2,}){5,}",
    r"(([a-z]+)\.?)*!",
    r"(a+){40}",
    r".*.*.*.*.*.*!",
]


@pytest.mark.parametrize("pattern", GOOD)
def test_what_people_write(pattern: str) -> None:
    re.compile(pattern)
    assert why_endless(pattern) is None


@pytest.mark.parametrize("pattern", BAD)
def test_what_may_take_for_ever(pattern: str) -> None:
    re.compile(pattern)
    assert why_endless(pattern)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(alphabet=st.sampled_from("ab.()|*+?{},2[]^\\d:"), max_size=14))
def test_what_is_let_through_ends(text: str) -> None:
    """Within what a second does: hypothesis would wait for ever where it does not."""
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError):
        return
    if why_endless(text) is None:
        for name in ("a" * 40 + "!", "ab" * 20 + "!", NAME):
            pattern.fullmatch(name)
