"""Protocols: the built-in ones, overrides, faulty files, and the prompts themselves against golden files.

pytest tests/protocols/test_protocol.py

An intended change of a prompt needs a new protocol name; then `python tests/protocols/test_protocol.py` rewrites the
golden files under tests/data/prompts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medbench.harness.contracts import OWN_EXTRACTION, MedbenchError, Question
from medbench.harness.protocols.protocol import (
    DEFAULT,
    FOREIGN,
    Protocol,
    built_in_names,
    lm_eval_target,
    lm_eval_text,
    load_protocol,
)
from medbench.harness.runs.run_folder import read_run

DATA = Path(__file__).parents[1] / "data"
PROMPTS = DATA / "prompts"
OLD_RUN = DATA / "schema_1" / "runs" / "weak-cot-v1-dd4c72"
TEN_OPTIONS = Question(
    id="1",
    cluster="1",
    question="A 34-year-old woman has tetany two days after a total thyroidectomy.\n"
    "Which {{ serum }} value is <most> likely low?",
    options=(
        "Calcium",
        "Sodium",
        "Potassium",
        "Chloride & bicarbonate",
        "Iron",
        "Zinc",
        "Copper",
        "Glucose",
        "Urea",
        "50 % of the above",
    ),
    labels=tuple("ABCDEFGHIJ"),
    gold="A",
)
YES_NO_MAYBE = Question(
    id="2",
    cluster="2",
    question="Does early mobilisation shorten the stay after hip surgery?",
    options=("yes", "no", "maybe"),
    labels=("yes", "no", "maybe"),
    gold="yes",
    context="We followed 240 patients.\nThose who walked on day one left hospital 1.8 days earlier.",
)
LITERATURE = ("gazal-r1", "huatuo-o1", "lm-eval-logprob", "m1", "medhelm-letter", "mmlu-pro-official")
RENDERED = {
    f"{protocol}-{kind}.txt": (protocol, question)
    for protocol in ("cot-v1", "cot-v2", "direct-v1", *LITERATURE)
    for kind, question in (("ten-options", TEN_OPTIONS), ("yes-no-maybe", YES_NO_MAYBE))
}


def protocol_file(folder: Path, **changes: object) -> str:
    content = {"name": "mine", "about": "mine", "method": "generate", "prompt": "{{ question }}"} | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", built_in_names())
def test_built_in_protocols_load_under_the_name_of_their_file(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name
    assert "\n" not in protocol.about


def test_the_default_and_the_foreign_protocol_are_there() -> None:
    assert {DEFAULT, FOREIGN, "direct-v1"} <= set(built_in_names())


@pytest.mark.parametrize("golden", RENDERED)
def test_prompts_are_those_of_the_golden_files(golden: str) -> None:
    protocol, question = RENDERED[golden]
    assert load_protocol(protocol).text(question) + "\n" == (PROMPTS / golden).read_text()


def test_lm_eval_asks_the_same_as_the_default_protocol() -> None:
    from dataclasses import asdict

    doc = {**asdict(TEN_OPTIONS), "category": "{}"}
    assert lm_eval_text(doc) == load_protocol(DEFAULT).text(TEN_OPTIONS)


def test_a_system_turn_comes_first(tmp_path: Path) -> None:
    protocol = load_protocol(protocol_file(tmp_path, system="You are a physician."))
    assert [(turn.role, turn.content) for turn in protocol.messages(YES_NO_MAYBE)] == [
        ("system", "You are a physician."),
        ("user", YES_NO_MAYBE.question),
    ]
    assert [turn.role for turn in load_protocol("cot-v2").messages(YES_NO_MAYBE)] == ["user"]


@pytest.mark.parametrize("name", LITERATURE)
def test_a_protocol_of_the_literature_names_its_sources_and_quirks(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.sources
    assert all(source.startswith("https://") for source in protocol.sources)
    assert protocol.quirks
    assert not [line for line in (*protocol.quirks, protocol.denominator) if "\n" in line]


def test_decoding_extractors_and_examples_are_those_of_the_sources() -> None:
    told = {
        name: (p.chat, p.decoding.temperature, p.decoding.top_p, p.decoding.max_new_tokens, p.shots, p.extraction)
        for name in LITERATURE
        for p in [load_protocol(name)]
        if p.method == "generate"
    }
    assert told == {
        "gazal-r1": ("auto", 0.7, 0.8, 2048, 0, OWN_EXTRACTION),
        "huatuo-o1": ("auto", 0.5, 0.9, 2000, 0, "huatuo-o1-last"),
        "m1": ("auto", 0.0, 1.0, 2048, 0, "m1"),
        "medhelm-letter": ("auto", 0.0, 1.0, 1, 0, "medhelm-letter"),
        "mmlu-pro-official": ("never", 0.0, 1.0, 2048, 5, "mmlu-pro"),
    }
    assert load_protocol("gazal-r1").decoding.top_k == 20
    assert load_protocol("mmlu-pro-official").stop == ["Question:"]
    forced = load_protocol("m1").continuation
    assert forced is not None
    assert (forced.cue, forced.max_new_tokens) == ("\n<|im_start|>answer\nFinal Answer:", 1024)


def test_the_mmlu_pro_prompt_is_that_of_its_script() -> None:
    from dataclasses import replace

    from medbench.harness.protocols.chat import plain_text

    health = replace(TEN_OPTIONS, question="Which?", options=("Iron", "Zinc"), labels=("A", "B"), gold="B")
    health = replace(health, category={"category": "health"})
    asked = "Question:\nWhich?\nOptions:\nA. Iron\nB. Zinc\nAnswer: Let's think step by step."
    assert plain_text(load_protocol("mmlu-pro-official").messages(health, [health])) == (
        "The following are multiple choice questions (with answers) about health. Think step by step and then finish "
        'your answer with "the answer is (X)" where X is the correct letter choice.\n\n\n\n'
        f"{asked} The answer is (B).\n\n{asked}"
    )
    words = load_protocol("mmlu-pro-official").messages(YES_NO_MAYBE, [YES_NO_MAYBE])
    assert "about medicine." in words[0].content
    assert words[2].content == "The answer is (A)."


def test_the_system_turn_is_a_template_too(tmp_path: Path) -> None:
    path = protocol_file(tmp_path, system="{{ labels | length }} options.\n\n")
    assert load_protocol(path).messages(YES_NO_MAYBE)[0].content == "3 options.\n"  # Jinja drops one at the end
    with pytest.raises(MedbenchError, match=r"mine\.yaml: system: .*does not render"):
        load_protocol(protocol_file(tmp_path, system="{{ nothing }}"))


def test_an_unknown_extraction_is_one_line_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match=r"extraction: .*no such extraction; did you mean mmlu-pro\?") as raised:
        load_protocol(protocol_file(tmp_path, extraction="mmlu_pro"))
    assert "\n" not in str(raised.value)


def test_few_shot_examples_are_turns_before_the_question() -> None:
    turns = load_protocol("cot-v2").messages(YES_NO_MAYBE, [TEN_OPTIONS])
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].content == load_protocol("cot-v2").text(TEN_OPTIONS)
    assert turns[1].content == "The answer is (A)."
    assert turns[2:] == load_protocol("cot-v2").messages(YES_NO_MAYBE)
    assert load_protocol("direct-v1").messages(YES_NO_MAYBE, [YES_NO_MAYBE])[1].content == "yes"


def test_the_reply_of_a_few_shot_example_may_use_the_gold_answer_and_a_prompt_may_not(tmp_path: Path) -> None:
    protocol = load_protocol(protocol_file(tmp_path, example_reply="{{ gold }} of {{ labels | length }}"))
    assert protocol.reply(YES_NO_MAYBE) == "yes of 3"
    for fault in ({"prompt": "{{ gold }}"}, {"example_reply": "{{ answer }}"}):
        with pytest.raises(MedbenchError, match=r"mine\.yaml: \w+: .*does not render: UndefinedError"):
            load_protocol(protocol_file(tmp_path, **fault))


def test_lm_eval_shows_the_same_reply_as_the_default_protocol() -> None:
    from dataclasses import asdict

    doc = {**asdict(TEN_OPTIONS), "category": "{}"}
    assert lm_eval_target(doc) == load_protocol(DEFAULT).reply(TEN_OPTIONS)


def test_the_number_of_few_shot_examples_is_part_of_the_name() -> None:
    assert load_protocol("cot-v2").shots == 0
    five = load_protocol("cot-v2", max_new_tokens=64, shots=5)
    assert (five.shots, five.name) == (5, "cot-v2+max_new_tokens=64+shots=5")
    assert load_protocol("cot-v2", shots=0).name == "cot-v2"


def test_overrides_change_settings_and_name() -> None:
    plain = load_protocol("cot-v2")
    changed = load_protocol("cot-v2", max_new_tokens=64, thinking=False)
    assert (changed.decoding.max_new_tokens, changed.thinking) == (64, False)
    assert changed.name == "cot-v2+max_new_tokens=64+thinking=off"
    assert load_protocol("cot-v2", thinking=True).name == "cot-v2+thinking=on"
    assert changed.prompt == plain.prompt
    assert plain.name == "cot-v2"


@pytest.mark.parametrize("name", ["cot-v1", "cot-v2", "m1", "huatuo-o1", "mmlu-pro-official"])
def test_a_budget_of_thinking_tokens_is_part_of_name_and_record(name: str) -> None:
    protocol = load_protocol(name, thinking_tokens=512)
    assert protocol.name == f"{name}+thinking_tokens=512"
    assert protocol.most_tokens == load_protocol(name).most_tokens
    content = protocol.model_dump(mode="json")
    assert content["thinking_tokens"] == 512
    assert Protocol.model_validate(content) == protocol


def test_without_a_budget_the_record_is_that_of_older_versions() -> None:
    """Runs made before there were budgets are resumed and compared by it."""
    assert load_protocol("cot-v1").model_dump(mode="json") == read_run(OLD_RUN).protocol


@pytest.mark.parametrize("name", ["direct-v1", "lm-eval", "medhelm-letter", "lm-eval-logprob"])
def test_a_protocol_without_a_cue_has_no_budget(name: str) -> None:
    with pytest.raises(MedbenchError, match=r"thinking_tokens=512: thinking_tokens needs an answer_cue"):
        load_protocol(name, thinking_tokens=512)


def test_a_budget_leaves_tokens_for_the_answer(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="thinking_tokens 2048 leaves no token of 2048 for the answer: raise"):
        load_protocol("cot-v2", thinking_tokens=2048)
    assert load_protocol("cot-v2", thinking_tokens=2048, max_new_tokens=4096).thinking_tokens == 2048
    with pytest.raises(MedbenchError, match="protocol mine: thinking_tokens 4000 leaves no token"):
        load_protocol(protocol_file(tmp_path, thinking_tokens=4000, answer_cue="Answer:"))


def test_an_override_that_changes_nothing_keeps_the_name() -> None:
    plain = load_protocol("cot-v2")
    assert load_protocol("cot-v2", max_new_tokens=plain.decoding.max_new_tokens, thinking=plain.thinking) == plain


def test_an_unknown_protocol_is_one_line_with_near_names() -> None:
    with pytest.raises(MedbenchError, match=r"^unknown protocol 'cot-v3'; did you mean cot-v2 or cot-v1\?$"):
        load_protocol("cot-v3")
    with pytest.raises(MedbenchError, match=r"^unknown protocol 'zzz'; known: cot-v1, cot-v2, direct-v1"):
        load_protocol("zzz")


def test_an_unknown_key_is_one_line_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError) as raised:
        load_protocol(protocol_file(tmp_path, promt="x", decoding={"temprature": 0.5}))
    assert "promt: unknown key; did you mean prompt?" in str(raised.value)
    assert "decoding.temprature: unknown key; did you mean temperature?" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "Mine Own"}, "name"),
        ({"method": "guess"}, "method"),
        ({"chat": "always"}, "chat"),
        ({"decoding": {"temperature": -1}}, "decoding.temperature"),
        ({"decoding": {"top_p": 0}}, "decoding.top_p"),
        ({"decoding": {"max_new_tokens": 0}}, "decoding.max_new_tokens"),
        ({"decoding": {"max_new_tokens": 10**30}}, "decoding.max_new_tokens"),
        ({"prompt": "{% if letters %}"}, "prompt"),
    ],
)
def test_faulty_settings_are_reported_by_key_path(tmp_path: Path, change: dict[str, object], key: str) -> None:
    with pytest.raises(MedbenchError, match=rf"mine\.yaml: {key}: ") as raised:
        load_protocol(protocol_file(tmp_path, **change))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="no such file"):
        load_protocol(str(tmp_path / "none.yaml"))


INTERNALS = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ question|attr('__class__') }}",
    "{{ question.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(question) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ self._TemplateReference__context }}",
    "{{ choices.append('x') }}",
]
UNRENDERABLE = ["{{ questoin }}", "{{ 1 / 0 }}", "{% for i in range(1000000000) %}x{% endfor %}"]


@pytest.mark.parametrize("prompt", INTERNALS)
def test_a_prompt_cannot_reach_the_insides_of_python(tmp_path: Path, prompt: str) -> None:
    from jinja2 import TemplateError

    with pytest.raises((MedbenchError, TemplateError)):
        load_protocol(protocol_file(tmp_path, prompt=prompt)).text(YES_NO_MAYBE)


@pytest.mark.parametrize("prompt", [INTERNALS[0], *UNRENDERABLE])
def test_a_prompt_that_cannot_be_rendered_is_one_line_and_no_traceback(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(MedbenchError) as raised:
        load_protocol(protocol_file(tmp_path, prompt=prompt)).text(YES_NO_MAYBE)
    assert "\n" not in str(raised.value)


def test_a_question_that_looks_like_a_template_stays_as_it_is() -> None:
    protocol = Protocol(name="mine", about="mine", method="generate", prompt="{{ question }}")
    assert protocol.text(TEN_OPTIONS) == TEN_OPTIONS.question


if __name__ == "__main__":
    for file, (name, asked) in RENDERED.items():
        (PROMPTS / file).write_text(load_protocol(name).text(asked) + "\n")
