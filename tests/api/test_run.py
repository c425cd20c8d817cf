"""Training from Python: results, records, callbacks, stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import lorafusion
from lorafusion.errors import ModelError, OutputError
from tests.training import runs

Jobs = list[lorafusion.Job]
SETTINGS: dict[str, Any] = {"capacity": 48, "threads": 1}


EXACT: dict[str, Any] = {"deterministic": True, **SETTINGS}


@pytest.fixture(scope="module")
def whole(jobs: Jobs, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, bit-exact, that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert lorafusion.train(jobs, tiny_base, output=folder, **EXACT).succeeded
    return folder


class Log(lorafusion.Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_ready(self, ready: lorafusion.JobReady) -> None:
        self.told.append(ready)

    def on_step(self, record: lorafusion.StepRecord) -> None:
        self.told.append(record)

    def on_eval(self, record: lorafusion.EvalRecord) -> None:
        self.told.append(record)

    def on_end(self, result: lorafusion.JobResult) -> None:
        assert Path(str(result.adapter_dir), "adapter_model.safetensors").exists()
        self.told.append(result)


class At(lorafusion.Callback):
    """Raises something at one step of one job."""

    def __init__(self, error: BaseException, *, step: int, job: str = "one") -> None:
        self.error = error
        self.place = (job, step)
        self.told_after = 0

    def on_step(self, record: lorafusion.StepRecord) -> None:
        self.told_after += (record.job, record.step) > self.place
        if (record.job, record.step) == self.place:
            raise self.error


def test_train_gives_results_and_leaves_the_process_as_it_was(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    log = Log()
    result = lorafusion.train(
        jobs, tiny_base, output=tmp_path, callbacks=[log], threads=1, capacity=48
    )
    assert torch.get_num_threads() == 2
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch.set_num_threads(1)
    assert result.succeeded
    assert [job.name for job in result.jobs] == ["one", "other"]
    with pytest.raises(KeyError, match="there are one, other"):
        result["three"]
    for job in result.jobs:
        assert Path(str(job.adapter_dir), "adapter_config.json").exists()
        assert job.tokens_per_s > 0
        records = job.metrics()
        assert records == [
            told
            for told in log.told
            if isinstance(told, lorafusion.StepRecord | lorafusion.EvalRecord)
            and told.job == job.name
        ]
        steps = [record for record in records if record.kind == "train"]
        assert [record.step for record in steps] == list(range(1, 7))
        assert (steps[0].loss, steps[-1].loss) == (job.loss_first, job.loss_last)
    assert [r.step for r in result["one"].metrics() if r.kind == "eval"] == [0, 3, 6]
    kinds = [type(told).__name__ for told in log.told]
    assert kinds[:2] == ["JobReady"] * 2 and kinds.count("JobResult") == 2
    assert (log.told[0].job, log.told[0].total_steps, log.told[0].data.kept) == ("one", 6, 12)


def test_twice_in_one_process_with_equal_results(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / str(i) for i in range(3)]
    lorafusion.train(jobs, tiny_base, output=folders[0], **SETTINGS)
    assert list(lorafusion.stream(jobs, tiny_base, output=folders[1], **SETTINGS))
    # Off the main thread too, where no handlers can be set.
    run = lorafusion.stream(jobs, tiny_base, output=folders[2], **SETTINGS)
    thread = threading.Thread(target=run.result)
    thread.start()
    thread.join()
    for job in jobs:
        for folder in folders[1:]:
            runs.assert_same_bytes(folder / job.name, folders[0] / job.name)


def test_a_stream_hands_out_every_record_in_order(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    run = lorafusion.stream(jobs, tiny_base, output=tmp_path, **SETTINGS)
    assert not list(tmp_path.iterdir()), "nothing happens before the first record is asked for"
    records = list(run)
    result = run.result()
    assert result.succeeded and list(run) == []
    for job in result.jobs:
        assert [record for record in records if record.job == job.name] == job.metrics()


@pytest.mark.parametrize("way", ["break", "exception", "with", "dropped"])
def test_leaving_the_loop_saves_and_resuming_ends_it(
    way: str, jobs: Jobs, whole: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = lorafusion.stream(jobs, tiny_base, output=tmp_path, **EXACT)
    if way == "break":
        for record in run:
            if record.step == 3:
                break
    elif way == "exception":
        with pytest.raises(ZeroDivisionError):
            for record in run:
                1 / (record.step - 3)
    elif way == "with":
        with run:
            records = iter(run)
            while next(records).step != 3:
                pass
    else:
        records = iter(run)
        while next(records).step != 3:
            pass
        del records
    result = run.result()
    assert {job.state for job in result.jobs} == {"paused"}
    assert all(1 <= job.steps <= 4 and job.adapter_dir for job in result.jobs)
    again = lorafusion.train(jobs, tiny_base, output=tmp_path, resume=True, **EXACT)
    assert again.succeeded
    for job in jobs:
        runs.assert_same_bytes(tmp_path / job.name, whole / job.name)


def test_one_job_is_stopped_and_the_other_goes_on(
    jobs: Jobs, whole: Path, tiny_base: Path, tmp_path: Path
) -> None:
    cut, streamed = tmp_path / "cut", tmp_path / "streamed"
    early = At(lorafusion.StopJob("good enough"), step=4)
    result = lorafusion.train(jobs, tiny_base, output=cut, callbacks=[early], **EXACT)
    with lorafusion.stream(jobs, tiny_base, output=streamed, **EXACT) as run:
        for record in run:
            if (record.kind, record.job, record.step) == ("train", "one", 4):
                run.stop_job("one", "good enough")
                with pytest.raises(KeyError, match="there are one, other"):
                    run.stop_job("three")
    for found, reason in (
        (result, "stopped by At: good enough"),
        (run.result(), "good enough"),
    ):
        one, other = found["one"], found["other"]
        assert (one.state, one.reason) == ("paused", reason)
        assert one.steps in (4, 5) and one.adapter_dir is not None
        assert (other.state, other.steps) == ("succeeded", 6)
    assert result["one"].steps == 4
    runs.assert_same_bytes(cut / "other", whole / "other")
    assert lorafusion.train(jobs, tiny_base, output=cut, resume=True, **EXACT).succeeded
    runs.assert_same_bytes(cut / "one", whole / "one")


def test_a_job_may_be_stopped_before_it_begins(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    class NotTwo(lorafusion.Callback):
        def on_ready(self, ready: lorafusion.JobReady) -> None:
            if ready.job == "other":
                raise lorafusion.StopJob

    result = lorafusion.train(jobs, tiny_base, output=tmp_path, callbacks=[NotTwo()], **SETTINGS)
    assert (result["one"].state, result["other"].state) == ("succeeded", "paused")
    assert (result["other"].steps, result["other"].adapter_dir) == (0, None)
    assert result["other"].reason == "stopped by NotTwo"


def test_a_callback_stops_the_run(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    stop = At(lorafusion.StopRun("enough"), step=4)
    result = lorafusion.train(jobs, tiny_base, output=tmp_path, callbacks=[stop], **SETTINGS)
    assert {(job.state, job.reason) for job in result.jobs} == {("paused", "stopped by At: enough")}


def test_an_exception_in_a_callback_saves_and_is_raised(
    jobs: Jobs, whole: Path, tiny_base: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    bad, log = At(ZeroDivisionError("mine"), step=4), Log()
    with pytest.raises(ZeroDivisionError, match="mine"):
        lorafusion.train(jobs, tiny_base, output=cut, callbacks=[bad, log], **EXACT)
    ended = [told for told in log.told if isinstance(told, lorafusion.JobResult)]
    assert {job.state for job in ended} == {"paused"}
    assert all("At raised ZeroDivisionError('mine')" in str(job.reason) for job in ended)
    assert lorafusion.train(jobs, tiny_base, output=cut, resume=True, **EXACT).succeeded
    for job in jobs:
        runs.assert_same_bytes(cut / job.name, whole / job.name)


def test_stop_job_where_no_job_is_meant_is_an_error(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    class Wrong(lorafusion.Callback):
        def on_end(self, result: lorafusion.JobResult) -> None:
            raise lorafusion.StopJob

    with pytest.raises(lorafusion.StopJob):
        lorafusion.train(jobs, tiny_base, output=tmp_path, callbacks=[Wrong()], **SETTINGS)


def test_a_failed_job_is_in_the_result_alone(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    missing = lorafusion.Job("missing", tmp_path / "none.jsonl", max_seq_len=40)
    result = lorafusion.train([*jobs, missing], tiny_base, output=tmp_path / "o", **SETTINGS)
    assert not result.succeeded
    assert [job.state for job in result.jobs] == ["succeeded", "succeeded", "failed"]
    assert "none.jsonl" in str(result["missing"].reason)
    assert result["missing"].metrics() == []


def test_errors_of_the_run_are_raised(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        lorafusion.train(jobs, tmp_path / "none", output=tmp_path / "a")
    (tmp_path / "b" / "one" / "adapter").mkdir(parents=True)
    run = lorafusion.stream(jobs, tiny_base, output=tmp_path / "b")
    with pytest.raises(OutputError, match="resume=True"):
        next(iter(run))
    with pytest.raises(RuntimeError, match="no result"):
        run.result()


def test_closed_before_it_began(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    with lorafusion.stream(jobs, tiny_base, output=tmp_path) as run:
        pass
    assert list(run) == [] and not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="closed before it began"):
        run.result()


def test_from_a_job_file(tiny_base: Path, rows: list[dict[str, str]], tmp_path: Path) -> None:
    path = lorafusion.Job("x", rows).dataset.path
    file = tmp_path / "jobs.yaml"
    file.write_text(
        f"base_model: {tmp_path}\noutput_dir: {tmp_path}/file\ncapacity: 48\nthreads: 1\n"
        f"jobs:\n- {{name: x, dataset: {{path: {path}}}, max_steps: 2, max_seq_len: 40}}\n"
    )
    result = lorafusion.train(lorafusion.load_jobs(file), tiny_base)
    assert result.succeeded and result["x"].folder == str(tmp_path / "file" / "x")
    other = lorafusion.train(lorafusion.load_jobs(file), tiny_base, output=tmp_path / "other")
    assert other["x"].folder == str(tmp_path / "other" / "x")


@pytest.mark.parametrize(
    ("number", "way"),
    [(signal.SIGTERM, "train"), (signal.SIGINT, "stream")],
)
def test_a_signal_saves_and_then_acts_as_ever(
    number: signal.Signals, way: str, tiny_base: Path, tmp_path: Path
) -> None:
    script = f"""
