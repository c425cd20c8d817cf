"""A whole run, on rank 0: load the base, prepare the jobs, train, say what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lorafusion.adapters.initial import overwritten_by
from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.errors import ModelError, OutputError
from lorafusion.files import write_text_atomic
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.models.load import DTYPES, Base, check_base, combined_hash
from lorafusion.models.part import Part
from lorafusion.planner.devices import find_device
from lorafusion.planner.plan import Limits
from lorafusion.planner.replicas import share_replicas
from lorafusion.training import folders
from lorafusion.training.alone import team_of_one
from lorafusion.training.arrivals import Newcomers
from lorafusion.training.base import kept_share, load_own, note_on_gathers
from lorafusion.training.cut import Cut, Ground, choose_cut
from lorafusion.training.data import JobData
from lorafusion.training.emulated import note_on_dtype
from lorafusion.training.entry import OF_ONE_JOB, Entry, Hall, job_folder
from lorafusion.training.events import Events
from lorafusion.training.generation import held_out_generation
from lorafusion.training.job import TrainingJob
from lorafusion.training.loop import TrainingLoop, Workplace
from lorafusion.training.memory import device_memory, peak_rss_mb
from lorafusion.training.memory_kinds import runtime_bytes
from lorafusion.training.options import RunOptions
from lorafusion.training.output import ExportFacts
from lorafusion.training.peak import device_peak
from lorafusion.training.queues import whole_queue
from lorafusion.training.result import Generation, JobResult, RunResult
from lorafusion.training.run_facts import RunFacts, sweeps_of, write_facts
from lorafusion.training.site import Site
from lorafusion.training.stage_times import StageTimes
from lorafusion.training.team import Message, Team
from lorafusion.training.trace_file import PlaceTrace

RESULT_FILE = "result.json"
# Fewer rows a microbatch leave the GEMMs small; twice as many gained nothing on two CPU cores.
AUTO_CAPACITY = 2048


def train(
    spec: RunSpec, options: RunOptions, events: Events, team: Team | None = None
) -> Generator[None, None, RunResult]:
    """Train all jobs of ``spec`` at once, step by step: a generator that returns the result.

    It yields after each microbatch, when all that ``events`` was told of is done. A job that cannot
    be trained fails alone, and its result says why.

    Args:
        spec: The run.
        options: How.
        events: Told what happens.
        team: The ranks, of which this is the first; alone if None.

    Raises:
        OutputError: An output folder cannot be used.
        ModelError: The base cannot be used.
        PlanError: More stages than layers, or no plan can be made.
    """
    started = time.perf_counter()
    with folders.claim_folder(options.output):
        _keep_starting_points(spec, options.output)
        for job in spec.jobs:
            folders.prepare_job_folder(
                job_folder(job, options.output), resume=options.resume, overwrite=options.overwrite
            )
        events.begun()
        team = team or team_of_one(options.traces)
        try:
            run = _Run(spec, options, events, team)
            run.load()
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints") as writers:
                run.prepare(writers)
                result = yield from run.train(started)
        finally:
            team.recorder.close()
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        write_text_atomic(options.output / RESULT_FILE, text + "\n")
    return result


def _keep_starting_points(spec: RunSpec, output: Path) -> None:
    """Refuse a run that would write over an adapter that a job of it starts from."""
    outputs = [job_folder(job, output) for job in spec.jobs]
    for job in spec.jobs:
        init_from = getattr(job.adapter, "init_from", None)
        place = overwritten_by(init_from, outputs) if init_from else None
        if place is not None:
            raise OutputError(
                f"job {job.name!r} starts from {init_from}, which lies in {place}, where this run "
                "writes its results. Choose another output folder, or copy the adapter elsewhere."
            )


class _Run:
    """The pieces of one run, from its data to its result."""

    def __init__(self, spec: RunSpec, options: RunOptions, events: Events, team: Team) -> None:
        self._spec = spec
        self._options = options
        self._events = events
        self._team = team
        config = check_base(spec.base_model)
        tokenizer = load_tokenizer(spec.base_model)
        self._hall = Hall(spec, options, events, team, config, tokenizer)
        self._jobs: list[TrainingJob] = []
        self._failed: dict[str, JobResult] = {}
        self._generations: dict[str, Generation] = {}

    def load(self) -> None:
        """The data of every job, then the base, each rank its part; what fails has failed."""
        prepared: list[tuple[JobSpec, JobData]] = []
        for job in self._spec.jobs:
            self._events.status(f"preparing {job.name}")
            try:
                prepared.append(self._hall.load(job))
            except OF_ONE_JOB as error:
                self._fail(job, error)
        self._prepared, team = prepared, self._team
        self._capacity = self._choose_capacity()
        self._cut = self._choose_cut()
        self._limits = Limits(self._capacity, team.stages, team.replicas)
        self._homes = self._choose_homes()
        team = self._team = replace(team, together=self._homes is None)
        # While the other ranks wait for what comes next, and before the base takes its memory.
        traced = self._options.traces is not None
        self._peak = device_peak(self._team.device, DTYPES[self._spec.dtype]) if traced else None
        layers = [[part.start, part.stop] for part in self._cut.layers]
        self._team.post.publish(
            {
                "kind": "start",
                "layers": layers,
                "recompute": self._cut.recompute,
                "together": team.together,
            }
        )
        self._events.status(f"loading {self._spec.base_model}")
        part = Part(self._cut.layers[0], self._cut.layers[-1].stop)
        self._runtime = runtime_bytes(self._team.device)
        self._base: Base = load_own(self._spec, part, self._team)
        slow = note_on_dtype(self._base.dtype, self._team.device)
        if slow is not None:
            self._events.note(slow)
        self._hashes = self._base.tensor_hashes()
        hashes = self._base.whole_hashes()
        for rank, message in self._gather("base").items():
            self._compare(rank, message["hashes"], hashes)
            hashes |= message["hashes"]
        self._hash = combined_hash(hashes)

    def _compare(self, rank: int, hashes: Mapping[str, str], known: Mapping[str, str]) -> None:
        """Tensors that several ranks hold are the same on all of them."""
        other = next((name for name in hashes if known.get(name, hashes[name]) != hashes[name]), "")
        if other:
            raise ModelError(
                f"{self._team.grid.name(rank)} has read another base than the ranks before it: "
                f"{other} differs. Allowed: the same files of {self._spec.base_model} on all "
                "machines. See whether one has an older copy."
            )

    def prepare(self, writers: ThreadPoolExecutor) -> None:
        """Adapter and output of every job, on all stages; what cannot be prepared has failed."""
        self._writers = writers
        self._site = Site(
            self._base,
            self._team,
            writers,
            recompute=self._cut.recompute,
            deterministic=self._spec.deterministic,
        )
        self._site.watch(self._runtime, self._options.traces)
        self._entry = Entry(
            self._hall, self._site, writers, base_hash=self._hash, capacity=self._capacity
        )
        self._entry.homes = self._homes
        for spec, data in self._prepared:
            folder = job_folder(spec, self._options.output)
            try:
                job = self._entry.put(spec, data, folder, resume=self._options.resume)
            except OF_ONE_JOB as error:
                self._fail(spec, error)
            else:
                self._jobs.append(job)
        self._entry.tell(self._jobs)
        self._hear_ready()

    def train(self, started: float) -> Generator[None, None, RunResult]:
        """Run the loop and gather the results."""
        newcomers = self._newcomers()
        loop = TrainingLoop(
            self._workplace(newcomers),
            self._jobs,
            self._entry.outputs,
            on_finished=self._generate,
        )
        loop.let_go(self._entry.leaves)
        self._write_facts()
        sharded = self._base.sharded if self._options.trace == "profile" else None
        if sharded is not None:
            sharded.zero.log()
        try:
            yield from loop.run()
        finally:
            if newcomers is not None:
                newcomers.close()
        if sharded is not None:
            self._events.note(note_on_gathers(sharded.zero, loop.clock.seconds))
        self._report_held(loop, [int(message["held_bytes"]) for message in loop.done.values()])
        assert self._base.tensor_hashes() == self._hashes, "the base's weights changed"
        results = {**self._failed, **self._entry.failed, **loop.results}
        names = dict.fromkeys([*(job.name for job in self._spec.jobs), *results])
        sweeps = sweeps_of(self._spec)
        return RunResult(
            jobs=tuple(
                replace(
                    results[name], generation=self._generations.get(name), sweep=sweeps.get(name)
                )
                for name in names
            ),
            tokens_per_s=loop.clock.total_rate,
            training_s=loop.clock.seconds,
            wall_s=time.perf_counter() - started,
            peak_rss_mb=peak_rss_mb(),
            base_sha256=self._hash,
            stages=self._stage_times(loop),
        )

    def _stage_times(self, loop: TrainingLoop) -> tuple[StageTimes, ...]:
        layers = self._base.part.layers
        self._team.recorder.close()
        own = replace(self._team.recorder.summary(), layers=(layers.start, layers.stop))
        others = [loop.done[rank] for rank in sorted(loop.done)]
        for problem in (self._team.recorder.problem, *(other["problem"] for other in others)):
            if problem is not None:
                self._events.note(problem)
        return (own, *(StageTimes.from_dict(other["times"]) for other in others))

    def _hear_ready(self) -> None:
        """A job that another stage cannot hold has failed."""
        for rank, message in self._gather("ready").items():
            for name, reason in message["failed"].items():
                for job in [job for job in self._jobs if job.name == name]:
                    self._jobs.remove(job)
                    self._entry.withdraw(job)
                    self._fail(job.spec, f"{self._team.grid.place(rank)}: {reason}")

    def _newcomers(self) -> Newcomers | None:
        arrivals = self._options.arrivals
        if arrivals is None:
            return None
        return Newcomers(arrivals, self._entry, self._team.grid)

    def _gather(self, kind: str) -> dict[int, Message]:
        """One message of a kind from each of the other ranks."""
        found: dict[int, Message] = {}
        while len(found) < self._team.others:
            rank, message = self._team.post.wait()
            # Nothing else is said before the first place is run: none of it may get lost.
            assert message["kind"] == kind, f"rank {rank} sent {message['kind']!r}, not {kind!r}"
            found[rank] = message
        return dict(sorted(found.items()))

    def _generate(self, job: TrainingJob) -> None:
        """The answer of an adapter that is done, while it is still there."""
        if self._options.generations:
            generation = held_out_generation(self._base, self._site.bank, self._hall.tokenizer, job)
            if generation is not None:
                self._generations[job.name] = generation

    def _workplace(self, newcomers: Newcomers | None) -> Workplace:
        site = self._site
        traces = self._options.traces
        places = None if traces is None else PlaceTrace(traces.folder, self._limits)
        return Workplace(
            team=self._team,
            executor=site.executor,
            residents=site.residents,
            limits=self._limits,
            homes=self._homes,
            places=places,
            facts=ExportFacts(
                self._spec.base_model, site.bank.linears_and_head, site.bank.fan_in_fan_out
            ),
            writers=self._writers,
            events=self._events,
            should_stop=self._options.should_stop,
            should_stop_job=self._options.should_stop_job,
            newcomers=newcomers,
        )

    def _write_facts(self) -> None:
        traces = self._options.traces
        if traces is None or self._peak is None:
            return
        facts = RunFacts(
            spec=self._spec,
            config=self._hall.config,
            names=self._base.names,
            device=self._team.device,
            threads=self._options.threads,
            cut=self._cut,
            capacity=self._capacity,
            peak=self._peak,
        )
        jobs = [
            facts.job(
                job.name, self._entry.outputs[job.name].folder, self._entry.adapters[job.name]
            )
            for job in self._jobs
        ]
        problem = write_facts(traces.folder, facts.document(jobs))
        if problem is not None:
            self._events.note(problem)

    def _choose_capacity(self) -> int:
        if self._spec.capacity != "auto":
            return self._spec.capacity
        return max([AUTO_CAPACITY, *(data.longest for _, data in self._prepared)])

    def _choose_cut(self) -> Cut:
        device, stages = self._team.device, self._team.stages
        profile = find_device("h100" if device.type == "cuda" else "cpu")
        memory = device_memory(device, self._team.grid.ranks)
        replicas = self._team.replicas
        share = kept_share(self._spec, device, replicas)
        ground = Ground(profile, memory, stages, self._capacity, replicas, share)
        cut = choose_cut(
            self._spec, self._hall.config, [data for _, data in self._prepared], ground
        )
        if cut.note is not None:
            self._events.note(cut.note)
        return cut

    def _choose_homes(self) -> Mapping[str, int] | None:
        """The replica of each job; None: each is on all of them."""
        if self._team.replicas == 1:
            return None
        queues = [whole_queue(spec, data) for spec, data in self._prepared]
        mode = self._options.replica_mode
        sharing = share_replicas(queues, self._limits, self._cut.cost, mode)
        self._events.note(sharing.why)
        return sharing.homes

    def _fail(self, spec: JobSpec, error: Exception | str) -> None:
        folder = job_folder(spec, self._options.output)
        self._failed[spec.name] = self._hall.failed(spec, folder, error)

    def _report_held(self, loop: TrainingLoop, others: list[int]) -> None:
        if self._spec.deterministic and loop.results:
            peak = sum(others) + self._site.held_bytes
            self._events.note(
                f"deterministic: at most {peak / 1e6:.1f} MB of gradients were held until their "
                "sample's turn (sum of the jobs' peaks)."
            )
