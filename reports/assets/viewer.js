// The list of questions, its filters, and the answer beside it. All of it is in the address: #task=..&filter=..&id=..
"use strict";
(() => {
  const { element, append } = medbench.text;
  const { Rows, chunk, runs, isName } = medbench.data;
  const root = document.getElementById("viewer");
  const box = Object.fromEntries(
    ["task", "filter", "category", "category-box", "with", "search", "deep", "status", "list", "previous", "page", "next", "detail"]
      .map((name) => [name, document.getElementById(`v-${name}`)]),
  );
  const RUN = root.dataset.run;
  const A_PAGE = 50;
  const { FLAGS, FLIPS, NAMES } = medbench.choice;

  const state = { task: "", filter: "", category: "", with: "", q: "", deep: false, id: "", repeat: 0 };
  let rows = null;
  let others = null; // Rows of the run beside
  let otherName = "";
  let found = []; // rows that fit, in order
  let scanned = 0; // rows looked at for that
  let page = 0;
  let turn = 0; // goes up when what is shown changes, so that late arrivals are dropped

  // --- the address ---

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const tasks = [...box.task.options].map((option) => option.value);
    state.task = tasks.includes(given.get("task")) ? given.get("task") : tasks[0] || "";
    state.filter = NAMES.includes(given.get("filter")) ? given.get("filter") : "";
    state.with = isName(given.get("with") || "") ? given.get("with") : "";
    state.category = given.get("category") || "";
    state.q = given.get("q") || "";
    state.deep = given.get("deep") === "1";
    state.id = given.get("id") || "";
    state.repeat = Number.parseInt(given.get("repeat") || "0", 10) || 0;
  }

  function address(changes = {}) {
    const now = { ...state, ...changes };
    const parts = new URLSearchParams();
    for (const name of ["task", "filter", "category", "with", "q"]) if (now[name]) parts.set(name, now[name]);
    if (now.q && now.deep) parts.set("deep", "1");
    if (now.id) parts.set("id", now.id);
    if (now.id && now.repeat) parts.set("repeat", String(now.repeat));
    return `#${parts}`;
  }

  function remember() {
    try {
      history.replaceState(null, "", address());
    } catch {
      // a sandboxed frame: the address stays as it is
    }
  }

  // --- data ---

  async function open() {
    const mine = (turn += 1);
    box.status.textContent = "Loading…";
    try {
      rows = await new Rows(RUN, state.task).open();
      if (mine !== turn) return;
      others = null;
      offerCategories();
      await openOther(mine);
      if (mine !== turn) return;
      offerFilters();
      const isLinkedTo = Boolean(state.id);
      await findId(mine);
      await select(mine, true);
      if (isLinkedTo && mine === turn && isNarrow()) box.detail.scrollIntoView();
      await readOn(mine);
    } catch (error) {
      if (mine === turn) failed(error);
    }
  }

  async function openOther(mine) {
    otherName = "";
    if (!state.with) return;
    const listed = (await runs()).find(([id]) => id === state.with);
    const slug = listed ? slugOf(listed) : state.task;
    try {
      const opened = await new Rows(state.with, slug).open();
      await opened.whole();
      if (mine !== turn) return;
      others = opened;
      otherName = listed ? listed[1] : state.with;
    } catch (error) {
      state.with = "";
      box.with.value = "";
      box.status.textContent = error.message;
    }
  }

  // The folder of the task with this run's own name for it, in the other run.
  function slugOf(listed) {
    const own = rows.first.name;
    const entry = Object.entries(listed[3]).find(([task]) => task === own);
    return entry ? entry[1] : state.task;
  }

  async function findId(mine) {
    if (!state.id) return;
    while (mine === turn && !rows.places().has(`${state.repeat}/${state.id}`) && (await rows.more()));
  }

  function failed(error) {
    box.status.textContent = `The answers could not be loaded (${error.message}). Are all files of the site there?`;
    box.list.replaceChildren();
    box.detail.replaceChildren();
  }

  // --- what fits ---

  async function select(mine, keepsPlace) {
    found = [];
    scanned = 0;
    if (isDeep()) {
      await searchDeep(mine);
      if (mine !== turn) return;
    } else {
      scan();
    }
    const at = state.id ? found.findIndex((row) => rows.key(row) === `${state.repeat}/${state.id}`) : -1;
    page = at >= 0 ? Math.floor(at / A_PAGE) : 0;
    list();
    if (at < 0 && state.id && keepsPlace && rows.places().has(`${state.repeat}/${state.id}`)) {
      await detail(rows.places().get(`${state.repeat}/${state.id}`)); // linked to, though the filter leaves it out
    } else if (found.length) {
      await go(Math.max(at, 0), false);
    } else {
      box.detail.replaceChildren(element("p", { class: "fine" }, "No answer fits."));
    }
  }

  const choice = () => medbench.choice.of(state, rows, others);
  const isDeep = () => state.deep && choice().words.length > 0;

  // Adds to what is found the rows that have come in since.
  function scan() {
    const { fits, hasWords } = choice();
    for (; scanned < rows.length; scanned += 1) if (fits(scanned) && hasWords(scanned)) found.push(scanned);
  }

  // The rest of the rows, part by part; the page that is shown stays as it is if it is full.
  async function readOn(mine) {
    while (mine === turn && (await rows.more())) {
      if (mine !== turn || isDeep()) return;
      const before = found.length;
      scan();
      if (before < (page + 1) * A_PAGE && found.length > before) list();
      else summary();
      if (!before && found.length) await go(0, false);
    }
  }

  // Reads every chunk that holds a row in question; what is found shows as it comes.
  async function searchDeep(mine) {
    await rows.whole();
    if (mine !== turn) return;
    const { fits, words } = choice();
    const byChunk = new Map();
    for (let row = 0; row < rows.length; row += 1) {
      if (!fits(row)) continue;
      const number = rows.chunkOf(row);
      if (!byChunk.has(number)) byChunk.set(number, []);
      byChunk.get(number).push(row);
    }
    let done = 0;
    for (const [number, some] of byChunk) {
      const samples = await chunk(RUN, state.task, number);
      if (mine !== turn) return;
      for (const row of some) {
        const sample = samples[row - rows.first.chunks[number]];
        const text = `${sample[0]}\n${sample[2]}\n${sample[3]}`.toLowerCase();
        if (words.every((word) => text.includes(word))) found.push(row);
      }
      done += 1;
      page = 0;
      list(`searched ${done} of ${byChunk.size} files`);
    }
  }

  // --- what is shown ---

  function offerFilters() {
    const counts = rows.first.counts;
    const option = (value, text) => element("option", { value }, text);
    const some = FLAGS.filter(([name]) => counts[name] || name === state.filter || name === "right" || name === "wrong");
    box.filter.replaceChildren(
      option("", `All (${rows.first.total.toLocaleString("en")})`),
      ...some.map(([name, text]) => option(name, `${text} (${(counts[name] || 0).toLocaleString("en")})`)),
      ...(others ? FLIPS.map(([name, text]) => option(name, text)) : []),
    );
    if (!others && FLIPS.some(([name]) => name === state.filter)) state.filter = "";
    box.filter.value = state.filter;
  }

  function offerCategories() {
    const fields = Object.entries(rows.first.values).filter(([, values]) => values.length);
    box["category-box"].hidden = !fields.length;
    box.category.replaceChildren(element("option", { value: "" }, "all"));
    for (const [field, values] of fields) {
      const group = document.createElement("optgroup");
      group.label = field;
      for (const value of values) {
        const option = document.createElement("option");
        option.value = `${field}=${value}`;
        append(option, value);
        group.append(option);
      }
      box.category.append(group);
    }
    if (![...box.category.options].some((option) => option.value === state.category)) state.category = "";
    box.category.value = state.category;
  }

  async function offerRuns() {
    const listed = await runs();
    const own = listed.find(([id]) => id === RUN);
    const alike = own ? listed.filter(([id, , kind]) => kind === own[2] && id !== RUN) : [];
    for (const [id, name] of alike) {
      const option = document.createElement("option");
      option.value = id;
      append(option, name === id ? id : `${name} (${id})`);
      box.with.append(option);
    }
    if (state.with && !alike.some(([id]) => id === state.with)) {
      box.with.append(element("option", { value: state.with }, state.with));
    }
    box.with.value = state.with;
  }

  const isNarrow = () => matchMedia("(max-width: 52rem)").matches; // the answer is below the list

  function item(row) {
    const [id, repeat] = [rows.value("ids", row), rows.repeat(row)];
    const [colour, word] = medbench.choice.symbol(rows.value("flags", row));
    const read = rows.value("extracted", row);
    const isCurrent = id === state.id && repeat === state.repeat;
    const link = element("a", { href: address({ id, repeat }), ...(isCurrent ? { "aria-current": "true" } : {}) },
      element("span", { class: `flag ${colour}` }, element("span", { class: "hidden" }, `${word}: `)),
      element("span", { class: "head", dir: "auto" }, rows.value("heads", row) || id),
      element("span", { class: "meta" }, element("bdi", {}, read === null ? "no answer" : read), ", right ", element("bdi", {}, rows.value("gold", row)),
        " · ", element("bdi", {}, id), repeat ? ` · repeat ${repeat + 1}` : ""));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      go(found.indexOf(row), true).then(() => {
        if (isNarrow()) box.detail.focus();
      });
    });
    return element("li", {}, link);
  }

  function list(progress) {
    const pages = Math.max(1, Math.ceil(found.length / A_PAGE));
    page = Math.min(page, pages - 1);
    box.list.start = page * A_PAGE + 1;
    box.list.replaceChildren(...found.slice(page * A_PAGE, (page + 1) * A_PAGE).map(item));
    summary(progress);
  }

  function summary(progress) {
    const pages = Math.max(1, Math.ceil(found.length / A_PAGE));
    box.page.textContent = `Page ${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    box.previous.disabled = page === 0;
    box.next.disabled = page + 1 >= pages;
    const total = rows.first.total;
    const parts = [`${found.length.toLocaleString("en")} of ${total.toLocaleString("en")} answers`];
    if (progress) parts.push(progress);
    else if (!rows.isWhole) parts.push(`${rows.length.toLocaleString("en")} read so far`);
    if (others) parts.push(`beside ${otherName}`);
    if (rows.first.fault) parts.push(rows.first.fault);
    box.status.replaceChildren();
    append(box.status, parts.join("; "));
  }

  async function go(place, takesFocus) {
    if (place < 0 || place >= found.length) return;
    const row = found[place];
    state.id = rows.value("ids", row);
    state.repeat = rows.repeat(row);
    if (Math.floor(place / A_PAGE) !== page) {
      page = Math.floor(place / A_PAGE);
      list();
    } else {
      box.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
      box.list.children[place - page * A_PAGE]?.firstChild.setAttribute("aria-current", "true");
    }
    const link = box.list.querySelector("[aria-current]");
    if (takesFocus && link) {
      link.focus({ preventScroll: true });
      link.scrollIntoView({ block: "nearest" });
    }
    remember();
    await detail(row);
  }

  async function detail(row) {
    const mine = turn;
    const key = rows.key(row);
    const sides = [];
    try {
      const place = others ? others.places().get(key) : undefined;
      const [own, other] = await Promise.all([rows.sample(row), place === undefined ? null : others.sample(place)]);
      if (other) sides.push({ letter: "A", name: otherName, sample: medbench.sample.named(other) });
      sides.push({ letter: "B", name: "this run", sample: medbench.sample.named(own) });
    } catch (error) {
      if (mine === turn) box.detail.replaceChildren(element("p", { class: "mark" }, `This answer could not be loaded (${error.message}).`));
      return;
    }
    if (mine !== turn || `${state.repeat}/${state.id}` !== key) return;
    medbench.sample.show(box.detail, sides, address());
    box.detail.scrollTop = 0;
    performance.mark("medbench-answer"); // for tests/bench/report.py
  }

  // --- what the reader does ---

  async function changed(name, value) {
    state[name] = value;
    const mine = (turn += 1);
    try {
      if (name === "task") {
        Object.assign(state, { id: "", repeat: 0, category: "" });
        remember();
        await open();
        return;
      }
      if (name === "with") {
        others = null;
        await openOther(mine);
        if (mine !== turn) return;
        offerFilters();
      }
      remember();
      await select(mine, name === "with");
      await readOn(mine);
    } catch (error) {
      if (mine === turn) failed(error);
    }
  }

  const turnPage = (by) => {
    page += by;
    go(page * A_PAGE, false);
    list();
    box.list.querySelector("a")?.focus({ preventScroll: true });
    box.list.scrollIntoView({ block: "nearest" });
  };

  const step = (by) => {
    const at = found.findIndex((row) => rows.key(row) === `${state.repeat}/${state.id}`);
    go(at < 0 ? 0 : at + by, true);
  };

  let pause = 0;
  box.search.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => changed("q", box.search.value), 200);
  });
  box.deep.addEventListener("change", () => changed("deep", box.deep.checked));
  for (const name of ["task", "filter", "category", "with"]) box[name].addEventListener("change", () => changed(name, box[name].value));
  box.previous.addEventListener("click", () => turnPage(-1));
  box.next.addEventListener("click", () => turnPage(1));
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !rows) return;
    const isTyping = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (isTyping) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const inList = event.target instanceof Element && event.target.closest("#v-list");
    if (event.key === "j" || (event.key === "ArrowDown" && inList)) step(1);
    else if (event.key === "k" || (event.key === "ArrowUp" && inList)) step(-1);
    else if (event.key === "/") box.search.focus();
    else return;
    event.preventDefault();
  });
  window.addEventListener("hashchange", () => start());

  function start() {
    read();
    box.task.value = state.task;
    box.search.value = state.q;
    box.deep.checked = state.deep;
    if (state.task) open();
    else box.status.textContent = "This run has no task.";
  }

  root.hidden = false;
  read();
  start();
  offerRuns();
})();
