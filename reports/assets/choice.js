// Which rows of a run the reader asked for.
"use strict";
window.medbench = window.medbench || {};
medbench.choice = (() => {
  const [RIGHT, WRONG, UNPARSED, TRUNCATED, ERROR, REFUSED, AMBIGUOUS, EMPTY] = [1, 2, 4, 8, 16, 32, 64, 128];
  // [name in the address, words, bit of the row's flags]
  const FLAGS = [
    ["right", "Right", RIGHT], ["wrong", "Wrong", WRONG], ["unparsed", "Without an answer", UNPARSED], ["truncated", "Cut off", TRUNCATED],
    ["error", "Failed requests", ERROR], ["refused", "Refused", REFUSED], ["ambiguous", "Ambiguous", AMBIGUOUS], ["empty", "Empty", EMPTY],
  ];
  const FLIPS = [["flipped", "Flipped against it"], ["gained", "Right here, wrong there"], ["lost", "Wrong here, right there"]];
  const NAMES = [...FLAGS, ...FLIPS].map(([name]) => name);

  // `state` is the viewer's; `others` are the rows of the run beside it, or null.
  function of(state, rows, others) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const bit = (FLAGS.find(([name]) => name === state.filter) || [])[2];
    const at = state.category.indexOf("=");
    const field = state.category.slice(0, at);
    const value = at > 0 ? (rows.first.values[field] || []).indexOf(state.category.slice(at + 1)) : -1;

    function flip(row) {
      const place = others ? others.places().get(rows.key(row)) : undefined;
      if (place === undefined) return "";
      const [here, there] = [rows.value("flags", row), others.value("flags", place)];
      return here & RIGHT && there & WRONG ? "gained" : here & WRONG && there & RIGHT ? "lost" : "";
    }

    function fits(row) {
      if (bit && !(rows.value("flags", row) & bit)) return false;
      if (state.filter && !bit) {
        const found = flip(row);
        if (!found || (state.filter !== "flipped" && state.filter !== found)) return false;
      }
      return at <= 0 || (value >= 0 && rows.category(field, row) === value);
    }

    function hasWords(row) {
      if (!words.length) return true;
      const text = ["ids", "heads", "extracted", "gold"].map((name) => rows.value(name, row) ?? "").join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    }

    return { words, fits, hasWords };
  }

  // [class, words] of the mark before a row.
  function symbol(flags) {
    if (flags & ERROR) return ["open", "failed request"];
    if (flags & RIGHT) return ["good", "right"];
    return ["bad", flags & UNPARSED ? "no answer" : "wrong"];
  }

  return { FLAGS, FLIPS, NAMES, of, symbol };
})();
