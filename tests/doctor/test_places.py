"""The hub and the folders. The hub is a server of this test's own."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from lorafusion.doctor import places
from lorafusion.doctor.surroundings import Surroundings

Around = Callable[..., Surroundings]


class Hub(http.server.BaseHTTPRequestHandler):
    code = 200
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        Hub.asked.append(self.path)
        self.send_response(Hub.code)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Hub, "asked", [])
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(("code", "status"), [(200, "ok"), (403, "ok"), (503, "warning")])
def test_the_hub_answers(
    around: Around, server: str, monkeypatch: pytest.MonkeyPatch, code: int, status: str
) -> None:
    monkeypatch.setattr(Hub, "code", code)
    finding = places.hub(around(env={"HF_ENDPOINT": server + "/"}))
    assert finding.status == status
    assert len(Hub.asked) == 1
    assert (f"HTTP {code}" in finding.found) == (status == "warning")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nobody(around: Around, server: str, variable: str) -> None:
    finding = places.hub(around(env={"HF_ENDPOINT": server, variable: "1"}))
    assert (finding.status, Hub.asked) == ("ok", [])
    assert f"{variable} is set" in finding.found
    assert "was not asked" in finding.found


def test_a_hub_that_is_silent_or_no_address(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        finding = places.hub(around(env=env))
    assert (finding.status, "does not answer: " in finding.found) == ("warning", True)
    assert places.hub(around(env=env)).status == "warning"  # nobody listens any more
    assert "no web address" in places.hub(around(env={"HF_ENDPOINT": "file:///etc"})).found


def test_a_token_is_found_and_never_shown(around: Around, tmp_path: Path) -> None:
    assert places.hub_token(around(env={"HF_HOME": str(tmp_path)})).status == "missing"
    (tmp_path / "token").write_text("hf_secret")
    for env in ({"HF_HOME": str(tmp_path)}, {"HF_TOKEN": "hf_secret"}):
        finding = places.hub_token(around(env=env))
        assert finding.status == "ok"
        assert "hf_secret" not in str(finding)


def test_the_hubs_cache_and_its_size(around: Around, tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "hf")}
    assert "not there yet" in places.hub_cache(around(env=env)).found
    blobs = tmp_path / "hf" / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "weights").write_bytes(bytes(30_000_000))
    (blobs / "link").symlink_to(blobs / "weights")  # snapshots link to blobs: counted once
    finding = places.hub_cache(around(env=env))
    assert (finding.status, f"{tmp_path / 'hf' / 'hub'}, 0.03 GB" in finding.found) == ("ok", True)
    assert sorted(file.name for file in blobs.iterdir()) == ["link", "weights"]


@pytest.mark.parametrize("name", ["home", "output"])
def test_folders_are_tried_and_left_as_they_were(around: Around, tmp_path: Path, name: str) -> None:
    look = places.home_folder if name == "home" else places.output_folder
    there = look(around(**{name: tmp_path}))
    assert there.status == "ok"
    assert "writing, fsync and rename work" in there.found
    to_come = look(around(**{name: tmp_path / "a" / "b"}))
    assert f"in {tmp_path}, the deepest" in to_come.found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "status"), [("home", "warning"), ("output", "missing")])
def test_a_folder_that_cannot_be_written_to(around: Around, name: str, status: str) -> None:
    # Tests may run as root, whom permissions do not stop; the kernel's own folder stops root, too.
    look = places.home_folder if name == "home" else places.output_folder
    finding = look(around(**{name: Path("/proc/lorafusion")}))
    assert finding.status == status
    assert "/proc/lorafusion cannot be written to" in finding.found
    assert finding.fix


def test_a_file_where_a_folder_should_be(around: Around, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = places.output_folder(around(output=tmp_path / "file" / "runs"))
    assert (finding.status, "Not a directory" in finding.found) == ("missing", True)


def test_little_room(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    finding = places.home_folder(around())
    assert (finding.status, "1.0 GB free" in finding.found) == ("warning", True)
