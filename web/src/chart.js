// Lines with intervals over layers, positions or thresholds: the drawing, and pointer and keys on it.

import { h, s } from "./dom.js";
import { dashOf, key, label, line, marker, paint, r } from "./scene.js";
import { finite, interval } from "./text.js";

/** @typedef {import("./types").Scene} Scene */
/** @typedef {import("./types").Series} Series */
/** @typedef {import("./types").Hit} Hit */

/** Round steps over a range. @param {number} low @param {number} high @param {number} most */
export function ticks(low, high, most = 6) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((f) => f >= rough) ?? rough;
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step / 1e6 ? 0 : v);
  return out;
}

/** Values for an axis of log10(1 + y): decades, over less than three also their halves, over less than one as on any axis. @param {number} high */
const decades = (high) => high < 10 ? ticks(0, high) : [0, ...[1, 10, 100, 1e3, 1e4, 1e5].flatMap((v) => high < 1e3 ? [v, 3 * v] : v > 1 ? v : [])].filter((v) => v <= high);

/** @param {number} value */
const tick = (value) => String(Math.round(value * 1e9) / 1e9).replace("-", "−");

/**
 * @typedef {object} ChartOptions
 * @property {string} name file name
 * @property {string} label what it shows, for those who do not see it
 * @property {number} width
 * @property {number} [height]
 * @property {string} x
 * @property {string} y
 * @property {Series[]} series
 * @property {[number, number]} [range] of y
 * @property {[number, number]} [domain] of x
 * @property {boolean} [down] small values on top: ranks
 * @property {boolean} [log] of y: log10(1 + y)
 * @property {boolean} [whole] x are whole numbers
 * @property {{y: number, label: string}[]} [refs]
 * @property {{x: number, y: number, label: string}[]} [marks]
 * @property {number | null} [at] x of the place in focus
 */

