// A drawing made once and shown twice: on the screen as SVG elements, in a file as SVG text. Numbers cannot differ.

import { hex, mix, resolve, rgb } from "./colour.js";
import { s } from "./dom.js";

/** @typedef {import("./types").Scene} Scene */
/** @typedef {import("./types").Shape} Shape */

const WHITE = [255, 255, 255];

/**
 * The attributes of a shape. Colours by name become variables of the page, or with `paint` what that gives.
 * @param {Shape} item
 * @param {(name: string) => string} paint
 * @returns {Record<string, any>}
 */
function attributes(item, paint) {
  const fill = item.fill ? paint(item.fill) : item.tag === "text" ? paint("ink") : "none";
  /** @type {Record<string, any>} */
  const out = { fill };
  if (item.stroke) {
    out.stroke = paint(item.stroke);
    out["stroke-width"] = item.wide ?? 1;
    out["stroke-dasharray"] = item.dash;
  }
  if (item.alpha !== undefined) out["fill-opacity"] = item.alpha;
  if (item.tag === "rect") Object.assign(out, { x: n(item.x), y: n(item.y), width: n(item.w), height: n(item.h) });
  else if (item.tag === "path") out.d = item.d;
  else if (item.tag === "circle") Object.assign(out, { cx: n(item.x), cy: n(item.y), r: item.r });
  else {
    Object.assign(out, { x: n(item.x), y: n(item.y), "font-size": item.size, "text-anchor": item.anchor });
    if (item.bold) out["font-weight"] = 600;
    if (item.stroke) out["paint-order"] = "stroke"; // a halo: legible over lines
    if (item.turn) out.transform = `rotate(${item.turn} ${n(item.x)} ${n(item.y)})`;
  }
  return out;
}

/**
 * A text.
 * @param {number} x @param {number} y @param {string} text @param {number} size
 * @param {string} [fill] @param {Shape["anchor"]} [anchor] @param {boolean} [bold]
 * @returns {Shape}
 */
export const label = (x, y, text, size, fill, anchor, bold) => ({ tag: "text", x, y, text, size, fill, anchor, bold });

/**
 * A line or area.
 * @param {string} d @param {string} stroke @param {number} [wide] @param {string} [dash]
 * @returns {Shape}
 */
export const line = (d, stroke, wide, dash) => ({ tag: "path", d, stroke, wide, dash });

/**
 * A filled rectangle.
 * @param {number} x @param {number} y @param {number} w @param {number} h @param {string} fill
 * @returns {Shape}
 */
export const box = (x, y, w, h, fill) => ({ tag: "rect", x, y, w, h, fill });

/** @param {number} v */
export const r = (v) => Math.round(v * 10) / 10;

/** @param {import("./types").Series} series @param {number} k */
export const dashOf = (series, k) => [undefined, "6 3", "2 2.5", "8 3 2 3"][series.dashed ? 1 : k % 4];

/** A mark of its own for each series, so that colour is never alone. @param {number} k @param {number} x @param {number} y @param {number} size @returns {Shape} */
export function marker(k, x, y, size) {
  const fill = `s${k % 7}`;
  const a = size * 1.25;
  if (k % 4 === 1) return box(x - size, y - size, 2 * size, 2 * size, fill);
  if (k % 4 === 2) return { tag: "path", d: `M${r(x)} ${r(y - a)}L${r(x + a)} ${r(y + size)}H${r(x - a)}Z`, fill };
  if (k % 4 === 3) return { tag: "path", d: `M${r(x)} ${r(y - a)}L${r(x + a)} ${r(y)}L${r(x)} ${r(y + a)}L${r(x - a)} ${r(y)}Z`, fill };
  return { tag: "circle", x, y, r: size, fill };
}

/** A line of a series with its mark, as legends show it. @param {import("./types").Series} series @param {number} k @param {number} x @param {number} y @returns {Shape[]} */
export const key = (series, k, x, y) => [line(`M${x} ${y}h22`, `s${k % 7}`, 1.8, dashOf(series, k)), marker(k, x + 11, y, 2.6)];

/** @param {number | undefined} value */
function n(value = 0) {
  return Math.round(value * 100) / 100;
}

/** Draws a scene into an svg element that is there already. @param {Element} svg @param {Pick<Scene, "width" | "height" | "items">} scene */
export function paint(svg, scene) {
  svg.setAttribute("viewBox", `0 0 ${scene.width} ${scene.height}`);
  svg.setAttribute("width", String(scene.width));
  svg.setAttribute("height", String(scene.height));
  const named = (/** @type {string} */ name) => (name[0] === "#" || name === "none" ? name : `var(--${name})`);
  svg.replaceChildren(
    ...scene.items.map((item) => {
      const made = s(item.tag, attributes(item, named));
      if (item.text !== undefined) made.textContent = item.text;
      return made;
    }),
  );
}

/** @param {unknown} value */
function escape(value) {
  return String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

/**
 * The scene as the text of a file: light colours, no style sheet, texts as texts. For print the size is in
 * millimetres (a column of 180 mm) and nothing is transparent, so that every converter to PDF reads it alike.
 * @param {Scene} scene
 * @param {boolean} print
 */
export function toSvg(scene, print) {
  // Alone, a drawing says itself what the page says around it: a title above, names of lines and remarks below.
  const { notes = [], series = [] } = scene;
  const width = Math.max(scene.width, 8 * scene.label.length, ...notes.map((note) => 6.5 * note.length));
  const items = [label(6, -8, scene.label, 13, "ink", undefined, true), ...scene.items];
  let [x, y] = [width, scene.height];
  series.forEach((each, i) => {
    const wide = 40 + 6.5 * each.name.length;
    if (x + wide > width) [x, y] = [6, y + 16];
    items.push(...key(each, each.colour ?? i, x, y - 4), label(x + 27, y, each.name, 11));
    x += wide;
  });
  for (const note of notes) items.push(label(6, (y += 16), note, 11, "muted"));
  const height = y + 32;
  const scale = print ? Math.min(180 / width, 0.3) : 1;
  const unit = print ? "mm" : "";
  const shapes = items.map((item) => {
    const given = attributes(item, resolve);
    if (print && item.alpha !== undefined) {
      given.fill = hex(mix(WHITE, rgb(given.fill), item.alpha)); // as it looks on paper
      delete given["fill-opacity"];
    }
    const listed = Object.entries(given).filter(([, value]) => value !== undefined && value !== null);
    const inside = item.text === undefined ? "/>" : `>${escape(item.text)}</text>`;
    return `<${item.tag} ${listed.map(([name, value]) => `${name}="${escape(value)}"`).join(" ")}${inside}`;
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${n(width * scale)}${unit}" height="${n(height * scale)}${unit}" ` +
    `viewBox="0 -24 ${n(width)} ${height}" font-family="DejaVu Sans, sans-serif">\n` +
    `<title>${escape(scene.label)}</title>\n<rect y="-24" width="100%" height="100%" fill="#ffffff"/>\n${shapes.join("\n")}\n</svg>\n`
  );
}
