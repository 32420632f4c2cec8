"""The real client of the Hub against a Hub on this machine: models found, refused, resumed, and read from the cache."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_server import STRANGER, TOKEN, HubServer, files_of, sha256
from support.tiny import build_tiny_lora, build_tiny_model

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.hub.faults import explained
from medbench.harness.hub.repository import Repository, dataset_rows

WEIGHTS = "model.safetensors"
NO_COMMIT = "0" * 40


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """With the tiny model as org/tiny. huggingface_hub has read the environment before; these are its constants."""
    from huggingface_hub import constants

    with HubServer() as server:
        address(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
        server.add("model", "org/tiny", files_of(tiny_model))
        yield server


def address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def fault(name: str) -> str:
    """The line for a mistake of the user's."""
    with pytest.raises(MedbenchError) as caught:
        resolve(name)
    assert not isinstance(caught.value, Interrupted), caught.value
    return one_line(caught.value)


def outage(name: str) -> str:
    """The line for a fault of the Hub, the network or the machine."""
    with pytest.raises(Interrupted) as caught:
        resolve(name)
    return one_line(caught.value)


def one_line(error: MedbenchError) -> str:
    said = str(error)
    assert "\n" not in said
    assert TOKEN not in said
    assert STRANGER not in said
    return said


# found


def test_a_model_by_its_id(hub: HubServer, tiny_model: Path) -> None:
    found = resolve("org/tiny")
    assert (found.name, found.kind, found.revision) == ("org/tiny", "full", "main")
    assert found.commit == hub.repos["model", "org/tiny"].refs["main"]
    assert found.fingerprint == resolve(str(tiny_model)).fingerprint
    assert resolve(str(tiny_model)).commit is None


def test_a_model_by_branch_tag_and_commit(hub: HubServer, tmp_path: Path) -> None:
    main = resolve("org/tiny")
    other = files_of(build_tiny_model(tmp_path / "other", seed=1))
    commit = hub.add("model", "org/tiny", other, revision="v1.0")
    hub.add("model", "org/tiny", other, revision="refs/pr/3")
    assert main.commit != commit
    for revision in ("v1.0", "refs/pr/3", commit):
        found = resolve(f"org/tiny@{revision}")
        assert (found.name, found.revision, found.commit) == (f"org/tiny@{revision}", revision, commit)
        assert found.fingerprint != main.fingerprint


def test_a_branch_that_moved_is_read_anew(hub: HubServer, tmp_path: Path) -> None:
    before = resolve("org/tiny")
    commit = hub.add("model", "org/tiny", files_of(build_tiny_model(tmp_path / "other", seed=1)))
    after = resolve("org/tiny")
    assert after.commit == commit != before.commit
    assert after.fingerprint != before.fingerprint
    assert resolve(f"org/tiny@{before.commit}").fingerprint == before.fingerprint


def test_what_is_in_the_cache_is_not_downloaded_again(hub: HubServer) -> None:
    resolve("org/tiny")
    assert any("/cdn/" in asked.path for asked in hub.asked)
    hub.asked.clear()
    resolve("org/tiny")
    assert [asked.path for asked in hub.asked] == ["/api/models/org/tiny/revision/main"]


