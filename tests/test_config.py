"""YAML to typed records: what is accepted, and how each fault is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from medbench.harness.config import check_yaml, read_yaml
from medbench.harness.contracts import MedbenchError
from medbench.harness.evaluation.options import EvalConfig
from medbench.harness.text import did_you_mean


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "eval.yaml"


def faults(file: Path, text: str | bytes) -> list[str]:
    """The faults of `text`, each checked to be one line that begins with the file."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    record, lines = check_yaml(file, EvalConfig)
    assert (record is None) == bool(lines)
    assert all(line.startswith(f"{file}: ") and "\n" not in line for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


def test_a_full_file_is_read(file: Path) -> None:
    file.write_text("""
tasks: [medqa, pubmedqa]
protocol: cot-v2
engine: vllm
limit: 64
seed: 3
engine_config:
  dtype: float32
  kv_cache_gib: 2
  vllm_args: {enable_lora: true, max_lora_rank: 64}
""")
    config = read_yaml(file, EvalConfig)
    assert config.tasks == ["medqa", "pubmedqa"]
    assert (config.limit, config.seed, config.thinking) == (64, 3, None)
    assert config.engine_config.dtype == "float32"
    assert config.engine_config.vllm_args == {"enable_lora": True, "max_lora_rank": 64}
    assert config.engine_config.batch_size == EvalConfig().engine_config.batch_size


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        EvalConfig().limit = 5  # type: ignore[misc]


def test_all_faults_are_reported_at_once_by_key_path(file: Path) -> None:
    lines = faults(
        file,
        "limti: 3\nseed: -1\ntasks: medqa\nengine: vlm\nengine_config: {dtpye: float32, tensor_parallel_size: two}\n",
    )
    told = {line.split(":")[0]: line for line in lines}
    assert set(told) == {
        "limti",
        "seed",
        "tasks",
        "engine",
        "engine_config.dtpye",
        "engine_config.tensor_parallel_size",
    }
    assert told["limti"] == "limti: unknown key; did you mean limit?"
    assert told["engine_config.dtpye"] == "engine_config.dtpye: unknown key; did you mean dtype?"
    assert "found -1" in told["seed"]
    assert "found 'medqa'" in told["tasks"]
    assert told["engine"] == "engine: no such engine; did you mean vllm? (found 'vlm')"


def test_reading_raises_one_line_with_all_faults(file: Path) -> None:
    file.write_text("limti: 3\nseed: -1\n")
    with pytest.raises(MedbenchError) as raised:
        read_yaml(file, EvalConfig)
    assert "\n" not in str(raised.value)
    assert "limti" in str(raised.value)
    assert "seed" in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_key_without_a_similar_one_lists_the_known_keys(file: Path) -> None:
    (line,) = faults(file, "zzz: 1\n")
    assert line.startswith("zzz: unknown key; known: ")
    assert "protocol" in line


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("limit: 0", "limit", "greater than or equal to 1"),
        ("limit: 2.5", "limit", "integer"),
        ("limit: many", "limit", "integer"),
        ("thinking: perhaps", "thinking", "boolean"),
        ("tasks: [medqa, 5]", "tasks.1", "string"),
        ("engine_config:", "engine_config", "found None"),
        ("engine_config: {gpu_memory_utilization: 1.5}", "engine_config.gpu_memory_utilization", "less than or equal"),
        ("engine_config: {timeout: .nan}", "engine_config.timeout", "found nan"),
        ("1: 2", "1", "strings"),
    ],
)
def test_each_fault_names_its_key_and_what_was_found(file: Path, text: str, key: str, what: str) -> None:
    (line,) = faults(file, text)
    assert line.startswith(f"{key}: ")
    assert what in line


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected keys and values, found NoneType"),
        ("- limit", "expected keys and values, found list"),
        ("limit", "expected keys and values, found str"),
        ("limit: 5: 6", "not YAML"),
        ("limit: [5", "not YAML"),
        ("\x00", "not YAML"),
        (b"\xff\xfe\xfa", "cannot be read"),
    ],
)
def test_content_that_is_not_a_mapping_is_one_line(file: Path, text: str | bytes, what: str) -> None:
    (line,) = faults(file, text)
    assert what in line


@pytest.mark.parametrize("value", ["2024-13-45", "0x_", "!!float", "!!int", "!!bool x", "[" * 5000])
def test_values_that_the_parser_chokes_on_are_one_line(file: Path, value: str) -> None:
    assert len(faults(file, f"limit: {value}\n")) == 1


def test_files_that_cannot_be_read_are_one_line(file: Path) -> None:
    assert check_yaml(file, EvalConfig) == (None, [f"{file}: no such file"])
    (line,) = check_yaml(file.parent, EvalConfig)[1]
    assert "cannot be read" in line


def test_nothing_in_a_file_is_executed(file: Path, tmp_path: Path) -> None:
    (line,) = faults(file, f"limit: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert "not YAML" in line
    assert not (tmp_path / "made").exists()


def test_a_long_value_is_cut_short_in_the_message(file: Path) -> None:
    (line,) = faults(file, f"limit: {'x' * 10_000}\n")
    assert len(line) < 200


def test_similar_names_come_first() -> None:
    assert did_you_mean("medqaa", ["medqa", "pubmedqa", "other"]) == "did you mean medqa or pubmedqa?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
