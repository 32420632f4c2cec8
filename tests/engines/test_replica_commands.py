"""medbench with --replicas as a command: interrupted, killed, on a running cluster, with wrong input.

No process and no file of Ray may be left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import faulty_engine
from support.gate_runs import write_gates, write_medqa, write_replies
from support.replicas import made_checkpoint, own_place, ray_processes, wait_until

from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.replicas.cluster import Cluster, connect
from medbench.harness.engines.settings import EngineChoice, EngineConfig

pytest.importorskip("ray", reason="Ray is not installed: pip install 'medbench[ray]'")
pytestmark = pytest.mark.slow

QUESTIONS = 60
TESTS = Path(__file__).resolve().parent.parent
INTERRUPTIBLE = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from medbench.harness.cli.main import main\n"
    "main()\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids = write_medqa(tmp_path / "data", QUESTIONS)
    write_replies(tmp_path / "replies.jsonl", dict.fromkeys(ids, True))
    (tmp_path / "slow.yaml").write_text("engine_config: {delay: 0.3}\n")
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tmp_path_factory.getbasetemp()  # not in there
    with own_place() as folder:
        yield folder


@pytest.fixture(autouse=True)
def nothing_is_left(place: Path) -> Iterator[None]:
    before = {*ray_processes(place)}, {*place.glob("medbench-ray-*")}
    yield
    assert wait_until(lambda: {*ray_processes(place)} <= before[0], 15)
    assert wait_until(lambda: {*place.glob("medbench-ray-*")} <= before[1], 5)


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a session of its own, so that a signal reaches all its processes as Ctrl-C does."""
    command = [sys.executable, "-c", INTERRUPTIBLE, *words]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=folder, env=inherited | environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def evaluation(*words: str) -> list[str]:
    asked = ["--replies", "replies.jsonl", "--data", "data", "--tasks", "medqa", "--name", "run", "--quiet"]
    return ["eval", "m", *asked, *words]


def lines_of(folder: Path) -> list[dict[str, object]]:
    file = folder / "runs/run/samples/medqa.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def begun(process: subprocess.Popen[str], folder: Path) -> None:
    assert wait_until(lambda: len(lines_of(folder)) >= 4 or process.poll() is not None, 60)
    assert process.poll() is None, process.communicate()