def test_an_adapter_whose_base_is_on_the_hub(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    adapter = build_tiny_lora(tiny_model, tmp_path / "lora", use_dora=False, use_rslora=False)
    local = resolve(str(adapter))
    name_base(adapter, "org/tiny")
    found = resolve(str(adapter))
    assert (found.kind, found.base, found.commit) == ("adapter", "org/tiny", None)
    assert found.base_commit == hub.repos["model", "org/tiny"].refs["main"]
    assert local.base_commit is None
    assert found.merge_deviation == local.merge_deviation


def test_an_adapter_says_which_revision_of_its_base_it_needs(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    adapter = build_tiny_lora(tiny_model, tmp_path / "lora", use_dora=False, use_rslora=False)
    commit = hub.add("model", "org/tiny", files_of(tiny_model) | {"README.md": b"v1"}, revision="v1")
    name_base(adapter, "org/tiny", revision="v1")
    found = resolve(str(adapter))
    assert (found.base, found.base_commit) == ("org/tiny@v1", commit)
    name_base(adapter, "org/tiny", revision="v2")
    assert "its base model 'org/tiny@v2' cannot be used: model 'org/tiny@v2': no such folder, and no revision" in fault(
        str(adapter)
    )


def test_an_adapter_on_the_hub(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    adapter = build_tiny_lora(tiny_model, tmp_path / "lora", use_dora=False, use_rslora=False)
    name_base(adapter, "org/tiny")
    commit = hub.add("model", "org/lora", files_of(adapter), revision="v1")
    found = resolve("org/lora@v1")
    assert (found.kind, found.base, found.revision, found.commit) == ("adapter", "org/tiny", "v1", commit)
    assert found.base_commit == hub.repos["model", "org/tiny"].refs["main"]
    assert found.fingerprint == resolve(str(adapter)).fingerprint


def name_base(adapter: Path, base: str, **more: str) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base} | more))


