"""Two hosts on one machine: network namespaces with an address each and a link between them.

Nothing of the machine's own network is touched: each namespace has its own loopback and one end of
a pair of virtual interfaces that exists for these two alone.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
INTERFACE = "wire"
# For a whole run of two hosts, or two: 30 s where nothing else computes.
RUN_S = 300.0
_PREFIX = "lorafusion"


@dataclass
class Host:
    """One of the two.

    Attributes:
        namespace: Its network namespace.
        name: Its host name.
        address: Its address on the link.
    """

    namespace: str
    name: str
    address: str

    def start(
        self, command: Sequence[object], *, out: Path, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command there; all that it prints goes to ``out``, behind what is there."""
        clean = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
        settings = {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        with out.open("a") as file:
            return subprocess.Popen(
                [*self.inside(), *map(str, command)],
                cwd=ROOT,
                env={**clean, **settings, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def inside(self) -> list[str]:
        """What runs a command there. It may mount what it likes: nobody else sees it."""
        # A name of its own, as messages say on which host a rank is.
        own = ["unshare", "--uts", "--mount", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *own]

    def processes(self) -> list[int]:
        """All that run there."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """As a power cut: nothing there gets to say anything."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def link(self, state: str) -> None:
        """Set its end of the link ``up`` or ``down``; nothing passes while one end is down."""
        _ip("-n", self.namespace, "link", "set", INTERFACE, state)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make them; at the end all that runs there is killed, and they are gone."""
    hosts = tuple(
        Host(f"{_PREFIX}-{os.getpid()}-{letter}", f"host-{letter}", f"10.77.0.{number}")
        for number, letter in enumerate("ab", 1)
    )
    _sweep()
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        first, second = hosts
        # Made inside: it is never among the machine's own interfaces.
        peer = ("peer", "name", INTERFACE, "netns", second.namespace)
        _ip("-n", first.namespace, "link", "add", INTERFACE, "type", "veth", *peer)
        for host in hosts:
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
            host.link("up")
        yield first, second
    finally:
        for host in hosts:
            _remove(host)


@functools.cache
def why_not() -> str:
    """Why there can be no two hosts here; empty: there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    try:
        with two_hosts() as (host, _):
            subprocess.run([*host.inside(), "true"], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"{error.filename} is not installed (on Debian: apt install iproute2 util-linux)"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    return ""


def _remove(host: Host) -> None:
    with suppress(subprocess.CalledProcessError):
        host.kill()
    with suppress(subprocess.CalledProcessError):
        _ip("netns", "del", host.namespace)  # and with it its end of the link


def _sweep() -> None:
    """Remove those of tests that were killed."""
    for name in re.findall(rf"^{_PREFIX}-\d+-[ab]", _ip("netns", "list"), re.MULTILINE):
        if not Path("/proc", name.split("-")[1]).exists():
            _remove(Host(name, "", ""))


def _ip(*arguments: str) -> str:
    return subprocess.run(
        ["ip", *arguments], check=True, capture_output=True, text=True, timeout=20
    ).stdout
