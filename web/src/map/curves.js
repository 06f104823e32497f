// Pinned tokens over layers and over positions, and the metric of the map over both: four curves, one focus.

import { arrange, chartFigure, legend, lineChart } from "../chart.js";
import { h } from "../dom.js";
import { tokenText } from "../text.js";
import { METRICS, valueText } from "./model.js";

/** Positions of a curve at most: more than pixels would be drawn over each other. */
const MOST = 600;

/**
 * @param {import("./model.js").Model} model
 * @param {{lens: () => number, metric: () => string, at: () => {layer: number, position: number} | null,
 *   pins: () => string[], go: (layer: number, position: number) => void}} o
 */
export function makeCurves(model, o) {
  const place = () => o.at() ?? { layer: model.layers.length - 1, position: 0 };
  /** Tokens followed: the pinned ones, else what the last layer says and what the text says. */
  const followed = () => {
    const pins = o.pins();
    if (pins.length) return pins;
    if (!model.positions()) return [];
    const { position } = place();
    const top = model.top(o.lens(), model.layers.length - 1, position, 0);
    const next = model.next(position);
    return [...new Set([top, next])].filter((token) => token !== null);
  };
  const window = () => {
    const count = model.positions();
    const first = count <= MOST ? 0 : Math.min(Math.max(place().position - MOST / 2, 0), count - MOST);
    return Array.from({ length: Math.min(count, MOST) }, (_, i) => first + i);
  };
  /** Values of the tokens followed, over layers or over positions. @type {(layers: boolean) => (kind: string) => import("../types").Series[]} */
  const over = (layers) => (kind) => {
    const { layer, position } = place();
    return followed().map((token, colour) => ({
      name: tokenText(token), colour,
      points: (layers ? model.layers.map((_, j) => j) : window()).map((key) => {
        const y = model.value(kind, o.lens(), layers ? key : layer, layers ? position : key, token);
        return {
          x: layers ? model.layers[key] : key, y, key,
          get label() { return `${layers ? `layer ${model.layers[key]}` : `after ${tokenText(model.token(key))} (${key})`}, ${tokenText(token)}: ${valueText(kind, y)}`; },
        };
      }),
    }));
  };
  const shown = () => (o.metric() === "p" || o.metric() === "rank" ? (model.has("entropy") ? "entropy" : "margin") : o.metric());
  const ranked = () => model.has("rank") || model.ranks > 1;

  const layered = /** @type {[number, number]} */ ([model.layers[0], model.layers[model.layers.length - 1]]);
  /** @type {(title: () => string, layers: boolean, kind: () => string, lines: (kind: string) => import("../types").Series[]) => {title: () => string, layers: boolean, make: (width: number) => import("../types").Scene}} */
  const chart = (title, layers, kind, lines) => ({
    title, layers,
    make(width) {
      const name = title();
      const ranked = kind() === "rank";
      const all = layers ? [] : window();
      return lineChart({
        name, label: name, width, height: 170, x: layers ? "layer" : "position", y: METRICS[kind()].unit || METRICS[kind()].label.toLowerCase(), whole: true,
        domain: layers ? layered : [all[0], all[all.length - 1]], range: kind() === "p" ? [0, 1] : undefined, down: ranked, log: ranked,
        series: lines(kind()), at: layers ? model.layers[place().layer] : place().position,
      });
    },
  });
  const charts = [
    chart(() => "Probability by layer", true, () => "p", over(true)),
    chart(() => "Rank by layer", true, () => "rank", over(true)),
    chart(() => "Rank by position", false, () => "rank", over(false)),
    chart(() => `${METRICS[shown()].label} by layer`, true, shown, (kind) => model.lenses.map((name, colour) => ({
      name, colour, points: model.layers.map((x, j) => ({ x, y: model.value(kind, colour, j, place().position), key: j })),
    }))),
  ];
  const made = charts.map((each) => chartFigure(each.make, {
    name: each.title(),
    onpick: (hit) => (each.layers ? o.go(hit.key, place().position) : o.go(place().layer, hit.key)),
  }));
  const names = h("div", { class: "scale" });
  const columns = h("div", { class: "columns" }, ...made.map((each) => each.figure));
  const element = h("div", {}, names, columns);
  let before = "";
  return {
    element,
    draw() {
      element.hidden = !model.positions();
      if (element.hidden) return;
      made.forEach(({ figure }, i) => { figure.hidden = !ranked() && (i === 1 || i === 2); });
      arrange(columns);
      const width = made[0].figure.clientWidth; // all are as wide; asked between drawings it would lay the page out each time
      made.forEach((each, i) => {
        if (each.figure.hidden) return;
        const title = charts[i].title();
        const caption = each.figure.firstElementChild;
        if (caption && caption.textContent !== title) caption.textContent = title;
        each.draw(width);
      });
      const tokens = followed();
      const key = tokens.join("\0");
      if (key !== before) {
        before = key;
        names.replaceChildren(h("span", { text: o.pins().length ? "Pinned:" : "Followed:" }), legend(tokens.map((token) => ({ name: tokenText(token), points: [] }))));
      }
    },
    scenes: () => charts.map((each) => each.make(640)).filter((_, i) => ranked() || (i !== 1 && i !== 2)),
  };
}
