// View 1: what every layer would have said after each token; cell, panel and four curves follow one focus.

import { shade } from "../colour.js";
import { choice, h } from "../dom.js";
import { box, label } from "../scene.js";
import { shorten, tokenText } from "../text.js";
import { makeCurves } from "./curves.js";
import { makeGrid } from "./grid.js";
import { METRICS, packedModel, strength, valueText } from "./model.js";
import { makePanel } from "./panel.js";

/** @typedef {import("../types").Context} Context */

/** @param {Context} ctx @returns {import("../types").Part} */
export function mapView(ctx) {
  return mapPart(ctx, packedModel(ctx.view));
}

/**
 * @param {Context} ctx
 * @param {import("./model.js").Model} model
 * @param {{panelActions?: (at: {layer: number, position: number}) => HTMLElement | null, bar?: HTMLElement}} [extra]
 */
export function mapPart(ctx, model, extra = {}) {
  const { state } = ctx;
  const metrics = Object.keys(METRICS).filter(model.has);
  const lens = () => Math.min(state.lens ?? 0, model.lenses.length - 1);
  const metric = () => (model.has(state.metric) ? state.metric : metrics[0] ?? "p");
  /** @type {() => string[]} */
  const pins = () => state.pins ?? model.pins.slice(0, 3);
  /** @type {{layer: number, position: number} | null} */
  let hovered = null;
  const selected = () => {
    const last = model.positions() - 1;
    if (last < 0) return null;
    const [layer, position] = state.at ?? [model.layers.length - 1, last];
    return { layer: Math.min(Math.max(layer, 0), model.layers.length - 1), position: Math.min(Math.max(position, 0), last) };
  };
  const at = () => hovered ?? selected();

  const grid = makeGrid(model, {
    dark: ctx.dark, lens, metric,
    // A rank in a cell needs a token: the pinned one, or the text's own next token.
    pin: () => (metric() === "rank" ? pins()[0] : undefined),
    labels: () => (model.ranks ? (state.labels ?? "token") : "value"),
    dense: () => state.dense ?? false,
    at,
    onfocus(layer, position) {
      hovered = { layer, position };
      follow();
    },
    onopen(layer, position) {
      hovered = null;
      ctx.set({ at: [layer, position] });
      say();
    },
  });
  grid.scroller.addEventListener("pointerleave", () => {
    hovered = null;
    follow();
  });
  grid.scroller.addEventListener("keyup", (event) => {
    // Keys move the focus for good: what is left when the key is up is what stays.
    if (hovered && /^(Arrow|Home|End|Page)/.test(event.key)) {
      state.at = [hovered.layer, hovered.position];
      hovered = null;
      say();
      ctx.options.onState?.({ ...state });
    }
  });
  const panel = makePanel(model, {
    lens, at, pins,
    pin(token) {
      const now = pins();
      ctx.set({ pins: now.includes(token) ? now.filter((other) => other !== token) : [token, ...now].slice(0, 6) });
    },
    actions: extra.panelActions,
  });
  const curves = makeCurves(model, { lens, metric, at, pins, go: (layer, position) => ctx.set({ at: [layer, position] }) });
  const tools = h("div", { class: "tools" });
  const scale = h("div", { class: "scale" });
  ctx.body.append(tools, h("div", { class: "map" }, h("div", {}, grid.frame, scale), panel.element), curves.element);

  const say = () => {
    const place = at();
    if (!place) return;
    const p = model.value("p", lens(), place.layer, place.position);
    ctx.announce(`Layer ${model.layers[place.layer]}, after ${tokenText(model.token(place.position))}: ${tokenText(model.top(lens(), place.layer, place.position, 0))}, ${valueText("p", p)}`);
  };
  let due = false;
  const follow = () => {
    grid.mark();
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      panel.draw();
      curves.draw();
    });
  };

  const drawTools = () => {
    const options = metrics.map((value) => ({ value, label: METRICS[value].label, title: METRICS[value].hint }));
    tools.replaceChildren(
      choice("Colour", options, metric(), (value) => ctx.set({ metric: value })),
      ...(model.lenses.length > 1
        ? [choice("Lens", model.lenses.map((name, i) => ({ value: i, label: name })), lens(), (value) => ctx.set({ lens: value }))]
        : []),
      choice("Cells", [{ value: "token", label: "Tokens" }, { value: "value", label: "Values" }, { value: "dense", label: "Small" }],
        state.dense ? "dense" : state.labels ?? "token",
        (value) => ctx.set({ dense: value === "dense", labels: value === "value" ? "value" : "token" })),
      ...(extra.bar ? [extra.bar] : []),
    );
    drawScale();
  };
  const drawScale = () => {
    const range = model.range(metric(), lens());
    const ends = metric() === "rank" ? [100000, 0] : [range[0], range[1]];
    const stops = Array.from({ length: 24 }, (_, i) => shade(ctx.dark(), i / 23).fill);
    const what = metric() === "rank" ? `rank of ${pins()[0] ? `“${tokenText(pins()[0])}”` : "the next token"}` : METRICS[metric()].hint;
    scale.replaceChildren(
      h("span", { text: valueText(metric(), ends[0]) }),
      h("span", { class: "ramp", style: { background: `linear-gradient(90deg, ${stops.join(",")})` } }),
      h("span", { text: valueText(metric(), ends[1]) }),
      h("span", { text: what }),
    );
  };

  return {
    draw() {
      drawTools();
      grid.draw();
      if (state.at) grid.reveal(selected()?.layer ?? 0, selected()?.position ?? 0);
      panel.draw();
      curves.draw();
    },
    grown() {
      grid.grown();
      follow();
    },
    sheets: () => [sheet(model)],
    scenes: () => [scene(model, lens(), metric(), state.labels === "value"), ...curves.scenes()],
  };
}

