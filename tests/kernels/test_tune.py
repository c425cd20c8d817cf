"""The search for configurations, with a stand-in for the GPU; and the files it keeps."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from lorafusion.kernels import config_files, launch_configs
from lorafusion.kernels.config_files import (
    ShapeClass,
    TunedFile,
    defaults,
    from_dict,
    read_tuned,
    to_dict,
    tuned_path,
)
from lorafusion.kernels.launch_configs import OPS, LaunchConfig
from lorafusion.kernels.tune import TuneShape, Watcher, candidates, tune, why_illegal

GPU, TRITON, ARCH = "NVIDIA H100 80GB HBM3", "9.9.9", "sm_90"
SHAPE = TuneShape(2048, 4096, 11008)


class StandIn:
    """A GPU by arithmetic: fewer warps are faster, and tiles of 256 columns do not run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.timed: list[tuple[str, LaunchConfig]] = []
        self.stop_after = stop_after

    def time(self, op, shape, config):
        if self.stop_after is not None and len(self.timed) >= self.stop_after:
            raise KeyboardInterrupt
        self.timed.append((op, config))
        if config.BN == 256:
            raise RuntimeError("out of resource: shared memory")
        return config.warps * 1e-3 + config.BM * 1e-6 + config.BK * 1e-7

    def compare(self, shape):
        return {"frozen": 1.0, "unfused": 2.0, "lorafusion": 1.5}


class Log(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, shape, op, count):
        self.lines.append(f"{op}: {count}")

    def candidate(self, config, seconds, reason):
        if reason:
            self.lines.append(reason)

    def known(self, shape, op):
        self.lines.append(f"{op} known")

    def compared(self, shape, seconds):
        self.lines.append(str(seconds["lorafusion"]))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path))
    return tmp_path


def search(bench, ops=("up",), again=False):
    tuned, log = read_tuned(GPU, TRITON), Log()
    tune([SHAPE], ops, tuned, arch=ARCH, bench=bench, watcher=log, again=again)
    return tuned, log.lines


def test_the_fastest_candidate_wins_and_is_read_back():
    bench = StandIn()
    tuned, lines = search(bench, OPS)
    assert tuned_path(GPU).name == "nvidia-h100-80gb-hbm3.json"
    again = read_tuned(GPU, TRITON)
    assert again == tuned
    for op in OPS:
        mine = [config for name, config in bench.timed if name == op]
        assert mine[0] == defaults(ARCH)["half", op], "the default comes first"
        runs = [config for config in mine if config.BN != 256]
        best = min(runs, key=lambda c: c.warps * 1e-3 + c.BM * 1e-6 + c.BK * 1e-7)
        assert again.best[SHAPE.of(op)] == best
        assert again.seconds[SHAPE.of(op)]["best"] < again.seconds[SHAPE.of(op)]["default"]
    assert lines[-1] == "1.5"
    assert again.compared == {str(SHAPE): {"frozen": 1.0, "unfused": 2.0, "lorafusion": 1.5}}


def test_a_candidate_that_fails_is_noted_and_the_rest_goes_on():
    bench = StandIn()
    tuned, lines = search(bench)
    failed = tuned.failed[SHAPE.of("up")]
    wide = [config for _, config in bench.timed if config.BN == 256]
    assert wide
    assert set(failed) == {json.dumps(to_dict(config)) for config in wide}
    assert set(failed.values()) == {"RuntimeError: out of resource: shared memory"}
    assert lines.count("RuntimeError: out of resource: shared memory") == len(wide)
    assert len(bench.timed) > len(wide)


def test_a_stopped_search_goes_on_where_it_was():
    first = StandIn()
    search(first, ("down",))
    stopped = StandIn(stop_after=80)
    with pytest.raises(KeyboardInterrupt):
        search(stopped, ("down", "up"))
    assert {op for op, _ in stopped.timed} == {"up"}, "down was found before"
    tried = [config for _, config in stopped.timed if config.BN == 256]
    assert tried, "it failed before the stop"
    last = StandIn()
    _, lines = search(last, ("down", "up"))
    assert "down known" in lines
    assert "up known" not in lines, "a part of a search is no result"
    assert not set(tried) & {config for _, config in last.timed}, "a failure is not tried twice"
    _, lines = search(StandIn(), ("down",), again=True)
    assert "down known" not in lines


