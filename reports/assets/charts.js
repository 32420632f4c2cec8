// Draws each chart from the table beside it, which says the same without JavaScript.
"use strict";
(() => {
  const SIZE = { width: 384, height: 260 };
  const { axes, colour } = medbench.plot;
  const column = (rows, name) => rows.map((row) => Number(row.dataset[name]));
  const asPercent = (values) => values.map((value) => value * 100);

  const series = (name, options = {}) => ({ label: name, stroke: colour("blue"), width: 2, ...options });
  const dots = { show: true, size: 7 };

  const whiskers = (low, high) => (u) => {
    u.ctx.save();
    u.ctx.strokeStyle = colour("band");
    u.ctx.lineWidth = 6 * devicePixelRatio;
    u.ctx.beginPath();
    u.data[0].forEach((x, place) => {
      const at = u.valToPos(x, "x", true);
      u.ctx.moveTo(at, u.valToPos(low[place], "y", true));
      u.ctx.lineTo(at, u.valToPos(high[place], "y", true));
    });
    u.ctx.stroke();
    u.ctx.restore();
  };

  const KINDS = {
    lengths(rows) {
      const names = rows.map((row) => row.cells[0].textContent);
      const [y, low, high] = ["y", "low", "high"].map((name) => asPercent(column(rows, name)));
      return [
        { scales: { x: { time: false, range: [0.5, rows.length + 0.5] }, y: { range: [0, 100] } },
          axes: axes("tokens of the reply", "accuracy, %", {
            splits: () => names.map((_, place) => place + 1),
            values: () => names.map((name, place) => (rows.length < 6 || place % 3 === 0 ? name : "")),
          }),
          series: [{}, series("accuracy", { points: dots })], hooks: { drawAxes: [whiskers(low, high)] } },
        [rows.map((_, place) => place + 1), y],
      ];
    },
    reliability(rows) {
      const [x, y] = ["x", "y"].map((name) => asPercent(column(rows, name)));
      const ideal = (u) => {
        u.ctx.save();
        u.ctx.strokeStyle = colour("edge");
        u.ctx.setLineDash([4, 4]);
        u.ctx.beginPath();
        u.ctx.moveTo(u.valToPos(0, "x", true), u.valToPos(0, "y", true));
        u.ctx.lineTo(u.valToPos(100, "x", true), u.valToPos(100, "y", true));
        u.ctx.stroke();
        u.ctx.restore();
      };
      return [
        { scales: { x: { time: false, range: [0, 100] }, y: { range: [0, 100] } }, axes: axes("mean confidence, %", "accuracy, %"),
          series: [{}, series("accuracy", { points: dots })], hooks: { drawAxes: [ideal] } },
        [x, y],
      ];
    },
    risk(rows) {
      const [x, y] = ["x", "y"].map((name) => asPercent(column(rows, name)));
      return [
        { scales: { x: { time: false, range: [0, 100] }, y: { range: [0, Math.max(10, ...y) * 1.1] } }, axes: axes("share of answers kept, most confident first, %", "wrong, %"),
          series: [{}, series("wrong", { points: { show: false } })] },
        [x, y],
      ];
    },
  };

  function draw(figure) {
    figure.querySelector(".plot")?.remove();
    const rows = [...figure.querySelector("tbody").rows];
    const [options, data] = KINDS[figure.dataset.chart](rows);
    const holder = document.createElement("div");
    holder.className = "plot";
    holder.setAttribute("role", "img");
    holder.setAttribute("aria-label", `Chart: ${figure.querySelector("caption").textContent}. The table has the same numbers.`);
    figure.querySelector(".scroll").after(holder);
    const width = Math.min(SIZE.width, holder.clientWidth || SIZE.width);
    new uPlot({ ...SIZE, width, cursor: { show: false }, legend: { show: false }, ...options }, data, holder);
  }

  const all = () => document.querySelectorAll("figure.chart").forEach(draw);
  addEventListener("medbench-theme", all);
  all();
})();
