// The cells on a canvas: only columns in sight are drawn, focus is an element above them, keys go from cell to cell.

import { PALETTE, shade } from "../colour.js";
import { h } from "../dom.js";
import { tokenText } from "../text.js";
import { strength, valueText } from "./model.js";

const GUTTER = 34; // of the layers' numbers
const HEAD = 24; // of the text's tokens
const segmenter = new Intl.Segmenter();

/**
 * @param {import("./model.js").Model} model
 * @param {{dark: () => boolean, lens: () => number, metric: () => string, pin: () => string | undefined,
 *   labels: () => string, dense: () => boolean, at: () => {layer: number, position: number} | null,
 *   onfocus: (layer: number, position: number) => void, onopen: (layer: number, position: number) => void}} o
 */
export function makeGrid(model, o) {
  const canvas = h("canvas", { class: "cells", "aria-hidden": "true" });
  const spacer = h("div", { class: "spacer" });
  const ring = h("div", { class: "ring", hidden: true });
  const scroller = h(
    "div",
    {
      class: "grid", tabindex: "0", role: "application",
      "aria-label": "Tokens by layers: arrow keys move, Enter selects",
    },
    canvas, ring, spacer,
  );
  const more = h("div", { class: "more", "aria-hidden": "true" });
  const frame = h("div", { class: "grid-frame" }, scroller, more);
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  let cw = 72;
  let ch = 22;
  let queued = false;
  /** Texts cut to the cell, by text: measuring is what drawing costs. @type {Map<string, string>} */
  let cut = new Map();

  const rows = () => model.layers.length;
  const measure = () => {
    const width = scroller.clientWidth;
    const dense = o.dense();
    const even = (width - GUTTER) / Math.max(model.positions(), 1);
    const before = cw;
    cw = dense ? Math.min(Math.max(even, 10), 26) : Math.min(Math.max(even, 56), 120);
    ch = dense ? 12 : 22;
    if (cw !== before) cut = new Map();
    spacer.style.width = `${GUTTER + cw * model.positions()}px`;
    spacer.style.height = `${HEAD + ch * rows()}px`;
    scroller.style.height = `${Math.min(HEAD + ch * rows() + 2 + (cw * model.positions() > width - GUTTER ? 16 : 0), 960)}px`;
  };
  /** Row from the top to index of the layer: the last layer is always the first row. @param {number} row */
  const layerAt = (row) => rows() - 1 - row;

  /** @param {string} text @param {number} room */
  const fit = (text, room) => {
    let found = cut.get(text);
    if (found === undefined) {
      found = text.slice(0, 200);
      if (pen.measureText(found).width > room) {
        // Cut between what a reader sees as characters: accents and families of emoji stay whole.
        const parts = [...segmenter.segment(found)].map((part) => part.segment);
        let low = 0;
        let high = parts.length;
        while (low < high) {
          const middle = (low + high + 1) >> 1;
          if (pen.measureText(`${parts.slice(0, middle).join("")}…`).width <= room) low = middle;
          else high = middle - 1;
        }
        found = `${parts.slice(0, low).join("")}…`;
      }
      cut.set(text, found);
    }
    return found;
  };

  const clip = (/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ w, /** @type {number} */ hh) => {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, w, hh);
    pen.clip();
  };
  const render = () => {
    queued = false;
    const width = scroller.clientWidth;
    const height = scroller.clientHeight;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      cut = new Map();
    }
    const dark = o.dark();
    const [paper, ink, muted] = ["paper", "ink", "muted"].map((name) => PALETTE[name][dark ? 1 : 0]);
    const lens = o.lens();
    const metric = o.metric();
    const pin = o.pin();
    const range = model.range(metric, lens);
    const worded = !o.dense();
    const asValue = o.labels() === "value";
    const left = scroller.scrollLeft;
    const top = scroller.scrollTop;
    const first = Math.max(0, Math.floor(left / cw));
    const last = Math.min(model.positions() - 1, Math.floor((left + width - GUTTER) / cw));
    const firstRow = Math.max(0, Math.floor(top / ch));
    const lastRow = Math.min(rows() - 1, Math.floor((top + height - HEAD) / ch));
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = paper;
    pen.fillRect(0, 0, width, height);
    pen.direction = "ltr";
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    pen.font = "12px system-ui,sans-serif";
    for (let row = firstRow; row <= lastRow; row++) {
      const j = layerAt(row);
      const y = HEAD + row * ch - top;
      for (let p = first; p <= last; p++) {
        const x = GUTTER + p * cw - left;
        const value = model.value(metric, lens, j, p, pin);
        const t = strength(metric, value, range);
        const cell = t >= 0 ? shade(dark, t) : { fill: "", ink };
        if (cell.fill) {
          pen.fillStyle = cell.fill;
          pen.fillRect(x, y, cw - 1, ch - 1);
        } else {
          pen.strokeStyle = PALETTE.grid[dark ? 1 : 0];
          pen.strokeRect(x + 0.5, y + 0.5, cw - 2, ch - 2);
        }
        if (worded) {
          const text = asValue ? (Number.isNaN(value) ? "" : valueText(metric, value).replace(" nats", "")) : tokenText(model.top(lens, j, p, 0));
          pen.fillStyle = cell.ink;
          if (text) pen.fillText(fit(text, cw - 9), x + 4, y + ch / 2);
        }
        if (model.chosen(p) === model.layers[j]) {
          pen.strokeStyle = cell.ink;
          pen.lineWidth = 1.5;
          pen.strokeRect(x + 1.5, y + 1.5, cw - 4, ch - 4);
          pen.lineWidth = 1;
        }
      }
    }
    pen.fillStyle = paper;
    pen.fillRect(0, 0, width, HEAD);
    pen.fillRect(0, 0, GUTTER, height);
    pen.fillStyle = ink;
    pen.font = "600 12px system-ui,sans-serif";
    clip(GUTTER, 0, width, HEAD);
    for (let p = first; p <= last; p++) {
      const x = GUTTER + p * cw - left;
      if (worded) pen.fillText(fit(tokenText(model.token(p)), cw - 9), x + 4, HEAD / 2);
      else if (p % 10 === 0) pen.fillText(String(p), x, HEAD / 2);
    }
    pen.restore();
    pen.font = "11px system-ui,sans-serif";
    pen.fillStyle = muted;
    pen.textAlign = "right";
    clip(0, HEAD, GUTTER, height);
    for (let row = firstRow; row <= lastRow; row++) {
      const j = layerAt(row);
      if (worded || model.layers[j] % 5 === 0 || row === 0) pen.fillText(String(model.layers[j]), GUTTER - 6, HEAD + row * ch - top + ch / 2);
    }
    pen.restore();
    const hiddenColumns = model.positions() - Math.floor((left + width - GUTTER + 2) / cw);
    const hiddenRows = rows() - Math.floor((top + height - HEAD + 2) / ch);
    more.textContent = `${hiddenColumns > 0 ? `tokens → ${hiddenColumns} more` : ""}${hiddenRows > 0 ? `  layers ↓ ${hiddenRows} more` : ""}`;
    more.hidden = !more.textContent;
    mark();
  };

  const mark = () => {
    const at = o.at();
    const row = at ? rows() - 1 - at.layer : 0;
    // Above the axes it would hide them.
    ring.hidden = !at || at.position * cw < scroller.scrollLeft - 2 || row * ch < scroller.scrollTop - 2;
    if (!at) return;
    ring.style.transform = `translate(${GUTTER + at.position * cw - 1}px, ${HEAD + row * ch - 1}px)`;
    ring.style.width = `${cw + 1}px`;
    ring.style.height = `${ch + 1}px`;
  };
  const request = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(render);
  };
  /** @param {MouseEvent} event */
  const cellOf = (event) => {
    const box = scroller.getBoundingClientRect();
    const x = event.clientX - box.left - scroller.clientLeft;
    const y = event.clientY - box.top - scroller.clientTop;
    if (x < GUTTER || y < HEAD) return null;
    const position = Math.floor((x - GUTTER + scroller.scrollLeft) / cw);
    const row = Math.floor((y - HEAD + scroller.scrollTop) / ch);
    if (position >= model.positions() || row >= rows()) return null;
    return { layer: layerAt(row), position };
  };
  const reveal = (/** @type {number} */ layer, /** @type {number} */ position) => {
    const row = rows() - 1 - layer;
    const x = position * cw;
    const y = row * ch;
    if (x < scroller.scrollLeft) scroller.scrollLeft = x;
    else if (x + cw > scroller.scrollLeft + scroller.clientWidth - GUTTER) scroller.scrollLeft = x + cw - scroller.clientWidth + GUTTER;
    if (y < scroller.scrollTop) scroller.scrollTop = y;
    else if (y + ch > scroller.scrollTop + scroller.clientHeight - HEAD) scroller.scrollTop = y + ch - scroller.clientHeight + HEAD;
  };
  const go = (/** @type {number} */ layer, /** @type {number} */ position) => {
    layer = Math.min(Math.max(layer, 0), rows() - 1);
    position = Math.min(Math.max(position, 0), model.positions() - 1);
    reveal(layer, position);
    o.onfocus(layer, position);
  };

  scroller.addEventListener("scroll", request, { passive: true });
  scroller.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const cell = cellOf(event);
    const at = o.at();
    if (cell && (cell.layer !== at?.layer || cell.position !== at?.position)) o.onfocus(cell.layer, cell.position);
  });
  scroller.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (cell) o.onopen(cell.layer, cell.position);
  });
  scroller.addEventListener("keydown", (event) => {
    const { layer, position } = o.at() ?? { layer: rows() - 1, position: 0 };
    const end = 1e9;
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0], Home: [0, -end], End: [0, end], PageUp: [end, 0], PageDown: [-end, 0] };
    const move = moves[event.key];
    if (move) go(layer + move[0], position + move[1]);
    else if (event.key === "Enter" || event.key === " ") o.onopen(layer, position);
    else return;
    event.preventDefault();
  });
  return {
    frame,
    scroller,
    draw() {
      measure();
      render();
    },
    grown() {
      const end = scroller.scrollLeft + scroller.clientWidth >= scroller.scrollWidth - 4;
      measure();
      if (end) scroller.scrollLeft = scroller.scrollWidth;
      request();
    },
    mark,
    reveal,
  };
}
