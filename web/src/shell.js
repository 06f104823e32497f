// The frame of every view: heading, tools, notes, a table for screen readers; faults as a sentence; state kept small.

import style from "./style.css";
import { ViewError, unpack } from "./unpack.js";
import { PALETTE } from "./colour.js";
import { bdi, h, tableOf } from "./dom.js";
import { exportMenu, toCsv } from "./exports.js";
import { toSvg } from "./scene.js";
import { number, visible } from "./text.js";

/** @typedef {import("./types").Context} Context */
/** @typedef {import("./types").Part} Part */

/** @type {CSSStyleSheet | undefined} */
let sheet;

/** Style by a constructed sheet: allowed under every content-security policy. @param {ShadowRoot} root */
function dress(root) {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    const variables = (/** @type {number} */ mode) => Object.entries(PALETTE).map(([name, pair]) => `--${name}:${pair[mode]};`).join("");
    sheet.replaceSync(`.view{${variables(0)}}.view[data-theme=dark]{${variables(1)}}${style}`);
  }
  root.adoptedStyleSheets = [sheet];
}

/** @param {import("./types").Options} options */
function isDark(options) {
  if (options.theme === "light" || options.theme === "dark") return options.theme === "dark";
  const host = document.body?.dataset.jpThemeLight;
  if (host) return host === "false";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/**
 * @param {HTMLElement} element
 * @param {any} json the view
 * @param {import("./types").Options} options
 * @param {Record<string, (ctx: Context) => Part>} kinds
 * @returns {import("./types").Handle}
 */
export function show(element, json, options, kinds) {
  const root = element.shadowRoot ?? element.attachShadow({ mode: "open" });
  dress(root);
  const frame = h("section", { class: "view" });
  root.replaceChildren(frame);
  /** @type {import("./types").State} */
  const state = { ...options.state };
  /** @type {Part | null} */
  let part = null;
  /** @type {any[]} */
  const waiting = [];
  let over = false;
  const said = h("div", { class: "away", role: "status" });
  const announce = (/** @type {string} */ text) => {
    said.textContent = text;
  };
  const mode = () => frame.setAttribute("data-theme", isDark(options) ? "dark" : "light");
  const redraw = () => {
    mode();
    part?.draw();
  };
  const media = [matchMedia("(prefers-color-scheme: dark)"), matchMedia("(forced-colors: active)")];
  media.forEach((query) => query.addEventListener("change", redraw));
  mode();
  // One drawing a frame, and only when the width is another.
  let width = 0;
  const sized = new ResizeObserver((entries) => {
    const now = Math.round(entries[0].contentRect.width);
    if (now && now !== width) {
      width = now;
      requestAnimationFrame(() => part?.draw());
    }
  });

  // What a view says of itself is shown whatever becomes of its data.
  const head = h("header", {}, json?.title && h("div", { class: "titles" }, h("h2", {}, bdi(visible(json.title))), json.caption && h("p", { class: "caption" }, bdi(visible(json.caption)))));
  frame.append(head);
  const ready = (async () => {
    try {
      const view = await unpack(json);
      if (over) return;
      const body = h("div", { class: "body" });
      /** @type {Context} */
      const ctx = {
        view, body, state, options, announce,
        set(patch) {
          Object.assign(state, patch);
          // What has the focus may be drawn anew: who works with keys stays there.
          const places = () => /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll("button,input,select,.plot"));
          const at = [...places()].indexOf(/** @type {HTMLElement} */ (root.activeElement));
          part?.draw();
          if (!root.activeElement) places()[at]?.focus();
          options.onState?.({ ...state });
        },
        dark: () => frame.getAttribute("data-theme") === "dark",
      };
      frame.setAttribute("aria-label", visible(view.title));
      head.append(exportMenu(view.title, () => /** @type {Part} */ (part), () => JSON.stringify(asJson(view, /** @type {Part} */ (part))), announce));
      frame.append(...view.notes.map((note) => h("p", { class: "note" }, bdi(visible(note)))), body, said);
      const made = kinds[view.kind](ctx);
      part = { ...made, scenes: () => made.scenes().map((each) => ({ ...each, notes: [each.note, json.title, json.caption].map(visible).filter(Boolean) })) };
      frame.append(alternative(() => /** @type {Part} */ (part)));
      part.draw();
      sized.observe(frame);
      waiting.splice(0).forEach((event) => part?.push?.(event));
    } catch (error) {
      frame.append(h("p", { class: "fault", role: "alert", text: visible(error instanceof ViewError ? error.message : "This view cannot be shown.") }));
      if (!(error instanceof ViewError)) throw error;
    }
  })();

  return {
    ready,
    state: () => ({ ...state }),
    setState(next) {
      for (const name of Object.keys(state)) delete state[name];
      Object.assign(state, next);
      part?.draw();
    },
    push(event) {
      if (part) part.push?.(event);
      else waiting.push(event);
    },
    sheets: () => part?.sheets() ?? [],
    csv: (i = 0) => toCsv((part?.sheets() ?? [])[i]),
    svg: (i = 0, print = false) => toSvg((part?.scenes() ?? [])[i], print),
    json: () => JSON.stringify(json),
    destroy() {
      over = true;
      sized.disconnect();
      media.forEach((query) => query.removeEventListener("change", redraw));
      part?.destroy?.();
      root.replaceChildren();
    },
  };
}

/** The data as plain JSON, unpacked: what is shown, and what stands beside it. @param {import("./types").Unpacked} view @param {Part} part */
function asJson(view, part) {
  return { ...view, arrays: undefined, pages: undefined, tables: part.sheets() };
}

/** The data as tables, made when opened. @param {() => Part} part */
function alternative(part) {
  const place = h("div");
  const made = h(
    "details",
    { class: "tables", ontoggle: () => {
      if (!made.open) return;
      const write = (/** @type {any} */ value) => (typeof value === "number" ? number(value, 4) : typeof value === "boolean" ? (value ? "yes" : "no") : visible(value));
      place.replaceChildren(...part().sheets().map((sheet) => tableOf(sheet, write)));
    } },
    h("summary", { text: "Data as tables" }),
    place,
  );
  return made;
}
