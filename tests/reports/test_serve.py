"""`medbench report`: the command, and the pages served on this machine alone."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.gate_runs import answers, stored_run

from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.reports.read.collect import collect
from medbench.reports.read.folders import signature
from medbench.reports.write import report, serve
from medbench.reports.write.serve import HEADERS, keep_building, serving
from medbench.reports.write.site import build

pytestmark = pytest.mark.slow  # a server takes half a second to stop


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    stored_run(tmp_path / "runs", "a", {"medqa": answers(3, 2)})
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path, tmp_path: Path) -> Iterator[str]:
    build(collect([runs]), tmp_path / "site")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "site" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "site" / "loop").symlink_to("loop")
    with serving(tmp_path / "site", 0) as found:
        yield found


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """As it stands, without the tidying of paths that a client library does."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/runs/a/viewer.html", "text/html; charset=utf-8"),
        ("/runs/a/data/medqa/index.js", "text/javascript; charset=utf-8"),
        ("/leaderboard.json", "application/json"),
        ("/leaderboard.csv", "text/csv; charset=utf-8"),
        ("/leaderboard.md", "text/plain; charset=utf-8"),
    ],
)
def test_pages_and_data_are_served_with_their_types_and_guards(address: str, path: str, kind: str) -> None:
    status, headers, content = ask(address, path)
    assert status == 200
    assert content
    assert headers["Content-type"] == kind
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert ask(address, path, "HEAD")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/link", "/loop", "/loop/x", f"/{'x' * 300}",
     "/.medbench-site.json", "/runs/../.medbench-site.json", "/../secret", "/%2e%2e/secret", "/..%2fsecret",
     "//etc/passwd", "/runs", "/runs/", "/runs/a/data/", "/nothing", "/index.html%00", "/.git/config", "/\\..\\secret"],
)  # fmt: skip
def test_nothing_else_is_served(address: str, path: str) -> None:
    status, headers, content = ask(address, path)
    assert status in (301, 404)
    assert b"secret" not in content
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(address: str, method: str) -> None:
    assert ask(address, "/", method)[0] == 501


@pytest.mark.parametrize("host", ["evil.invalid", "evil.invalid:80", "", "127.0.0.1.evil.invalid:80", "[::1]:80"])
def test_requests_by_another_name_are_turned_away(address: str, host: str) -> None:
    status, _, content = ask(address, "/", Host=host)
    assert status == 421
    assert b"medqa" not in content


def test_only_the_loopback_listens(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_a_fault_in_one_line(address: str, tmp_path: Path) -> None:
    port = urlsplit(address).port
    assert port is not None
    with pytest.raises(MedbenchError, match=rf"port {port}: .* another --port"), serving(tmp_path, port):
        pass


def test_the_site_follows_its_runs_and_outlives_faults(runs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    steps = iter(
        [
            lambda: stored_run(runs, "b", {"medqa": answers(4, 1)}),
            lambda: runs.rename(tmp_path / "away"),
            lambda: None,
            lambda: (tmp_path / "away").rename(runs),
            lambda: None,
        ]
    )
    built: list[int] = []

    def step() -> bool:
        following = next(steps, None)
        if following is not None:
            following()
        return following is None

    keep_building(
        lambda: built.append(build(collect([runs]), tmp_path / "site").runs),
        lambda: signature([runs]),
        said.append,
        stop=step,
        poll_seconds=0,
    )
    assert built == [2, 2]  # for the new run, and after the runs came back; not for nothing
    assert len(said) == 1
    assert "no such folder" in said[0]


# --- the command ---


def test_the_command_builds_and_says_so(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(runs), "-o", str(tmp_path / "site")]) == 0
    assert "1 run, " in capsys.readouterr().out
    assert run(["report", str(runs), "-o", str(tmp_path / "site"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["written"]) == (1, 0)
    assert found["skipped"] > 10


def test_broken_runs_are_named_on_standard_error(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "torn\x1b[31m").mkdir()
    (runs / "torn\x1b[31m" / "run.json").write_text("{")
    assert run(["report", str(runs), "-o", str(tmp_path / "site"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["broken"] == 1
    assert "cannot be read" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["nowhere", "-o", "site"], "nowhere: no such folder"),
        (["empty", "-o", "site"], "no run in it"),
        (["runs", "-o", "runs"], "holds other files"),
        (["runs"], "Missing option"),
        (["-o", "site"], "Missing argument"),
        (["runs", "-o", "site", "--format", "lm-eval", "--serve"], "writes only files"),
        (["runs", "-o", "site", "--format", "pdf"], "not one of"),
        (["runs", "-o", "site", "--references", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_faults_are_one_line_and_status_2(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    fault: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert fault in err
    assert err.count("\n") == 1


def test_the_lm_eval_format_goes_through_the_command(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(runs), "-o", str(tmp_path / "out"), "--format", "lm-eval", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 2
    assert run(["report", str(runs), "-o", str(tmp_path / "out")]) == 2  # no site over an export


def test_open_shows_the_page(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(report.webbrowser, "open", opened.append)
    assert run(["report", str(runs), "-o", str(tmp_path / "my site"), "--open"]) == 0
    assert opened == [(tmp_path / "my site" / "index.html").as_uri()]


def test_serving_ends_with_ctrl_c_and_status_0(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def watched(build: object, signature: object, say: object) -> None:
        found = json.loads(capsys.readouterr().out)
        seen.append(ask(found["address"], "/")[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "keep_building", watched)
    shutil.rmtree(runs / "a")  # a training that has only begun
    assert run(["report", str(runs), "-o", str(tmp_path / "site"), "--serve", "--port", "0", "--json"]) == 0
    assert seen == [200]
    assert "stopped serving" in capsys.readouterr().err


def test_a_new_run_is_seen_while_serving(runs: Path, tmp_path: Path) -> None:
    over = threading.Event()
    build(collect([runs]), tmp_path / "site")
    with serving(tmp_path / "site", 0) as address:
        builder = threading.Thread(
            target=keep_building,
            args=(lambda: build(collect([runs]), tmp_path / "site") and None, lambda: signature([runs]), print),
            kwargs={"stop": over.is_set, "poll_seconds": 0.02},
        )
        builder.start()
        stored_run(runs, "fresh", {"medqa": answers(1)})
        deadline = time.monotonic() + 20
        while ask(address, "/runs/fresh/viewer.html")[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        over.set()
        builder.join()
        assert ask(address, "/runs/fresh/viewer.html")[0] == 200
