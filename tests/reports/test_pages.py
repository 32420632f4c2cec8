"""The pages as HTML, without a browser: nothing foreign becomes markup, and odd runs do not stop a build."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lxml import html
from support.gate_runs import answer, answers, stored_run
from support.hostile import HOSTILE
from support.pages import shape

from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict
from medbench.harness.runs.compare import compare_task
from medbench.harness.runs.records import AdapterRecord, ExpertsRecord, ModelRecord
from medbench.harness.runs.run_folder import read_samples
from medbench.harness.scoring.summary import TaskResult, Unflagged
from medbench.reports.read.collect import collect
from medbench.reports.read.flips import Flip, Reply
from medbench.reports.read.records import Broken, Collection, RunView
from medbench.reports.read.references import read_references
from medbench.reports.read.scores import Scores
from medbench.reports.views.formats import HIDDEN, finalize, visible
from medbench.reports.write.pages import ASSETS, POLICY, compare_page, index_page, run_page, runs_script, viewer_page


def one_run(root: Path, name: str = "run", **changes: Any) -> RunView:
    stored_run(root, name, {"medqa": answers(3, 2, 1, category={"step": "1"})}, **changes)
    return next(run for run in collect([root]).runs if run.id == name)


def all_pages(run: RunView) -> dict[str, str]:
    collection = Collection((run,), (Broken("torn", "broken"),))
    return {
        "index": index_page(collection, read_references()),
        "run": run_page(collection, run),
        "viewer": viewer_page(run),
        "compare": compare_page(run, run, [], {}, "no question was answered by both"),
    }


def gate(**changes: Any) -> GateResult:
    values: dict[str, Any] = {
        "rule": "medqa: accuracy at least 0.6", "task": "medqa", "metric": "accuracy", "status": "pass",
        "estimate": 0.7,
        "interval": (0.65, 0.75), "threshold": 0.6, "used": 5, "total": 5, "why": "shown",
    }  # fmt: skip
    return GateResult(**(values | changes))


def verdict(*gates: GateResult, **changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "overall": "pass", "why": "every gate passes", "alpha": 0.05, "decide": "census", "partition": "all",
        "correction": CORRECTION, "candidate": "run", "fingerprint": "run", "baseline": None, "protocol": "cot-v2",
        "gates": list(gates),
    }  # fmt: skip
    return Verdict(**(values | changes))


# --- what every page has ---


@pytest.mark.parametrize("page", ["index", "run", "viewer", "compare"])
def test_every_page_is_well_formed_and_can_be_used_without_a_mouse(tmp_path: Path, page: str) -> None:
    text = all_pages(one_run(tmp_path))[page]
    tree = html.document_fromstring(text)
    assert tree.get("lang") == "en"
    (policy,) = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy == POLICY
    assert tree.xpath("//title/text()")[0].endswith("medbench")
    assert len(tree.xpath("//h1")) == 1
    assert tree.xpath("//a[@class='skip']/@href") == ["#main"]
    ids = tree.xpath("//@id")
    assert len(ids) == len(set(ids))
    assert all(label in ids for labels in tree.xpath("//@aria-labelledby") for label in labels.split())
    for table in tree.xpath("//table"):
        assert table.xpath("./caption")
        assert all(cell.get("scope") in ("col", "row") for cell in table.xpath(".//th"))
    for region in tree.xpath("//*[contains(@class, 'scroll')]"):
        assert region.get("tabindex") == "0"
        assert region.get("role") == "region"


@pytest.mark.parametrize("page", ["index", "run", "viewer", "compare"])
def test_no_page_has_anything_that_the_policy_would_block_or_that_leaves_the_site(tmp_path: Path, page: str) -> None:
    tree = html.document_fromstring(all_pages(one_run(tmp_path))[page])
    assert not tree.xpath(
        "//script[not(@src)] | //style | //@style | //iframe | //object | //embed | //base | //form[@action]"
    )
    assert not [name for name in tree.xpath("//@*") if re.match("on", name.attrname)]
    for link in tree.xpath("//@src | //link/@href"):
        assert link == "data:," or re.fullmatch(r"(\.\./)*assets/[\w./-]+", link)
        assert link == "data:," or link.rpartition("assets/")[2] in ASSETS
    for link in tree.xpath("//a/@href"):
        assert re.match(r"https://|(\.\./)*(index|viewer|runs/|compare/|leaderboard)|#", link), link


def test_policy_allows_nothing_but_the_sites_own_files() -> None:
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


def test_assets_are_text_of_ours_and_one_library_with_its_licence() -> None:
    assert {"site.css", "theme.js", "board.js", "viewer.js", "charts.js"} <= set(ASSETS)
    assert (
        b"MIT" in ASSETS["vendor/uPlot.LICENSE.txt"]
        or b"Permission is hereby granted" in ASSETS["vendor/uPlot.LICENSE.txt"]
    )
    for name, content in ASSETS.items():
        assert not re.search(
            rb"\beval\(|new Function|innerHTML|document\.write|https?://(?!github\.com/leeoniya)", content
        ), name
    with pytest.raises(KeyError):
        ASSETS["../pages.py"]


# --- hostile content ---


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_foreign_text_stays_text_in_every_field_of_every_page(tmp_path: Path, evil: str) -> None:
    run = one_run(tmp_path)
    record = run.record
    task = record.tasks["medqa"]
    result = run.results["medqa"]
    changed = replace(
        run,
        record=record.model_copy(update={
            "model": ModelRecord(
                name=evil, kind=evil, path=evil, fingerprint=evil, base=evil, tokenizer_sha256=evil, quantization=evil
            ),
            "tasks": {evil: task.model_copy(update={"version": evil, "split": evil, "sha256": evil, "source": evil})},
            "protocol": {"name": evil, "about": evil, evil: {evil: [evil]}},
            "engine": {"name": evil, "settings": {evil: evil, "dtype": evil}},
            "packages": {evil: evil}, "notes": [evil], "command": [evil, evil], "git_commit": evil, "created": evil,
            "run_id": evil,
        }),
        results={evil: result.model_copy(update={
            "task": evil, "version": evil, "outcomes": {evil: 2, "answered": 4},
            "categories": {evil: {evil: next(iter(result.categories["step"].values()))}},
        })},
        verdicts=(judged_in_words(evil),),
        slugs={evil: "task"},
    )  # fmt: skip
    pages = all_pages(changed) | {
        "index": index_page(Collection((changed,), (Broken(evil, evil),))),
        "compare": compare_page(changed, changed, *_compared(tmp_path, evil), evil),
    }
    harmless = {name: shape(page) for name, page in all_pages_of_plain(tmp_path, changed).items()}
    for name, page in pages.items():
        page.encode("utf-8")  # half a surrogate pair would raise
        tree = html.document_fromstring(page)
        assert not HIDDEN.search(page)
        assert not tree.xpath("//script[not(@src)] | //img | //svg[@onload] | //b[text()='1']")
        assert not [attribute for attribute in tree.xpath("//@*") if attribute.attrname.startswith("on")]
        assert not [link for link in tree.xpath("//@href | //@src") if link.strip().lower().startswith("javascript")]
        assert shape(page) == harmless[name], "the text changed the structure of the page"


def judged_in_words(text: str) -> Verdict:
    """A verdict that says `text` wherever foreign text may stand."""
    found = gate(rule=text, why=text, task=text, controls={text: 0.5})
    of = {"why": text, "baseline": text, "partition": text, "gate_file": text, "order_seed": text}
    return verdict(found, warnings=[text], **of)


def all_pages_of_plain(tmp_path: Path, like: RunView) -> dict[str, str]:
    """The same pages with a harmless word in the place of each hostile one."""
    evil = like.record.run_id
    word = "plain"
    text = json.loads(json.dumps(like.record.model_dump(mode="python")).replace(json.dumps(evil), json.dumps(word)))
    result = like.results[evil].model_dump(mode="json")
    plain = replace(
        like,
        record=type(like.record).model_validate(text),
        results={
            word: TaskResult.model_validate(json.loads(json.dumps(result).replace(json.dumps(evil), json.dumps(word))))
        },
        verdicts=(judged_in_words(word),),
        slugs={word: "task"},
    )
    return all_pages(plain) | {
        "index": index_page(Collection((plain,), (Broken(word, word),))),
        "compare": compare_page(plain, plain, *_compared(tmp_path, word), word),
    }


def _compared(tmp_path: Path, evil: str) -> tuple[list[Any], dict[str, tuple[Flip, ...]]]:
    a = [answer(f"{evil}{n}", float(n % 2), category={evil: evil}) for n in range(40)]
    b = [answer(f"{evil}{n}", float(n % 3 == 0), category={evil: evil}) for n in range(40)]
    one = compare_task(evil, a, b)
    reply = Reply(evil, True, evil, evil, evil)
    return [one], {
        evil: (Flip(evil, False, evil, evil, evil, reply, reply), Flip(evil, True, evil, evil, evil, reply, reply))
    }


def test_the_list_of_runs_is_json_in_a_call_and_no_markup(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    evil = "</script><script>alert(1)//\u2028\ud800"
    changed = replace(
        run, record=run.record.model_copy(update={"model": ModelRecord(name=evil, kind="full", fingerprint="f")})
    )
    script = runs_script(Collection((changed,))).decode("ascii")
    assert "<" not in script
    ((id, name, kind, slugs),) = json.loads(script.removeprefix("medbenchRuns(").removesuffix(");\n"))
    assert (id, kind, slugs) == ("run", 0, {"medqa": "medqa"})
    assert name == visible(evil)


def test_hidden_characters_are_spelled_out() -> None:
    assert (
        visible("a\x1b[0m\x00\x7f\x85\u202e\ufeff\U000e0041\ud83d")
        == "a␛[0m␀␡⟨U+0085⟩⟨U+202E⟩⟨U+FEFF⟩⟨U+E0041⟩⟨U+D83D⟩"
    )
    assert visible("tab\tline\nفارسی می‌خواهم 👩‍⚕️ é") == "tab\tline\nفارسی می‌خواهم 👩‍⚕️ é"
    assert finalize(3) == 3
    assert finalize(None) is None


# --- odd runs ---


PAIRED = gate(
    rule="medqa: accuracy not worse than the baseline's by more than 0.02",
    estimate=-0.01,
    interval=(-0.03, 0.01),
    threshold=-0.02,
)
TOKENS = gate(metric="tokens_per_answer", estimate=812.3, interval=(700.0, 900.0), threshold=1000)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"results": {}}, "no result of medqa"),
        ({"verdicts": (verdict(gate(status="not gateable", estimate=None, interval=None)),)}, "not gateable – – 60.0"),
        ({"verdicts": (verdict(overall="undecided"),)}, "Gates undecided every gate passes"),
        ({"verdicts": (verdict(TOKENS),)}, "pass 812.3 700.0–900.0 1,000.0"),
        ({"verdicts": (verdict(PAIRED),)}, "pass −1.0 −3.0 to +1.0 −2.0"),
        ({"scores": {"medqa": Scores.of([], [], [], [])}}, "60.0 23.1–88.2"),
    ],
    ids=["no results", "not gateable", "no gates", "tokens", "paired", "no samples"],
)
def test_the_page_of_an_odd_run_says_what_there_is(tmp_path: Path, changes: dict[str, Any], shown: str) -> None:
    run = replace(one_run(tmp_path), **changes)
    assert shown in spaced_text(all_pages(run)["run"])


def test_a_run_without_a_verdict_has_no_gates_on_its_page(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    assert "Gates" not in spaced_text(run_page(Collection((run,), ()), run))
    judged = replace(run, verdicts=(verdict(gate()),))
    assert "Gates pass every gate passes" in spaced_text(run_page(Collection((judged,), ()), judged))


def test_the_run_page_shows_the_verdict_of_each_gate_file(tmp_path: Path) -> None:
    found = (verdict(gate(), gate_file="new.yaml"), verdict(gate(), overall="fail", gate_file="old.yaml"))
    run = replace(one_run(tmp_path), verdicts=found)
    shown = spaced_text(all_pages(run)["run"])
    assert shown.index("Gates of new.yaml pass") < shown.index("Gates of old.yaml fail")
    board = spaced_text(index_page(Collection((run,), ())))
    assert "pass new.yaml fail old.yaml" in board


def test_an_interval_on_the_run_page_has_its_level_and_kind(tmp_path: Path) -> None:
    whole = gate(interval=None, new_questions=(0.58, 0.66))
    early = gate(interval=(0.55, 0.68), interval_level=0.9, interval_kind="anytime")
    shown = spaced_text(all_pages(replace(one_run(tmp_path), verdicts=(verdict(early, whole),)))["run"])
    assert "55.0–68.0 90 %, whole benchmark, anytime" in shown
    assert "58.0–66.0 95 %, new questions" in shown


def test_the_run_page_tells_what_a_verdict_rests_on(tmp_path: Path) -> None:
    judged = verdict(gate(controls={"base": 0.5}), alpha=0.00061, number=7, order_seed="ab12", baseline="base")
    shown = spaced_text(all_pages(replace(one_run(tmp_path), verdicts=(judged,)))["run"])
    for text in (
        "Checkpoint of this gate file 7",
        "alpha 0.00061",
        "baseline base",
        "controls base",
        "order seed ab12",
    ):
        assert text in shown


def spaced_text(page: str) -> str:
    """The text of a page, with one space between the texts of neighbouring elements."""
    return " ".join(" ".join(html.document_fromstring(page).find("body").itertext()).split())


def test_a_run_whose_every_request_failed(tmp_path: Path) -> None:
    stored_run(tmp_path, "run", {"medqa": answers(0, 0, 3)})
    (run,) = collect([tmp_path]).runs
    assert run.results["medqa"].accuracy is None
    pages = all_pages(run)
    assert "100.0" in text_of(pages["index"], "//table[contains(@class, 'runs')]")  # errors


def test_a_run_without_tasks_is_listed_without_a_score(tmp_path: Path) -> None:
    stored_run(tmp_path, "empty", {})
    collection = collect([tmp_path])
    (run,) = collection.runs
    assert run.results == {}
    assert "empty" in text_of(index_page(collection, read_references()), "//main")
    assert "MedQA" not in spaced_text(run_page(collection, run))


def test_no_run_at_all_says_so() -> None:
    page = index_page(Collection((), (Broken("torn", "the file is broken"),)))
    assert "No run could be read" in page
    assert "the file is broken" in text_of(page, "//table")


# --- what the pages say ---


def text_of(page: str, path: str) -> str:
    return " ".join(" ".join(" ".join(node.itertext()).split()) for node in html.document_fromstring(page).xpath(path))


def test_the_leaderboard_names_score_interval_and_what_is_amiss(tmp_path: Path) -> None:
    run = one_run(tmp_path, limit=6)
    page = index_page(Collection((run,)))
    row = text_of(page, "//table[contains(@class, 'runs')]/tbody/tr")
    result = run.results["medqa"]
    assert result.accuracy is not None
    assert f"{result.accuracy:.1%}".rstrip("%") in row
    assert result.interval is not None
    assert f"{result.interval[0] * 100:.1f}–{result.interval[1] * 100:.1f}" in row
    assert "first 6 questions only" in row
    assert html.document_fromstring(page).xpath("//svg/path[@class='b']/@d")


def test_reference_rows_stand_apart(tmp_path: Path) -> None:
    page = index_page(Collection((one_run(tmp_path),)), read_references())
    assert "Gazal-R1" not in text_of(page, "//table[contains(@class, 'runs')]")
    reported = text_of(page, "//section[contains(@class, 'reported')]")
    assert "not measured here" in reported
    row = text_of(page, "//section[contains(@class, 'reported')]//tr[contains(., 'Gazal-R1')]")
    assert [figure for figure in ("87.1", "81.6", "79.6", "32B") if figure not in row] == []


def test_the_run_page_repeats_the_command_and_settings(tmp_path: Path) -> None:
    run = one_run(tmp_path, command=["/opt/bin/medbench", "eval", "my model", "--tasks", "medqa"])
    page = run_page(Collection((run,)), run)
    assert text_of(page, "//pre[@class='command']") == "medbench eval 'my model' --tasks medqa"
    settings = text_of(page, "//div[@class='settings']")
    assert run.record.model.fingerprint in settings
    assert "max_new_tokens 2048" in settings


def test_the_run_page_counts_replies_of_unusual_form(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    noted = run.results["medqa"].model_copy(update={"notes": {"cued": 4, "went_on": 1}})
    page = spaced_text(run_page(Collection((run,)), replace(run, results={"medqa": noted})))
    assert "4 of 6 replies had their thought cut off and were made to answer by the protocol's cue." in page
    assert "1 of 6 replies answer and go on with a question of their own" in page


def test_the_run_page_draws_a_gate_with_its_threshold(tmp_path: Path) -> None:
    run = replace(one_run(tmp_path), verdicts=(verdict(gate()),))
    page = run_page(Collection((run,)), run)
    assert "70.0 65.0–75.0 60.0" in text_of(page, "//table[contains(., 'Rule')]/tbody/tr")
    assert html.document_fromstring(page).xpath("//svg/path[@class='z']")


def test_the_run_page_links_to_its_compare_pages_alone(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    page = run_page(Collection((run,), (), (("run", "b"), ("b", "c"), ("a", "run"))), run)
    links = html.document_fromstring(page).xpath("//section[@aria-labelledby='h-compared']//a/@href")
    assert links == ["../../compare/run--b.html", "../../compare/a--run.html"]


def test_the_compare_page_shows_difference_and_flips(tmp_path: Path) -> None:
    stored_run(tmp_path, "a", {"medqa": answers(6, 4)})
    stored_run(tmp_path, "b", {"medqa": answers(9, 1)})
    a, b = collect([tmp_path]).runs
    one = compare_task("medqa", read_samples(a.folder, "medqa"), read_samples(b.folder, "medqa"))
    wrong, right = (
        Reply("Zinc, so (B).", False, "B", "answered", "stop"),
        Reply("Iron: (A).", True, "A", "answered", "stop"),
    )
    flip = Flip("q6", True, "Which metal?", "Which metal? A. Iron", "A", wrong, right)
    page = compare_page(a, b, [one], {"medqa": (flip,)})
    assert "+30.0" in text_of(page, "//table/tbody/tr")
    shown = text_of(page, "//details[@class='flip']")
    assert all(words in shown for words in ("Which metal?", "Zinc, so (B).", "Iron: (A)."))
    links = html.document_fromstring(page).xpath("//details[@class='rest']//a/@href")
    assert links == [f"../runs/b/viewer.html#task=medqa&with=a&filter=flipped&id=q{n}" for n in (7, 8)]


def test_pages_are_the_same_each_time(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    assert all_pages(run) == all_pages(run)


def test_the_accuracy_without_flagged_questions_is_on_the_page(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    assert "flagged" not in run_page(Collection((run,), ()), run)
    rest = Unflagged(n=1151, left_out=122, accuracy=0.9, interval=(0.88, 0.92), about="<i>two</i> physicians")
    result = run.results["medqa"].model_copy(update={"unflagged": rest})
    changed = replace(run, results={"medqa": result})
    text = " ".join(html.fromstring(run_page(Collection((changed,), ()), changed)).text_content().split())
    assert "Accuracy without the 122 replies to flagged questions: 90.0 %" in text
    assert "of 1,151. Flagged: <i>two</i> physicians." in text


# --- tasks asked of adapters of their own ---


def experts(name: str, **adapters: str) -> ModelRecord:
    """A model whose tasks have these adapters: task -> the adapter's name."""
    described = {
        task: AdapterRecord(name=one, path=one, fingerprint=one * 4, tokenizer_sha256="t", rank=8)
        for task, one in adapters.items()
    }
    record = ExpertsRecord(base="b", served="lora", adapters=described)
    return ModelRecord(name=name, kind="experts", fingerprint=name, base="the base", experts=record)


