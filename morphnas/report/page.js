"use strict";
// Draws the panels of a run from the JSON in the page. Strings of the run are only ever set as text, never as markup.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const columns = data.columns, count = (columns.id || []).length;
const trials = Array.from({length: count}, (_, i) =>
  Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[i]])));
const byId = new Map(trials.map(trial => [trial.id, trial]));
const children = new Map();
for (const trial of trials) if (trial.parent !== null) children.set(trial.parent, [...(children.get(trial.parent) || []), trial.id]);
let measure = data.metric ? "metric" : "score";
// Name of the score as shown, and its conversion: a loss is shown as such, not negated.
const scored = data.by_metric ? data.measure : data.loss, read = score => data.by_metric ? score : -score;
let chosen = null;
const charts = [];  // {root, order, mark(id): draws the selection}
const frames = [];  // {place, below: whether values below the axis are drawn at its lower edge}

// -- elements

const NS = "http://www.w3.org/2000/svg";
function svg(tag, attributes = {}, ...inside) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}
function html(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}
const plot = name => document.querySelector(`#${name} .plot`);

// -- words

const share = value => `${(100 * value).toFixed(2)} %`;
const shown = (value, as = measure) => value === null ? "" :
  as === "score" ? read(value).toPrecision(4) : data.share ? share(value) : value.toPrecision(4);
const valueOf = trial => measure === "metric" ? trial.metric : trial.score;
const gainOf = trial => measure === "metric" ? trial.metric_gain : trial.gain;
function gained(trial) {
  const gain = gainOf(trial);
  if (gain === null) return "";
  const size = Math.abs(measure === "metric" && data.share ? 100 * gain : gain);
  const digits = measure === "metric" && data.share ? 2 : 4;
  return (gain < 0 ? "−" : "+") + (!size || (size >= 0.01 && size < 1e4) ? size.toFixed(digits) : String(+size.toPrecision(3)));
}
const side = gain => gain > 0 ? "gain up" : gain < 0 ? "gain down" : "gain";
const large = value => value >= 1e9 ? `${+(value / 1e9).toPrecision(3)}G` : value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` :
  value >= 1e3 ? `${+(value / 1e3).toPrecision(3)}k` : String(value);
function time(seconds) {
  if (seconds < 60) return `${+seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  const rest = String(whole % 60).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}
const brief = trial => `${trial.id}: ${trial.brief}${valueOf(trial) === null ? `, ${trial.status}` : `, ${shown(valueOf(trial))}`}`;
const measured = () => measure === "score" ? scored : data.measure;