/** @param {ChartOptions} o @returns {Scene} */
export function lineChart(o) {
  const { width, height = 220, refs = [], marks = [] } = o;
  const all = o.series.flatMap((line) => line.points).filter((p) => finite(p.x) && finite(p.y));
  const xs = all.map((p) => p.x).concat(marks.map((m) => m.x));
  const ys = all.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]).filter(finite);
  ys.push(...refs.map((r) => r.y), ...marks.map((m) => m.y));
  const [x0, x1] = o.domain ?? spread(xs);
  const [y0, y1] = o.range ?? padded(ys);
  const left = 46;
  const right = 14;
  const top = 22;
  const bottom = 36;
  const lift = (/** @type {number} */ v) => (o.log ? Math.log10(1 + Math.max(v, 0)) : v);
  const px = (/** @type {number} */ v) => left + ((v - x0) / (x1 - x0 || 1)) * (width - left - right);
  const py = (/** @type {number} */ v) => {
    const t = (lift(v) - lift(y0)) / (lift(y1) - lift(y0) || 1);
    return top + (o.down ? t : 1 - t) * (height - top - bottom);
  };
  /** @type {import("./types").Shape[]} */
  const items = [];
  for (const v of o.log ? decades(y1) : ticks(y0, y1, Math.floor(height / 42))) {
    if (o.down && v % 1) continue; // ranks
    items.push(line(`M${left} ${r(py(v))}H${width - right}`, "grid"), label(left - 6, py(v) + 4, tick(v), 11, "muted", "end"));
  }
  for (const v of ticks(x0, x1, Math.max(2, Math.floor(width / 70)))) {
    if (o.whole && v % 1) continue;
    items.push(label(px(v), height - bottom + 16, tick(v), 11, "muted", "middle"));
  }
  items.push(label(left - 40, 11, o.y + (o.log ? " (log scale)" : ""), 11, "muted"), label(width - right, height - 5, o.x, 11, "muted", "end"));
  /** What a name should not cover: other names, marks, points of lines; x, y, x, y, how much it matters. @type {number[][]} */
  const taken = [[-9e3, -9e3, left, 9e3, 50], [width, -9e3, 9e3, 9e3, 50], [-9e3, -9e3, 9e3, 2, 50], [-9e3, height - bottom, 9e3, 9e3, 50]];
  /**
   * A name, of the places offered (across × down) where it covers least.
   * @type {(text: string, fill: string, y: number, downs: number[], across: [number, "start" | "end"][]) => void}
   */
  const name = (text, fill, y, downs, across) => {
    const wide = text.length * 6;
    let least = 1 / 0;
    /** @type {any} */
    let best;
    for (const down of downs) for (const [x, anchor] of across) {
      const low = y + down;
      const from = anchor === "end" ? x - wide : x;
      const spot = [from, low - 9, from + wide, low + 2, 50];
      const cost = taken.reduce((sum, [a, b, c, d, weight]) => sum + (from < c && spot[2] > a && spot[1] < d && spot[3] > b ? weight : 0), 0);
      if (cost < least) [least, best] = [cost, [spot, { ...label(x, low, text, 11, fill, anchor), stroke: "paper", wide: 3 }]];
    }
    taken.push(best[0]);
    items.push(best[1]);
  };
  if (o.at !== undefined && o.at !== null && finite(o.at)) {
    items.push(line(`M${r(px(o.at))} ${top}V${height - bottom}`, "line"));
  }
  for (const ref of refs) items.push(line(`M${left} ${r(py(ref.y))}H${width - right}`, "line", 1, "3 3"));
  /** @type {Hit[]} */
  const hits = [];
  /** What no band may cover. @type {import("./types").Shape[]} */
  const above = [];
  o.series.forEach((each, i) => {
    const k = each.colour ?? i;
    const colour = `s${k % 7}`;
    const points = each.points.filter((p) => finite(p.x) && finite(p.y));
    const banded = points.filter((p) => finite(p.low) && finite(p.high));
    if (banded.length > 1) {
      const up = banded.map((p) => `${r(px(p.x))} ${r(py(p.high ?? 0))}`);
      const down = banded.map((p) => `${r(px(p.x))} ${r(py(p.low ?? 0))}`).reverse();
      const d = `M${up.join("L")}L${down.join("L")}Z`;
      items.push({ tag: "path", d, fill: colour, alpha: 0.16 });
      above.push(line(d, colour, 0.4)); // on paper one band covers another, and its edge stays
    }
    if (points.length > 1) above.push(line(path(each.points, px, py), colour, 1.8, dashOf(each, k)));
    for (const p of points.length <= 60 ? points : []) above.push(marker(k, px(p.x), py(p.y), points.length > 40 ? 1.6 : 2.6));
    for (const p of points) {
      taken.push([px(p.x), py(p.y), px(p.x), py(p.y), 1]);
      // Written when it is looked at: a drawing that follows the pointer has a thousand places.
      hits.push({ x: px(p.x), y: py(p.y), key: p.key ?? p.x, get label() { return p.label ?? `${o.x} ${tick(p.x)}, ${each.name}: ${interval(p.y, p.low, p.high)}`; } });
    }
  });
  items.push(...above);
  const dots = marks.map((m) => /** @type {[number, number, string]} */ ([px(m.x), py(m.y), m.label]));
  for (const [x, y] of dots) {
    taken.push([x - 5, y - 5, x + 5, y + 5, 50]);
    items.push({ tag: "circle", x, y, r: 4.5, stroke: "ink", wide: 1.5, fill: "paper" });
  }
  for (const [x, y, text] of dots) name(text, "ink", y, [15, -7, 28], [[x + 8, "start"], [x - 8, "end"]]);
  for (const ref of refs) name(ref.label, "muted", py(ref.y), [-4, 12], [[width - right, "end"], [left + 4, "start"], [(width + left) / 2, "end"]]);
  hits.sort((a, b) => a.x - b.x || a.y - b.y);
  return { name: o.name, label: o.label, width, height, items, hits, series: o.series };
}

/** A line that is broken where there is no value. @param {Series["points"]} points @param {(v: number) => number} px @param {(v: number) => number} py */
function path(points, px, py) {
  let out = "";
  let pen = false;
  for (const p of points) {
    if (!finite(p.y) || !finite(p.x)) pen = false;
    else {
      out += `${pen ? "L" : "M"}${r(px(p.x))} ${r(py(p.y))}`;
      pen = true;
    }
  }
  return out;
}

