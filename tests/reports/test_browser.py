"""The site in a real browser: what a reader does, what a screen reader needs, what hostile content may not do.

    pytest tests/reports/test_browser.py

Needs Chromium (`apt-get install chromium`) and playwright, which drives it; skipped without either.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import answer, stored_run
from support.judged_pages import as_judged, checked_by_people
from support.made_sweeps import a_sweep
from support.made_trainings import two_stages

from medbench.harness.contracts import Sample
from medbench.harness.files import write_atomically
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import read_result
from medbench.harness.scoring.summary import TaskResult
from medbench.reports.views.formats import HIDDEN

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
STEPS = ("step1", "step2&3")


# --- the browser ---


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has none
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and what it did that it should not."""

    page: Any
    home: str
    """Address of the site, with a slash at its end."""
    faults: list[str] = field(default_factory=list)

    def open(self, path: str) -> Any:
        self.page.goto(self.home + path)
        return self.page

    def saw(self, what: str) -> None:
        self.faults.append(what)


@pytest.fixture
def watch(chromium: Any) -> Iterator[Callable[..., Watched]]:
    """watch(home, **context) -> Watched; at the end of the test none may have done anything it should not."""
    contexts, all_watched = [], []

    def make(home: str, **options: Any) -> Watched:
        context = chromium.new_context(**({"viewport": DESK} | options))
        context.set_default_timeout(10_000)
        contexts.append(context)
        watched = Watched(context.new_page(), home)
        all_watched.append(watched)
        page = watched.page
        page.on("console", lambda line: line.type in ("error", "warning") and watched.saw(f"console: {line.text}"))
        page.on("pageerror", lambda error: watched.saw(f"exception: {error}"))
        page.on("dialog", lambda dialog: (watched.saw(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("popup", lambda popup: watched.saw(f"popup: {popup.url}"))
        page.on(
            "request", lambda request: request.url.startswith((home, "data:,")) or watched.saw(f"left: {request.url}")
        )
        return watched

    yield make
    for context in contexts:
        context.close()
    assert [fault for watched in all_watched for fault in watched.faults] == []


# --- the site ---


def reply(n: int, label: str) -> str:
    return f"<think>\nThe patient of case {n} has a fever.\n</think>\n\nThe answer is ({label})."


def a_sample(n: int, right: bool, **changes: Any) -> Sample:
    output = reply(n, "A" if right else "B")
    start = output.rindex("(") + 1
    values: dict[str, Any] = {
        "prompt": f"<|user|>\nQuestion: Which metal is number {n}?\nA. Iron\nB. Zinc\n<|assistant|>\n",
        "output": output,
        "extracted": "A" if right else "B",
        "span": (start, start + 1),
        "completion_tokens": 20 + n % 90,
        "category": {"meta_info": STEPS[n % 4 == 0]},
    }
    return answer(f"q{n}", float(right), **(values | changes))


def medqa(wrong_every: int, n: int = 260) -> list[Sample]:
    some = [a_sample(number, bool(number % wrong_every)) for number in range(n)]
    some[7] = a_sample(7, False, output="I cannot say.", extracted=None, outcome="unparsed", span=None)
    some[11] = a_sample(11, False, output="<think>\nround and round " * 30, extracted=None, outcome="truncated",
                        finish_reason="length", span=None)  # fmt: skip
    some[13] = answer("q13", None, prompt=some[13].prompt, category=some[13].category)
    return some


def likelihoods(n: int = 60) -> list[Sample]:
    return [
        a_sample(
            k, bool(k % 4), output="", span=None, logprobs={" A": -0.1 * (k % 7 + 1), " B": -0.35}, completion_tokens=1
        )
        for k in range(n)
    ]


def seal(folder: Path, result: TaskResult) -> None:
    write_atomically(folder / "results" / f"{result.task}.json", result.model_dump_json().encode())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of one protocol, one of another; paging, flips, thoughts, failures of each kind, calibration."""
    from medbench.harness.scoring.calibration import summarize_calibration

    root = tmp_path_factory.mktemp("runs")
    tasks = ("medqa", "mmlu_pro_medical", "pubmedqa")
    for name, size, wrong_every in (
        ("alpha-32B", "Qwen3-32B", 9),
        ("beta-7B", "beta-7B", 4),
        ("gamma-135m", "gamma-135m", 2),
    ):
        model = ModelRecord(name=size, kind="full", fingerprint=name)
        stored_run(root, name, {task: medqa(wrong_every + place) for place, task in enumerate(tasks)}, model=model,
                   engine={"name": "vllm", "settings": {"dtype": "bfloat16"}})  # fmt: skip
    for name in ("alpha-32B", "beta-7B"):
        as_judged(root / name, "pubmedqa", start=len(name))
    as_judged(root / "alpha-32B", "pubmedqa", "strict", start=1)
    checked_by_people(root / "alpha-32B", "pubmedqa")
    stored_run(root, "delta", {"medqa": medqa(5)}, status="running", limit=10)
    direct = load_protocol("direct-v1").model_dump(mode="json")
    folder = stored_run(root, "direct", {"medqa": likelihoods()}, protocol=direct)
    seal(folder, read_result(folder, "medqa").model_copy(update={"calibration": summarize_calibration(likelihoods())}))
    (root / "torn").mkdir()
    (root / "torn" / "run.json").write_text('{"schema_version": 1, "run_')
    two_stages(root, "train-smollm2")
    a_sweep(root / "sweep-methods")
    return root


def build(root: Path, site: Path) -> Path:
    from medbench.reports.read.collect import collect
    from medbench.reports.write.site import build as build_site

    build_site(collect([root]), site)
    return site


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(runs, tmp_path_factory.mktemp("site") / "site")


@pytest.fixture(scope="module")
def home(site: Path) -> str:
    return site.as_uri() + "/"


def serve(folder: Path) -> tuple[str, http.server.ThreadingHTTPServer]:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/", server


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def web(site: Path) -> Iterator[str]:
    address, server = serve(site)
    yield address
    server.shutdown()


PAGES = [
    "index.html",
    "runs/alpha-32B/index.html",
    "runs/direct/index.html",
    "runs/alpha-32B/viewer.html#task=pubmedqa&with=beta-7B",
    "compare/beta-7B--alpha-32B.html",
    "trainings/train-smollm2/index.html",
    "sweeps/sweep-methods/index.html",
]


def settled(page: Any) -> Any:
    """Once everything that loads by itself is there."""
    if "viewer.html" in page.url:
        page.wait_for_selector("#v-detail h2")
        page.locator("#v-status", has_text="answers").wait_for()
    return page


def shown(page: Any, selector: str) -> list[str]:
    return [node.inner_text() for node in page.query_selector_all(selector) if node.is_visible()]


def names(page: Any) -> list[str]:
    """Model links of the rows shown, in order."""
    return [
        node.get_attribute("href").split("/")[1]
        for node in page.query_selector_all(".runs tbody th a")
        if node.is_visible()
    ]


# --- every page ---


@pytest.mark.parametrize("path", PAGES)
def test_pages_open_from_disk_and_from_a_server_without_a_fault(watch: Any, home: str, web: str, path: str) -> None:
    for place in (home, web):
        page = settled(watch(place).open(path))
        assert page.title().endswith("medbench")
        assert page.query_selector("h1").is_visible()


@pytest.mark.parametrize("path", PAGES)
def test_pages_fit_a_phone(watch: Any, home: str, path: str) -> None:
    page = settled(watch(home, viewport=PHONE, is_mobile=True, has_touch=True).open(path))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for region in page.query_selector_all(".scroll"):
        box = region.bounding_box()
        assert box is None or box["x"] + box["width"] <= 390.5


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(watch: Any, home: str, path: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = settled(watch(home, color_scheme="light").open(path))
    for details in page.query_selector_all("details:not([open]) > summary")[:6]:
        details.evaluate("node => { node.parentElement.open = true }")
    no_requests = {"preload": False}  # the policy forbids axe's XHR
    found = axe.Axe().run(page, options=no_requests).response["violations"]
    page.emulate_media(color_scheme="dark")  # which changes nothing but colours
    in_dark = no_requests | {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
    found += axe.Axe().run(page, options=in_dark).response["violations"]
    worst = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in worst] == []


@pytest.mark.parametrize("path", PAGES)
def test_pages_read_without_javascript(watch: Any, home: str, path: str) -> None:
    page = watch(home, java_script_enabled=False).open(path)
    assert page.query_selector(".controls") is None or not page.query_selector(".controls").is_visible()
    if "viewer" in path:
        assert "needs JavaScript" in page.inner_text("main")
    else:
        assert all(table.is_visible() for table in page.query_selector_all("section > .scroll > table"))


def test_dark_follows_the_system_and_the_choice_is_kept(watch: Any, home: str) -> None:
    def background(page: Any) -> int:
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    page = watch(home, color_scheme="light").open("index.html")
    assert background(page) > 600
    page.emulate_media(color_scheme="dark")
    assert background(page) < 150
    page.click("button.theme")
    assert background(page) > 600
    page.goto(home + "runs/direct/index.html")
    assert background(page) > 600
    assert page.inner_text("button.theme") == "Dark colours"


def test_print_shows_the_table_and_not_the_controls(watch: Any, home: str) -> None:
    page = watch(home).open("index.html")
    page.emulate_media(media="print")
    assert not page.query_selector(".controls").is_visible()
    assert not page.query_selector("button.theme").is_visible()
    assert names(page)
    assert page.evaluate("getComputedStyle(document.querySelector('.board-table .scroll')).overflowX") == "visible"


# --- the leaderboard ---


def test_columns_sort_by_mouse_and_keyboard(watch: Any, home: str) -> None:
    page = watch(home).open("index.html")
    assert names(page) == ["alpha-32B", "beta-7B", "gamma-135m", "delta"]
    heading = page.locator(".board-table:not([hidden]) th", has_text="Unparsed")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    size = page.locator(".board-table:not([hidden]) th", has_text="Parameters")
    size.locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    assert size.get_attribute("aria-sort") == "descending"
    assert names(page)[:3] == ["alpha-32B", "beta-7B", "gamma-135m"]
    size.locator("button").click()
    assert names(page) == ["gamma-135m", "beta-7B", "alpha-32B", "delta"]  # a size that is not known stays last
    page.reload()
    assert names(page) == ["gamma-135m", "beta-7B", "alpha-32B", "delta"]
    page.locator(".board-table:not([hidden]) th", has_text="Rank").locator("button").click()
    assert names(page) == ["alpha-32B", "beta-7B", "gamma-135m", "delta"]


def test_rows_are_filtered_by_text_and_size_and_the_link_can_be_shared(watch: Any, home: str) -> None:
    page = watch(home).open("index.html")
    page.fill("#f-text", "GAMMA")
    assert names(page) == ["gamma-135m"]
    assert page.inner_text("#f-count") == "1 of 4 runs"
    page.fill("#f-text", "")
    page.select_option("#f-size", "m")
    assert names(page) == ["beta-7B"]
    page.select_option("#f-size", "none")
    assert names(page) == ["delta"]
    shared = watch(page.url.split("#")[0].removesuffix("index.html")).open("index.html#" + page.url.split("#")[1])
    assert names(shared) == ["delta"]


def test_protocols_are_switched_and_never_mixed(watch: Any, home: str) -> None:
    page = watch(home).open("index.html")
    first, second = [option.get_attribute("value") for option in page.query_selector_all("#f-table option")][:2]
    assert names(page) == ["alpha-32B", "beta-7B", "gamma-135m", "delta"]
    page.select_option("#f-table", second)
    assert names(page) == ["direct"]
    assert "direct-v1" in shown(page, ".board-table h2")[0]
    page.select_option("#f-table", "all")
    assert len(shown(page, ".board-table h2")) == 2
    assert all("direct" not in text for text in shown(page, f"#{first} tbody"))


def test_incomplete_and_broken_runs_are_marked(watch: Any, home: str) -> None:
    page = watch(home).open("index.html")
    row = page.locator(".runs tbody tr", has_text="delta")
    assert "running" in row.inner_text()
    assert "first 10 questions only" in row.inner_text()
    assert "torn" in page.locator("section", has_text="Not shown").inner_text()


# --- charts ---

INK = """canvas => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
  .filter((value, place) => place % 4 === 3 && value).length"""


def test_charts_are_drawn_beside_their_tables(watch: Any, home: str) -> None:
    page = watch(home).open("runs/direct/index.html")
    page.wait_for_selector("figure[data-chart=reliability] canvas")
    for figure in page.query_selector_all("figure.chart"):
        assert figure.query_selector("table tbody tr") is not None
        assert figure.query_selector("[role=img]").get_attribute("aria-label").startswith("Chart: ")
        assert figure.query_selector("canvas").evaluate(INK) > 500


# --- a training ---

CENTRE = "canvas => { const box = canvas.getBoundingClientRect(); return [box.x + box.width / 2, box.y + 100]; }"
TRAINING = "trainings/train-smollm2/index.html"
NARROW = """count => {
  const drawn = [...document.querySelectorAll("figure.trace canvas")];
  return drawn.length === count && drawn.every(canvas => canvas.getBoundingClientRect().width <= 390);
}"""


def test_the_charts_of_a_training_are_drawn_and_drawn_again(watch: Any, home: str) -> None:
    page = watch(home, color_scheme="light").open(TRAINING)
    page.wait_for_selector("figure.trace canvas")
    figures = page.query_selector_all("figure.trace")
    assert len(figures) == 2 * 3 + 3 + 10  # three gates a stage; what each stage's trainer logged
    for figure in figures:
        assert figure.query_selector("[role=img]").get_attribute("aria-label").startswith("Chart of ")
        assert figure.query_selector("canvas").evaluate(INK) > 500
    shot = page.query_selector("figure.trace canvas").evaluate("canvas => canvas.toDataURL()")
    page.click("button.theme")
    dark = page.query_selector("figure.trace canvas").evaluate("canvas => canvas.toDataURL()")
    assert dark != shot
    page.set_viewport_size(PHONE)
    # they are drawn again a moment after the window stops changing, on new canvases
    page.wait_for_function(NARROW, arg=len(figures), timeout=10_000)


def test_pointing_at_a_chart_says_its_value(watch: Any, home: str) -> None:
    page = watch(home).open(TRAINING)
    page.wait_for_selector("figure.trace canvas")
    gate = page.locator("figure[data-gate]").first
    gate.scroll_into_view_if_needed()
    page.mouse.move(*gate.locator("canvas").evaluate(CENTRE))
    assert re.fullmatch(r"attempt 2, step \d+: [\d.]+ \([\d.]+ to [\d.]+\)", gate.locator("output").inner_text())
    loss = page.locator("figure[data-metric]").first
    assert re.fullmatch(r"attempt 2, step \d+: [\d.]+", loss.locator("output").inner_text())  # the same step


def test_a_training_is_one_click_from_the_first_page(watch: Any, home: str) -> None:
    page = watch(home).open("index.html")
    page.locator("section", has_text="Trainings").locator("a", has_text="smollm2").click()
    page.wait_for_selector("figure.trace canvas")
    assert page.inner_text("h1") == "smollm2 passed"
    page.locator("summary", has_text="What the trainer logged").first.click()
    assert page.locator("caption", has_text="What the trainer logged").first.is_visible()


def test_without_javascript_a_training_is_its_tables(watch: Any, home: str) -> None:
    page = watch(home, java_script_enabled=False).open(TRAINING)
    assert not page.query_selector("figure.trace").is_visible()
    table = page.locator("table", has_text="Checkpoints judged while training").first
    assert "Attempt 3, step 80" in table.inner_text()
    assert table.locator("svg.ci").first.is_visible()


# --- the viewer ---


def viewer(watch: Any, home: str, fragment: str = "") -> Any:
    return settled(watch(home).open(f"runs/alpha-32B/viewer.html{fragment}"))


def heads(page: Any) -> list[str]:
    return [node.inner_text() for node in page.query_selector_all("#v-list .head")]


def wait_for(page: Any, selector: str, text: str) -> None:
    """Until the element's text starts with `text`; the policy forbids playwright's wait_for_function."""
    page.locator(selector, has_text=re.compile("^" + re.escape(text))).wait_for()


def wait_for_status(page: Any, text: str) -> None:
    wait_for(page, "#v-status", text)


def test_the_viewer_pages_through_all_answers(watch: Any, home: str) -> None:
    page = viewer(watch, home)
    assert page.inner_text("#v-status") == "260 of 260 answers"
    assert len(heads(page)) == 50
    assert page.query_selector("#v-previous").is_disabled()
    seen = heads(page)
    while not page.query_selector("#v-next").is_disabled():
        page.click("#v-next")
        seen += heads(page)
    assert seen == [f"Which metal is number {n}? A. Iron B. Zinc <|assistant|>" for n in range(260)]
    assert page.inner_text("#v-page") == "Page 6 of 6"


def test_the_viewer_folds_the_reasoning_and_marks_the_extracted_answer(watch: Any, home: str) -> None:
    page = viewer(watch, home, "#task=medqa&id=q9")
    detail = page.locator("#v-detail")
    assert detail.locator("h2").inner_text() == "Question q9"
    assert detail.locator("mark").inner_text() == "B"
    assert "wrong" in detail.inner_text()
    assert "has a fever" not in detail.inner_text()
    detail.locator("summary", has_text="Reasoning").click()
    detail.get_by_text("The patient of case 9 has a fever.").first.wait_for(state="visible")
    assert "The patient of case 9 has a fever." in detail.inner_text()
    assert "Which metal is number 9?" in detail.inner_text()
    facts = dict(zip(shown(page, "#v-detail dt"), shown(page, "#v-detail dd"), strict=True))
    assert facts["Extracted answer"] == "B"
    assert facts["Correct answer"] == "A"
    assert facts["Ended"] == "by itself"


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("wrong", "31", "number 0?"),
        ("unparsed", "2", "number 7?"),
        ("truncated", "1", "number 11?"),
        ("error", "1", "number 13?"),
    ],
)
def test_answers_are_filtered_by_what_became_of_them(watch: Any, home: str, name: str, count: str, words: str) -> None:
    page = viewer(watch, home)
    page.select_option("#v-filter", name)
    wait_for_status(page, f"{count} of 260 answers")
    assert words in heads(page)[0]


def test_answers_are_filtered_by_category(watch: Any, home: str) -> None:
    page = viewer(watch, home)
    page.select_option("#v-category", "meta_info=step2&3")
    wait_for_status(page, "65 of 260 answers")
    assert [head[:22] for head in heads(page)[:2]] == ["Which metal is number 0"[:22], "Which metal is number 4"[:22]]


def test_search_finds_questions_and_with_a_tick_whole_replies(watch: Any, home: str) -> None:
    page = viewer(watch, home)
    page.fill("#v-search", "number 123?")
    wait_for_status(page, "1 of 260 answers")
    page.fill("#v-search", "case 123 fever")
    wait_for_status(page, "0 of 260 answers")
    assert "No answer fits" in page.inner_text("#v-detail")
    page.check("#v-deep")
    wait_for_status(page, "1 of 260 answers")
    assert "number 123?" in heads(page)[0]
    shared = viewer(watch, home, "#" + page.url.split("#")[1])
    wait_for_status(shared, "1 of 260 answers")
    assert "number 123?" in heads(shared)[0]


def test_the_keyboard_walks_the_list(watch: Any, home: str) -> None:
    page = viewer(watch, home)
    page.keyboard.press("j")
    wait_for(page, "#v-detail h2", "Question q1")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    page.keyboard.press("ArrowDown")
    wait_for(page, "#v-detail h2", "Question q2")
    page.keyboard.press("k")
    wait_for(page, "#v-detail h2", "Question q1")
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.input_value("#v-search") == "jk"


def test_a_link_opens_its_question_on_its_page_even_if_the_filter_leaves_it_out(watch: Any, home: str) -> None:
    page = viewer(watch, home, "#task=pubmedqa&id=q203")
    assert page.inner_text("#v-detail h2") == "Question q203"
    assert page.inner_text("#v-page") == "Page 5 of 6"
    assert "number 203?" in page.inner_text("#v-list [aria-current]")
    assert page.input_value("#v-task") == "pubmedqa"
    page.goto(f"{home}runs/alpha-32B/viewer.html#task=medqa&filter=wrong&id=q1")
    wait_for(page, "#v-detail h2", "Question q1")
    assert page.query_selector("#v-list [aria-current]") is None


def test_answers_that_flipped_against_another_run(watch: Any, home: str) -> None:
    page = viewer(watch, home)
    page.wait_for_selector("#v-with option[value=gamma-135m]", state="attached")
    assert "direct" not in [option.get_attribute("value") for option in page.query_selector_all("#v-with option")]
    page.select_option("#v-with", "beta-7B")
    page.wait_for_selector("#v-filter option[value=gained]", state="attached")
    page.select_option("#v-filter", "gained")
    gained = [n for n in range(260) if n not in (7, 11, 13) and n % 9 and not n % 4]
    wait_for_status(page, f"{len(gained)} of 260 answers")
    page.wait_for_selector("#v-detail .replies")
    assert [status.split()[-1] for status in shown(page, "#v-detail .replies .status")] == ["wrong", "right"]
    page.select_option("#v-filter", "lost")
    lost = [n for n in range(260) if n not in (7, 11, 13) and not n % 9 and n % 4]
    wait_for_status(page, f"{len(lost)} of 260 answers")


def test_rows_and_replies_in_many_files_are_one_list(
    watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medbench.reports.read import ordered
    from medbench.reports.write import viewer_index

    monkeypatch.setattr(viewer_index, "PART_ROWS", 60)  # of 260: five files of rows
    monkeypatch.setattr(ordered, "BATCH_ROWS", 25)  # eleven of replies
    stored_run(tmp_path / "runs", "many", {"medqa": medqa(4)})
    site = build(tmp_path / "runs", tmp_path / "site")
    assert len(list((site / "runs/many/data/medqa").glob("*.js"))) == 5 + 11
    watched = watch(site.as_uri() + "/")
    page = settled(watched.open("runs/many/viewer.html#task=medqa&id=q251"))
    assert page.inner_text("#v-detail h2") == "Question q251"
    wait_for_status(page, "260 of 260 answers")
    page.select_option("#v-filter", "wrong")
    wait_for_status(page, f"{65 + 2} of 260 answers")
    page.fill("#v-search", "case 240 fever")
    page.check("#v-deep")
    wait_for_status(page, "1 of 260 answers")
    wait_for(page, "#v-detail h2", "Question q240")


@pytest.mark.parametrize(
    "fragment",
    ["#task=../../evil", "#with=../../../etc", "#task=medqa&with=nobody", "#id=%00&filter=x&category==", "#%"],
)
def test_a_made_up_link_does_no_harm(watch: Any, home: str, fragment: str) -> None:
    watched = watch(home)
    page = watched.open(f"runs/alpha-32B/viewer.html{fragment}")
    settled(page)
    assert len(heads(page)) == 50
    watched.faults = [fault for fault in watched.faults if "nobody" not in fault and "ERR_FILE_NOT_FOUND" not in fault]


def test_a_site_with_a_missing_file_says_so(watch: Any, site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(site, copy)
    shutil.rmtree(copy / "runs" / "alpha-32B" / "data" / "medqa")
    watched = watch(copy.as_uri() + "/")
    page = watched.open("runs/alpha-32B/viewer.html")
    wait_for_status(page, "The answers could not be loaded")
    watched.faults.clear()


# --- comparing ---


def test_flips_show_both_replies_and_open_in_the_viewer(watch: Any, home: str) -> None:
    page = watch(home).open("compare/beta-7B--alpha-32B.html")
    first = page.locator("details.flip").first
    first.locator("summary").first.click()
    replies = first.locator(".reply pre")
    assert replies.count() == 2
    assert all("The answer is" in text for text in replies.all_inner_texts())
    question = first.locator("code").inner_text()
    first.locator("a", has_text="viewer").click()
    page.wait_for_selector("#v-detail .replies")
    assert page.inner_text("#v-detail h2") == f"Question {question}"


# --- hostile content ---

SPELLED = """(codes) => codes.filter((code) => {
  const node = document.createElement("i");
  medbench.text.append(node, String.fromCodePoint(code));
  return node.querySelector(".ctl") !== null;
})"""


def test_the_browser_spells_out_the_same_hidden_characters_as_the_pages(watch: Any, home: str) -> None:
    codes = [*range(0x10000), *range(0xDFF00, 0xE1100)]
    spelled = viewer(watch, home).evaluate(SPELLED, codes)
    assert spelled == [code for code in codes if HIDDEN.search(chr(code))]


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = pytest.importorskip("hostile")
    root = tmp_path_factory.mktemp("hostile-runs")
    hostile.hostile_runs(root)
    for number in range(4):
        hostile.hostile_training(root, f"train-{number}", hostile.HOSTILE[number::4])
    return build(root, tmp_path_factory.mktemp("hostile") / "site")


WALK = """async () => {
  const seen = [document.body.textContent];
  const pause = () => new Promise((done) => setTimeout(done, 0));
  const open = (pane) => pane.querySelectorAll("details").forEach((details) => { details.open = true; });
  open(document);
  const pane = document.getElementById("v-detail");
  for (let link of document.querySelectorAll("#v-list a")) {
    const id = new URLSearchParams(link.hash.slice(1)).get("id");
    link.click();
    const there = () => pane.querySelector("h2")?.textContent === `Question ${id}`;
    for (let wait = 0; wait < 20 && !there(); wait += 1) await pause();
    open(pane);
    await pause();
    seen.push(pane.textContent);
  }
  return seen;
}"""
FOREIGN = """() => [
  document.querySelectorAll("script:not([src]), img, iframe, object, embed, [onerror], [onload], [onclick]").length,
  [...document.querySelectorAll("a")].filter((link) => !/^(https|http|file):$/.test(link.protocol)).length,
  typeof window.hacked,
]"""


def pages_of(site: Path, place: str) -> list[str]:
    """All pages with many strings on them; of the runs that have one string each, from disk every fifth page of
    the run and every fifteenth viewer.

    test_pages has the markup of each string in each field.
    """
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.is_file())
    single = [path for path in found if re.match(r"runs/\d", path)]
    many = [path for path in found if path not in single]
    if place == "server":
        return [path for path in many if path.startswith(("index", "compare/", "runs/all-samples/"))]
    return many + single[::10] + single[1::30]  # index and viewer of a run take turns


@pytest.mark.parametrize("place", ["disk", "server"])
def test_hostile_content_is_only_ever_text(watch: Any, hostile_site: Path, place: str) -> None:
    home, server = (hostile_site.as_uri() + "/", None) if place == "disk" else serve(hostile_site)
    watched = watch(home)
    everything = ""
    for path in pages_of(hostile_site, place):
        page = settled(watched.open(path))
        everything += "\n".join(page.evaluate(WALK))
        assert page.evaluate(FOREIGN) == [0, 0, "undefined"], path
    assert "<script>" in everything
    assert not re.search("[\x00-\x08\x1b\u202e\u2066]", everything)
    if server:
        server.shutdown()


# --- judged steps ---


def marked(page: Any) -> list[tuple[str, str]]:
    """(verdict as a screen reader says it, sign as it is drawn) of each marked step."""
    sign = "node => getComputedStyle(node, '::before').content.slice(1, 2)"
    return [
        (node.query_selector(".hidden").inner_text(), node.evaluate(sign)) for node in page.query_selector_all(".step")
    ]


SIGNS = {"[supported] ": "✓", "[contradicted] ": "✕", "[not covered] ": "○", "[no verdict] ": "?"}


def test_each_step_is_marked_by_sign_and_in_words_and_another_judge_can_be_chosen(watch: Any, home: str) -> None:
    page = settled(watch(home).open("runs/alpha-32B/viewer.html#task=pubmedqa&id=q3"))
    page.wait_for_selector(".step")
    first = marked(page)
    assert len(first) == 1
    assert all(SIGNS[said.rstrip() + " "] == sign for said, sign in first)
    assert "Steps as judged by" in page.inner_text(".steps")
    assert "1 " + first[0][0].strip(" []") in page.inner_text(".steps")
    page.select_option(".steps select", "strict")
    page.wait_for_function("document.querySelector('.steps select').value === 'strict'")
    assert marked(page) != first
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("j")
    page.wait_for_function("document.querySelector('#v-detail h2').innerText.includes('q4')")
    assert page.input_value(".steps select") == "strict"


def test_both_sides_are_marked_where_both_runs_were_judged(watch: Any, home: str) -> None:
    page = settled(watch(home).open("runs/alpha-32B/viewer.html#task=pubmedqa&with=beta-7B&id=q3"))
    page.wait_for_selector("section.reply .step")
    assert len(page.query_selector_all("section.reply")) == 2
    assert all(side.query_selector(".step") for side in page.query_selector_all("section.reply"))