def test_a_run_of_experts_says_which_adapter_answered_which_task(tmp_path: Path) -> None:
    model = experts("both", medqa="<i>cardio</i>")
    stored_run(tmp_path, "run", {"medqa": answers(2, 1), "pubmedqa": answers(1, 1)}, model=model)
    run = collect([tmp_path]).runs[0]
    tree = html.document_fromstring(run_page(Collection((run,)), run))
    assert tree.xpath("//small[starts-with(., 'by ')]//text()") == [
        "by ",
        "<i>cardio</i>",
        "by ",
        "the base, without an adapter",
    ]
    text = tree.text_content()
    assert "Adapter of medqa" in text
    assert "beside their base" in text


def test_a_comparison_with_experts_says_who_answered_on_each_side(tmp_path: Path) -> None:
    stored_run(tmp_path, "a", {"medqa": answers(2, 1)})
    stored_run(tmp_path, "b", {"medqa": answers(1, 2)}, model=experts("both", medqa="cardio"))
    a, b = collect([tmp_path]).runs
    found = compare_task("medqa", list(read_samples(a.folder, "medqa")), list(read_samples(b.folder, "medqa")))
    text = html.document_fromstring(compare_page(a, b, [found], {}, "")).text_content()
    assert "Answered in A by a, in B by cardio." in text
    plain = html.document_fromstring(compare_page(a, a, [found], {}, "")).text_content()
    assert "Answered in" not in plain
