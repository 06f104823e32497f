// What a reader takes along: CSV, JSON, SVG and SVG for print, all from the data that is drawn.

import { h } from "./dom.js";
import { toSvg } from "./scene.js";

/** @param {unknown} value */
function field(value) {
  if (value === null || value === undefined || (typeof value === "number" && Number.isNaN(value))) return "";
  const text = String(value);
  // A cell that begins like a formula is run by spreadsheets: the apostrophe makes it a text there.
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** @param {import("./types").Sheet} sheet */
export function toCsv(sheet) {
  return [sheet.columns, ...sheet.rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}

/** A file name of nothing but letters, digits and hyphens. @param {string} text */
function slug(text) {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60);
}

/** @param {string} name @param {string} text @param {string} type */
function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * @param {string} title
 * @param {() => import("./types").Part} part
 * @param {() => string} json
 * @param {(text: string) => void} announce
 */
export function exportMenu(title, part, json, announce) {
  /** @type {(label: string, act: () => void | Promise<void>) => HTMLElement} */
  const item = (label, act) =>
    h("button", { text: label, onclick: async () => {
      await act();
      menu.open = false;
    } });
  const svgs = (/** @type {boolean} */ print) =>
    part().scenes().forEach((scene) => download(`${slug(`${title}-${scene.name}`)}${print ? "-print" : ""}.svg`, toSvg(scene, print), "image/svg+xml"));
  const menu = h(
    "details",
    { class: "menu", onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") {
        menu.open = false;
        menu.querySelector("summary")?.focus();
      }
    } },
    h("summary", { text: "Export" }),
    h(
      "div",
      { class: "items" },
      item("Copy as CSV", async () => {
        const text = part().sheets().map(toCsv).join("\r\n");
        try {
          await navigator.clipboard.writeText(text);
          announce("Copied.");
        } catch {
          // Frames without the permission, and pages of insecure addresses.
          download(`${slug(title)}.csv`, text, "text/csv");
        }
      }),
      item("Download JSON", () => download(`${slug(title)}.json`, json(), "application/json")),
      item("Download SVG", () => svgs(false)),
      item("Download SVG for print", () => svgs(true)),
    ),
  );
  return menu;
}
