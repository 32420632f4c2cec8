// Draws the charts of a training: scores of its checkpoints and what the trainer logged, on one axis of steps a stage.
"use strict";
(() => {
  const { axes, colour } = medbench.plot;
  const HEIGHT = { gate: 230, metric: 150 };
  const TICKS = 20; // pixels above the plot, for the names of attempts and the numbers of alarms
  const ratio = () => devicePixelRatio || 1;
  const MARKS = { pass: "good", fail: "bad" };
  let stages = [];

  const short = (value) => {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace(/\.0e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };
  const signed = (value) => (value > 0 ? `+${short(value)}` : short(value)).replace("-", "−");

  // Attempts as bands under everything else, named above the plot.
  const bands = (stage) => (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.font = `${11 * ratio()}px system-ui`;
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    stage.attempts.forEach(([number, from, to, outcome], place) => {
      const [left, right] = [from, to].map((x) => Math.round(u.valToPos(x, "x", true)));
      if (place % 2) {
        ctx.fillStyle = colour("soft");
        ctx.fillRect(left, bbox.top, right - left, bbox.height);
      }
      const room = right - left - 6 * ratio();
      const name = [`attempt ${number}: ${outcome}`, `attempt ${number}`, String(number)].find((text) => ctx.measureText(text).width < room);
      ctx.fillStyle = colour("muted");
      if (name) ctx.fillText(name, left + 2 * ratio(), bbox.top - 9 * ratio());
    });
    ctx.restore();
  };

  // The promoted checkpoint and the alarms as upright lines, over everything else.
  const events = (stage, isGate) => (u) => {
    const { ctx, bbox } = u;
    const bottom = bbox.top + bbox.height;
    ctx.save();
    ctx.lineWidth = ratio();
    ctx.textBaseline = "middle";
    const line = (x, name, dash) => {
      ctx.strokeStyle = colour(name);
      ctx.setLineDash(dash.map((part) => part * ratio()));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bottom);
      ctx.stroke();
    };
    const text = (words, x, y, name, align) => {
      const width = ctx.measureText(words).width + 4 * ratio();
      ctx.fillStyle = colour("paper");
      ctx.fillRect(align === "right" ? x - width : x, y - 6 * ratio(), width, 12 * ratio());
      ctx.textAlign = align;
      ctx.fillStyle = colour(name);
      ctx.fillText(words, x + (align === "right" ? -2 : 2) * ratio(), y);
    };
    stage.alarms.forEach(([step, stops], place) => {
      const x = u.valToPos(step, "x", true);
      line(x, stops ? "bad" : "open", [1, 3]);
      ctx.font = `bold ${11 * ratio()}px system-ui`;
      text(String(place + 1), x + ratio(), bbox.top + (8 + 13 * (place % 3)) * ratio(), stops ? "bad" : "open", "left");
    });
    if (stage.promoted !== null) {
      const x = u.valToPos(stage.promoted, "x", true);
      line(x, "ink", []);
      ctx.font = `${11 * ratio()}px system-ui`;
      if (isGate) text("promoted", x - ratio(), bottom - 9 * ratio(), "ink", "right");
    }
    ctx.restore();
  };

  // Intervals, then marks that differ in shape as well as in colour, then the threshold.
  const checkpoints = (gate, points) => (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    const y = (value) => u.valToPos(value, "y", true);
    const size = 4 * ratio();
    for (const [x, estimate, low, high, status] of points) {
      const at = u.valToPos(x, "x", true);
      if (low !== null) {
        ctx.strokeStyle = colour("band");
        ctx.lineWidth = 6 * ratio();
        ctx.beginPath();
        ctx.moveTo(at, y(low));
        ctx.lineTo(at, y(high));
        ctx.stroke();
      }
      ctx.lineWidth = 2 * ratio();
      ctx.strokeStyle = colour(MARKS[status] || (status ? "open" : "blue"));
      ctx.fillStyle = status === "pass" ? ctx.strokeStyle : colour("paper");
      ctx.beginPath();
      if (status === "fail") {
        ctx.moveTo(at - size, y(estimate) - size);
        ctx.lineTo(at + size, y(estimate) + size);
        ctx.moveTo(at - size, y(estimate) + size);
        ctx.lineTo(at + size, y(estimate) - size);
      } else {
        ctx.arc(at, y(estimate), size, 0, 2 * Math.PI);
        ctx.fill();
      }
      ctx.stroke();
    }
    ctx.strokeStyle = colour("ink");
    ctx.lineWidth = ratio();
    ctx.setLineDash([5 * ratio(), 4 * ratio()]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y(gate.threshold));
    ctx.lineTo(bbox.left + bbox.width, y(gate.threshold));
    ctx.stroke();
    ctx.restore();
  };

  const around = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - room, high + room];
  };
  const placeOf = (stage, x) => {
    const own = stage.attempts.findLast(([, from]) => from <= x) || [1, 0];
    return `attempt ${own[0]}, step ${(x - own[1]).toLocaleString("en")}`;
  };

  function common(stage, key, draw, ofY) {
    const pad = (stage.length || 1) * 0.015;
    return {
      padding: [TICKS, 8, 0, 0],
      scales: { x: { time: false, range: [-pad, (stage.length || 1) + pad] } },
      axes: axes(null, null, { size: 28, values: (u, ticks) => ticks.map((tick) => tick.toLocaleString("en")) }, { size: 52, ...ofY }),
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false }, sync: { key, setSeries: false } },
      legend: { show: false },
      hooks: { drawAxes: [bands(stage)], draw },
    };
  }

  function ofGate(stage, gate, key, say) {
    // a line joins the checkpoints of one attempt
    const xs = [];
    const ys = [];
    gate.points.forEach(([x, y, , , , attempt], place) => {
      if (place && attempt !== gate.points[place - 1][5] && gate.points[place - 1][5] !== null) {
        xs.push(x);
        ys.push(null);
      }
      xs.push(x);
      ys.push(y);
    });
    const values = [gate.threshold, ...gate.points.flatMap(([, y, low, high]) => [y, low, high])].filter((value) => value !== null);
    const show = gate.unit === "points" ? signed : short;
    const options = common(stage, key, [checkpoints(gate, gate.points), events(stage, true)], { values: (u, ticks) => ticks.map(show) });
    options.scales.y = { range: around(values) };
    options.series = [{}, { stroke: colour("blue"), width: 1, points: { show: false } }];
    options.hooks.setCursor = [(u) => {
      const at = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null;
      const near = at === null ? null : gate.points.reduce((best, one) => (!best || Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best), null);
      if (!near) return say("");
      const spread = near[2] === null || near[2] === near[3] ? "" : ` (${show(near[2])} to ${show(near[3])})`;
      return say(`${near[5] === null ? "start" : `attempt ${near[5]}, step ${near[6].toLocaleString("en")}`}: ${show(near[1])}${spread}`);
    }];
    return [options, [xs, ys]];
  }

  function ofMetric(stage, metric, key, say) {
    const [xs, mean, low, high] = metric.data;
    const options = common(stage, key, [events(stage, false)], { space: 24, values: (u, ticks) => ticks.map(short) });
    const all = metric.data.slice(1).flat().filter((value) => value !== null);
    let [bottom, top] = [Infinity, -Infinity];
    for (const value of all) {
      bottom = Math.min(bottom, value);
      top = Math.max(top, value);
    }
    options.scales.y = { range: around(all.length ? [bottom, top] : [0, 1]) };
    const single = xs.length < 40;
    options.series = [{}, { stroke: colour("blue"), width: 1.5, points: { show: single, size: 5, fill: colour("blue") } }];
    if (low) {
      const edge = { stroke: "transparent", width: 0, points: { show: false } };
      options.series.push(edge, edge);
      options.bands = [{ series: [3, 2], fill: colour("band") }];
    }
    options.hooks.setCursor = [(u) => {
      const place = u.cursor.left >= 0 ? u.cursor.idx : null;
      if (place === null || place === undefined || mean[place] === null) return say("");
      const spread = low && low[place] !== high[place] ? ` (${short(low[place])} to ${short(high[place])})` : "";
      return say(`${placeOf(stage, xs[place])}: ${short(mean[place])}${spread}`);
    }];
    return [options, low ? [xs, mean, low, high] : [xs, mean]];
  }

  function draw(figure) {
    const stage = stages[Number(figure.dataset.stage)];
    const isGate = figure.dataset.gate !== undefined;
    const holder = figure.querySelector(".canvas");
    const readout = figure.querySelector("output");
    const say = (text) => {
      if (readout.textContent !== text) readout.textContent = text;
    };
    holder.replaceChildren();
    const key = `stage-${figure.dataset.stage}`;
    const [options, data] = isGate
      ? ofGate(stage, stage.gates[Number(figure.dataset.gate)], key, say)
      : ofMetric(stage, stage.metrics[Number(figure.dataset.metric)], key, say);
    new uPlot({ width: Math.max(200, holder.clientWidth), height: HEIGHT[isGate ? "gate" : "metric"], ...options }, data, holder);
  }

  const all = () => document.querySelectorAll("figure.trace").forEach(draw);
  let waiting = 0;
  window.medbenchTraining = (content) => {
    stages = content;
    document.querySelectorAll(".needs-script").forEach((node) => node.removeAttribute("hidden"));
    all();
    addEventListener("medbench-theme", all);
    matchMedia("print").addEventListener("change", all); // paper is always light
    let width = innerWidth;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        if (innerWidth !== width) all();
        width = innerWidth;
      }, 150);
    });
  };
})();
