// Horizontal bars with their values, and small matrices: for choices, exits, contributions, topic × topic.

import { shade } from "./colour.js";
import { box, label, line } from "./scene.js";
import { finite, interval, number, shorten, visible } from "./text.js";

/** @typedef {import("./types").Scene} Scene */

/**
 * @param {{name: string, label: string, width: number, most?: number, signed?: boolean,
 *   bars: {label: string, value: number, low?: number, high?: number, colour?: number, note?: string, key?: any}[]}} o
 * @returns {Scene}
 */
export function barChart(o) {
  const row = 22;
  const longest = Math.max(6, ...o.bars.map((bar) => [...visible(bar.label)].length));
  const named = Math.min(Math.max(longest * 7.2 + 10, 60), o.width * 0.42);
  const left = named + 4;
  const room = o.width - left - 58;
  const most = o.most ?? Math.max(...o.bars.flatMap((bar) => [bar.value, bar.low, bar.high]).map((v) => Math.abs(v ?? 0)).filter(finite), 1e-9);
  const zero = o.signed ? left + room / 2 : left;
  const scale = (o.signed ? room / 2 : room) / most;
  /** @type {import("./types").Shape[]} */
  const items = [];
  /** @type {import("./types").Hit[]} */
  const hits = [];
  o.bars.forEach((bar, i) => {
    const y = i * row + 4;
    const long = (finite(bar.value) ? bar.value : 0) * scale;
    const text = shorten(visible(bar.label), Math.floor((named - 8) / 7.2));
    items.push(label(named - 2, y + 13, text, 12, "ink", "end"), box(long < 0 ? zero + long : zero, y + 2, Math.max(Math.abs(long), 1), row - 8, `s${(bar.colour ?? 0) % 7}`));
    if (bar.low !== undefined && bar.high !== undefined && finite(bar.low) && finite(bar.high)) {
      items.push(line(`M${zero + bar.low * scale} ${y + 9}H${zero + bar.high * scale}`, "ink", 1.2));
    }
    const end = o.signed ? o.width - 4 : Math.min(zero + Math.max(long, (bar.high ?? 0) * scale || 0) + 5, o.width - 50);
    items.push(label(end, y + 13, bar.note ?? number(bar.value), 11, "muted", o.signed ? "end" : "start"));
    hits.push({ x: zero + Math.max(long, 4), y: y + 9, label: `${visible(bar.label)}: ${bar.note ?? interval(bar.value, bar.low, bar.high)}`, key: bar.key ?? i });
  });
  items.push(line(`M${zero} 2V${o.bars.length * row + 4}`, "line"));
  return { name: o.name, label: o.label, width: o.width, height: o.bars.length * row + 10, items, hits };
}

/**
 * @param {{name: string, label: string, width: number, rows: string[], columns: string[], dark: boolean,
 *   value: (row: number, column: number) => number, text: (row: number, column: number) => string,
 *   low?: number, high?: number, signed?: boolean, rowTitle?: string, columnTitle?: string}} o
 * @returns {Scene}
 */
export function matrix(o) {
  const left = Math.min(24 + 7.2 * Math.max(...o.rows.map((name) => [...name].length)), o.width * 0.34);
  const head = Math.min(34 + 5.2 * Math.max(...o.columns.map((name) => [...name].length)), 110);
  const cell = Math.max(30, Math.min((o.width - left - 50) / o.columns.length, 84));
  const tall = cell < 36 ? 20 : 26;
  const low = o.low ?? 0;
  const high = o.high ?? 1;
  /** @type {import("./types").Shape[]} */
  const items = [];
  /** @type {import("./types").Hit[]} */
  const hits = [];
  o.columns.forEach((name, j) => items.push({ tag: "text", x: left + (j + 0.5) * cell + 4, y: head - 8, text: shorten(visible(name), 16), size: 11, turn: -40 }));
  o.rows.forEach((name, i) => {
    const y = head + i * tall;
    items.push(label(left - 8, y + tall - 8, shorten(visible(name), Math.floor(left / 7.2)), 12, "ink", "end"));
    o.columns.forEach((_, j) => {
      const value = o.value(i, j);
      const x = left + j * cell;
      if (!finite(value)) return;
      const t = o.signed ? 0.5 + (0.5 * value) / high : (value - low) / (high - low || 1);
      const { fill, ink } = shade(o.dark, t, o.signed);
      items.push(box(x, y, cell - 1, tall - 1, fill), label(x + cell / 2 - 0.5, y + tall - 8, number(Math.round(value * 100) / 100, 2), tall / 2.3, ink, "middle"));
      hits.push({ x: x + cell / 2, y: y + tall / 2, label: o.text(i, j), key: [i, j] });
    });
  });
  return { name: o.name, label: o.label, width: Math.max(o.width, left + cell * o.columns.length + 50), height: head + o.rows.length * tall + 4, items, hits };
}