def finished(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    process = start(folder, *words, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_an_evaluation_that_is_ended_leaves_no_process_and_goes_on_later(
    folder: Path, place: Path, number: signal.Signals
) -> None:
    process = start(folder, *evaluation("--replicas", "2", "--config", "slow.yaml"))
    begun(process, folder)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 4), told
    assert "Traceback" not in told
    assert wait_until(lambda: not ray_processes(place), 10)
    answered = lines_of(folder)
    assert 0 < len(answered) < QUESTIONS
    status, _, told = finished(folder, *evaluation("--replicas", "2", "--resume"))
    assert status == 0, told
    assert lines_of(folder)[: len(answered)] == answered
    assert len({str(line["id"]) for line in lines_of(folder)}) == len(lines_of(folder)) == QUESTIONS


def test_json_is_all_that_is_printed_and_the_run_equals_one_of_a_single_engine(folder: Path) -> None:
    status, out, told = finished(folder, *evaluation("--replicas", "3", "--json"))
    assert status == 0, told
    assert json.loads(out)["run"].endswith("run")
    one = finished(folder, *evaluation("--runs", "alone"))
    assert one[0] == 0
    sort = [sorted((folder / runs / "run/samples/medqa.jsonl").read_bytes().splitlines()) for runs in ("runs", "alone")]
    assert sort[0] == sort[1]


def test_a_gate_asks_replicas_no_more_than_it_needs(folder: Path) -> None:
    write_gates(folder / "gates.yaml", "{task: medqa, at_least: 0.3}", partition="all")
    words = ["--gates", "gates.yaml", "--replies", "replies.jsonl", "--data", "data", "--quiet", "--json"]
    status, out, told = finished(folder, "gate", "m", *words, "--replicas", "2")
    assert status == 0, told
    (verdict,) = json.loads(out)["verdicts"]
    alone = json.loads(finished(folder, "gate", "m", *words, "--runs", "alone")[1])["verdicts"][0]
    for one in (verdict, alone):
        one["gates"][0].pop("seconds", None)
    assert verdict["gates"] == alone["gates"]


# --- a running cluster -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(TESTS)])))
        started = connect(None, cpus=4)
        yield started
        started.close()


def address_of(cluster: Cluster) -> str:
    assert cluster.local is not None
    return cluster.local.address


def is_clean(cluster: Cluster) -> bool:
    """Nothing is reserved, and no actor lives: `ray status` shows it as it was."""
    from ray.util.placement_group import placement_group_table

    groups = [one for one in placement_group_table().values() if one["state"] not in ("REMOVED",)]
    return not groups and cluster.ray.available_resources().get("CPU") == cluster.ray.cluster_resources().get("CPU")


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGKILL])
def test_a_running_cluster_is_used_and_left_as_it_was(
    cluster: Cluster, folder: Path, number: signal.Signals | None
) -> None:
    words = evaluation("--replicas", "2", "--ray-address", address_of(cluster))
    process = start(folder, *words, *(("--config", "slow.yaml") if number else ()))
    if number is not None:
        begun(process, folder)
        os.killpg(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == {None: 0, signal.SIGINT: 4, signal.SIGKILL: -9}[number], told
    assert wait_until(lambda: is_clean(cluster), 20)


def test_ray_address_of_the_environment_is_used(cluster: Cluster, folder: Path, place: Path) -> None:
    status, _, told = finished(folder, *evaluation("--replicas", "2"), RAY_ADDRESS=address_of(cluster))
    assert status == 0, told
    assert ray_processes(place)  # the cluster's, which still runs
    assert len(list(place.glob("medbench-ray-*"))) == 1  # and no other was started
    assert wait_until(lambda: is_clean(cluster), 20)


def test_no_prompt_no_reply_and_no_token_is_in_the_logs_of_ray(cluster: Cluster, folder: Path, place: Path) -> None:
    words = evaluation("--replicas", "2", "--ray-address", address_of(cluster))
    assert finished(folder, *words, HF_TOKEN="hf_s3cretvalue")[0] == 0
    logs = [path for path in place.glob("medbench-ray-*/session_2*/logs/**/*") if path.is_file()]
    said = b"\n".join(path.read_bytes() for path in logs)
    assert b"raylet" in said
    for secret in ("Which metal", "The answer is", "hf_s3cretvalue", os.environ["RAY_AUTH_TOKEN"]):
        assert secret.encode() not in said


def test_a_cluster_that_others_use_up_is_told_with_what_is_free(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    from medbench.harness.engines.replicas import placement
    from medbench.harness.engines.replicas.engine import ReplicatedEngine

    monkeypatch.setattr(placement, "RESERVE_SECONDS", 3.0)
    taken = placement_group([{"CPU": 3}])
    assert taken.wait(30)
    try:
        with pytest.raises(MedbenchError, match=r"only [01] fit, others use the rest of the cluster \(1 CPU free\)"):
            ReplicatedEngine(EngineChoice("hf", EngineConfig(replicas=4)))
    finally:
        remove_placement_group(taken)
    assert wait_until(lambda: is_clean(cluster), 20)


# --- wrong input -----------------------------------------------------------------------------------------------------


class Deaf:
    """Listens, and says something that is not Ray's."""

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._answer, daemon=True).start()
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _answer(self) -> None:
        while True:
            try:
                one, _ = self._socket.accept()
            except OSError:
                return
            one.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            one.close()

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--replicas", "0"], {}, "a whole number from 1, or all"),
        (["--replicas", "two"], {}, "a whole number from 1, or all"),
        (["--replicas", "2", "--ray-address", "ray://head:10001"], {}, "is no address: give HOST:PORT"),
        (["--replicas", "2", "--ray-address", "head"], {}, "is no address: give HOST:PORT"),
        (["--replicas", "2", "--ray-address", "127.0.0.1:{closed}"], {}, "no Ray cluster can be reached there"),
        (["--replicas", "2"], {"RAY_ADDRESS": "127.0.0.1:{closed}"}, "RAY_ADDRESS 127.0.0.1:"),
        (["--replicas", "2", "--ray-address", "no-such-host.invalid:6379"], {}, "no Ray cluster can be reached there"),
        (["--ray-address", "127.0.0.1:6379"], {}, "--ray-address is for replicas: add --replicas N"),
        (["--ship-weights"], {}, "--ship-weights is for replicas"),
        (["--replicas", "2"], {"PYTHONPATH": "{no_ray}"}, "pip install 'medbench[ray]'"),
    ],
)
def test_wrong_input_is_one_line(folder: Path, words: list[str], environment: Mapping[str, str], said: str) -> None:
    (folder / "no_ray").mkdir()
    (folder / "no_ray/ray.py").write_text("raise ImportError('No module named ray')\n")
    path = os.pathsep.join([str(folder / "no_ray"), os.environ.get("PYTHONPATH", "")])
    filled = [word.format(closed=free_port()) for word in words]
    values = {name: value.format(closed=free_port(), no_ray=path) for name, value in environment.items()}
    status, out, told = finished(folder, *evaluation(*filled), **values)
    lines = [line for line in told.splitlines() if "unofficial" not in line]
    assert status == 2, told
    assert len(lines) == 1
    assert said in lines[0]
    assert out == ""
    assert not (folder / "runs/run").exists()


