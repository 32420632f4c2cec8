"""Rendering and tokenising of prompts, and splitting them as lm-eval does."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medbench.harness.contracts import BrokenCheckpoint, MedbenchError, Message
from medbench.harness.protocols.chat import encode, has_template, load_tokenizer, plain_text, render_chat, split_choice

TURNS = (Message("system", "Be brief."), Message("user", "Is aspirin a drug?"))
OPENED = """<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
Is aspirin a drug?<|im_end|>
<|im_start|>assistant
"""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def bos_tokenizer(tiny_model: Path):
    """Like Llama's: adds a BOS to every text unless told not to, and its template writes one too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.bos_token = "<|endoftext|>"
    special = [("<|endoftext|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=special)
    return tokenizer


@pytest.mark.parametrize(
    ("thinking", "tail"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")], ids=["unset", "on", "off"]
)
def test_the_thinking_flag_reaches_the_template(tokenizer, thinking: bool | None, tail: str) -> None:
    assert render_chat(tokenizer, TURNS, thinking) == OPENED + tail


def test_an_unset_flag_leaves_the_templates_own_default(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = "{{ enable_thinking is defined }}"
    assert [render_chat(tokenizer, TURNS, flag) for flag in (None, True, False)] == ["False", "True", "True"]


def test_without_a_template_the_prompt_is_the_plain_text_of_the_turns(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    assert has_template(tokenizer)
    tokenizer.chat_template = None
    assert not has_template(tokenizer)
    assert render_chat(tokenizer, TURNS, thinking=False) == "Be brief.\n\nIs aspirin a drug?"


def test_plain_text_puts_a_reply_on_the_line_of_its_question() -> None:
    asked, shown = Message("user", "Question: one?\nAnswer:"), Message("assistant", "A")
    last = Message("user", "Question: two?\nAnswer:")
    assert plain_text([last]) == last.content
    assert plain_text([asked, shown, last]) == "Question: one?\nAnswer: A\n\nQuestion: two?\nAnswer:"
    assert plain_text([Message("system", "Be brief."), asked, shown]) == "Be brief.\n\nQuestion: one?\nAnswer: A"


@pytest.mark.slow
def test_templates_that_models_ship_render_as_transformers_renders_them(tiny_model: Path) -> None:
    """TRL's copies of chat templates: Qwen, Llama, Gemma, Phi, Mistral, gpt-oss, DeepSeek and others."""
    tokenizer = load_tokenizer(str(tiny_model))
    folder = Path(str(find_spec("trl").origin)).with_name("chat_templates")
    sources = {path.name: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    assert len(sources) > 20
    question, reply = Message("user", " Is aspirin <a> drug?\n"), Message("assistant", "<think>\nYes.\n</think>\n\nyes")
    same = 0
    for name, tokenizer.chat_template in sources.items():
        for turns in [(question,), TURNS, (question, reply, question)]:
            plain = [{"role": turn.role, "content": turn.content} for turn in turns]
            for thinking in (None, True, False):
                flags = {} if thinking is None else {"enable_thinking": thinking}
                try:
                    theirs = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **flags)
                except Exception:  # some refuse a system turn
                    with pytest.raises(MedbenchError):
                        render_chat(tokenizer, turns, thinking)
                    continue
                assert render_chat(tokenizer, turns, thinking) == theirs, name
                same += 1
    assert same > 8 * len(sources)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HIDDEN = {
    "none": "{% if tools is none %}" + ENDLESS + "{% endif %}x",
    "defined": "{% if documents is defined %}" + ENDLESS + "{% endif %}x",
    "transformers' tojson": "{% set a = messages|tojson(ensure_ascii=false, indent=2) %}" + ENDLESS,
    "a wide tojson": "{{ messages|tojson(indent=10000000000) }}",
    "after a fault in one branch": "{% if messages[0].nothing is undefined %}" + ENDLESS + "{% endif %}x",
    "an extension": "{% generation %}" + ENDLESS + "{% endgeneration %}",
    "a date": "{% if strftime_now('%Y')|int > 2000 %}" + ENDLESS + "{% endif %}x",
    "a constant": "{{ 9 ** 9 ** 9 }}",
    "a constant filter": "{% set a = 'x'|center(10000000000) %}x",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_no_branch_of_a_template_runs_without_limits(tiny_model: Path, name: str) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = HIDDEN[name]
    started = time.process_time()
    with pytest.raises(BrokenCheckpoint, match="chat template cannot be rendered"):
        render_chat(tokenizer, TURNS, None)
    assert time.process_time() - started < 10


def test_a_template_that_refuses_the_turns_is_named_in_one_line(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(MedbenchError, match=r"refuses the turns system, user \(System role not supported\)") as fault:
        render_chat(tokenizer, TURNS, thinking=None)
    assert "\n" not in str(fault.value)


def test_a_folder_without_a_tokenizer_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="no tokenizer loads") as fault:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("id", [300_000_000, 3_000_000_000, 10**30, -(10**12), 1e12])
@pytest.mark.parametrize("where", ["vocab", "added_tokens", "added_tokens.json"])
def test_an_id_for_which_no_memory_is_enough_is_refused(
    tiny_model: Path, tmp_path: Path, where: str, id: float
) -> None:
    import json
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    if where == "vocab":
        content["model"]["vocab"]["patient"] = id
    elif where == "added_tokens":
        content["added_tokens"].append({"id": id, "content": "patient", "special": False})
    else:
        (folder / "added_tokens.json").write_text(json.dumps({"patient": id}))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    started = time.process_time()
    with pytest.raises(BrokenCheckpoint, match=r"token patient has the id .*; the largest possible one is 16777216"):
        load_tokenizer(str(folder))
    assert time.process_time() - started < 5


def test_code_beside_a_tokenizer_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["custom.Mine", "custom.Mine"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    load_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


def test_special_tokens_are_written_once(bos_tokenizer) -> None:
    bos = bos_tokenizer.bos_token_id
    assert encode(bos_tokenizer, "aspirin", templated=False).count(bos) == 1
    assert encode(bos_tokenizer, "aspirin", templated=True).count(bos) == 0
    assert encode(bos_tokenizer, "<|endoftext|>aspirin", templated=True).count(bos) == 1
    assert encode(bos_tokenizer, "<|endoftext|>aspirin", templated=False).count(bos) == 1


def test_turn_markers_are_one_token_each(tokenizer) -> None:
    ids = encode(tokenizer, OPENED, templated=True)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert tokenizer.decode(ids) == OPENED


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.text(alphabet="ans wer:\n (é日A", min_size=1, max_size=20).filter(str.strip),
    choice=st.text(alphabet="ans wer:\n (é日A", min_size=1, max_size=8),
    templated=st.booleans(),
)
def test_choices_are_split_as_lm_eval_splits_them(
    tokenizer, bos_tokenizer, context: str, choice: str, templated: bool
) -> None:
    from lm_eval.api.model import TemplateLM

    for mine in (tokenizer, bos_tokenizer):
        theirs = SimpleNamespace(
            backend="causal", tok_encode=lambda text, mine=mine: mine.encode(text, add_special_tokens=not templated)
        )
        assert split_choice(mine, context, choice, templated) == TemplateLM._encode_pair(theirs, context, choice)


def test_space_at_the_end_of_the_prompt_belongs_to_the_choice(tokenizer) -> None:
    apart = split_choice(tokenizer, "The answer is ", "yes", templated=False)
    assert apart == split_choice(tokenizer, "The answer is", " yes", templated=False)
    assert tokenizer.decode(apart[1]) == " yes"


def test_a_choice_after_nothing_is_scored_after_bos_or_eos(tokenizer, bos_tokenizer) -> None:
    for mine, first in ((tokenizer, tokenizer.eos_token_id), (bos_tokenizer, bos_tokenizer.bos_token_id)):
        context, continuation = split_choice(mine, "", "yes", templated=False)
        assert context == [first]
        assert mine.decode(continuation) == "yes"
