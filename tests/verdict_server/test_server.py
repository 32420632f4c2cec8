"""What the judging server answers, to friends and to everyone else."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.judging import ABOUT, Keeper, judging

from medbench.harness.contracts import MedbenchError
from medbench.harness.verdict_server import server
from medbench.harness.verdict_server.judge import accept_found
from medbench.harness.verdict_server.queue import JudgingQueue
from medbench.harness.verdict_server.server import Desk, allowed_folders, answering
from medbench.reports.write.serve import HEADERS

pytestmark = pytest.mark.slow  # a server takes half a second to stop


class Place:
    """Folders of a server."""

    def __init__(self, folder: Path) -> None:
        self.allowed, self.runs, self.keeper = folder / "checkpoints", folder / "runs", Keeper()
        self.allowed.mkdir()

    def made(self, name: str) -> Path:
        path = self.allowed / name
        path.mkdir()
        (path / "config.json").write_text("{}")
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def address(place: Place) -> Iterator[str]:
    with judging(place.keeper, place.runs, [place.allowed]) as found:
        yield found


def ask(
    address: str, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON (or text) of an answer; `body` is posted, as JSON unless it is bytes."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if content is not None:
        names = {"Content-Type": "application/json", "Content-Length": str(len(content))} | names
    try:
        connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host="Host" in names)
        for name, value in names.items():
            connection.putheader(name, value)
        connection.endheaders(content)
        answer = connection.getresponse()
        text = answer.read().decode()
        kind = answer.getheader("Content-Type", "")
        return answer.status, dict(answer.getheaders()), json.loads(text) if kind == "application/json" else text
    finally:
        connection.close()


def judge(address: str, checkpoint: Path | str, **headers: str) -> tuple[int, Any]:
    status, _, answer = ask(address, "/judge?wait=1", {"checkpoint": str(checkpoint)}, **headers)
    return status, answer


def test_a_checkpoint_is_accepted_at_once_and_its_verdict_can_be_fetched(address: str, place: Place) -> None:
    place.keeper.free.clear()
    status, _, item = ask(address, "/judge", {"checkpoint": str(place.made("step-1"))})
    assert (status, item["status"]) == (202, None)
    assert ask(address, f"/verdicts/{item['id']}")[2]["state"] in ("queued", "running")
    place.keeper.free.set()
    assert judge(address, item["checkpoint"])[1]["status"] == "fail"
    status, _, judged = ask(address, f"/verdicts/{item['id']}")
    assert (status, judged["state"], judged["status"], judged["exit"]) == (200, "judged", "fail", 1)
    assert judged["verdict"]["gates"][0]["rule"] == "invalid checkpoint"
    assert place.keeper.asked == ["step-1"]


@pytest.mark.parametrize(
    ("name", "exit", "error"),
    [
        ("interrupted", 4, "the disk is full: make room"),
        ("wrong", 2, "the base is not there: copy it"),
        ("fault", 70, "fault kept: ZeroDivisionError"),
    ],
)
def test_one_that_cannot_be_judged_has_an_error_and_the_next_a_new_engine(
    address: str, place: Place, name: str, exit: int, error: str
) -> None:
    status, item = judge(address, place.made(name))
    assert (status, item["state"], item["status"], item["exit"], item["error"]) == (200, "error", None, exit, error)
    assert place.keeper.dropped == 1
    assert judge(address, place.made("step-2"))[1]["status"] == "fail"


def test_one_that_is_removed_before_its_turn_has_no_verdict(address: str, place: Place) -> None:
    place.keeper.free.clear()
    ask(address, "/judge", {"checkpoint": str(place.made("step-1"))})
    gone = place.made("wrong")
    item = ask(address, "/judge", {"checkpoint": str(gone)})[2]
    (gone / "config.json").unlink()
    gone.rmdir()
    place.keeper.free.set()
    judge(address, place.made("step-3"))
    assert "removed while it was judged" in ask(address, f"/verdicts/{item['id']}")[2]["error"]


def test_what_appears_in_a_watched_folder_is_judged_too_and_only_once(
    address: str, place: Place, tmp_path: Path
) -> None:
    checkpoint = place.made("step-7")
    (checkpoint / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with JudgingQueue(tmp_path / "other", "rules") as queue:
        accept_found(place.allowed, queue, 0.0, lambda line: None)
        item = queue.take(10)
        assert item is not None
        assert item.checkpoint == str(checkpoint)
        assert queue.accept(checkpoint).id == item.id


def test_pages_and_lists_show_what_is_there_and_no_markup_from_outside(address: str, place: Place) -> None:
    _, item = judge(address, place.made("<i>step"))
    status, headers, page = ask(address, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "&lt;b&gt;gates.yaml" in page
    assert f"verdicts/{item['id']}.html" in page
    verdict = ask(address, f"/verdicts/{item['id']}.html")[2]
    assert "invalid checkpoint" in verdict
    assert "<script>alert" not in verdict
    assert "<i>step" not in page + verdict
    listed = ask(address, "/queue")[2]
    assert [one["id"] for one in listed["judged"]] == [item["id"]]
    assert listed["allowed"] == [str(place.allowed.resolve())]
    assert ask(address, "/assets/site.css")[1]["Content-Type"] == "text/css; charset=utf-8"
    assert ask(address, "/", method="HEAD")[0] == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/verdicts/", "/verdicts/../queue", f"/verdicts/{'0' * 16}", "/verdicts/x.html", "/assets/",
             "/assets/board.js", "/assets/../site.py", "/judge", "//etc/passwd", "/site.css", "/%00"],
)  # fmt: skip
def test_there_is_nothing_else(address: str, path: str) -> None:
    status, _, answer = ask(address, path)
    assert status == 404
    assert "no such page" in answer["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
def test_other_methods_are_refused_as_json(address: str, method: str) -> None:
    status, _, answer = ask(address, "/judge", method=method)
    assert (status, answer) == (501, {"error": "not implemented"})


def test_only_checkpoints_in_allowed_folders_are_taken(address: str, place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (place.allowed / "link").symlink_to(outside)
    (place.allowed / "loop").symlink_to("loop")
    (place.allowed / "empty").mkdir()
    for name in (outside, "/", "/etc", place.allowed / "link", place.allowed / ".." / "outside", "/nowhere",
                 f"{place.allowed}-2", f"/{'x' * 3000}"):  # fmt: skip
        status, answer = judge(address, name)
        assert status == 403, name
        assert "--allow FOLDER" in answer["error"]
    for name in (place.allowed / "empty", place.allowed / "none", place.allowed / "loop", place.allowed):
        status, answer = judge(address, name)
        assert status in (403, 404), name
    for relative in ("checkpoints/step-1", ".", "~", ""):
        assert judge(address, relative)[0] == 400
    assert place.keeper.asked == []


def test_the_same_answer_for_what_is_and_what_is_not_outside(address: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there, absent = (judge(address, tmp_path / name) for name in ("there", "absent"))
    assert there[0] == absent[0] == 403
    assert there[1]["error"].replace("there", "absent") == absent[1]["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b"[1]", 400),
        (b"{}", 400),
        (b'{"checkpoint": 1}', 400),
        (b'{"checkpoint": null}', 400),
        (b'{"checkpoint": "/a\\u0000b"}', 400),
        (b'{"checkpoint": "/\\ud800"}', 403),
        (b'{"checkpoint": "/a", "checkpoint": "/b"}', 400),
        (b'{"checkpoint": "/a", "gates": "mine.yaml"}', 400),
        (b'{"checkpoint": "' + b"/" * 5000 + b'"}', 400),
        (b"[" * 10_000, 400),
        (b"\xff\xfe{\x00", 400),
        (b" " * 20_000, 413),
    ],
)
def test_a_body_that_is_not_as_asked_is_refused_in_one_line(address: str, body: bytes, status: int) -> None:
    found, _, answer = ask(address, "/judge", body)
    assert found == status
    assert answer["error"]
    assert len(answer["error"].splitlines()) == 1
    assert "Traceback" not in answer["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "1e3"}, 411),
        ({"Content_Length": "9" * 30}, 411),
        ({"Transfer_Encoding": "chunked"}, 411),
        ({"Host": "evil.invalid:80"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "127.0.0.1.evil.invalid:80"}, 421),
        ({"Origin": "https://evil.invalid"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
    ],
)
def test_what_a_page_elsewhere_could_send_is_turned_away(
    address: str, place: Place, headers: dict[str, str], status: int
) -> None:
    path = place.made("step-1")
    assert judge(address, path, **headers)[0] == status
    assert place.keeper.asked == []


def test_names_of_this_machine_are_taken(address: str, place: Place) -> None:
    port = urlsplit(address).port
    own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}", "Sec_Fetch_Site": "same-origin"}
    assert judge(address, place.made("step-1"), **own)[0] == 200


def test_a_query_that_is_not_known_is_refused(address: str, place: Place) -> None:
    body = {"checkpoint": str(place.made("step-1"))}
    assert ask(address, "/judge?wait=yes", body)[0] == 400
    assert ask(address, "/elsewhere", body)[0] == 404


def test_a_client_that_falls_silent_is_let_go(address: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", urlsplit(address).port or 0), timeout=10) as connection:
        host = urlsplit(address).netloc
        lines = ("POST /judge HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Content-Length: 9", "", "")
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(100).startswith(b"HTTP/1.0 408")
    assert judge(address, place.made("step-1"))[0] == 200


def test_what_is_no_http_at_all_is_survived(address: str, place: Place) -> None:
    for content in (b"\0\xff" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000, b""):
        with socket.create_connection(("127.0.0.1", urlsplit(address).port or 0), timeout=10) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert judge(address, place.made("step-1"))[0] == 200


def test_only_the_loopback_listens_and_a_port_that_is_taken_is_one_line(address: str, place: Place) -> None:
    assert address.startswith("http://127.0.0.1:")
    with JudgingQueue(place.runs.with_name("other"), "rules") as queue:
        desk = Desk(queue, [], ABOUT, str)
        taken = answering(desk, urlsplit(address).port or 0)
        with pytest.raises(MedbenchError, match=r"port \d+: .* give another one to --serve"), taken:
            pass


def test_a_folder_that_is_not_there_cannot_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="no such folder"):
        allowed_folders([tmp_path / "none"])
    with JudgingQueue(tmp_path / "runs", "rules") as queue, pytest.raises(MedbenchError, match="no such folder"):
        accept_found(tmp_path / "none", queue, 0.0, print)