def test_a_folder_comes_before_the_hub(
    hub: HubServer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/tiny").commit is None
    assert hub.asked == []


# refused


def test_a_model_that_does_not_exist(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "model 'org/none': no such folder, and no such model on the hub, or a private one: correct the id, or log in"
    assert fault("org/none").startswith(said)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fault("org/none").startswith(said)


@pytest.mark.parametrize("revision", ["v9", NO_COMMIT, "refs/pr/9"])
def test_a_revision_that_does_not_exist(hub: HubServer, revision: str) -> None:
    said = fault(f"org/tiny@{revision}")
    assert said.startswith(
        f"model 'org/tiny@{revision}': no such folder, and no revision '{revision}' of it on the hub"
    )
    assert f"{hub.url}/org/tiny" in said


def test_a_gated_model(hub: HubServer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("model", "org/gated", files_of(tiny_model), gated=True)
    said = fault("org/gated")
    assert f"gated on the hub: accept its licence at {hub.url}/org/gated, then log in with `hf auth login`" in said
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    said = fault("org/gated")
    assert "the account of your token has no access: accept its licence" in said
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(f"{TOKEN}\n")  # what `hf auth login` does
    assert resolve("org/gated").commit


def test_the_token_goes_to_the_hub_alone(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    resolve("org/tiny")
    sent = {("/cdn/" in asked.path, asked.token) for asked in hub.asked}
    assert sent == {(False, TOKEN), (True, None)}


@pytest.mark.parametrize("token", ["hf_" + "x" * 34, "hf_" + "x" * 20 + "\x01" + "y" * 13, "hf_" + "é" * 34])
def test_a_token_that_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    said = fault("org/tiny")
    assert "your token" in said
    assert "`hf auth login`" in said
    assert token[:9] not in said


@pytest.mark.parametrize("name", ["a--b/tiny", "org/tiny.git"])
def test_an_id_that_no_repository_can_have(hub: HubServer, name: str) -> None:
    assert fault(name).endswith("not a hub id: correct it to org/name")


@pytest.mark.parametrize("url", ["", "hub.example", "ftp://hub.example", "http://", "http://h:port"])
def test_an_endpoint_that_is_no_address(hub: HubServer, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    address(monkeypatch, url)
    assert fault("org/tiny") == f"HF_ENDPOINT={url!r} is not an address: write https://HOST, or unset it"


def test_an_endpoint_that_is_not_a_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from support import hub_server

    page = hub_server.Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in to the network</html>")
    monkeypatch.setattr(hub, "answer", lambda *_, **__: page)
    assert f"what answers at {hub.url} is not a hub: correct HF_ENDPOINT" in fault("org/tiny")


# the hub, the network, the machine


def test_a_rate_limit_is_waited_for(
    hub: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.too_many["org/tiny"], hub.limit = 2, {"Retry-After": "7"}
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with caplog.at_level("INFO", "medbench"):
        assert resolve("org/tiny").commit
    assert waited == [8, 8]
    assert caplog.messages == ["the hub's rate limit is reached: going on in 8 s"] * 2


@pytest.mark.parametrize(
    ("headers", "when"),
    [
        ({"Retry-After": "4000"}, "in 4001 s"),
        ({"RateLimit": '"api";r=0;t=900', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, "in 901 s"),
        ({"Retry-After": "tomorrow"}, "later"),
        ({}, "later"),
    ],
)
def test_a_rate_limit_that_lasts_too_long(hub: HubServer, headers: dict[str, str], when: str) -> None:
    hub.too_many["org/tiny"], hub.limit = 9, headers
    assert f"the hub's rate limit is reached: run again {when}; to have a limit of your own, log in" in outage(
        "org/tiny"
    )


def test_a_download_that_breaks_off_is_resumed(
    hub: HubServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)  # it keeps whole chunks only
    monkeypatch.setattr("time.sleep", lambda _: None)
    weights = (tiny_model / WEIGHTS).read_bytes()
    hub.broken[sha256(weights)] = 1
    caplog.set_level("INFO", "medbench")
    found = resolve("org/tiny")
    assert found.fingerprint == resolve(str(tiny_model)).fingerprint
    ranges = [asked.range for asked in hub.asked if asked.method == "GET" and asked.path.endswith(sha256(weights))]
    half = len(weights) // 2
    assert ranges == [None, f"bytes={half - half % (1 << 16)}-"]
    (said,) = [one.getMessage() for one in caplog.records if one.name == "medbench"]
    assert said.startswith("Error while downloading from http://localhost:")
    assert said.endswith(" Trying to resume download...")
    assert "\n" not in said


def test_a_download_that_cannot_be_finished(
    hub: HubServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    weights = (tiny_model / WEIGHTS).read_bytes()
    hub.broken[sha256(weights)] = 10**6
    assert "the download broke off (" in (said := outage("org/tiny"))
    assert said.endswith("): run again")
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    hub.broken.clear()
    assert resolve("org/tiny").fingerprint == resolve(str(tiny_model)).fingerprint


def test_a_hub_that_is_out_of_order(hub: HubServer) -> None:
    hub.status["org/tiny"] = 503
    assert outage("org/tiny").endswith("the hub is out of order (status 503): run again later")
    hub.status.clear()
    before = resolve("org/tiny")
    hub.status["org/tiny"] = 503
    assert resolve("org/tiny") == before


def test_a_hub_that_does_not_answer(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    before = resolve("org/tiny")
    hub.close()
    said = outage("org/other")
    assert f"{hub.url} does not answer (Connection refused): check the network and HF_ENDPOINT" in said
    with caplog.at_level("INFO", "medbench"):
        assert resolve("org/tiny") == before
    assert f"{hub.url} does not answer (Connection refused): org/tiny is read from the cache" in caplog.messages


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online = [resolve("org/tiny"), resolve(f"org/tiny@{resolve('org/tiny').commit}")]
    hub.asked.clear()
    offline(monkeypatch)
    assert [resolve(one.name) for one in online] == online
    for name in ("org/other", "org/tiny@v1", f"org/tiny@{NO_COMMIT}"):
        cache = tmp_path / "hf"
        assert fault(name) == (
            f"model '{name}': no such folder, and not in the hub's cache {cache}, and HF_HUB_OFFLINE is set: unset it "
            f"once to download"
        )
    assert hub.asked == []


def test_a_copy_that_lacks_files_is_not_used_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(resolve("org/tiny").path) / WEIGHTS).unlink()
    offline(monkeypatch)
    assert "HF_HUB_OFFLINE is set: unset it once to download" in fault("org/tiny")


def test_a_full_disk(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert f"no room for it in {tmp_path / 'hf'} (No space left on device): make room, or set HF_HOME" in outage(
        "org/tiny"
    )


def test_a_cache_that_cannot_be_written(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("a file")
    assert f"cannot be kept in {tmp_path / 'hf'} (" in fault("org/tiny")


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("org/tiny", ("org/tiny", "main")),
        ("org/tiny@v1", ("org/tiny", "v1")),
        ("org/tiny@refs/pr/3", ("org/tiny", "refs/pr/3")),
        ("org/tiny@", None),
        ("org/tiny@../x", None),
        ("tiny", None),
        ("./tiny", None),
        ("a/b/c", None),
        ("org/ti ny", None),
    ],
)
def test_names_of_models(name: str, parsed: tuple[str, str] | None) -> None:
    found = Repository.parse(name)
    assert (found and (found.id, found.revision)) == parsed


# data sets


@pytest.fixture
def rows_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """With a data set org/rows of two splits."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    hub.add("dataset", "org/rows", {"train.jsonl": jsonl(1, 2), "test.jsonl": jsonl(3), "README.md": b"# Rows\n"})
    return hub


def jsonl(*numbers: int) -> bytes:
    return "".join(f'{{"n": {number}}}\n' for number in numbers).encode()


def numbers(id: str = "org/rows", revision: str = "main", split: str = "train", subset: str | None = None) -> list[int]:
    repository = Repository("dataset", id, revision)
    try:
        return [row["n"] for row in dataset_rows(repository, subset=subset, split=split)]
    except Exception as error:
        raise explained(error, repository) from None


def rows_fault(*arguments: str, kind: type[MedbenchError] = MedbenchError, **named: str) -> str:
    with pytest.raises(kind) as caught:
        numbers(*arguments, **named)
    assert type(caught.value) is kind
    return one_line(caught.value)


def test_a_data_set_by_split_and_revision(rows_hub: HubServer) -> None:
    commit = rows_hub.add("dataset", "org/rows", {"train.jsonl": jsonl(7), "README.md": b"# Rows\n"}, revision="v1")
    assert numbers() == [1, 2]
    assert numbers(split="test") == [3]
    assert numbers(revision="v1") == numbers(revision=commit) == [7]


def test_a_local_folder_is_not_read_in_place_of_a_data_set(
    rows_hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "rows").mkdir(parents=True)
    (tmp_path / "org" / "rows" / "train.jsonl").write_bytes(jsonl(9))
    monkeypatch.chdir(tmp_path)
    assert numbers() == [1, 2]


def test_a_data_set_that_may_not_be_read(rows_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_hub.add("dataset", "org/gated", {"train.jsonl": jsonl(1), "README.md": b"# Gated\n"}, gated=True)
    page = f"{rows_hub.url}/datasets/org/gated"
    said = f"data set org/gated: gated on the hub: accept its licence at {page}, then log in with `hf auth login`"
    assert rows_fault("org/gated").startswith(said)
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert "the account of your token has no access" in rows_fault("org/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert numbers("org/gated") == [1]


def test_a_data_set_that_is_not_there(rows_hub: HubServer) -> None:
    assert rows_fault("org/none").startswith("data set org/none: no such data set on the hub, or a private one")
    assert "data set org/rows@v9: no revision 'v9' of it on the hub" in rows_fault(revision="v9")
    assert "Unknown split" in rows_fault(split="dev")
    assert "other" in rows_fault(subset="other")


def test_a_data_set_and_a_hub_that_fails(rows_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    rows_hub.too_many["org/rows"] = 2
    assert numbers() == [1, 2]
    rows_hub.status["org/rows"] = 500
    assert "the hub is out of order (status 500)" in rows_fault("org/rows", "v1", kind=Interrupted)
    rows_hub.close()
    assert "does not answer (Connection refused)" in rows_fault(kind=Interrupted)


def test_a_data_set_offline(rows_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    assert numbers() == [1, 2]
    tagged = rows_hub.add("dataset", "org/rows", {"train.jsonl": jsonl(7), "README.md": b"# Rows\n"}, revision="v1")
    assert numbers(revision="v1") == [7]
    rows_hub.asked.clear()
    offline(monkeypatch)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert numbers(revision="v1") == [7]
    main = rows_hub.repos["dataset", "org/rows"].refs["main"]
    assert f"the cache has commit {tagged[:12]}, not {main[:12]}: unset HF_HUB_OFFLINE once" in rows_fault()
    assert "and HF_HUB_OFFLINE is set: unset it once to download" in rows_fault("org/none")
    assert rows_hub.asked == []
