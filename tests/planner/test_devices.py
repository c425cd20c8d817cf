from __future__ import annotations

import dataclasses

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.devices import DEVICES, find_device


def test_the_profiles_there_are() -> None:
    assert list(DEVICES) == ["a100", "h100", "h200", "b200", "mi300x", "cpu"]
    assert all(name == profile.name for name, profile in DEVICES.items())


@pytest.mark.parametrize("profile", DEVICES.values(), ids=str)
def test_numbers_are_possible(profile: object) -> None:
    assert dataclasses.is_dataclass(profile)
    values = {f.name: getattr(profile, f.name) for f in dataclasses.fields(profile)}
    for name, value in values.items():
        if name.endswith("_fraction"):
            assert 0 < value < 1, name
        elif name not in ("name", "source", "tile_rows", "packed_attention", "runtime_bytes"):
            assert value > 0, name
    assert values["network"] <= values["link"] < values["bandwidth"] < values["peak_flops"]
    assert values["source"]


def test_data_sheet_figures_of_an_h100() -> None:
    h100 = find_device("H100 ")
    assert h100.peak_flops == pytest.approx(989.4e12)  # dense: half of the headline figure
    assert h100.bandwidth == pytest.approx(3.35e12)
    assert h100.usable_bytes == pytest.approx(72e9)


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"device 'tpu' is unknown; allowed: a100, .*mi300x, cpu"):
        find_device("tpu")
