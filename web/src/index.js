// exitlens in a browser: mount(element, view) draws any view; in a page of exitlens it draws those that stand there.

import { mapPart, mapView } from "./map/index.js";
import { show } from "./shell.js";
import { choicesView } from "./views/choices.js";
import { decodersView } from "./views/decoders.js";
import { FORMS } from "./unpack.js";
import { figuresView } from "./views/figures.js";

/** @type {Record<string, (ctx: import("./types").Context) => import("./types").Part>} */
const KINDS = { map: mapView, choices: choicesView, decoders: decodersView };
for (const kind in FORMS) KINDS[kind] ??= figuresView;

/**
 * Draws a view into an element.
 * @param {HTMLElement} element
 * @param {import("./types").ViewJson} view
 * @param {import("./types").Options} [options]
 * @returns {import("./types").Handle}
 */
export function mount(element, view, options = {}) {
  return show(element, view, options, KINDS);
}

// Scripts that stand beside this one in a page find it here.
Object.assign(globalThis, { exitlens: { mount } });

export { mapPart, show };
