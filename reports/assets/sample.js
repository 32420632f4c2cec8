// One answer, or the answers of two runs to the same question, as a part of the page.
"use strict";
window.medbench = window.medbench || {};
medbench.sample = (() => {
  const { element, append, block, VERDICTS } = medbench.text;
  const FIELDS = ["id", "repeat", "prompt", "output", "finish", "extracted", "outcome", "span", "gold", "score", "error",
    "promptTokens", "tokens", "category", "logprobs", "order", "judged"]; // as reports/viewer_data.py lists them
  const TAGS = [["<think>", "</think>"], ["<thinking>", "</thinking>"], ["<|begin_of_thought|>", "<|end_of_thought|>"]];
  const FINISHED = { stop: "by itself", length: "token limit", error: "request failed" };

  const named = (values) => Object.fromEntries(FIELDS.map((field, place) => [field, values[place]]));

  // Where the thought ends, as harness/thoughts.py cuts it.
  function thoughtEnd(text, prompt) {
    let end = 0;
    for (const [, close] of TAGS) {
      const at = text.lastIndexOf(close);
      if (at >= 0) end = Math.max(end, at + close.length);
    }
    const rest = text.slice(end);
    const opened = TAGS.some(([open]) => prompt.trimEnd().endsWith(open));
    const isOpen = TAGS.some(([open]) => rest.includes(open)) || (opened && end === 0);
    return isOpen ? [text.length, false] : [end, true];
  }

  function verdict(sample) {
    if (sample.error !== null || sample.outcome === "error") return element("span", { class: "status open" }, "failed request");
    if (sample.score === 1) return element("span", { class: "status good" }, "right");
    const why = sample.outcome === "answered" ? "wrong" : `wrong, ${sample.outcome}`;
    return element("span", { class: "status bad" }, sample.score ? `score ${sample.score}` : why);
  }

  const fact = (name, ...value) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, element("bdi", {}, ...value)));

  function facts(sample) {
    const list = element("dl", { class: "facts" });
    append(list, fact("Extracted answer", sample.extracted === null ? `none: ${sample.outcome}` : sample.extracted));
    append(list, fact("Correct answer", sample.gold));
    append(list, fact("Ended", FINISHED[sample.finish] || sample.finish));
    append(list, fact("Tokens", `${sample.tokens.toLocaleString("en")}, prompt ${sample.promptTokens.toLocaleString("en")}`));
    for (const [field, value] of Object.entries(sample.category || {})) append(list, fact(field, value));
    if (sample.repeat) append(list, fact("Repeat", `number ${sample.repeat + 1}`));
    if (sample.order) append(list, fact("Options in order", sample.order.map((place) => place + 1).join(" ")));
    return list;
  }

  function reply(sample) {
    const parts = [];
    if (sample.error !== null) {
      parts.push(element("p", { class: "mark" }, element("strong", {}, "The engine failed: "), element("bdi", {}, sample.error)));
    }
    const text = sample.output;
    const [end, closed] = thoughtEnd(text, sample.prompt);
    const within = (from, to) => {
      if (!sample.span || sample.span[1] <= from || sample.span[0] >= to) return null;
      return [Math.max(0, sample.span[0] - from), Math.min(to, sample.span[1]) - from];
    };
    const judged = chosenJudge(sample);
    if (judged) parts.push(...legend(sample, judged));
    const marksWithin = (from, to) => (judged ? judged[1] : [])
      .filter(([start, stop]) => start < to && stop > from)
      .map(([start, stop, verdict]) => [Math.max(0, start - from), Math.min(to, stop) - from, verdict]);
    if (end > 0) {
      const words = `Reasoning, ${end.toLocaleString("en")} characters${closed ? "" : ", unfinished"}`;
      const isMarked = marksWithin(0, end).length > 0;
      const details = element("details", closed && !isMarked && !within(0, end) ? {} : { open: "" }, element("summary", {}, words));
      lazily(details, () => block(text.slice(0, end), within(0, end), "Thought", marksWithin(0, end)));
      parts.push(details);
    }
    const start = text.length - text.slice(end).trimStart().length; // empty lines between thought and answer
    if (start < text.length) parts.push(block(text.slice(start), within(start, text.length), "Reply", marksWithin(start, text.length)));
    else if (!end) parts.push(element("p", { class: "fine" }, "The reply is empty."));
    if (sample.extracted !== null && !sample.span && !sample.logprobs) {
      parts.push(element("p", { class: "fine" }, "The position of the answer in the reply is not stored for this task."));
    }
    if (sample.logprobs) parts.push(likelihoods(sample));
    return parts;
  }

  // --- what judges say of its steps ---

  let wantedJudge = ""; // as the reader last chose

  const chosenJudge = (sample) =>
    sample.judged ? sample.judged.find(([judge]) => judge === wantedJudge) || sample.judged[0] : null;

  // How many steps have which verdict, which judge says so, and by which text.
  function legend(sample, [judge, marks, unplaced, source]) {
    const line = element("p", { class: "steps" }, "Steps as judged by ");
    append(line, sample.judged.length > 1 ? judgeChoice(sample, judge) : element("bdi", {}, judge), ": ");
    const parts = Object.entries(VERDICTS).map(([letter, [name, colour]]) => {
      const count = marks.filter(([, , verdict]) => verdict === letter).length;
      return letter === "-" && !count ? null : element("span", { class: `status ${colour}` }, `${count} ${name}`);
    });
    parts.filter(Boolean).forEach((part, place) => append(line, place ? " " : "", part));
    if (!marks.length && !unplaced) append(line, ". The reply has no step before its answer");
    if (unplaced) append(line, ` ${unplaced} not found in the reply`);
    if (source === null) {
      return [line, element("p", { class: "fine" }, "Judged by the text in the prompt above.")];
    }
    const details = element("details", {}, element("summary", {}, "The text that it was judged by"));
    lazily(details, () => block(source, null, "Source"));
    return [line, details];
  }

  function judgeChoice(sample, judge) {
    const select = element("select", { "aria-label": "Judge" });
    for (const [name] of sample.judged) {
      const option = element("option", { value: name }, name);
      option.selected = name === judge;
      select.append(option);
    }
    select.addEventListener("change", () => {
      wantedJudge = select.value;
      shown();
    });
    return select;
  }

  function likelihoods(sample) {
    const rows = Object.entries(sample.logprobs).sort((a, b) => b[1] - a[1]);
    const body = element("tbody");
    for (const [choice, value] of rows) {
      append(body, element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, choice)),
        element("td", { class: "num" }, Number.isFinite(value) ? value.toFixed(3) : String(value))));
    }
    return element("table", {}, element("caption", {}, "Log-likelihood of each choice, in nats"),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Choice"), element("th", { scope: "col", class: "num" }, "ln p"))), body);
  }

  // A long text is put into the page only when its fold is opened.
  function lazily(details, make) {
    const fill = () => {
      if (details.open && details.childElementCount === 1) details.append(make());
    };
    details.addEventListener("toggle", fill);
    fill();
  }

  function question(sample) {
    const details = element("details", { open: "" }, element("summary", {}, "The full prompt"));
    lazily(details, () => block(sample.prompt, null, "Prompt"));
    return details;
  }

  let shown = () => {}; // shows the same again

  // `sides`: [{letter, name, sample}], one or two; into `pane`.
  function show(pane, sides, link) {
    shown = () => {
      show(pane, sides, link);
      pane.querySelector(".steps select")?.focus();
    };
    const first = sides[0].sample;
    const heading = element("h2", {}, "Question ", element("bdi", {}, first.id));
    const title = element("p", {});
    if (sides.length === 1) append(title, verdict(first), " ");
    append(title, element("a", { href: link }, "Link to this answer"));
    pane.replaceChildren(heading, title);
    append(pane, element("h3", {}, "Question"), question(first));
    if (sides.length === 1) {
      append(pane, element("h3", {}, "Reply"), facts(first), ...reply(first));
      return;
    }
    const both = element("div", { class: "replies" });
    for (const { letter, name, sample } of sides) {
      append(both, element("section", { class: "reply", "aria-label": `Reply of ${name}` },
        element("h3", {}, element("span", { class: "letter" }, letter), " ", element("bdi", {}, name)),
        element("p", {}, verdict(sample)), facts(sample), ...reply(sample)));
    }
    append(pane, both);
  }

  return { named, show };
})();
