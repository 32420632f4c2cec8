"""Checkpoints swapped into a running vLLM server: the right weights answer, and every way to be fooled is found out.

The first half needs one real server in development mode, and a proxy before it that lies. The second half refuses
servers that do not fit, which a stand-in shows faster.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import write_gates, write_medqa
from support.servers import Answer, serving
from support.tiny import build_tiny_lora, build_tiny_model
from support.vllm_server import Passing, proxy, vllm_server

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.cli.main import run
from medbench.harness.contracts import Engine, Interrupted, MedbenchError, Message, Request
from medbench.harness.engines.hf import HFEngine
from medbench.harness.engines.served_swap import StaleServer, SwapServer
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.engines.vllm_development import DevelopmentServer
from medbench.harness.evaluation.question_order import order_seed
from medbench.harness.runs.run_folder import read_run, read_samples

KEY = "sk-test-0123456789abcdef"
PROMPTS = [f"Which drug is number {n}?" for n in range(12)]
QUESTIONS = 24
Meddle = Callable[[Passing], tuple[int, object] | None]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@dataclass(frozen=True)
class Bench:
    """One server for the whole module, two checkpoints that fit it, and questions."""

    root: Path
    url: str
    one: Path
    """The server was started from it; it answers A to most questions, and the answer is A to all."""
    two: Path
    """Other weights, which answer A to none."""

    def choice(self, url: str | None = None, **settings: Any) -> EngineChoice:
        return EngineChoice("openai", EngineConfig(**settings), base_url=url or self.url, swap=True)

    def command(self, verb: str, *words: str | Path, url: str | None = None) -> list[str]:
        common = ["--swap", "--base-url", url or self.url, "--data", str(self.root / "data"), "--quiet", "--json"]
        return [verb, *map(str, words), *common]

    def load(self, folder: Path) -> None:
        """As someone else would."""
        body = json.dumps({"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}).encode()
        where = f"{self.url.removesuffix('/v1')}/collective_rpc"
        urllib.request.urlopen(urllib.request.Request(where, body), timeout=60).close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("served")
    one, two = build_tiny_model(root / "one", seed=0), build_tiny_model(root / "two", seed=1)
    write_medqa(root / "data", QUESTIONS)
    settings = ("--api-key", KEY, "--max-model-len", "512", "--max-num-seqs", "16")
    with vllm_server(one, root, *settings, env={"VLLM_SERVER_DEV_MODE": "1"}) as url:
        yield Bench(root, url, one, two)


@pytest.fixture
def here(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(bench.root / "cache"))
    return tmp_path


def greedy(engine: Engine) -> dict[str, str]:
    requests = [
        Request(text, (), engine.render((Message("user", text),), None), 16, templated=True) for text in PROMPTS
    ]
    # vLLM omits a character whose bytes are incomplete at the end, transformers shows it as U+FFFD
    return {completion.id: completion.text.rstrip("\ufffd") for completion in engine.generate(requests)}


@pytest.fixture
def served(bench: Bench, here: Path) -> Iterator[SwapServer]:
    server = SwapServer(bench.choice())
    yield server
    server.release()


# --- a real server --------------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_an_equal_and_a_damaged_checkpoint_are_judged_in_one_server(bench: Bench, here: Path, capfd: Capture) -> None:
    equal = shutil.copytree(bench.one, here / "equal")
    gates = write_gates(here / "gates.yaml", "{task: medqa, margin: 0.02}")
    words = ("--tasks", "medqa", "--protocol", "direct-v1", "--name", "base")
    assert run(bench.command("eval", bench.one, *words)) == 0
    capfd.readouterr()
    judge = bench.command("gate", equal, bench.two, "--gates", gates, "--baseline", "runs/base")
    assert run(judge) == 1
    printed = capfd.readouterr()
    verdicts = json.loads(printed.out)["verdicts"]
    assert [verdict["overall"] for verdict in verdicts] == ["pass", "fail"]
    # again, one after the other, in other processes' order
    assert run(bench.command("gate", bench.two, "--gates", gates, "--baseline", "runs/base", "--runs", "again")) == 1
    assert run(bench.command("gate", equal, "--gates", gates, "--baseline", "runs/base", "--runs", "again")) == 0

    record = read_run(next(Path("runs").glob("*-two-*")))
    two = resolve(str(bench.two))
    assert (record.model.kind, record.model.fingerprint) == ("full", two.fingerprint)
    assert record.model.config_sha256 == two.config_sha256
    assert record.order_seed == order_seed(Path("runs"), record.model)
    settings = record.engine["settings"]
    assert (record.engine["name"], record.engine["chat_template"]) == ("openai", "model")
    assert (settings["swapped"], settings["device"], settings["dtype"]) == (True, "cpu", "float32")
    assert settings["reference_deviation"] < 1e-3
    assert KEY not in json.dumps(record.engine)


@pytest.mark.engine
def test_replies_are_those_of_an_engine_in_this_process(served: SwapServer, bench: Bench) -> None:
    dora = build_tiny_lora(bench.one, bench.root / "dora", use_dora=True, use_rslora=False)
    for folder in (bench.two, dora, bench.one, bench.one):
        checkpoint = resolve(str(folder))
        engine, own = served.serve(checkpoint), HFEngine(checkpoint.path, device="cpu")
        assert isinstance(engine, Engine)
        assert engine.chat_template == "model"
        assert greedy(engine) == greedy(own)
        asked = Request("q", (), "Which metal? The answer is", 1, choices=(" A", " iron", " zinc oxide"))
        (mine,), (its,) = engine.generate([asked]), own.generate([asked])
        assert mine.error is None
        assert mine.logprobs == pytest.approx(its.logprobs, abs=1e-3)


@pytest.mark.engine
def test_thinking_is_cut_off_and_continued_as_in_this_process(bench: Bench, here: Path, capfd: Capture) -> None:
    """A protocol that continues a reply, which a chat server cannot do."""
    words = ("--tasks", "medqa", "--limit", "4", "--thinking-tokens", "3", "--max-new-tokens", "30")
    assert run(bench.command("eval", bench.one, *words, "--name", "served")) == 0
    local = ["--data", str(bench.root / "data"), "--engine", "hf", "--name", "local", "--quiet"]
    assert run(["eval", str(bench.one), *words, *local]) == 0
    capfd.readouterr()
    replies = [
        {one.id: one.output.rstrip("\ufffd") for one in read_samples(f"runs/{name}", "medqa")}
        for name in ("served", "local")
    ]
    assert replies[0] == replies[1]
    assert all("The answer is (" in reply for reply in replies[0].values())


@pytest.mark.engine
def test_a_watch_judges_each_checkpoint_in_the_server(bench: Bench, here: Path, capfd: Capture) -> None:
    (here / "checkpoints").mkdir()
    for name, source in (("step-1", bench.two), ("step-2", bench.one)):
        shutil.copytree(source, here / "checkpoints" / name)
    gates = write_gates(here / "gates.yaml", "{task: medqa, at_least: 0.5}", protocol="direct-v1")
    times = ("--idle", "0.1", "--settled", "0")
    assert run(bench.command("watch", here / "checkpoints", "--gates", gates, *times)) == 1
    lines = map(json.loads, capfd.readouterr().out.splitlines())
    assert {Path(line["candidate"]).name: line["overall"] for line in lines} == {"step-1": "fail", "step-2": "pass"}


def swallowed_reload(call: Passing) -> tuple[int, object] | None:
    return (200, {"results": [None]}) if call.path == "/collective_rpc" else None


def swallowed_second_reload() -> Meddle:
    """Only blanks are loaded."""

    def meddle(call: Passing) -> tuple[int, object] | None:
        is_reload = call.path == "/collective_rpc"
        blank = is_reload and "blank-" in call.body["kwargs"]["weights_path"]
        return (200, {"results": [None]}) if is_reload and not blank else None

    return meddle


def kept_cache(call: Passing) -> tuple[int, object] | None:
    return (200, {"success": True}) if call.path == "/reset_prefix_cache" else None


@pytest.mark.engine
@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (swallowed_reload, "still answers by others"),
        (swallowed_second_reload(), "still has those of zero"),
        (kept_cache, "prefix cache"),
    ],
    ids=["nothing is reloaded", "only the blank is loaded", "the cache is kept"],
)
def test_a_server_that_says_200_and_serves_other_weights_gives_no_verdict(
    bench: Bench, here: Path, capfd: Capture, meddle: Meddle, said: str
) -> None:
    bench.load(bench.one)
    gates = write_gates(here / "gates.yaml", "{task: medqa, at_least: 0.5}", protocol="direct-v1")
    with proxy(bench.url, meddle) as url:
        assert run(bench.command("gate", bench.two, "--gates", gates, url=url)) == 4
    printed = capfd.readouterr()
    assert said in printed.err
    assert printed.out == ""
    assert list(Path("runs").glob("*/run.json")) == []


@pytest.mark.engine
def test_a_reload_that_leaves_out_a_tensor_is_caught(bench: Bench, here: Path) -> None:
    """As a server does that sees a half-written file, or another one, at the same path."""
    from safetensors.torch import load_file, save_file

    partial = shutil.copytree(bench.two, here / "partial")
    weights = load_file(partial / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})

    def meddle(call: Passing) -> None:
        if call.path == "/collective_rpc" and call.body["kwargs"]["weights_path"] == str(bench.two.resolve()):
            call.body["kwargs"]["weights_path"] = str(partial)

    with proxy(bench.url, meddle) as url, pytest.raises(StaleServer, match="than these files do in transformers"):
        SwapServer(bench.choice(url)).serve(resolve(str(bench.two)))


@pytest.mark.engine
def test_one_of_two_servers_behind_an_address_is_not_enough(bench: Bench, here: Path) -> None:
    """Every second probe is answered by a server that was not reloaded."""
    stale: list[Any] = []

    def meddle(call: Passing) -> tuple[int, object] | None:
        if call.path == "/v1/completions" and len(stale) % 2 == 0:
            names = [f"token_id:{token}" for token in call.body["logprob_token_ids"]]
            scores = {name: -float(number) - 1 for number, name in enumerate(names)}
            stale.append(call)
            return 200, {"choices": [{"logprobs": {"top_logprobs": [scores]}}]}
        stale.append(None)
        return None

    with proxy(bench.url, meddle) as url, pytest.raises(StaleServer, match="several servers"):
        SwapServer(bench.choice(url)).serve(resolve(str(bench.two)))


class Intruder:
    """Someone who loads other weights into the server as soon as `after` questions have been asked."""

    def __init__(self, bench: Bench, folder: Path, after: int) -> None:
        self._bench, self._folder, self._left = bench, folder, after

    def __call__(self, call: Passing) -> None:
        if call.path == "/v1/completions" and call.body.get("echo"):
            self._left -= 1
            if self._left == 0:
                self._bench.load(self._folder)


@pytest.mark.engine
def test_weights_that_someone_exchanges_meanwhile_leave_nothing_stored(
    bench: Bench, here: Path, capfd: Capture
) -> None:
    gates = write_gates(here / "gates.yaml", "{task: medqa, at_least: 0.5}", protocol="direct-v1")
    with proxy(bench.url, Intruder(bench, bench.two, QUESTIONS // 2)) as url:
        assert run(bench.command("gate", bench.one, "--gates", gates, url=url)) == 4
    assert "other weights" in capfd.readouterr().err
    assert list(Path("runs").glob("*/run.json")) == []
    assert run(bench.command("gate", bench.one, "--gates", gates)) == 0


@pytest.mark.engine
def test_a_resumed_run_is_as_it_was_after_someone_exchanged_the_weights(
    bench: Bench, here: Path, capfd: Capture
) -> None:
    words = (bench.one, "--tasks", "medqa", "--protocol", "direct-v1", "--name", "r", "--resume")
    assert run(bench.command("eval", *words, "--limit", "6")) == 0
    files = [Path("runs/r/run.json"), Path("runs/r/samples/medqa.jsonl")]
    before = [file.read_bytes() for file in files]
    with proxy(bench.url, Intruder(bench, bench.two, 6)) as url:
        assert run(bench.command("eval", *words, url=url)) == 4
    assert [file.read_bytes() for file in files] == before
    assert run(bench.command("eval", *words)) == 0
    assert len(list(read_samples("runs/r", "medqa"))) == QUESTIONS


@pytest.mark.engine
def test_replies_are_given_out_only_after_a_probe_that_found_the_same_weights(
    served: SwapServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medbench.harness.engines.served_swap.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("medbench.harness.engines.served_swap.CHECK_SHARE", 1e9)
    engine = served.serve(resolve(str(bench.one)))
    requests = [Request(text, (), text, 8) for text in PROMPTS]
    replies = engine.generate(iter(requests))
    next(replies)
    bench.load(bench.two)
    with pytest.raises(StaleServer, match="the probe moved"):
        replies.close()

    engine = served.serve(resolve(str(bench.one)))
    bench.load(bench.two)
    with pytest.raises(StaleServer, match="the probe moved"):
        list(engine.generate(requests))


@pytest.mark.engine
def test_a_label_of_someone_elses_ends_the_session(served: SwapServer, bench: Bench) -> None:
    """Another medbench elsewhere, even where it loads the same weights."""
    engine = served.serve(resolve(str(bench.one)))
    DevelopmentServer(bench.url, timeout=60, allowed=()).mark("mine")
    with pytest.raises(StaleServer, match="labelled"):
        list(engine.generate([Request("q", (), "Which?", 4)]))


def changed_copy(source: Path, target: Path, file: str, **changes: object) -> Path:
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | changes))
    return target


@pytest.mark.engine
def test_a_checkpoint_that_is_not_of_the_servers_kind_is_refused_and_harms_nothing(
    bench: Bench, here: Path, capfd: Capture
) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    deeper = shutil.copytree(bench.one, here / "deeper")
    described = Qwen3Config.from_pretrained(deeper).to_dict()
    described.update(num_hidden_layers=3, layer_types=["full_attention"] * 3)
    Qwen3ForCausalLM(Qwen3Config(**described)).save_pretrained(deeper)

    retold = shutil.copytree(bench.one, here / "retold")
    template = retold / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "doctor"))

    respelt = shutil.copytree(bench.one, here / "respelt")
    text = (respelt / "tokenizer.json").read_text()
    (respelt / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|im_over|>"))

    scaled = changed_copy(bench.one, here / "scaled", "config.json", rms_norm_eps=0.5)
    for folder, said in (
        (deeper, "num_hidden_layers"),
        (retold, "another chat template"),
        (respelt, "another tokenizer"),
        (scaled, "rms_norm_eps"),
    ):
        assert run(bench.command("eval", folder, "--tasks", "medqa")) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("medbench:")]
        assert said in line
        assert "start it from" in line
    SwapServer(bench.choice()).serve(resolve(str(bench.one))).close()


@pytest.mark.engine
def test_folders_that_the_server_does_not_see_are_told_apart_from_a_fault(bench: Bench, here: Path) -> None:
    def hiding(word: str) -> Meddle:
        def meddle(call: Passing) -> None:
            if call.path == "/collective_rpc" and word in call.body["kwargs"]["weights_path"]:
                call.body["kwargs"]["weights_path"] += "/not/here"

        return meddle

    checkpoint = resolve(str(bench.two))
    for word, said in (("blank-", "set MEDBENCH_CACHE to a folder"), ("two", "put the checkpoint into a folder")):
        with (
            proxy(bench.url, hiding(word)) as url,
            pytest.raises(MedbenchError, match=rf"does not see.*{said}") as refused,
        ):
            SwapServer(bench.choice(url)).serve(checkpoint)
        assert refused.value.exit_code == 2
    assert list((bench.root / "cache").glob("blank-*")) == []
    assert greedy(SwapServer(bench.choice()).serve(checkpoint))  # the server has survived it


@pytest.mark.engine
def test_two_medbenches_do_not_swap_under_each_other(served: SwapServer, bench: Bench) -> None:
    checkpoint = resolve(str(bench.one))
    served.serve(checkpoint)
    other = bench.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Interrupted, match="in use by another medbench"):
        SwapServer(bench.choice(other, patience=0.3)).serve(checkpoint)
    served.release()
    SwapServer(bench.choice(other, patience=0.3)).serve(checkpoint).close()


@pytest.mark.engine
def test_the_probe_of_the_same_weights_must_be_the_one_from_before(served: SwapServer, bench: Bench) -> None:
    one, two = resolve(str(bench.one)), resolve(str(bench.two))
    served.serve(two)
    relabelled = replace(one, fingerprint=two.fingerprint)
    with pytest.raises(StaleServer, match="the same weights"):
        served.serve(relabelled)


# --- a stand-in -----------------------------------------------------------------------------------------------------

MODELS = {"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 512}]}


def info(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_config": {"model": str(folder), "dtype": "torch.bfloat16", "max_model_len": 512},
        "parallel_config": {},
        "cache_config": {"block_size": 16},
        "scheduler_config": {"max_num_seqs": 8},
        "device_config": {"device": "cuda"},
    }
    for name, change in changes.items():
        config[name] = {**config.get(name, {}), **change}
    return {"vllm_config": config, "vllm_env": {}}


def pages(**answers: Answer) -> Callable[[str], Answer]:
    def answer(path: str) -> Answer:
        name = path.partition("?")[0].removeprefix("/").replace("/", "_")
        return answers.get(name, (404, {"detail": "Not Found"}, {}))

    return answer


def ok(content: object) -> Answer:
    return 200, content, {}


FITTING = {"v1_models": ok(MODELS), "is_sleeping": ok({"is_sleeping": False}), "version": ok({"version": "0.31.0"})}


def about(answers: dict[str, Answer]) -> Any:
    with serving(lambda _: None, pages=pages(**answers)) as server:
        return DevelopmentServer(server.url, timeout=5, allowed=()).about()


def test_what_a_server_says_of_itself(tmp_path: Path) -> None:
    found = about({**FITTING, "server_info": ok(info(tmp_path))})
    assert (found.model, found.folder, found.dtype, found.device) == ("tiny", tmp_path, "bfloat16", "cuda")
    assert (found.seats, found.block_size, found.max_model_len, found.version) == (8, 16, 512, "0.31.0")


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "without vLLM's development mode: start it as VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ({"v1_models": ok({"data": [{"id": "m", "owned_by": "sglang"}]})}, "is no vLLM server: start one as"),
        ({"v1_models": (401, {"error": "Unauthorized"}, {})}, "set OPENAI_API_KEY"),
        ({"v1_models": (500, {"error": {"message": "dead"}}, {})}, "HTTP 500: dead"),
        ({"server_info": ok({"vllm_config": {"model_config": {"model": 3}}})}, "server_info: vllm_config"),
        ({"server_info": ok([])}, "server_info"),
        ({"server_info": (200, b"<html>\x1b[2J", {})}, "not JSON"),
        ({"server_info": ok(info(Path("org/name")))}, "started from org/name, which is no folder here"),
        ({"is_sleeping": ok({"is_sleeping": True})}, "is asleep: wake it by curl"),
    ],
)
def test_servers_that_cannot_be_swapped_are_refused(answers: dict[str, Answer], said: str, tmp_path: Path) -> None:
    fits = {**FITTING, "server_info": ok(info(tmp_path))}
    if not answers:
        del fits["server_info"]
    with pytest.raises(MedbenchError) as refused:
        about({**fits, **answers})
    line = str(refused.value)
    assert said in line
    assert line.isprintable()
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_config": {"quantization": "fp8"}}, "--quantization"),
        ({"model_config": {"hf_overrides": {"rope_theta": 1}}}, "--hf-overrides"),
        ({"model_config": {"logprobs_mode": "processed_logits"}}, "--logprobs-mode"),
        ({"model_config": {"override_generation_config": {"max_new_tokens": 8}}}, "--generation-config"),
        ({"parallel_config": {"data_parallel_size": 2}}, "--data-parallel-size 1"),
        ({"parallel_config": {"data_parallel_external_lb": True}}, "--data-parallel-size 1"),
        ({"kv_transfer_config": {"kv_connector": "Shared"}}, "--kv-transfer-config"),
    ],
)
def test_servers_with_settings_under_which_a_swap_proves_nothing_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(MedbenchError, match=rf"start it with.*{said}"):
        about({**FITTING, "server_info": ok(info(tmp_path, **changes))})


def test_other_machines_are_refused_unless_they_are_named(tmp_path: Path) -> None:
    for url in ("http://node-3:8000/v1", "http://10.0.0.3:8000/v1", "http://127.0.0.1.evil.example/v1"):
        with pytest.raises(MedbenchError, match=r"is another machine.*swap_hosts"):
            DevelopmentServer(url, timeout=1, allowed=("node-4",))
    for url in ("http://localhost:8000/v1", "http://127.3.0.1/v1", "http://[::1]:8000/v1", "http://node-4:8000/v1"):
        DevelopmentServer(url, timeout=1, allowed=("node-4",))
    with pytest.raises(MedbenchError, match="does not end in /v1"):
        DevelopmentServer("http://localhost:8000", timeout=1, allowed=())


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(MedbenchError, match=r"no server answers at http://127\.0\.0\.1:9/v1.*start it as") as refused:
        DevelopmentServer("http://127.0.0.1:9/v1", timeout=1, allowed=()).about()
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("words", [["--swap"], ["--swap", "--engine", "hf"], ["--swap", "--engine", "openai"]])
def test_a_swap_needs_a_server(words: list[str], tiny_model: Path, capfd: Capture) -> None:
    assert run(["eval", str(tiny_model), "--data", "sample", *words]) == 2
    assert "--swap is for a running vLLM server: add --base-url URL" in capfd.readouterr().err