import os, signal, lorafusion
# A test run in the background may have handed down that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Kill(lorafusion.Callback):
    def on_step(self, record):
        if record.step == 3:
            os.kill(os.getpid(), {int(number)})
rows = [{{"prompt": " red", "completion": " blue"}}] * 9
job = lorafusion.Job("one", rows, max_steps=50, global_batch_size=2)
settings = dict(base={str(tiny_base)!r}, output={str(tmp_path)!r}, callbacks=[Kill()])
try:
    if {way!r} == "train":
        lorafusion.train(job, **settings)
    else:
        for record in lorafusion.stream(job, **settings): pass
except KeyboardInterrupt:
    os.write(1, b"interrupted")
    raise
os.write(1, b"went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -number, done.stderr
    assert done.stdout == ("interrupted" if number == signal.SIGINT else "")
    text = (tmp_path / "result.json").read_text()
    assert '"state": "paused"' in text and f"stopped by {number.name}" in text
    assert (tmp_path / "one" / "checkpoints" / "step-00000003" / "manifest.json").exists()


@pytest.mark.parametrize(("trace", "kept"), [(None, True), (False, False)])
def test_what_is_traced(
    jobs: Jobs, tiny_base: Path, tmp_path: Path, trace: bool | None, kept: bool
) -> None:
    lorafusion.train(jobs[:1], tiny_base, output=tmp_path, trace=trace, **SETTINGS)
    assert (tmp_path / "trace" / "rank-0.jsonl").exists() == kept
