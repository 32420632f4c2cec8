"""Nothing that is loaded may run code that comes with it: every call that loads says so itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("harness", "tasks", "trainers", "reports")

MODELS = {"trust_remote_code": False, "use_safetensors": True}
CODELESS = {"trust_remote_code": False}
NOT_LOADERS = {"PeftModel", "PeftConfig", "GenerationConfig"}
"""peft reads adapter_model.safetensors first, and resolve() refuses an adapter without one; the configs are JSON."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(what is called, as "Owner.name" or "name", the call) for each call that loads something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.endswith((".from_pretrained", "load_dataset", "LLM", "EngineArgs", "pipeline")):
                yield name, node


def needed(name: str) -> dict[str, bool]:
    owner = name.rpartition(".")[0].rpartition(".")[2]
    if owner in NOT_LOADERS:
        return {}
    return MODELS if owner.startswith("AutoModel") else CODELESS


def missing(source: str) -> list[str]:
    found = []
    for name, call in calls(ast.parse(source)):
        given = {one.arg: one.value for one in call.keywords}
        for flag, value in needed(name).items():
            constant = given.get(flag)
            if not (isinstance(constant, ast.Constant) and constant.value is value):
                found.append(f"line {call.lineno}: {name} without {flag}={value}")
    return found


def test_every_load_refuses_code_and_pickles() -> None:
    loads, found = 0, []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text()
            loads += sum(1 for _ in calls(ast.parse(source)))
            found += [f"{path.relative_to(ROOT)}, {line}" for line in missing(source)]
    assert loads >= 9
    assert found == []


def test_the_rule_sees_what_breaks_it() -> None:
    assert missing("AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)")
    assert missing("AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)")
    assert missing("transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=True)")
    assert missing("AutoConfig.from_pretrained(path, trust_remote_code=flag)")
    assert missing("datasets.load_dataset(name)")
    assert missing("LLM(model=path)")
    assert not missing("AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)")
