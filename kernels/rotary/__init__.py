"""rotary: the rotary positions of queries and keys, in one pass over both."""

from lorafusion.kernels.rotary.op import rotary

__all__ = ["rotary"]
