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
  if (item.tag === "rect") Object.assign(out, { x: n(item.x), y: n(item.y), width: n(item.w), height: n(item.h), rx: item.r });
  else if (item.tag === "path") out.d = item.d;
  else if (item.tag === "circle") Object.assign(out, { cx: n(item.x), cy: n(item.y), r: item.r });
  else {
    Object.assign(out, { x: n(item.x), y: n(item.y), "font-size": item.size ?? 12, "text-anchor": item.anchor });
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

/** @param {number | undefined} value */
function n(value) {
  return value === undefined ? undefined : Math.round(value * 100) / 100;
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
 * millimetres (a column of 180 mm). Nothing is transparent, so that every converter to PDF reads it alike.
 * @param {Scene} scene
 * @param {boolean} print
 */
export function toSvg(scene, print) {
  const scale = print ? Math.min(180 / scene.width, 0.3) : 1;
  const unit = print ? "mm" : "";
  const shapes = scene.items.map((item) => {
    const given = attributes(item, resolve);
    if (item.alpha !== undefined) {
      given.fill = hex(mix(WHITE, rgb(given.fill), item.alpha)); // as it looks on paper
      delete given["fill-opacity"];
    }
    const listed = Object.entries(given).filter(([, value]) => value !== undefined && value !== null);
    const inside = item.text === undefined ? "/>" : `>${escape(item.text)}</text>`;
    return `<${item.tag} ${listed.map(([name, value]) => `${name}="${escape(value)}"`).join(" ")}${inside}`;
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${n(scene.width * scale)}${unit}" height="${n(scene.height * scale)}${unit}" ` +
    `viewBox="0 0 ${scene.width} ${scene.height}" font-family="DejaVu Sans, Arial, sans-serif" role="img">\n` +
    `<title>${escape(scene.label)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>\n${shapes.join("\n")}\n</svg>\n`
  );
}
