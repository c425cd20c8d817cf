"""DeepSpeed's ZeRO-3 for a frozen base: each rank keeps a part of every matrix.

DeepSpeed is imported here and nowhere earlier. It is made to compile nothing: its shared-memory
transport for CPUs, which it builds with ninja when it is first used, is switched off.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, redirect_stdout
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.errors import LaunchError, LostRankError
from lorafusion.models.zero_package import INSTALL, KNOWN, require_deepspeed

SHARED_MEMORY = "deepspeed_shm_comm"


class Gathers(NamedTuple):
    """What this rank gathered, as DeepSpeed's comms logger counts it.

    Attributes:
        number: Of collectives.
        nbytes: That they brought together, this rank's own part too.
        seconds: Spent in them, the wait for the other ranks too.
    """

    number: int
    nbytes: int
    seconds: float


class Zero:
    """Cuts weights over the ranks of a process group, and makes them whole again."""

    def __init__(self, device: torch.device, group: Any, *, offload: bool) -> None:
        """Every rank of the group must do so.

        Args:
            device: Where weights are whole.
            group: A process group of torch that can gather tensors there.
            offload: Keep the parts in the host's memory.

        Raises:
            LaunchError: There is no DeepSpeed, or one that is built otherwise.
        """
        self._deepspeed = _import(device)
        self._group = group
        self._device = device
        self._ranks = torch.distributed.get_world_size(group)
        self._offload = offload
        self._stand_ins: dict[torch.dtype, torch.Tensor] = {}
        self._seconds = 0.0

    def cut(self, weights: Sequence[nn.Parameter]) -> None:
        """Keep this rank's part of each; what rank 0 of the group has counts.

        Raises:
            LostRankError: Another rank is gone.
        """
        config: dict[str, Any] = {"stage": 3, "memory_efficient_linear": False}
        if self._offload:
            config["offload_param"] = {"device": "cpu", "pin_memory": self._device.type == "cuda"}
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": config}
        with _lost_ranks("cut the base over the ranks"):
            self._deepspeed.zero.Init(
                module=nn.ParameterList(weights),
                data_parallel_group=self._group,
                config_dict_or_path=settings,
            )
        self._let_go(weights)

    @contextmanager
    def gathered(self, weights: Sequence[nn.Parameter]) -> Generator[None]:
        """The weights are whole inside the block; what is written to them there is lost.

        Raises:
            LostRankError: Another rank is gone.
            LaunchError: This rank has no memory for them; the others wait for it.
        """
        block, started = self._deepspeed.zero.GatheredParameters(list(weights)), perf_counter()
        with _lost_ranks("gather weights of the base"):
            block.__enter__()
        self._seconds += perf_counter() - started
        try:
            yield
        finally:
            block.__exit__(None, None, None)
            self._let_go(weights)

    def part(self, weight: nn.Parameter) -> torch.Tensor:
        """What this rank keeps of it, one-dimensional, and maybe longer at its end."""
        kept: Any = weight
        return kept.ds_tensor

    def log(self) -> None:
        """Let DeepSpeed count its collectives from now on; on a GPU it then waits for each."""
        self._deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)
        self._deepspeed.comm.reset_log()
        self._seconds = 0.0

    def gathers(self) -> Gathers:
        """What was gathered since :meth:`log`."""
        logged = self._deepspeed.comm.comm.comms_logger.get_raw_data()
        found = [
            (size, entry[0])
            for name, sizes in logged.items()
            if "all_gather" in name
            for size, entry in sizes.items()
        ]
        parts = sum(size * n for size, n in found)
        return Gathers(sum(n for _, n in found), parts * self._ranks, self._seconds)

    def _let_go(self, weights: Iterable[nn.Parameter]) -> None:
        """DeepSpeed leaves a tensor without elements; NaNs in the right shape take no memory.

        So a weight can still be asked for its shape, and whoever reads it without having it
        gathered gets NaN.
        """
        for weight in weights:
            whole: Any = weight
            if weight.dtype not in self._stand_ins:
                self._stand_ins[weight.dtype] = torch.full(
                    (1,), torch.nan, dtype=weight.dtype, device=self._device
                )
            weight.data = self._stand_ins[weight.dtype].expand(whole.ds_shape)


def _import(device: torch.device) -> Any:
    """DeepSpeed, with its collectives over torch's process groups."""
    version = require_deepspeed()
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # it looks nowhere else
    try:
        # Its logger keeps the stdout of this moment, and what is printed there is for programs.
        with redirect_stdout(sys.stderr):
            import deepspeed  # pyright: ignore
            import deepspeed.comm  # pyright: ignore
            import deepspeed.ops  # pyright: ignore
    except Exception as error:
        raise LaunchError(
            f"DeepSpeed {version} cannot be imported ({type(error).__name__}: {error}). {INSTALL}."
        ) from error
    # DeepSpeed calls torch by a name that torch would like to see gone.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    if device.type == "cpu":
        _compile_nothing(deepspeed, version)
    deepspeed.comm.init_distributed(verbose=False)
    return deepspeed


def _compile_nothing(deepspeed: Any, version: str) -> None:
    """Take the transport that DeepSpeed would compile out of what it holds to be compatible.

    It raises without ninja or a compiler, and takes minutes with them. gloo does all that it does.
    There is no setting for this, so a version that keeps its list elsewhere is refused.
    """
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if not isinstance(compatible, dict) or SHARED_MEMORY not in compatible:
        raise LaunchError(
            f"DeepSpeed {version} does not say which of its parts it would compile, as versions "
            f"{KNOWN}.* do; it would need ninja and a C++ compiler now. Install a version that is "
            f"known: `pip install 'deepspeed=={KNOWN}.*'`."
        )
    compatible[SHARED_MEMORY] = False


@contextmanager
def _lost_ranks(what: str) -> Generator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:  # the others wait for this rank: nobody can go on
        raise LaunchError(
            f"no memory is left to {what}: {error}. Lower `capacity`, or set `offload: cpu`."
        ) from error
    except RuntimeError as error:
        raise LostRankError(f"cannot {what}: {error}") from error
