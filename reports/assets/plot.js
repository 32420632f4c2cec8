// What all charts share: colours of the style sheet, and axes.
"use strict";
window.medbench = window.medbench || {};
medbench.plot = (() => {
  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  function axes(x, y, ofX = {}, ofY = {}) {
    const common = { stroke: colour("muted"), font: "12px system-ui", labelFont: "12px system-ui", labelSize: 22,
      grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1, size: 4 } };
    return [{ ...common, label: x, size: 34, ...ofX }, { ...common, label: y, size: 44, ...ofY }];
  }

  return { axes, colour };
})();
