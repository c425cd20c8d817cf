"""Which of the RMSNorms it is: they differ in the factor, and in where they round."""

from __future__ import annotations

from typing import NamedTuple


class NormForm(NamedTuple):
    """What transformers' classes do differently."""

    eps: float
    """Added to the mean square."""
    plus_one: bool = False
    """The factor is 1 + w, in float32, as in Gemma; else w."""
    rounds_first: bool = False
    """The row over its root is rounded to the input's dtype before it meets the factor, as in
    Llama; else only the result is, as in OLMo 2 and Gemma."""
