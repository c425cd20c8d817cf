"""A layout is bound inside its block, in its own thread, and nowhere else."""

from __future__ import annotations

from threading import Thread

import pytest

from lorafusion.kernels.binding import bind_layout, bound_layout, bound_scratch
from lorafusion.kernels.layout import AdapterLayout, Segment


def layout(rows: int) -> AdapterLayout:
    return AdapterLayout.build([Segment(0, 0, 1, [0], [rows])], {}, training=True)


def test_nothing_is_bound_outside():
    assert bound_layout() is None
    with bind_layout(layout(2)):
        pass
    assert bound_layout() is None


def test_blocks_nest():
    outer, inner = layout(2), layout(3)
    with bind_layout(outer):
        with bind_layout(inner):
            assert bound_layout() is inner
        assert bound_layout() is outer


def test_an_exception_unbinds():
    outer = layout(2)
    with bind_layout(outer):
        with pytest.raises(RuntimeError), bind_layout(layout(3)):
            raise RuntimeError
        assert bound_layout() is outer
    assert bound_layout() is None


def test_other_threads_do_not_see_it():
    seen = []
    with bind_layout(layout(2)):
        thread = Thread(target=lambda: seen.append(bound_layout()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_each_binding_has_a_scratch_of_its_own():
    rows = layout(2)
    with bind_layout(rows):
        bound_scratch()["q"] = 1
        with bind_layout(rows):
            assert bound_scratch() == {}
            bound_scratch()["k"] = 2
        assert bound_scratch() == {"q": 1}
    with pytest.raises(AssertionError, match="nothing is bound"):
        bound_scratch()
