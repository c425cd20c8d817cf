"""Checks and child processes that fail in every way: none harms another."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafusion.doctor import children
from lorafusion.doctor.checks import CHECKS, SELF_TEST
from lorafusion.doctor.children import Facts
from lorafusion.doctor.finding import Check, Finding, run_checks
from lorafusion.doctor.selftest import self_test
from lorafusion.doctor.surroundings import Surroundings

Around = Callable[..., Surroundings]
GOOD = Finding("ok", "found", "means")


@pytest.fixture
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module of this text before the real one."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return put


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("raise ImportError('libgomp.so.1: no such file')", "libgomp.so.1: no such file"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ended by SIGILL"),
        ("import os; os._exit(7)", "code 7"),
        ("print('hello'); version = None", "AttributeError"),
    ],
)
def test_a_broken_torch_is_told_with_its_reason(
    broken_module: Callable[[str, str], None], around: Around, text: str, phrase: str
) -> None:
    broken_module("torch", text)
    torch = next(check for check in CHECKS if check.name == "torch")
    result = run_checks([torch], dataclasses.replace(around(), facts=Facts()))[0]
    assert phrase in result.finding.found
    assert result.stops_training


def test_a_broken_library_beside_sound_ones(
    broken_module: Callable[[str, str], None],
) -> None:
    broken_module("jinja2", "raise RuntimeError('half installed')")
    for heavy in ("transformers", "datasets", "tensorboard", "tokenizers"):
        broken_module(heavy, "")  # empty: they would take seconds to import
    found = Facts()("libraries")
    assert found["jinja2"] == "RuntimeError: half installed"
    assert found["pyyaml"] is None
    assert "torch" not in found


def test_a_child_that_hangs(
    broken_module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "SECONDS", 0.5)
    broken_module("torch", "import time; time.sleep(60)")
    assert Facts()("torch") == {"error": "no answer within 0.5 s"}


def test_a_child_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(children, "_ask", lambda probe: asked.append(probe) or {"n": len(asked)})
    facts = Facts()
    threads = [threading.Thread(target=facts, args=("torch",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["torch"]
    assert facts("torch") == {"n": 1}


def test_a_check_that_raises_or_hangs_is_isolated(around: Around) -> None:
    def fail(_: Surroundings) -> Finding:
        raise RuntimeError("a bug\nof two lines")

    def leave(_: Surroundings) -> Finding:
        sys.exit(3)

    release = threading.Event()

    def hang(_: Surroundings) -> Finding:
        release.wait(20)
        return GOOD

    done: list[str] = []
    results = run_checks(
        [
            Check("A", "fail", fail),
            Check("A", "needed", fail, needed=True),
            Check("A", "leave", leave),
            Check("A", "hang", hang, seconds=0.1),
            Check("A", "good", lambda _: GOOD, needed=True),
        ],
        around(),
        lambda check: done.append(check.name),
    )
    release.set()
    assert [result.finding.status for result in results] == [
        "warning",
        "missing",
        "warning",
        "warning",
        "ok",
    ]
    assert "RuntimeError: a bug of two lines" in results[0].finding.found
    assert "no answer within 0.1 s" in results[3].finding.found
    assert [result.stops_training for result in results] == [False, True, False, False, False]
    assert set(done) >= {"fail", "needed", "leave", "good"}


def test_names_are_unique() -> None:
    names = [check.name for check in (*CHECKS, SELF_TEST)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"worst": 1e-15, "seconds": 2.0}, "ok"),
        ({"worst": 1e-3, "seconds": 2.0}, "missing"),
        ({"worst": float("nan"), "seconds": 2.0}, "missing"),
        ({"error": "ImportError"}, "missing"),
    ],
)
def test_the_self_tests_verdict(around: Around, answer: dict[str, object], status: str) -> None:
    finding = self_test(around({"self_test": answer}))
    assert finding.status == status
    assert (finding.fix is None) == (status == "ok")


def test_the_self_test_trains_and_agrees() -> None:
    answer = Facts()("self_test")
    assert answer.get("worst", 1.0) < 1e-12, answer


def test_triton_runs_a_kernel_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = Facts()("triton")
    assert (answer.get("right"), answer.get("on_device")) == (True, False), answer
