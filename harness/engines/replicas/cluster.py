"""A running Ray cluster, or one on this machine that ends with this process.

    cluster = connect(None); cluster.close()

A local Ray has no dashboard, no log monitor and no autoscaler, listens on the loopback interface only, asks for a
token, and keeps its files in a folder of its own. It is started through private parts of Ray, because `ray.init` leaves
none of that out; the version is pinned.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.replicas import guard
from medbench.harness.text import foreign, one_line

ADDRESS = "RAY_ADDRESS"
MARK = "MEDBENCH_RAY"
"""The environment variable of all processes of a local Ray, and of no other; see guard.py."""
OBJECTS = 128 * 2**20
"""Bytes for messages of more than 100 KB; Ray takes less than 75 MiB for a mistake."""
LONGEST_FOLDER = 40
"""Characters: the paths of Ray's sockets are 60 longer, and the kernel takes 107."""
CONNECT_SECONDS = 5.0
LOOPBACK = "127.0.0.1"
INSTALL = "pip install 'medbench[ray]'"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""How a client of gRPC, which Ray speaks, begins; a server answers with its own settings."""
_SETTINGS_FRAME = b"\x04"
_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see ENABLE_RAY_CLUSTER below, for the processes
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def ray_module() -> Any:
    """Ray itself. Raises MedbenchError where it is not installed."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns, on standard error
    try:
        return import_module("ray")
    except ImportError as error:
        raise MedbenchError(
            f"replicas need Ray, which cannot be imported ({one_line(error)[:200]}): {INSTALL}"
        ) from None


@dataclass(slots=True)
class Cluster:
    """A connection to Ray."""

    ray: Any
    address: str | None
    """None for one that was started here."""
    local: _Local | None = None
    connected: bool = True
    """Whether it was connected here, and is to be disconnected."""

    def nodes(self) -> list[Mapping[str, Any]]:
        """Ray's records of the nodes that are alive."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def close(self) -> None:
        if self.connected:
            self.connected = False
            self.ray.shutdown()
        local, self.local = self.local, None
        if local is not None:
            local.close()


def connect(address: str | None, *, cpus: int | None = None) -> Cluster:
    """The cluster at `address` ("host:port", or "auto" for one that runs on this machine), else at RAY_ADDRESS, else a
    new one here, with so many `cpus` or as many as this process may use.

    Raises MedbenchError where Ray is not installed, or the cluster cannot be reached.
    """
    named = address or os.environ.get(ADDRESS)
    ray = ray_module()
    if ray.is_initialized():
        return Cluster(ray, named or "of this process", connected=False)
    # Ray prints what happens to workers on standard output; medbench says it in its own words
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if named is not None:
        _check(named, "--ray-address" if address else ADDRESS)
        with _quiet(), _one_line(f"Ray at {foreign(named, 100)}"):
            ray.init(address=named, **_COMMON)
        return Cluster(ray, named)
    local = _start(cpus)
    try:
        with _quiet(), _one_line("a local Ray"):
            ray.init(address=local.address, _node_ip_address=LOOPBACK, **_COMMON)
    except BaseException:
        local.close()
        raise
    return Cluster(ray, None, local)


_COMMON: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": "CRITICAL"}


@dataclass(slots=True)
class _Local:
    """The processes of a local Ray."""

    address: str
    node: Any
    watch: subprocess.Popen[bytes]

    def close(self) -> None:
        """End them, and wait until they are gone."""
        with suppress(Exception):  # whatever remains, the guard kills
            self.node.kill_all_processes(check_alive=False, allow_graceful=False)
        _let_go(self.watch)


def _start(cpus: int | None) -> _Local:
    # as values: Ray's annotations are wrong in places
    node_class: Any = import_module("ray._private.node").Node
    parameters_of: Any = import_module("ray._private.parameter").RayParams
    constants: Any = import_module("ray._private.ray_constants")
    settings: Any = import_module("ray._raylet").Config

    class Small(node_class):  # type: ignore[misc]
        def start_api_server(self, **_: Any) -> None:
            """Without the dashboard's server, which takes longer to start than all the rest."""
            self._webui_url = ""

    folder = _folder()
    mark = f"{folder.name}-{secrets.token_hex(8)}"
    watch = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(folder), f"{MARK}={mark}", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    for name, value in (*_SETTINGS.items(), ("RAY_AUTH_TOKEN", secrets.token_hex(32))):
        os.environ.setdefault(name, value)  # Ray reads the token once, so that it stays for the process's life
    os.environ[MARK] = mark
    try:
        settings.initialize("")  # what Ray read when it was imported
        constants.ENABLE_RAY_CLUSTER = False  # "this is one machine": it listens on the loopback interface
        parameters = parameters_of(
            num_cpus=cpus or _cores(),
            node_ip_address=LOOPBACK,
            temp_dir=str(folder),
            object_store_memory=OBJECTS,
            include_dashboard=False,
            include_log_monitor=False,
            no_monitor=True,
            dashboard_agent_listen_port=0,
            min_worker_port=0,
            max_worker_port=0,
        )
        with _quiet(), _one_line("a local Ray"):
            node = Small(parameters, head=True, shutdown_at_exit=False, spawn_reaper=False)
    except BaseException:
        _let_go(watch)
        raise
    finally:
        del os.environ[MARK]
    return _Local(node.address, node, watch)


def _let_go(watch: subprocess.Popen[bytes]) -> None:
    """Let the guard do its work, and wait for its end."""
    if watch.stdin is not None:
        watch.stdin.close()
    watch.wait()


def _folder() -> Path:
    place = Path(tempfile.gettempdir())
    if len(str(place)) > LONGEST_FOLDER - len("/medbench-ray-12345678"):
        place = Path("/tmp")
    try:
        return Path(tempfile.mkdtemp(prefix="medbench-ray-", dir=place))
    except OSError as error:
        raise MedbenchError(
            f"{place}: no folder for Ray can be made ({error.strerror}): set TMPDIR to another"
        ) from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(address: str, where: str) -> None:
    """Raises MedbenchError for what is no address, and where nobody listens: Ray itself would try for a minute, and
    then end this process."""
    if address == "auto":
        return
    shown = foreign(address, 100)
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise MedbenchError(
            f"{where} {shown!r} is no address: give HOST:PORT of the cluster's head (6379 by default), or auto"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as one:
            one.sendall(_PREFACE)
            if one.recv(9)[3:4] != _SETTINGS_FRAME:
                raise MedbenchError(
                    f"{where} {shown}: what listens there is no Ray: give the port of its head (6379 by default)"
                )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        raise MedbenchError(
            f"{where} {shown}: no Ray cluster can be reached there ({reason}): correct it, or start one by `ray start`"
        ) from None


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except MedbenchError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise MedbenchError(f"{what} cannot be used ({reason}): correct that, or leave --replicas out") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and warns on standard error of what we have chosen."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
    finally:
        logger.setLevel(level)
        with suppress(ValueError):  # not in the main thread, where Ray leaves it alone too
            signal.signal(signal.SIGTERM, before)