/** @param {number[]} values @returns {[number, number]} */
function spread(values) {
  if (!values.length) return [0, 1];
  const low = Math.min(...values);
  const high = Math.max(...values);
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** @param {number[]} values @returns {[number, number]} */
function padded(values) {
  const [low, high] = spread(values);
  const room = (high - low) * 0.06;
  return [low >= 0 && low < (high - low) * 0.5 ? 0 : low - room, high + room];
}

/**
 * A scene on the page: the nearest place follows the pointer, arrow keys go from place to place, Enter picks.
 * @param {(width: number) => Scene} make
 * @param {{name: string, onpick?: (hit: Hit) => void, onat?: (hit: Hit) => void, series?: Series[]}} o
 */
export function chartFigure(make, o) {
  const svg = s("svg", { "aria-hidden": "true", class: "chart" });
  const tip = h("output", { class: "tip", "aria-live": "polite" });
  const frame = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": o.name }, svg, tip);
  const keyed = legend(o.series ?? []);
  const figure = h("figure", { class: "chart-figure" }, h("figcaption", { class: "chart-title", text: o.name }), keyed, frame);
  /** @type {Scene} */
  let scene;
  let place = -1;

  const show = (/** @type {number} */ i) => {
    place = i;
    const hit = scene.hits[i];
    if (!hit) return;
    tip.textContent = hit.label;
    tip.className = "tip on";
    const wide = frame.clientWidth || scene.width;
    tip.style.insetInlineStart = `${Math.min(Math.max(hit.x, 60), wide - 60)}px`;
    tip.style.top = `${Math.max(hit.y - 10, 18)}px`;
    dot.setAttribute("cx", String(hit.x));
    dot.setAttribute("cy", String(hit.y));
    if (dot.parentNode !== svg) svg.append(dot);
    o.onat?.(hit);
  };
  const hide = () => {
    tip.className = "tip";
    dot.remove();
  };
  const dot = s("circle", { r: 5, fill: "none", stroke: "var(--ink)", "stroke-width": 2 });
  const nearest = (/** @type {PointerEvent | MouseEvent} */ event) => {
    const box = svg.getBoundingClientRect();
    const scale = scene.width / (box.width || scene.width);
    const far = scene.hits.map((hit) => Math.hypot(hit.x - (event.clientX - box.left) * scale, (hit.y - (event.clientY - box.top) * scale) * 0.6));
    const least = Math.min(...far, 40);
    return far.indexOf(least);
  };
  frame.addEventListener("pointermove", (event) => {
    const i = nearest(event);
    if (i >= 0 && i !== place) show(i);
    else if (i >= 0) tip.className = "tip on";
    else hide();
  });
  frame.addEventListener("pointerleave", hide);
  frame.addEventListener("blur", hide);
  frame.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i >= 0) o.onpick?.(scene.hits[i]);
  });
  frame.addEventListener("keydown", (event) => {
    const last = scene.hits.length - 1;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }[event.key];
    if (step) show(Math.min(Math.max(place + step, 0), last));
    else if ((event.key === "Enter" || event.key === " ") && scene.hits[place]) o.onpick?.(scene.hits[place]);
    else return;
    event.preventDefault();
  });
  const draw = (width = figure.clientWidth) => {
    scene = make(Math.max(240, Math.min(width || 560, 1150)));
    paint(svg, scene);
  };
  return { figure, draw, scene: () => scene ?? make(640) };
}

/** As many columns as leave no place empty, at least two where two fit. @param {HTMLElement} place */
export function arrange(place) {
  const count = [...place.children].filter((made) => !(/** @type {HTMLElement} */ (made).hidden)).length;
  let n = Math.min(Math.floor(place.clientWidth / 290) || 1, count);
  while (n > 2 && count % n) n--;
  place.style.gridTemplateColumns = `repeat(${n},minmax(0,1fr))`;
}

/** Names of the lines with their marks. @param {Series[]} series */
export function legend(series) {
  return h(
    "ul",
    { class: "legend" },
    ...series.map((each, i) => {
      const k = each.colour ?? i;
      const svg = s("svg", { width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" });
      paint(svg, { width: 22, height: 10, items: key(each, k, 0, 5) });
      return h("li", {}, svg, h("bdi", { text: each.name }));
    }),
  );
}
