// The leaderboard: one table at a time, sorted and filtered. What is shown is in the address, so it can be shared.
"use strict";
(() => {
  const form = document.querySelector(".controls");
  const [tableBox, textBox, sizeBox] = ["f-table", "f-text", "f-size"].map((id) => document.getElementById(id));
  const count = document.getElementById("f-count");
  const sections = [...document.querySelectorAll(".board-table")];
  if (!sections.length) return;
  const wanted = new URLSearchParams(location.hash.slice(1));
  let sorted = null; // [heading's text, "ascending" or "descending"]

  const boards = sections.map((section) => {
    const table = section.querySelector("table");
    const rows = [...table.tBodies[0].rows];
    return { section, table, rows, initial: rows.slice(), text: rows.map((row) => row.cells[1].textContent.toLowerCase()) };
  });

  const number = (cell) => {
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v) || NaN;
    const shown = (cell.querySelector("b") || cell).textContent.replaceAll(",", "");
    return shown.trim() === "–" ? NaN : parseFloat(shown.trim());
  };

  const headings = (board) => [...board.table.tHead.rows[0].cells];
  const title = (heading) => heading.querySelector("button").textContent;

  function sort(board) {
    const place = sorted ? headings(board).findIndex((heading) => title(heading) === sorted[0]) : -1;
    for (const heading of headings(board)) heading.removeAttribute("aria-sort");
    let rows = board.initial;
    if (place >= 0) {
      const heading = headings(board)[place];
      const sign = sorted[1] === "ascending" ? 1 : -1;
      heading.setAttribute("aria-sort", sorted[1]);
      const isText = heading.dataset.sort === "text";
      const keys = new Map(rows.map((row) => [row, isText ? row.cells[place].textContent : number(row.cells[place])]));
      rows = rows.slice().sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (isText) return sign * x.localeCompare(y, "en", { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // unknown stays last
        return sign * (x - y);
      });
    }
    board.table.toggleAttribute("data-sorted", place > 0);
    board.table.tBodies[0].append(...rows);
  }

  function filter() {
    const words = textBox.value.toLowerCase().split(/\s+/).filter(Boolean);
    const size = sizeBox.value;
    let shown = 0;
    let total = 0;
    for (const board of boards) {
      const chosen = tableBox.value === "all" || board.section.id === tableBox.value;
      board.section.hidden = !chosen;
      if (!chosen) continue;
      board.rows.forEach((row, place) => {
        const fits = words.every((word) => board.text[place].includes(word));
        const own = row.dataset.size || "none";
        const keep = fits && (!size || size === own);
        row.hidden = !keep;
        shown += keep;
        total += 1;
      });
    }
    count.textContent = shown === total ? `${total} ${total === 1 ? "run" : "runs"}` : `${shown} of ${total} runs`;
  }

  function remember() {
    const state = new URLSearchParams();
    if (tableBox.value !== sections[0].id) state.set("table", tableBox.value);
    if (textBox.value) state.set("q", textBox.value);
    if (sizeBox.value) state.set("size", sizeBox.value);
    if (sorted) state.set("sort", `${sorted[1] === "ascending" ? "" : "-"}${sorted[0]}`);
    const hash = state.toString();
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    } catch {
      // a sandboxed frame: the address stays as it is
    }
  }

  for (const board of boards) {
    for (const heading of headings(board)) {
      const button = document.createElement("button");
      button.type = "button";
      const ends = heading.querySelector(".ends");
      button.append(...[...heading.childNodes].filter((node) => node !== ends));
      heading.prepend(button);
      button.addEventListener("click", () => {
        const first = heading.dataset.sort === "down" ? "descending" : "ascending";
        const now = heading.getAttribute("aria-sort");
        sorted = [title(heading), now === null ? first : now === "ascending" ? "descending" : "ascending"];
        boards.forEach(sort);
        remember();
      });
    }
  }
  const choose = (box, value) => {
    if (value && [...box.options].some((option) => option.value === value)) box.value = value;
  };
  choose(tableBox, wanted.get("table") || sections[0].id);
  choose(sizeBox, wanted.get("size"));
  textBox.value = wanted.get("q") || "";
  const order = wanted.get("sort");
  if (order) {
    sorted = order.startsWith("-") ? [order.slice(1), "descending"] : [order, "ascending"];
    boards.forEach(sort);
  }
  for (const box of [tableBox, textBox, sizeBox]) {
    box.addEventListener("input", () => {
      filter();
      remember();
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
})();
