"""The file of a profile: what is written is read, and of another machine it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorafusion.errors import LorafusionError, OutputError, ProfileError
from lorafusion.planner.cost import Linear, StageCost
from lorafusion.planner.parts import PartCosts
from lorafusion.profiling.key import ProfileKey, config_hash
from lorafusion.profiling.profile import Pass, Profile, read_profile, write_profile

CONFIG = {"model_type": "llama", "hidden_size": 32, "_name_or_path": "x", "dtype": "float32"}
KEY = ProfileKey.here(CONFIG, "float32", ("v_proj", "q_proj"))
LAYER = StageCost(Linear(0.1, 0.01), Linear(0.2, 0.02), 0.1, 0.2, Linear(token=3), 100.0)
PARTS = PartCosts(2, True, LAYER, LAYER, LAYER, Linear(1e-4, 1e-6), "measured")
PROBE = {"tokens": 5, "held_out": True, "forward_s": 1.0, "backward_s": 1.0, "predicted_s": 2.1}
PROFILE = Profile(
    key=KEY,
    base_model="base",
    made="2026-01-01T00:00:00+00:00",
    machine={"cpu": "x", "cores": 2},
    seconds=12.5,
    peak_flops=None,
    peak_source="not known",
    passes=(Pass(2, PARTS, 0.05, (PROBE,)),),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    write_profile(PROFILE, path)
    assert read_profile(path) == PROFILE


def test_costs_are_of_a_number_of_threads() -> None:
    assert PROFILE.parts(2) == PARTS
    with pytest.raises(ProfileError, match=r"measured with 2 threads a stage, and the run has 1"):
        PROFILE.parts(1)


def test_the_worst_held_out_error() -> None:
    assert PROFILE.passes[0].worst == pytest.approx(0.05)


def test_a_key_holds_for_the_same_run_alone() -> None:
    KEY.check(ProfileKey.here(CONFIG, "float32", ("q_proj", "v_proj")))
    others = {
        "a base with another config": replace(KEY, base=config_hash({**CONFIG, "hidden_size": 64})),
        "processor .*, here H100": replace(KEY, processor="H100"),
        "dtype float32, here bfloat16": replace(KEY, dtype="bfloat16"),
        "targets q_proj, v_proj, here o_proj": replace(KEY, targets=("o_proj",)),
        "torch .*, here 1.0": replace(KEY, versions={**KEY.versions, "torch": "1.0"}),
    }
    for message, other in others.items():
        with pytest.raises(ProfileError, match=message):
            KEY.check(other)
        assert other.name != KEY.name


def test_a_base_is_known_by_its_layers() -> None:
    """Not by the folder it lies in, nor the version that wrote its config."""
    same = {**CONFIG, "_name_or_path": "y", "transformers_version": "9"}
    assert config_hash(same) == config_hash(CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "no profile of format 1"),
        (lambda d: d.pop("key"), "'key' is missing"),
        (lambda d: d.update(passes=[]), "passes is empty"),
        (lambda d: d["passes"][0]["parts"].update(layers=0), "parts.layers is 0"),
        (lambda d: d["passes"][0]["parts"]["layer"]["forward"].update(token=-1), "finite number"),
        (lambda d: d["key"].update(more=1), "more"),
    ],
)
def test_a_broken_file_is_refused(change, message: str, tmp_path: Path) -> None:
    document = json.loads(PROFILE.to_json())
    change(document)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=message):
        read_profile(path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such file"):
        read_profile(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ProfileError, match="cannot be used"):
        read_profile(tmp_path / "text.json")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_profile(PROFILE, tmp_path / "file" / "profile.json")
    assert issubclass(ProfileError, LorafusionError)
