"""What the default cost model knows of a device.

Peaks, memory and links are the vendors' figures. The fractions of them that real programs reach,
the launch times and the network between nodes are assumptions, the same for all GPUs but where a
reason is given; ``lorafusion profile`` measures instead of assuming.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafusion.errors import PlanError

__all__ = ["DEVICES", "DeviceProfile", "find_device"]


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        name: As users give it.
        source: Where the vendor's figures stand.
        peak_flops: Dense bfloat16 operations per second (a multiply and an add are two).
        memory_bytes: Memory, in the data sheet's decimal gigabytes.
        bandwidth: Bytes per second to and from it.
        link: Bytes per second to a neighbour in the same node, one way.
        network: Bytes per second to a device in another node, one way. Assumed: one network card
            per device, as the vendors' own systems have.
        gemm_fraction: Share of the peak that large matrix products reach. Assumed.
        attention_fraction: Share of the peak that attention reaches. Assumed: FlashAttention-2's
            35% on an H100 (Shah et al. 2024, arXiv:2407.08608).
        bandwidth_fraction: Share of the bandwidth that passes over a tensor reach. Assumed.
        usable_fraction: Share of the memory that a run may plan with. Assumed: the rest is for the
            runtime's own, for fragments and for the libraries' workspaces.
        launch_s: Seconds that a kernel costs beside its work. Assumed.
        latency_s: Seconds before the first byte of a transfer. Assumed.
        tile_rows: Rows of a tile of the matrix products, which never holds two jobs' rows, so that
            each segment leaves half a tile empty on average; 0 without tiles.
        packed_attention: Whether attention is this project's own loops, whose output is what the
            next linear reads; else it keeps an output of its own, sample by sample.
        loss_bytes: Of the logits that the loss holds at a time: a chunk of its rows.
        runtime_bytes: What the process holds before the base is loaded, where it counts as the
            device's memory: interpreter, torch, transformers, tokenizer.
    """

    name: str
    source: str
    peak_flops: float
    memory_bytes: float
    bandwidth: float
    link: float
    network: float
    gemm_fraction: float = 0.6
    attention_fraction: float = 0.35
    bandwidth_fraction: float = 0.8
    usable_fraction: float = 0.9
    launch_s: float = 2e-6
    latency_s: float = 1e-5
    tile_rows: int = 128
    packed_attention: bool = False
    loss_bytes: float = 256 * 2**20
    runtime_bytes: float = 0.0

    @property
    def usable_bytes(self) -> float:
        """What a run may plan with."""
        return self.memory_bytes * self.usable_fraction


_T, _G = 1e12, 1e9

_PROFILES = (
    DeviceProfile(
        name="a100",
        source="NVIDIA A100 80GB data sheet, SXM; NVLink 600 GB/s both ways; HDR InfiniBand",
        peak_flops=312 * _T,
        memory_bytes=80 * _G,
        bandwidth=2.039 * _T,
        link=300 * _G,
        network=25 * _G,
        # A third of an H100's peak at three fifths of its bandwidth: easier to reach.
        # FlashAttention-2 was made for it.
        gemm_fraction=0.7,
        attention_fraction=0.55,
    ),
    DeviceProfile(
        name="h100",
        source="NVIDIA H100 data sheet, SXM5; NVLink 900 GB/s both ways; NDR InfiniBand",
        peak_flops=989.4 * _T,
        memory_bytes=80 * _G,
        bandwidth=3.35 * _T,
        link=450 * _G,
        network=50 * _G,
    ),
    DeviceProfile(
        name="h200",
        source="NVIDIA H200 data sheet, SXM; NVLink 900 GB/s both ways; NDR InfiniBand",
        peak_flops=989.4 * _T,
        memory_bytes=141 * _G,
        bandwidth=4.8 * _T,
        link=450 * _G,
        network=50 * _G,
    ),
    DeviceProfile(
        name="b200",
        source="NVIDIA HGX B200 data sheet; NVLink 1.8 TB/s both ways; NDR InfiniBand",
        peak_flops=2250 * _T,
        memory_bytes=180 * _G,
        bandwidth=8 * _T,
        link=900 * _G,
        network=50 * _G,
    ),
    DeviceProfile(
        name="mi300x",
        source="AMD Instinct MI300X data sheet; one Infinity Fabric link 128 GB/s both ways",
        peak_flops=1307.4 * _T,
        memory_bytes=192 * _G,
        bandwidth=5.3 * _T,
        link=64 * _G,
        network=50 * _G,
        # Its power limit is reported to hold large products below half of the peak.
        gemm_fraction=0.45,
        attention_fraction=0.25,
    ),
    DeviceProfile(
        name="cpu",
        source="no vendor: all assumed, some cores with wide vectors and two memory channels",
        peak_flops=0.5 * _T,
        memory_bytes=16 * _G,
        bandwidth=25 * _G,
        link=5 * _G,
        network=1.25 * _G,
        gemm_fraction=0.6,
        attention_fraction=0.2,
        launch_s=1e-5,
        latency_s=5e-5,
        tile_rows=0,
        packed_attention=True,
        loss_bytes=48 * 2**20,
        # Measured, see docs/memory.md: 492 MB with torch 2.13 and transformers 5.23.
        runtime_bytes=492e6,
    ),
)

DEVICES = {profile.name: profile for profile in _PROFILES}
"""Name -> profile."""


def find_device(name: str) -> DeviceProfile:
    """The profile of ``name``, in small or capital letters.

    Raises:
        PlanError: There is none; the message names those there are.
    """
    profile = DEVICES.get(name.strip().lower())
    if profile is None:
        raise PlanError(
            f"device {name!r} is unknown; allowed: {', '.join(DEVICES)}. For another one give a "
            "cost model that was measured on it."
        )
    return profile
