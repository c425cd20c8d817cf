"""Stores to test with: SQLite in a file, and a PostgreSQL server where its programs are."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.store.claims import Claims, Worker
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.submitting import Submission, group_of, submit

SERVER = shutil.which("pg_ctl") and shutil.which("initdb")
NO_SERVER = "no PostgreSQL programs here"


def run_spec(*names: str, **settings: Any) -> RunSpec:
    """Jobs of these names; their data need not exist."""
    jobs = [{"name": name, "dataset": {"path": "rows.jsonl"}} for name in names]
    return RunSpec.model_validate_json(
        json.dumps({"base_model": "org/base", "jobs": jobs, **settings})
    )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that listens on a socket alone, as a user who is not root."""
    if not SERVER or importlib.util.find_spec("psycopg") is None:
        pytest.skip(NO_SERVER)
    with tempfile.TemporaryDirectory(prefix="lfpg-", dir="/tmp") as name:  # short: a socket's path
        folder = Path(name)
        as_user: dict[str, Any] = {"cwd": folder}
        user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            user = "postgres"
            shutil.chown(folder, user)
            as_user |= {"user": user}

        def control(*arguments: str) -> None:
            subprocess.run(
                arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                **as_user,
            )  # fmt: skip

        data = str(folder / "data")
        control("initdb", "-D", data, "-A", "trust", "-U", "tester", "--no-sync")
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        control("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", settings, "start")
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            control("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: str = request.getfixturevalue("postgres")
    from sqlalchemy import create_engine, make_url, text

    name = f"t{os.getpid()}_{tmp_path.name}"[:60].replace("-", "_").lower()
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """An empty store."""
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def submitted(database: Database, tmp_path: Path) -> Callable[..., list[JobRecord]]:
    """Submits jobs of these names: ``submitted("a", "b", priority=1)``."""

    def put(*names: str, **more: Any) -> list[JobRecord]:
        return submit(database, Submission(run_spec(*names), "jobs.yaml", tmp_path, **more))

    return put


@pytest.fixture
def worker(database: Database) -> Callable[..., Claims]:
    """Makes a worker that has entered: ``worker("w1", lease_s=0.2)``."""

    def make(name: str, *, lease_s: float = 30.0, group: str | None = None) -> Claims:
        who = Worker(name, "host", 1, group or group_of(run_spec("x")), "org/base")
        claims = Claims(database, who, lease_s=lease_s)
        claims.enter()
        return claims

    return make
