// The distribution of the cell in focus: the top tokens with their probabilities, and the cell's numbers.

import { bdi, h } from "../dom.js";
import { tokenText } from "../text.js";
import { METRICS, valueText } from "./model.js";

/**
 * @param {import("./model.js").Model} model
 * @param {{lens: () => number, at: () => {layer: number, position: number} | null, pins: () => string[],
 *   pin: (token: string) => void, actions?: (at: {layer: number, position: number}) => HTMLElement | null}} o
 */
export function makePanel(model, o) {
  const where = h("p", { class: "where" });
  const list = h("ol", { class: "top" });
  const numbers = h("dl", { class: "numbers" });
  const hint = h("p", { class: "hint", text: "Press a token to pin it." });
  const actions = h("div", { class: "actions" });
  const element = h("aside", { class: "panel", "aria-label": "The cell in focus" }, where, list, numbers, actions, hint);
  // Rows are made once and filled anew: a pointer that moves over cells must not wait for elements.
  const rows = Array.from({ length: Math.max(model.ranks, 1) }, () => {
    const token = h("bdi", { class: "token" });
    const bar = h("span", { class: "bar" });
    const share = h("span", { class: "share" });
    const button = h("button", { onclick: () => o.pin(item.raw) }, token, h("span", { class: "track", "aria-hidden": "true" }, bar), share);
    const line = h("li", {}, button);
    const item = { line, token, bar, share, button, raw: "" };
    return item;
  });
  list.append(...rows.map((row) => row.line));
  return {
    element,
    draw() {
      const at = o.at();
      element.hidden = !at;
      if (!at) return;
      const { layer, position } = at;
      const lens = o.lens();
      where.replaceChildren("After ", bdi(tokenText(model.token(position)), "token"), ` (${position}), layer ${model.layers[layer]}`);
      const pins = o.pins();
      rows.forEach((row, k) => {
        const raw = /** @type {string} */ (model.top(lens, layer, position, k));
        const p = model.topP(lens, layer, position, k);
        row.line.hidden = raw === null || Number.isNaN(p);
        if (row.line.hidden) return;
        row.raw = raw;
        row.token.textContent = tokenText(raw);
        row.share.textContent = valueText("p", p);
        row.bar.style.transform = `scaleX(${Math.min(Math.max(p, 0), 1)})`;
        row.button.setAttribute("aria-pressed", `${pins.includes(raw)}`);
      });
      const facts = ["entropy", "kl", "margin"].filter(model.has).flatMap((metric) => [h("dt", { text: METRICS[metric].label }), h("dd", { text: valueText(metric, model.value(metric, lens, layer, position)) })]);
      const next = model.next(position);
      if (next !== null) facts.push(h("dt", {}, "Next in the text: ", bdi(tokenText(next), "token")), h("dd", { text: `rank ${valueText("rank", model.value("rank", lens, layer, position))}` }));
      numbers.replaceChildren(...facts);
      actions.replaceChildren(o.actions?.(at) ?? "");
    },
  };
}