// -- scales

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}
function logTicks(low, high, most) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) all.push(factor * 10 ** power);
  const inside = all.filter(value => value >= low && value <= high);
  const decades = inside.filter(value => Number.isInteger(Math.log10(value)));
  if (inside.length < 2) return ticks(low, high, most);
  return inside.length > most && decades.length > 1 ? decades : inside;
}
// Range of an axis: all values except outliers far below the others, which are drawn at its edge, with a note.
function span(values, whole = false) {
  const sorted = values.filter(value => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const quarter = sorted[Math.floor(sorted.length / 4)];
  if (!whole) low = Math.max(low, quarter - 1.5 * (high - quarter || Math.abs(high) || 1));
  const room = (high - low || Math.abs(high) * 0.1 || 1) * 0.06;
  return [low - room, high + room];
}

// -- charts

const SHAPES = {dot: "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z", diamond: "M0 -6L6 0L0 6L-6 0Z",
  star: "M0 -8.5L2.3 -3.1L8.1 -2.6L3.7 1.2L5 6.9L0 3.9L-5 6.9L-3.7 1.2L-8.1 -2.6L-2.3 -3.1Z"};
const shade = trial => trial.shade === null ? "none" : `s${trial.shade}`;
const shape = trial => SHAPES[trial.final ? "diamond" : "dot"];

function frame(name, options) {
  const place = plot(name);
  if (!place) return null;
  place.replaceChildren();
  const width = Math.max(240, place.clientWidth), height = options.height || Math.round(Math.min(330, Math.max(220, width * 0.55)));
  const yTicks = options.rows ? options.rows.map((_, i) => i) : options.yText ? ticks(options.y[0], options.y[1], 5) : [];
  const yTexts = options.rows || yTicks.map(value => options.yText(value, yTicks.length > 1 ? yTicks[1] - yTicks[0] : 0));
  const box = {left: options.left ?? Math.max(58, 16 + 6.6 * Math.max(0, ...yTexts.map(text => text.length))), right: width - 24, top: 14, bottom: height - 40};
  const label = document.querySelector(`#${name} h2`).textContent;
  const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: "listbox", "aria-label": label});
  const [x0, x1] = options.x, [y0, y1] = options.y;
  const lx = options.log ? Math.log10 : value => value;
  const x = value => box.left + (lx(value) - lx(x0)) / (lx(x1) - lx(x0) || 1) * (box.right - box.left);
  const chart = {below: false};
  const y = value => {
    const at = box.bottom - (value - y0) / (y1 - y0 || 1) * (box.bottom - box.top);
    if (at > box.bottom + 3) chart.below = true;
    return Math.min(box.bottom + 3, at);
  };
  const axes = svg("g", {class: "axis", "aria-hidden": "true"});
  const most = Math.max(2, Math.floor((box.right - box.left) / (options.rows ? 48 : 76)));
  if (options.xText) {
    for (const value of options.log ? logTicks(x0, x1, most) : ticks(x0, x1, most)) {
      if (options.wholeX && !Number.isInteger(value)) continue;
      axes.append(svg("path", {d: `M${x(value)} ${box.top}V${box.bottom}`}),
        svg("text", {x: x(value), y: box.bottom + 15, "text-anchor": "middle"}, options.xText(value)));
    }
    axes.append(svg("text", {x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle"}, options.xName));
  }
  yTicks.forEach((value, i) => axes.append(svg("path", {d: `M${box.left} ${y(value)}H${box.right}`}),
    svg("text", {x: box.left - 7, y: y(value) + 4, "text-anchor": "end"}, yTexts[i])));
  axes.append(svg("path", {class: "base", d: `M${box.left} ${box.bottom}H${box.right}`}));
  const under = svg("g", {"aria-hidden": "true"}), marks = svg("g"), over = svg("g", {class: "over", "aria-hidden": "true"});
  root.append(axes, under, marks, over);
  place.append(root);
  frames.push(chart);
  return Object.assign(chart, {place, root, box, x, y, under, marks, over});
}
const line = points => points.map(([x, y], i) => `${i ? "L" : "M"}${+x.toFixed(1)} ${+y.toFixed(1)}`).join("");
// With enough digits to distinguish ticks that are a step apart.
function figure(value, step, least = 4) {
  const digits = step ? Math.min(15, Math.max(least, Math.ceil(Math.log10(Math.max(Math.abs(value), step) / step)) + 1)) : least;
  const rounded = +value.toPrecision(digits), text = String(rounded);
  return text.length > 9 ? rounded.toExponential() : text;
}
const valueText = (value, step) => measure === "metric" && data.share ? `${figure(100 * value, 100 * step, 5)} %` : figure(measure === "score" ? read(value) : value, step);

function option(name, trial) {
  return {id: `${name}-${trial.id}`, role: "option", "data-id": trial.id, "aria-label": brief(trial), "aria-selected": trial.id === chosen};
}
// Points that stand for trials: at(trial) is [x, y] in pixels, or null.
function points(name, chart, list, at, note = brief) {
  const placed = new Map();
  for (const trial of [...list].sort((a, b) => (a.id === data.best) - (b.id === data.best))) {
    const spot = at(trial);
    if (!spot) continue;
    placed.set(trial.id, spot);
    const best = trial.id === data.best;
    chart.marks.append(svg("path", {...option(name, trial), class: best ? "mark star" : `mark ${shade(trial)}${trial.final ? " final" : ""}`,
      d: best ? SHAPES.star : shape(trial), transform: `translate(${spot[0].toFixed(1)} ${spot[1].toFixed(1)})`}));
  }
  hover(chart.marks, note);
  chart.ring = id => {
    chart.over.replaceChildren();
    const spot = placed.get(id);
    if (spot) chart.over.append(svg("circle", {class: "ring", cx: spot[0], cy: spot[1], r: 9}),
      svg("text", {x: spot[0], y: spot[1] - 13 < 10 ? spot[1] + 24 : spot[1] - 13, "text-anchor": "middle"}, id));
    return spot;
  };
  choosable(name, chart.root, [...placed.keys()].sort((a, b) => placed.get(a)[0] - placed.get(b)[0] || a - b), chart.ring);
  return placed;
}

// -- selection

function choosable(name, root, order, mark) {
  const chart = {name, root, order, mark};
  charts.push(chart);
  root.addEventListener("click", event => {
    const near = event.target.closest("[data-id]");
    if (near) choose(+near.dataset.id);
  });
  root.addEventListener("keydown", event => {
    const at = order.indexOf(chosen), end = order.length - 1;
    const to = {ArrowLeft: at < 0 ? end : at - 1, ArrowUp: at < 0 ? end : at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: end}[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey || end < 0) return;
    event.preventDefault();
    choose(order[Math.max(0, Math.min(end, to))]);
  });
}
document.addEventListener("keydown", event => {
  if (event.key === "Escape") choose(null);
  else if (event.key === "Enter" && chosen !== null && event.target.getAttribute("role") === "listbox")
    document.getElementById("details").focus();
});
function choose(id) {
  chosen = byId.has(id) ? id : null;
  try { history.replaceState(null, "", chosen === null ? location.pathname + location.search : `#${chosen}`); } catch { /* in a frame */ }
  document.body.classList.toggle("has-choice", chosen !== null);
  for (const element of document.querySelectorAll('[role="option"][aria-selected="true"]')) element.setAttribute("aria-selected", "false");
  for (const element of document.querySelectorAll(".brought")) element.classList.toggle("chosen", +element.dataset.id === chosen);
  for (const chart of charts) show(chart);
  details();
}
function show(chart) {
  const element = chosen === null ? null : document.getElementById(`${chart.name}-${chosen}`);
  if (element) element.setAttribute("aria-selected", "true");
  if (element) chart.root.setAttribute("aria-activedescendant", element.id);
  else chart.root.removeAttribute("aria-activedescendant");
  chart.mark(chosen);
}
const tip = document.getElementById("tip");
function hover(root, note) {
  root.addEventListener("pointermove", event => {
    const near = event.target.closest("[data-id]");
    tip.hidden = !near;
    if (!near) return;
    tip.textContent = note(byId.get(+near.dataset.id));
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(innerWidth - box.width - 4, event.clientX + 14))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
  });
  root.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// -- panels

function progress() {
  const list = trials.filter(trial => valueOf(trial) !== null && trial.end > 0);
  const bounds = measure === "metric" && data.share ? list.flatMap(trial => [trial.metric, trial.low, trial.high]) : list.map(valueOf);
  const chart = list.length && frame("progress", {x: [0, Math.max(...list.map(trial => trial.end)) * 1.02], y: span(bounds),
    xText: time, xName: "time since the first training began", yText: valueText});
  if (!chart) return;
  const {x, y, box} = chart;
  const steps = [];
  for (const trial of list.filter(trial => !trial.final && !/too slow/.test(trial.status)).sort((a, b) => a.end - b.end || a.id - b.id))
    if (!steps.length || valueOf(trial) > valueOf(steps.at(-1))) steps.push(trial);
  const until = i => i + 1 < steps.length ? x(steps[i + 1].end) : box.right;
  if (measure === "metric" && data.share && steps.length && steps[0].low !== null) {
    const upper = steps.flatMap((trial, i) => [[x(trial.end), y(trial.high)], [until(i), y(trial.high)]]);
    const lower = steps.flatMap((trial, i) => [[x(trial.end), y(trial.low)], [until(i), y(trial.low)]]).reverse();
    chart.under.append(svg("path", {class: "band", d: `${line([...upper, ...lower])}Z`}));
  }
  chart.under.append(svg("path", {class: "best-line", d: line(steps.flatMap((trial, i) => [[x(trial.end), y(valueOf(trial))], [until(i), y(valueOf(trial))]]))}));
  points("progress", chart, list, trial => [x(trial.end), y(valueOf(trial))]);
}

function curves() {
  const at = trial => { const found = []; for (let i = 0; i < trial.curve.length; i += 3) found.push([trial.curve[i], measure === "metric" ? trial.curve[i + 2] : trial.curve[i + 1]]); return found.filter(([, value]) => value !== null); };
  const list = trials.filter(trial => at(trial).length);
  const all = list.flatMap(at);
  const chart = all.length && frame("curves", {x: [1, Math.max(2, ...all.map(([epoch]) => epoch))], y: span(all.map(([, value]) => value)),
    xText: String, wholeX: true, xName: "epoch", yText: valueText});
  if (!chart) return;
  const path = trial => line(at(trial).map(([epoch, value]) => [chart.x(epoch), chart.y(value)]));
  for (const trial of [...list].sort((a, b) => (a.shade ?? -1) - (b.shade ?? -1))) {
    chart.marks.append(svg("path", {...option("curves", trial), class: `curve ${shade(trial)}`, d: path(trial)}));
    if (at(trial).length === 1) chart.marks.append(svg("circle", {"data-id": trial.id, class: `mark ${shade(trial)}`, cx: chart.x(at(trial)[0][0]), cy: chart.y(at(trial)[0][1]), r: 3}));
  }
  hover(chart.marks, trial => `${brief(trial)}, ${trial.epochs} epochs`);
  choosable("curves", chart.root, list.map(trial => trial.id), id => {
    chart.over.replaceChildren();
    if (!list.includes(byId.get(id))) return;
    const [epoch, value] = at(byId.get(id)).at(-1);
    chart.over.append(svg("path", {class: "trace", d: path(byId.get(id))}), svg("circle", {class: "ring", cx: chart.x(epoch), cy: chart.y(value), r: 4}));
  });
}

// Rows of trials; the tree has lines on the left from parents to children.
function rows(name, list, cells, levels = null) {
  const place = plot(name);
  if (!place || !list.length) return;
  const label = document.querySelector(`#${name} h2`).textContent;
  const root = html("div", {class: "rows", role: "listbox", tabindex: 0, "aria-label": label});
  const HEIGHT = 26, step = levels ? Math.max(4, Math.min(18, (place.clientWidth * 0.3) / (1 + Math.max(...levels.values())))) : 0;
  if (levels) {
    const drawing = svg("svg", {height: HEIGHT * list.length, width: step * (2 + Math.max(...levels.values())), "aria-hidden": "true"});
    const row = new Map(list.map((trial, i) => [trial.id, i]));
    for (const trial of list) if (trial.parent !== null && row.has(trial.parent)) {
      const x = 8 + step * levels.get(trial.parent), y = HEIGHT * (row.get(trial.id) + 0.5);
      drawing.append(svg("path", {class: "link", d: `M${x} ${HEIGHT * (row.get(trial.parent) + 0.5) + 5}V${y}H${x + step - 5}`}));
    }
    for (const trial of list) {
      const spot = `translate(${8 + step * levels.get(trial.id)} ${HEIGHT * (row.get(trial.id) + 0.5)}) scale(.9)`;
      const best = trial.id === data.best;
      drawing.append(svg("path", {class: best ? "star" : `mark ${shade(trial)}`, d: best ? SHAPES.star : shape(trial), transform: spot}));
    }
    root.append(drawing);
  }
  for (const trial of list) {
    const inside = cells(trial);
    const row = html("div", {...option(name, trial), class: "row"}, ...inside);
    if (levels) row.style.paddingLeft = `${8 + step * levels.get(trial.id) + 8}px`;
    root.append(row);
  }
  place.replaceChildren(root);
  choosable(name, root, list.map(trial => trial.id), id => {
    const row = id === null ? null : document.getElementById(`${name}-${id}`);
    if (!row || !root.contains(row)) return;
    const top = row.offsetTop, end = top + row.offsetHeight;
    if (top < root.scrollTop || end > root.scrollTop + root.clientHeight) root.scrollTop = top - root.clientHeight / 2;
  });
}
const told = (trial, more) => [html("span", {class: "id"}, trial.id), html("span", {class: "brief"}, trial.brief), html("span", {class: "more"}, more),
  html("span", {class: side(gainOf(trial))}, gained(trial)), html("span", {class: "value"}, valueOf(trial) === null ? trial.status : shown(valueOf(trial)))];
const tree = () => rows("tree", [...trials].sort((a, b) => a.row - b.row), trial => told(trial, trial.what === trial.brief ? "" : trial.what), new Map(trials.map(trial => [trial.id, trial.level])));
const ancestry = () => rows("lineage", data.line.map(id => byId.get(id)).filter(Boolean), trial => told(trial, trial.what === trial.brief ? "" : trial.what));
const failures = () => rows("failures", trials.filter(trial => /^(failed|oom|diverged)/.test(trial.status)), trial =>
  [html("span", {class: "id"}, trial.id), html("span", {class: "brief"}, trial.status), html("span", {class: "more"}, trial.error === null ? trial.brief : data.errors[trial.error].trim().split("\n").at(-1))]);

function map() {
  const place = plot("map");
  if (!place) return;
  const xs = trials.map(trial => trial.x), ys = trials.map(trial => trial.y);
  const chart = frame("map", {x: span(xs, true), y: span(ys, true), left: 12});
  const {under, x, y} = chart;
  const links = new Map();
  for (const trial of trials) {
    const parent = byId.get(trial.parent);
    if (!parent || (parent.x === trial.x && parent.y === trial.y)) continue;
    const link = svg("path", {class: "link", d: line([[x(parent.x), y(parent.y)], [x(trial.x), y(trial.y)]])});
    links.set(trial.id, link);
    under.append(link);
  }
  points("map", chart, [...trials].filter(trial => !trial.final).sort((a, b) => (a.shade ?? -1) - (b.shade ?? -1)), trial => [x(trial.x), y(trial.y)]);
  const drawn = trials.filter(trial => !trial.final), all = drawn.length;
  const slider = html("input", {type: "range", min: 1, max: all, value: all, "aria-label": "networks shown"});
  const said = html("output");
  const until = () => {
    const last = drawn[slider.value - 1];
    said.textContent = +slider.value === all ? `all ${all} networks` : `up to network ${last.id}`;
    for (const trial of drawn) {
      const there = trial.id <= last.id;
      links.get(trial.id)?.toggleAttribute("hidden", !there);
      document.getElementById(`map-${trial.id}`)?.toggleAttribute("hidden", !there);
    }
  };
  slider.addEventListener("input", until);
  if (all) until();
  if (all > 2) place.append(html("label", {class: "slider"}, "back in time", slider, said));
}

function strides() {
  const list = trials.filter(trial => trial.stride !== null);
  const chart = list.length && frame("strides", {x: [Math.min(...list.map(trial => trial.id)) - 1, Math.max(...list.map(trial => trial.id)) + 1],
    y: [0, span(list.map(trial => trial.stride), true)[1]], xText: String, wholeX: true, xName: "network", yText: value => String(+value.toPrecision(3))});
  if (chart) points("strides", chart, list, trial => [chart.x(trial.id), chart.y(trial.stride)], trial => `${brief(trial)}, ${trial.stride.toFixed(1)} edits from the best`);
}

// Points in rows, one below the other, that are named at the left: value(trial) along x, row(trial) the number of its row.
function strips(name, list, names, value, row, options, note) {
  const values = list.map(value), [low, high] = span(values);
  const chart = frame(name, {x: [options.zero ? Math.min(low, 0) : low, options.zero ? Math.max(high, 0) : high], y: [names.length - 0.5, -0.5],
    rows: names, height: 64 + 34 * names.length, xText: options.text, xName: options.label});
  const {x, box, under, place} = chart;
  const height = (box.bottom - box.top) / names.length, top = i => box.top + height * i;
  const across = number => Math.max(box.left + 5, x(number));
  if (options.zero) under.append(svg("path", {class: "diagonal", d: `M${x(0)} ${box.top}V${box.bottom}`}));
  names.forEach((_, i) => {
    const sorted = list.filter(trial => row(trial) === i).map(value).sort((a, b) => a - b), middle = sorted.length / 2;
    if (sorted.length) under.append(svg("path", {class: "median", d: `M${across((sorted[Math.floor(middle)] + sorted[Math.ceil(middle) - 1]) / 2)} ${top(i) + 4}v${height - 8}`}));
  });
  points(name, chart, list, trial => [across(value(trial)), top(row(trial)) + height * (0.5 + 0.42 * Math.sin(2.4 * trial.id))], note);
  if (values.some(number => number < low)) place.append(html("p", {class: "note"}, "Values far below the others are drawn at the left edge."));
}
function kinds() {
  const list = trials.filter(trial => trial.kind !== null && gainOf(trial) !== null);
  const percent = measure === "metric" && data.share;
  if (list.length) strips("kinds", list, data.kinds, gainOf, trial => trial.kind, {zero: true,
    text: value => String(+(percent ? 100 * value : value).toPrecision(3)),
    label: percent ? `gain in ${data.measure}, percentage points` : measure === "metric" || data.by_metric ? `gain in ${measured()}` : `decrease of the ${scored}`},
    trial => `${brief(trial)}, ${gained(trial)} over network ${trial.parent}`);
}
function settings() {
  for (const setting of data.settings) {
    const values = new Map(trials.map((trial, i) => [trial.id, setting.values[i]]));
    const name = `setting-${setting.name}`, at = trial => values.get(trial.id), words = value => String(+value.toPrecision(3));
    const list = trials.filter(trial => valueOf(trial) !== null && at(trial) !== null);
    if (!list.length || !plot(name)) continue;
    const note = trial => `${brief(trial)}, ${setting.name.replaceAll("_", " ")} ${at(trial)}`;
    if (setting.options.length) {
      strips(name, list, setting.options, valueOf, trial => setting.options.indexOf(at(trial)), {text: value => valueText(value, 0), label: measured()}, note);
      continue;
    }
    const drawn = list.map(at), [low, high] = [Math.min(...drawn), Math.max(...drawn)];
    const chart = frame(name, {x: setting.log ? [low / 1.15, high * 1.15] : span(drawn, true), log: setting.log, y: span(list.map(valueOf)), xText: words,
      xName: `${setting.name.replaceAll("_", " ")}${setting.log ? ", logarithmic" : ""}`, yText: valueText});
    points(name, chart, [...list].sort((a, b) => (a.shade ?? -1) - (b.shade ?? -1)), trial => [chart.x(at(trial)), chart.y(valueOf(trial))], note);
  }
}

// The surrogate predicts the score, so these two panels show the score whatever measure is selected.
function belief() {
  const list = trials.filter(trial => trial.mean !== null);
  const ends = trial => [trial.mean - 1.96 * trial.sd, trial.mean + 1.96 * trial.sd];
  const chart = list.length && frame("belief", {x: [-0.5, list.length - 0.5], y: span(list.flatMap(trial => [...ends(trial), trial.score])),
    yText: (value, step) => figure(read(value), step, 3), xName: ""});
  if (!chart) return;
  const {x, y, under, box} = chart;
  under.append(svg("text", {class: "faint", x: (box.left + box.right) / 2, y: box.bottom + 30, "text-anchor": "middle"}, `${scored}, ${data.by_metric ? "more" : "less"} is up`));
  const at = new Map(list.map((trial, i) => [trial.id, i]));
  for (const trial of list) {
    const [low, high] = ends(trial), spot = x(at.get(trial.id));
    under.append(svg("path", {class: "bar", d: `M${spot} ${y(low)}V${y(high)}`}), svg("path", {class: "mean", d: `M${spot - 3} ${y(trial.mean)}h6`}));
  }
  points("belief", chart, list, trial => [x(at.get(trial.id)), y(trial.score)], trial =>
    `${brief(trial)}; predicted: ${scored} ${read(trial.mean).toPrecision(4)} ± ${trial.sd.toPrecision(2)}; actual: ${shown(trial.score, "score")}`);
  for (const trial of list) document.getElementById(`belief-${trial.id}`)?.setAttribute("class", `mark ${trial.sureness <= 0.95 ? "inside" : "outside"}`);
}
function calibration() {
  const list = trials.filter(trial => trial.sureness !== null).sort((a, b) => a.sureness - b.sureness);
  const chart = list.length > 2 && frame("calibration", {x: [0, 1], y: [0, 1], xText: value => `${Math.round(100 * value)} %`, xName: "nominal probability of the interval", yText: value => `${Math.round(100 * value)} %`});
  if (!chart) return;
  const {x, y, under} = chart;
  const heights = new Map(list.map((trial, i) => [trial.id, (i + 1) / list.length]));
  under.append(svg("path", {class: "diagonal", d: line([[x(0), y(0)], [x(1), y(1)]])}),
    svg("path", {class: "best-line", d: line([[x(0), y(0)], ...list.map(trial => [x(trial.sureness), y(heights.get(trial.id))])])}));
  points("calibration", chart, list, trial => [x(trial.sureness), y(heights.get(trial.id))]);
}

function costs(name, unit) {
  const list = trials.filter(trial => valueOf(trial) !== null && trial[name] > 0);
  const words = name === "latency" ? value => String(+value.toPrecision(2)) : large;
  const values = list.map(trial => trial[name]);
  const chart = list.length && frame(name, {x: [Math.min(...values) / 1.15, Math.max(...values) * 1.15], log: true, y: span(list.map(valueOf)), xText: words, xName: `${unit}, logarithmic`, yText: valueText});
  if (!chart) return;
  const front = data.fronts[name][measure].map(id => byId.get(id)).filter(trial => trial && valueOf(trial) !== null);
  const steps = front.flatMap((trial, i) => [[chart.x(trial[name]), i ? chart.y(valueOf(front[i - 1])) : chart.y(valueOf(trial))], [chart.x(trial[name]), chart.y(valueOf(trial))]]);
  if (front.length) chart.under.append(svg("path", {class: "best-line", d: line([...steps, [chart.box.right, chart.y(valueOf(front.at(-1)))]])}));
  points(name, chart, [...list].sort((a, b) => (a.shade ?? -1) - (b.shade ?? -1)), trial => [chart.x(trial[name]), chart.y(valueOf(trial))], trial => `${brief(trial)}, ${words(trial[name])} ${unit}`);
}

function ranking() {
  if (!data.ranking) return;
  const found = data.ranking.correlations;
  const chart = frame("ranking", {x: [1, found.length], y: [Math.min(0, ...found), 1.04], xText: String, wholeX: true, xName: "epochs trained", yText: value => String(+value.toPrecision(2))});
  const {x, y, under, place} = chart;
  chart.root.setAttribute("role", "group");
  under.append(svg("path", {class: "best-line", d: line(found.map((value, i) => [x(i + 1), y(value)]))}));
  found.forEach((value, i) => under.append(svg("circle", {class: "inside", cx: x(i + 1), cy: y(value), r: 3.5})));
  const note = html("p", {class: "note", "aria-live": "polite"});
  place.append(note);
  choosable("ranking", chart.root, data.ranking.ids, id => {
    const at = data.ranking.ids.indexOf(id);
    const places = at < 0 ? null : data.ranking.places[at];
    note.textContent = !places ? "" : `Network ${id} by epoch: place ${places.length > 12 ? [...places.slice(0, 6), "…", ...places.slice(-6)].join(", ") : places.join(", ")}.`;
  });
}

function spent() {
  const list = trials.filter(trial => trial.end > trial.begin);
  const lanes = [], lane = new Map();
  for (const trial of [...list].sort((a, b) => a.begin - b.begin)) {
    let at = lanes.findIndex(end => end <= trial.begin + 1e-3);
    if (at < 0) at = lanes.push(0) - 1;
    lanes[at] = trial.end;
    lane.set(trial.id, at);
  }
  const tall = Math.max(10, Math.min(34, 160 / Math.max(1, lanes.length)));
  const chart = list.length && frame("time", {x: [0, Math.max(...list.map(trial => trial.end))], y: [0, 1], left: 12, height: 60 + tall * lanes.length, xText: time, xName: ""});
  if (!chart) return;
  const {x, box} = chart;
  const block = trial => ({x: x(trial.begin), y: box.top + tall * lane.get(trial.id), width: Math.max(1, x(trial.end) - x(trial.begin) - 0.75), height: tall - 2});
  for (const trial of list) chart.marks.append(svg("rect", {...option("time", trial), class: `mark ${shade(trial)}${trial.final ? " final" : ""}`, ...block(trial)}));
  hover(chart.marks, trial => `${brief(trial)}, ${time(trial.end - trial.begin)}`);
  choosable("time", chart.root, list.map(trial => trial.id), id => {
    chart.over.replaceChildren();
    if (lane.has(id)) chart.over.append(svg("rect", {class: "ring", ...block(byId.get(id))}));
  });
}

// -- details of the selected network

function details() {
  const aside = document.getElementById("details"), held = aside.contains(document.activeElement) ? document.activeElement.textContent : null;
  aside.replaceChildren();
  const trial = byId.get(chosen);
  if (!trial) {
    aside.append(html("p", {class: "hint"}, count ? "No network is selected." : ""));
    return;
  }
  const to = (id, text = id) => { const button = html("button", {type: "button", class: "id"}, text); button.addEventListener("click", () => choose(id)); return button; };
  const at = trials.indexOf(trial);
  const buttons = html("div", {class: "buttons"});
  if (at > 0) buttons.append(to(trials[at - 1].id, "‹ earlier"));
  if (at < count - 1) buttons.append(to(trials[at + 1].id, "later ›"));
  buttons.append(to(null, "clear"));
  const known = html("dl");
  const say = (name, ...values) => { if (values.some(value => value !== "" && value !== null)) known.append(html("dt", {}, name), html("dd", {}, ...values)); };
  say("what", trial.what);
  say("parent", trial.parent === null ? "" : to(trial.parent));
  say("children", ...(children.get(trial.id) || []).slice(0, 40).map(id => to(id)));
  if (trial.metric !== null) say(data.measure, `${shown(trial.metric, "metric")}${trial.low === null ? "" : ` (95 %: ${(100 * trial.low).toFixed(1)} to ${(100 * trial.high).toFixed(1)})`}`);
  if (trial.score !== null && !data.by_metric) say(scored, shown(trial.score, "score"));
  say(`gain, ${measured()}`, gained(trial));
  if (trial.mean !== null) say("predicted", `${scored} ${read(trial.mean).toPrecision(4)} ± ${trial.sd.toPrecision(2)}`);
  say("why", trial.why);
  say("size", `${trial.parameters.toLocaleString("en")} parameters, ${large(trial.flops)} FLOPs, depth ${trial.depth}${trial.latency === null ? "" : `, ${trial.latency.toPrecision(2)} ms per example`}`);
  say("training", `${trial.status}; ${trial.epochs} of ${trial.planned} epochs in ${time(trial.end - trial.begin)}${trial.speed ? `, ${Math.round(trial.speed).toLocaleString("en")} examples/s` : ""}`);
  say("recipe", data.recipes[trial.recipe]);
  if (trial.moved !== null) say("morph error", trial.moved.toExponential(1));
  aside.append(html("h2", {}, `Network ${trial.id}`, ...(trial.id === data.best ? [html("span", {class: "tag"}, "the best")] : trial.final ? [html("span", {class: "tag"}, "final")] : [])), buttons, known);
  if (trial.error !== null) aside.append(html("pre", {}, data.errors[trial.error]));
  if (held !== null) ([...aside.querySelectorAll("button")].find(button => button.textContent === held) ?? aside).focus();
}

// -- the page

function draw() {
  charts.length = frames.length = 0;
  tip.hidden = true;
  document.querySelector(".scale .star")?.setAttribute("d", SHAPES.star);
  for (const panel of [progress, curves, tree, map, strides, kinds, settings, belief, calibration, () => costs("parameters", "parameters"), () => costs("flops", "FLOPs"), () => costs("latency", "ms"), ranking, spent, ancestry, failures]) panel();
  for (const {place} of frames.filter(chart => chart.below)) place.append(html("p", {class: "note"}, "Values far below the others are drawn at the lower edge."));
  for (const chart of charts) show(chart);
  details();
}
const form = document.getElementById("measure");
if (data.metric && !data.by_metric && trials.some(trial => trial.score !== null)) {
  form.hidden = false;
  document.getElementById("metric-name").textContent = data.measure;
  document.getElementById("loss-name").textContent = data.loss;
  form.elements.measure.value = measure;
  form.addEventListener("change", () => { measure = form.elements.measure.value; draw(); });
}
document.querySelector("main").addEventListener("click", event => {
  if (event.target.classList.contains("brought")) choose(+event.target.dataset.id);
});
let width = document.querySelector("main").clientWidth;
new ResizeObserver(() => {
  const now = document.querySelector("main").clientWidth;
  if (Math.abs(now - width) > 1) { width = now; draw(); }
}).observe(document.querySelector("main"));
draw();
if (/^#\d+$/.test(location.hash)) choose(+location.hash.slice(1));
if (data.reload) setTimeout(() => location.reload(), 1000 * data.reload);
document.documentElement.dataset.ready = "yes";
})();
