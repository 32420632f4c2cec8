"""What is a secret and what is not, and that none is stored or shown."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support.gate_runs import a_record

from medbench.harness.cli.main import run
from medbench.harness.engines.pool import describe_engine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation import plan
from medbench.harness.runs.records import RunRecord
from medbench.harness.secrets import HIDDEN, is_secret, redact, redacted, redacted_command, without_credentials
from medbench.reports.views.run import command_of

PASSWORD = "s3cret-pass"


SECRET = """hf_token HF_TOKEN token api_key apiKey API-KEY OPENAI_API_KEY client_secret clientSecret password db.passwd
sig x-amz-signature Authorization AWS_SECRET_ACCESS_KEY --api-key"""
OTHER = """max_tokens max_num_batched_tokens tokenizer tokenizer_mode skip_tokenizer_init eos_token pad_token PWD
TOKENIZERS_PARALLELISM keyboard model seed max_new_tokens design monkey"""


@pytest.mark.parametrize("name", SECRET.split())
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", OTHER.split())
def test_names_of_other_things(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        f"http://nurse:{PASSWORD}@host:8000/v1",
        f"HTTPS://{PASSWORD}@host/v1",
        f"no answer from http://nurse:{PASSWORD}@host, nor from https://u:{PASSWORD}@b/v1",
        f"http://nurse:a@{PASSWORD}@host/v1",
        f"http://nurse:{PASSWORD}/x@host/v1",
        f"http://nurse:{PASSWORD}#x@host/v1",
        f"http://host/v1?model=a&api_key={PASSWORD}",
        f"http://host/v1?sig={PASSWORD}&b=1",
        f"http://host/v1?X-Amz-Signature={PASSWORD}",
        f"redis+tls://:{PASSWORD}@host",
    ],
)
def test_nothing_secret_is_left_in_a_text(text: str) -> None:
    assert PASSWORD not in redact(text)
    assert HIDDEN in redact(text)
    assert PASSWORD not in without_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/v1",
        "https://hub/org/model@main",
        "cot-v2+max_new_tokens=16",
        "a@b: unknown key; did you mean token?",
        "http://host/v1?limit=3&page=2",
        "key: missing",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert without_credentials(text) == text


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"])
def test_values_from_the_environment_are_found_anywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"{PASSWORD}\n")
    assert PASSWORD not in redact(f"HTTP 401: bad key {PASSWORD}!")
    assert redacted_command(["medbench", "eval", PASSWORD, f"--name=x{PASSWORD}"]) == [
        "medbench", "eval", HIDDEN, f"--name=x{HIDDEN}",
    ]  # fmt: skip


def test_a_placeholder_or_a_short_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    monkeypatch.setenv("OTHER_KEY", "a")
    assert redact("EMPTY answer of a") == "EMPTY answer of a"


def test_settings_are_searched_as_deep_as_they_go() -> None:
    settings = {
        "hf_token": PASSWORD,
        "max_model_len": 5,
        "hf_overrides": {"auth": {"deep": [PASSWORD, 3]}, "key": 7, "text": f"http://u:{PASSWORD}@h"},
        "eos_token": "<|im_end|>",
        "list": [{"api-key": PASSWORD}, ("a", f"http://{PASSWORD}@h")],
    }
    hidden = redacted(settings)
    assert PASSWORD not in json.dumps(hidden)
    assert (hidden["max_model_len"], hidden["eos_token"], hidden["hf_overrides"]["key"]) == (5, "<|im_end|>", 7)


def test_options_that_hold_a_secret() -> None:
    assert redacted_command(["m", "--api-key", PASSWORD, "--token", "--quiet", f"--hf-token={PASSWORD}", "x"]) == [
        "m", "--api-key", HIDDEN, "--token", "--quiet", f"--hf-token={HIDDEN}", "x",
    ]  # fmt: skip


def test_a_long_text_takes_no_time() -> None:
    slow = ("http://" * 20_000, "?" * 100_000, "a:" * 100_000, "http://a:" + "b/" * 100_000, "--a" * 50_000)
    for text in (*slow, "http://a" * 20_000 + "@"):
        started = time.process_time()
        redact(text)
        assert time.process_time() - started < 5


def planned(base_url: str, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setattr("sys.argv", ["/usr/bin/medbench", "eval", "m", "--base-url", base_url])
    choice = EngineChoice("openai", base_url=base_url)
    model = plan.find_model(choice, "m", print).record
    return plan._new_record(plan.EvalOptions("m", engine=choice), model, [], plan.load_protocol("cot-v2"), plan.utc_now)


def test_a_run_stores_no_password_and_a_rotated_one_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = planned("http://host:8000/v1", monkeypatch)
    one, other = (planned(f"http://nurse:{word}@host:8000/v1", monkeypatch) for word in (PASSWORD, "rotated-pass"))
    assert one.run_id == other.run_id == bare.run_id
    assert bare.model.fingerprint == plan._sha256("http://host:8000/v1 m")
    assert PASSWORD not in one.model_dump_json()
    assert one.command[-1] == f"http://{HIDDEN}@host:8000/v1"


def test_engine_settings_are_stored_without_secrets() -> None:
    class Engine:
        name, chat_template = "vllm", "none"

        def settings(self) -> dict[str, object]:
            return {"hf_token": PASSWORD, "seed": 0}

    assert describe_engine(Engine())["settings"] == {"hf_token": HIDDEN, "seed": 0}  # type: ignore[arg-type]


def test_pages_of_older_runs_show_no_password() -> None:
    record = a_record("r", {"medqa": 1}, command=["medbench", "--base-url", f"http://a:{PASSWORD}@h/v1"])
    assert PASSWORD not in command_of(record)


def test_messages_show_no_password(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PASSWORD)
    for arguments in (
        ["eval", "m", "--base-url", f"http://nurse:{PASSWORD}/@host:port/v1", "--data", "sample"],
        ["eval", f"http://nurse:{PASSWORD}@host/v1", "--data", "sample"],
        ["score", f"{PASSWORD}.jsonl", "--task", "medqa"],
        ["eval", "m", "--no-such", PASSWORD],
        [PASSWORD],
    ):
        assert run(arguments) == 2
        assert PASSWORD not in "".join(capfd.readouterr())


def test_a_recipe_with_a_secret_is_refused(tmp_path: Path) -> None:
    from medbench.harness.training.recipe import check_recipe

    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: r\nstart: smollm2-135m\nengine: {vllm_args: {hf_token: s3cret-pass}}\n"
        "stages:\n- name: a\n  trainer: command\n  launch: {env: {HF_TOKEN: s3cret-pass}}\n"
        "  config: {command: [train], env: {WANDB_API_KEY: s3cret-pass, A: b}}\n  gates: {gates: []}\n"
    )
    lines = "\n".join(check_recipe(file))
    assert PASSWORD not in lines
    for path in ("engine.vllm_args.hf_token", "stages.0.launch.env.HF_TOKEN", "stages.0.config.env.WANDB_API_KEY"):
        assert f"{path}: a secret" in lines
    assert "config.env.A" not in lines