def test_only_what_may_run_is_tried():
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"):
        for op in OPS:
            for dtype in ("half", "float32"):
                found = candidates(op, dtype, arch, 16)
                assert len(found) == len(set(found)) >= 20
                assert not any(why_illegal(op, config, arch, 16) for config in found[1:])
    on_a100, on_5090 = (len(candidates("up", "half", arch, 16)) for arch in ("sm_80", "sm_120"))
    assert on_a100 > on_5090, "99 KB of shared memory hold fewer tiles than 163"


@pytest.mark.parametrize(
    ("op", "config", "reason"),
    [
        ("up", LaunchConfig(BM=256, BN=128, BK=128, warps=8, stages=4), "shared memory, and"),
        ("up", LaunchConfig(BM=128, BN=256, BK=32, warps=4, stages=2), "256 registers"),
        ("grad_down", LaunchConfig(BM=64, BN=64, span=32), "no multiple"),
        ("grad_a", LaunchConfig(BM=64, BK=64, span=32), "no multiple"),
        ("up", LaunchConfig(BM=128, BN=128, BK=64, warps=8), ""),
    ],
)
def test_why_illegal(op, config, reason):
    found = why_illegal(op, config, "sm_90", 16)
    assert reason in found if reason else not found


# --- files


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"version": 0}, "tuned for kernels 0"),
        ({"triton": "1.0"}, "with triton 1.0"),
        ({"gpu": "another"}, "on another"),
        ({"best": {"up half rows=256 inner=256 outer=256 ranks=16": {"BM": 17}}}, "BM is 17"),
        ({"best": {"up half rows=256 inner=256 outer=256 ranks=16": {"XY": 1}}}, "unexpected"),
        ({"best": {"up": {}}}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_for_something_else_is_not_used(change, note, caplog):
    search(StandIn())
    path = tuned_path(GPU)
    assert read_tuned(GPU, TRITON).best
    content = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(content | change))
    with caplog.at_level(logging.WARNING):
        assert read_tuned(GPU, TRITON) == TunedFile(GPU, TRITON)
    assert str(path) in caplog.text
    assert note in caplog.text


def test_shapes_of_a_class_share_their_configuration():
    def of(*sizes):
        return ShapeClass.of("up", "half", sizes, 16)

    assert of(1500, 4096, 11008) == of(2048, 4000, 16384)
    assert of(2049, 4096, 11008) != of(2048, 4096, 11008)
    assert of(0, 1, 256) == of(256, 256, 256)
    assert ShapeClass.parse(str(of(5, 4096, 300))) == of(5, 4096, 300)


def test_an_op_runs_with_what_was_tuned(monkeypatch):
    import torch

    config = LaunchConfig(BM=64, BN=64, BK=32)
    key = ShapeClass.of("up", "half", (300, 64, 128), 16)
    monkeypatch.setattr(launch_configs, "tuned_configs", lambda _: {key: config})
    x = torch.zeros(300, 64, dtype=torch.bfloat16)
    choose = launch_configs.choose_config
    assert choose("up", x, 16, 128) == config
    for other in (choose("up", x, 64, 128), choose("up", x.float(), 16, 128)):
        assert other != config


@pytest.mark.parametrize(
    ("arch", "like"),
    [
        ("sm_86", "sm_120"),
        ("sm_87", "sm_80"),
        ("sm_103", "sm_100"),
        ("sm_121", "sm_120"),
        ("gfx90a", "gfx942"),
        ("gfx1100", "gfx942"),
        ("sm_130", "sm_120"),
        ("cpu", "sm_80"),
    ],
)
def test_architectures_without_a_file(arch, like):
    assert defaults(arch) == defaults(like)
    assert not (config_files.FOLDER / f"{arch}.json").exists()


def test_a_configuration_is_written_as_what_is_not_ordinary():
    config = replace(LaunchConfig(BM=64), BK=32, atomic=True)
    assert to_dict(config) == {"BM": 64, "BK": 32, "atomic": True}
    assert from_dict(to_dict(config)) == config
