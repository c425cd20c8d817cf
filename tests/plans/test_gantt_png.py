from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lorafusion.errors import LorafusionError
from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.simulate import Simulation, simulate
from lorafusion.plans import colours
from lorafusion.plans.gantt_png import REMEDY, draw
from lorafusion.plans.summary import summarise
from tests.plans.samples import HOSTILE, SMALL, by_load, in_seconds, large, renamed

INK = "#17202a"


def drawn(path: Path, plan: Plan, simulation: Simulation, title: str = "plan") -> NDArray[np.uint8]:
    """The picture's pixels [height, width, 3]."""
    from matplotlib.image import imread

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(path, plan, simulation, summarise(plan, simulation, title=title))
    return np.rint(np.asarray(imread(path))[..., :3] * 255).astype(np.uint8)


def share(pixels: NDArray[np.uint8], colour: str) -> float:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((pixels == rgb).all(axis=-1).mean())


def test_each_jobs_forwards_and_backwards_are_there_in_their_shares(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "plan.png", SMALL, by_load(SMALL))
    forward = [share(pixels, colours.forward(job)) for job in range(4)]
    backward = [share(pixels, colours.backward(job)) for job in range(4)]
    # In the order of their first places: b (40 of its 110 an eval, hatched), a (170), c (80).
    assert forward[3] == backward[3] == 0
    assert min(forward[:3]) > 0
    for job in range(1, 3):
        assert backward[job] == pytest.approx(2 * forward[job], rel=0.1)
    assert backward[1] / backward[2] == pytest.approx(170 / 80, rel=0.1)
    assert backward[0] / backward[2] == pytest.approx(70 / 80, rel=0.1)


def test_the_lanes_show_the_first_places_however_long_the_plan_is(tmp_path: Path) -> None:
    long = large(260, stages=2)
    pictures = [
        drawn(tmp_path / "plan.png", plan, in_seconds(plan, step_s=0))
        for plan in (long, replace(long, places=long.places[:130]))
    ]
    # Marks of steps are as wide however long the plan is: as many of them, as much ink.
    height = pictures[0].shape[0]
    ink = [share(picture[height // 2 : int(0.75 * height)], INK) for picture in pictures]
    assert ink[0] > 0 and ink[0] == pytest.approx(ink[1], rel=0.1)


def test_the_lanes_of_a_long_plan_do_not_drain(tmp_path: Path) -> None:
    plan = large(200, stages=2, replicas=2)
    pixels = drawn(tmp_path / "plan.png", plan, in_seconds(plan))
    height, width, _ = pixels.shape
    assert width == 2100 and 600 < height < 1200
    # To the right edge the lanes are full: what is drawn does not drain.
    right = pixels[height // 3 :, int(0.97 * width) : int(0.98 * width)]
    shades = [shade(job) for job in range(5) for shade in (colours.forward, colours.backward)]
    assert sum(share(right, shade) for shade in shades) > 0.15


def test_the_picture_grows_with_the_stages(tmp_path: Path) -> None:
    heights = [
        drawn(tmp_path / "plan.png", plan, by_load(plan)).shape[0]
        for plan in (large(8, stages=stages) for stages in (1, 16))
    ]
    assert heights[1] - heights[0] > 600


@pytest.mark.parametrize("names", [(HOSTILE, "$x_{$", "_hidden"), ("日本", "a\nb\x07", "n" * 200)])
def test_any_name_can_be_drawn(names: tuple[str, ...], tmp_path: Path) -> None:
    plan = renamed(SMALL, dict(zip("abc", names, strict=True)))
    assert drawn(tmp_path / "plan.png", plan, by_load(plan), title=" ".join(names)).size


def test_an_underscore_does_not_hide_a_job_from_the_legend(tmp_path: Path) -> None:
    """Solid patches of a job's own colour stand in the strip and the legend."""
    pictures = [
        drawn(tmp_path / "plan.png", plan, by_load(plan))
        for plan in (SMALL, renamed(SMALL, {"c": "_"}))
    ]
    legends = [share(pixels[-80:], colours.base(2)) for pixels in pictures]
    assert legends[0] == pytest.approx(legends[1], rel=0.02) and legends[0] > 0


def test_the_legend_names_the_jobs(tmp_path: Path) -> None:
    pictures = [
        drawn(tmp_path / "plan.png", plan, by_load(plan))
        for plan in (SMALL, renamed(SMALL, {"c": "a longer name"}), renamed(SMALL, {"c": "$c$"}))
    ]
    ink = [int((pixels[-80:] < 90).all(axis=-1).sum()) for pixels in pictures]
    # Of 13 letters, and of a letter between two dollars, which are not taken for a formula.
    assert ink[1] > ink[0] + 300 and ink[2] > ink[0] + 80


def test_a_plan_of_nothing_is_drawn(tmp_path: Path) -> None:
    plan = Plan(Limits(10), (Place("noop"),))
    assert drawn(tmp_path / "plan.png", plan, simulate([], stages=1)).size


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "lorafusion.plans.png_panels", raising=False)
    simulation = by_load(SMALL)
    with pytest.raises(LorafusionError, match="matplotlib") as caught:
        draw(tmp_path / "plan.png", SMALL, simulation, summarise(SMALL, simulation))
    assert REMEDY == "pip install 'lorafusion[bench]'" and REMEDY in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    modules = ("summary", "gantt_html", "gantt_png", "chrome_trace")
    code = "import sys\n" + "\n".join(f"import lorafusion.plans.{name}" for name in modules)
    code += "\nprint(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "lorafusion" in loaded
    assert not {"matplotlib", "numpy", "torch", "ortools"} & set(loaded)