def test_something_else_that_listens_is_no_cluster(folder: Path) -> None:
    with Deaf() as address:
        started = time.monotonic()
        status, _, told = finished(folder, *evaluation("--replicas", "2", "--ray-address", address))
    lines = [line for line in told.splitlines() if "unofficial" not in line]
    assert status == 2, told
    assert len(lines) == 1
    assert address in lines[0]
    assert time.monotonic() - started < 90


def test_an_engine_object_or_a_server_has_no_replicas() -> None:
    from medbench.harness.engines.fake import FakeEngine
    from medbench.harness.engines.plugins import check_choice

    with pytest.raises(MedbenchError, match="not of an engine object"):
        check_choice(EngineChoice(config=EngineConfig(replicas=2), instance=FakeEngine({})))
    with pytest.raises(MedbenchError, match="a server has replicas of its own"):
        check_choice(EngineChoice("openai", EngineConfig(replicas=2), base_url="http://host/v1"))


# --- a node that does not see the checkpoint -------------------------------------------------------------------------

HIDING = 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"'


@pytest.fixture
def far_node(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A second node of the cluster, on this machine, for which the folder that is returned is empty."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    if subprocess.run(["unshare", "-m", "sh", "-c", HIDING, "sh", hidden, "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs root")
    site = faulty_engine.install(tmp_path / "site")
    paths = [str(site), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MEDBENCH_CACHE": str(tmp_path / "far-cache")}
    command = [sys.executable, str(TESTS / "support/far_node.py"), address_of(cluster)]
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", HIDING, "sh", str(hidden), *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: len(cluster.nodes()) == 2, 60)
        yield hidden
    finally:
        assert node.stdin is not None
        node.stdin.close()
        node.wait(timeout=30)
        assert wait_until(lambda: len(cluster.nodes()) == 1, 60)


def test_weights_are_sent_to_a_node_that_does_not_see_them(
    cluster: Cluster, far_node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.replicas import answered, requests

    from medbench.harness.engines.replicas import placement
    from medbench.harness.engines.replicas.engine import ReplicatedEngine

    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(placement.Plan, "bundle", property(lambda _: {"far": 1.0, "CPU": 0.001}))
    checkpoint = made_checkpoint(far_node / "model")

    def engine(ship: bool) -> ReplicatedEngine:
        return ReplicatedEngine(EngineChoice("faulty", EngineConfig(replicas=1, ship_weights=ship)))

    without = engine(False)
    with pytest.raises(MedbenchError, match=r"does not see .*put it on storage that all nodes share, or use --ship-"):
        without.load("m", checkpoint)
    without.close()
    shipping = engine(True)
    try:
        shipping.load("m", checkpoint)
        assert len(answered(shipping, requests(10))) == 10
    finally:
        shipping.close()
    (copy,) = (tmp_path / "far-cache/shipped").iterdir()
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (copy / file).read_bytes() == (far_node / "model" / file).read_bytes()
    assert wait_until(lambda: is_clean(cluster), 20)