/** A row a lens, layer, position. @param {import("./model.js").Model} model @returns {import("../types").Sheet} */
function sheet(model) {
  const measures = ["entropy", "kl", "margin", "rank"].filter(model.has);
  const columns = ["lens", "layer", "position", "context", "token", "probability", ...measures.map((name) => (name === "rank" ? "next_rank" : name))];
  /** @type {any[][]} */
  const rows = [];
  model.lenses.forEach((name, l) => model.layers.forEach((layer, j) => {
    for (let p = 0; p < model.positions(); p++) {
      rows.push([name, layer, p, model.token(p), model.top(l, j, p, 0), model.value("p", l, j, p), ...measures.map((m) => model.value(m, l, j, p))]);
    }
  }));
  return { name: "map", columns, rows };
}

const MOST_COLUMNS = 400; // of a drawing in a file

/** The map as a drawing. @param {import("./model.js").Model} model @param {number} l @param {string} metric @param {boolean} values @returns {import("../types").Scene} */
function scene(model, l, metric, values) {
  const [cw, ch, left, head] = [64, 20, 40, 26];
  const shown = Math.min(model.positions(), MOST_COLUMNS);
  const range = model.range(metric, l);
  /** @type {import("../types").Shape[]} */
  const items = [];
  for (let p = 0; p < shown; p++) items.push(label(left + p * cw + 3, 17, shorten(tokenText(model.token(p)), 9), 10, "ink", undefined, true));
  model.layers.forEach((layer, j) => {
    const y = head + (model.layers.length - 1 - j) * ch;
    items.push(label(left - 6, y + 14, String(layer), 10, "muted", "end"));
    for (let p = 0; p < shown; p++) {
      const value = model.value(metric, l, j, p);
      const t = strength(metric, value, range);
      const { fill, ink } = t >= 0 ? shade(false, t) : { fill: "paper", ink: "ink" };
      const text = values ? valueText(metric, value) : shorten(tokenText(model.top(l, j, p, 0)), 10);
      items.push(box(left + p * cw, y, cw - 1, ch - 1, fill), label(left + p * cw + 3, y + 14, text, 10, ink));
    }
  });
  const about = `Top-1 token of each layer, ${model.lenses[l]} lens; colour: ${METRICS[metric].hint}`;
  return { name: `map-${metric}`, label: about, width: left + shown * cw + 4, height: head + model.layers.length * ch + 4, items, hits: [] };
}
