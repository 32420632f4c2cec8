// Foreign text into the page: always as text, hidden characters spelled out, however long it is.
"use strict";
window.medbench = window.medbench || {};
medbench.text = (() => {
  // The same set as HIDDEN of formats.py: controls, bidi marks and overrides, tags, halves of surrogate pairs.
  const HIDDEN =
    /[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e0fff}]/gu;
  const LONG = 60000; // characters shown at once; more is a click away
  const EDGE = 20000; // of a longer text, shown at either end
  const NEAR = 2000; // and on either side of what was extracted

  const VERDICTS = {
    s: ["supported", "good"],
    c: ["contradicted", "bad"],
    n: ["not covered", "open"],
    "-": ["no verdict", "none"],
  }; // as in reports/viewer_data.py

  const spelled = (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  };

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    append(made, ...children);
    return made;
  }

  function append(node, ...children) {
    for (const child of children) {
      if (child instanceof Node) node.append(child);
      else if (child !== null && child !== undefined) spell(node, String(child));
    }
    return node;
  }

  // Text nodes, with each run of hidden characters in a span of its own.
  function spell(node, text) {
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      if (match.index > from) node.append(text.slice(from, match.index));
      const last = node.lastChild;
      if (match.index === from && last && last.className === "ctl") last.append(spelled(match[0]));
      else {
        const span = document.createElement("span");
        span.className = "ctl";
        span.append(spelled(match[0]));
        node.append(span);
      }
      from = match.index + match[0].length;
    }
    if (from < text.length) node.append(text.slice(from));
  }

  // A block of text; [start, end) of `span` is marked, and so is each step [start, end, verdict] of `steps`, which are in
  // order and do not overlap. Of a very long text the middle waits for a click.
  function block(text, span, label, steps = []) {
    const pre = element("pre", { class: "text", dir: "auto", tabindex: "0", "aria-label": label });
    const plain = (start, end) => {
      const part = document.createDocumentFragment();
      const cuts = span ? [start, Math.min(Math.max(span[0], start), end), Math.min(Math.max(span[1], start), end), end] : [start, end];
      for (let i = 0; i + 1 < cuts.length; i += 1) {
        if (cuts[i + 1] <= cuts[i]) continue;
        const shown = text.slice(cuts[i], cuts[i + 1]);
        append(part, span && i === 1 ? element("mark", { title: "extracted answer" }, shown) : shown);
      }
      return part;
    };
    const piece = (start, end) => {
      const part = document.createDocumentFragment();
      let at = start;
      for (const [first, last, verdict] of steps) {
        if (last <= start || first >= end) continue;
        const from = Math.max(first, start);
        const to = Math.min(last, end);
        part.append(plain(at, from), step(verdict, plain(from, to)));
        at = to;
      }
      part.append(plain(at, end));
      return part;
    };
    let at = 0;
    for (const [start, end] of shownRanges(text.length, span)) {
      if (start > at) pre.append(gap(at, start, piece));
      pre.append(piece(start, end));
      at = end;
    }
    return pre;
  }

  // The verdict is in the colour, in the sign before the step and, for who sees neither, in words.
  function step(verdict, content) {
    const [name, colour] = VERDICTS[verdict] || VERDICTS["-"];
    const made = element("span", { class: `step ${colour}`, title: name }, element("span", { class: "hidden" }, `[${name}] `));
    made.append(content);
    return made;
  }

  function shownRanges(length, span) {
    if (length <= LONG) return [[0, length]];
    const wanted = [[0, EDGE], [length - EDGE, length]];
    if (span) wanted.splice(1, 0, [Math.max(0, span[0] - NEAR), Math.min(length, span[1] + NEAR)]);
    wanted.sort((a, b) => a[0] - b[0]);
    const merged = [wanted[0]];
    for (const [start, end] of wanted.slice(1)) {
      const last = merged[merged.length - 1];
      if (start <= last[1]) last[1] = Math.max(last[1], end);
      else merged.push([start, end]);
    }
    return merged;
  }

  function gap(start, end, piece) {
    const button = element("button", { type: "button", class: "gap" }, `Show ${(end - start).toLocaleString("en")} characters more`);
    button.addEventListener("click", () => button.replaceWith(piece(start, end)));
    return button;
  }

  return { element, append, block, VERDICTS };
})();
