"""Training from Python: to the end, or record by record."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lorafusion.api.callbacks import Callback
from lorafusion.api.check import raise_all
from lorafusion.api.settings import SOURCE, RunSettings, run_spec
from lorafusion.errors import Problem
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.launch.environment import prepare_environment
from lorafusion.training.options import TraceMode, trace_mode

if TYPE_CHECKING:
    from typing import Unpack

    from lorafusion.launch.local import Existing
    from lorafusion.training.records import Record
    from lorafusion.training.result import RunResult


def train(
    jobs: RunSpec | JobSpec | Sequence[JobSpec],
    base: str | Path | None = None,
    *,
    output: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    **settings: Unpack[RunSettings],
) -> RunResult:
    """Train all jobs at once over one frozen base, in this process.

    A job that cannot be trained, or diverges, fails alone: its result says why, the others go on
    and nothing is raised. SIGINT (Ctrl-C) and SIGTERM save what every job has done, and then act as
    they would have without us (``KeyboardInterrupt``, the end of the process); ``resume=True``
    goes on later. Off the main thread signals are left alone.

    Args:
        jobs: Jobs, or a job file that was read with :func:`lorafusion.load_jobs`.
        base: Folder or hub id of the base; of a job file, it replaces the file's.
        output: Folder of the run, with a folder per job in it; as ``base``.
        callbacks: Told what happens, in this order.
        settings: See :class:`RunSettings`.

    Raises:
        JobError: With every problem of the arguments.
        OutputError: An output folder cannot be used, or holds an earlier run's results.
        ModelError: The base cannot be used.
        Exception: What a callback raised, once every job's state is saved.
    """
    return stream(jobs, base, output=output, callbacks=callbacks, **settings).result()


def stream(
    jobs: RunSpec | JobSpec | Sequence[JobSpec],
    base: str | Path | None = None,
    *,
    output: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    **settings: Unpack[RunSettings],
) -> Run:
    """Train as :func:`train` does, handing out a record of every step and evaluation.

    The arguments are checked here; the base is loaded when the first record is asked for.

    Example::

        with lorafusion.stream(jobs, base="base", output="runs/first") as run:
            for record in run:
                if record.kind == "train" and record.loss > 20:
                    run.stop_job(record.job, "diverged")
        result = run.result()
    """
    callbacks = tuple(callbacks)
    _check_callbacks(callbacks)
    trace = trace_mode(settings.pop("trace", None))
    spec, existing = run_spec(jobs, base, output, settings)
    return Run(spec, existing, callbacks, trace)


class Run:
    """A run that trains while it is iterated over, and waits in between.

    There is no thread: training goes on when the next record is asked for, so the loop's body may
    use torch. Leaving the loop early stops the run cleanly: what every job has done is saved, and
    its adapter written. A ``with`` block does so at its end at the latest.
    """

    def __init__(
        self,
        spec: RunSpec,
        existing: Existing,
        callbacks: Iterable[Callback],
        trace: TraceMode,
    ) -> None:
        """Nothing is loaded yet. Use :func:`stream`."""
        prepare_environment()
        from lorafusion.api.watchers import Watchers
        from lorafusion.launch.local import LocalOptions, StopRequest, iterate_local

        assert spec.output_dir is not None
        self.spec = spec
        self._stop = StopRequest()
        self._watchers = Watchers(callbacks, self._stop)
        options = LocalOptions(Path(spec.output_dir), existing, self._stop, trace=trace)
        self._steps = iterate_local(spec, options, self._watchers)
        self._begun = self._ended = False
        self._result: RunResult | None = None

    def __iter__(self) -> Generator[Record]:
        """The records that were not handed out yet, in the order in which they came about."""
        try:
            while self._advance():
                while self._watchers.records:
                    yield self._watchers.records.popleft()
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """:meth:`close`."""
        self.close()

    def stop(self, reason: str = "stopped by the caller") -> None:
        """Ask every job to stop after the running microbatch. May be called from any thread."""
        self._stop.ask(reason)

    def stop_job(self, name: str, reason: str = "stopped by the caller") -> None:
        """Ask one job to stop after its next step or evaluation; the others go on.

        Raises:
            KeyError: There is no such job.
        """
        if name not in [job.name for job in self.spec.jobs]:
            names = ", ".join(job.name for job in self.spec.jobs)
            raise KeyError(f"no job {name!r}; there are {names}")
        self._stop.ask_job(name, reason)

    def result(self) -> RunResult:
        """How it went, after training what is left to train.

        Raises:
            RuntimeError: The run was closed before it began, or has ended with an exception.
            Exception: As :func:`train`.
        """
        for _ in self:
            pass
        if self._result is None:
            raise RuntimeError("there is no result: the run was closed before it began, or failed")
        return self._result

    def close(self) -> None:
        """Stop what still runs, saving its state. A second call does nothing."""
        if self._begun:
            self._stop.ask("the loop over its records was left")
            while self._advance():
                pass
        self._ended = True
        self._pass_on()

    def _advance(self) -> bool:
        """Train one microbatch more; False when nothing is left."""
        if self._ended:
            return False
        self._begun = True
        try:
            next(self._steps)
        except StopIteration as end:
            self._result = end.value
            self._ended = True
        except BaseException:
            self._ended = True
            raise
        return not self._ended

    def _pass_on(self) -> None:
        """Act on the signal that ended the run, and raise what a callback raised, each once."""
        number, self._stop.signal = self._stop.signal, None
        if number is not None:
            signal.raise_signal(number)
        error, self._watchers.error = self._watchers.error, None
        if error is not None:
            raise error


def _check_callbacks(callbacks: Sequence[object]) -> None:
    fix = "Derive a class from lorafusion.Callback, and give an object of it."
    raise_all(
        [
            Problem(SOURCE, 0, f"callbacks[{i}]", repr(callback), "a lorafusion.Callback", fix)
            for i, callback in enumerate(callbacks)
            if not isinstance(callback, Callback)
        ]
    )
