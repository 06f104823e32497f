// View 9: the map while it is computed. Tokens come one by one; a reader goes through the layers, stops, and forks at a
// token with another decoder. It stands in a module of its own, which only the live page loads.

import { mapPart, mount, show } from "./view.js";
import { liveModel } from "./model.js";

export { mount };

/** @typedef {import("../types").Context} Context */

/**
 * Draws a view that grows.
 *
 * `view` is a packed map without tokens: it says layers, lenses, model. `handle.push(event)` adds to it:
 * `{token, top, p, entropy, kl, margin, chosen, probe, decoder}` a token that was read or written, with the top tokens
 * and their probabilities `[layer][rank]`, statistics `[layer]`, the layer that a decoder chose, and what a probe reads
 * there (P(true)); `{note}` a line for the reader; `{done: finish}` the end; `{error}` a stream that broke off.
 * `options.onAction` hears `{type: "stop"}` and `{type: "fork", position, decoder}`.
 * @param {HTMLElement} element
 * @param {import("../types").ViewJson} view
 * @param {import("../types").Options} [options]
 */
export function mountLive(element, view, options = {}) {
  return show(element, view, options, { map: liveView });
}

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @param {string} text @param {Record<string, any>} [more] */
function make(tag, text, more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, more);
}

/** @param {Context} ctx */
function liveView(ctx) {
  const model = liveModel(ctx.view);
  const act = (/** @type {Record<string, any>} */ action) => ctx.options.onAction?.(action);
  const stop = make("button", "Stop", { onclick: () => act({ type: "stop" }) });
  const scrubber = make("input", "", { type: "range", min: "0", max: String(model.layers.length - 1), ariaLabel: "Layer" });
  const status = make("span", "Waiting for the first token", { className: "small" });
  status.setAttribute("role", "status");
  const text = make("p", "", { className: "written" });
  const bar = make("div", "", { className: "choice" });
  bar.append(make("span", "Layer"), scrubber, stop, status);
  const spans = /** @type {HTMLElement[]} */ ([]);
  let over = false;

  scrubber.addEventListener("input", () => {
    const position = ctx.state.at?.[1] ?? model.positions() - 1;
    if (position >= 0) ctx.set({ at: [Number(scrubber.value), position] });
    retell();
  });
  /** What the chosen layer would have said, token by token: the text of that layer. */
  const retell = () => {
    const layer = Number(scrubber.value);
    spans.forEach((span, p) => {
      const probe = model.probe(p);
      span.title = `layer ${model.layers[layer]}: ${model.top(0, layer, p, 0) ?? "–"}` + (Number.isNaN(probe) ? "" : `; probe: P(true) ${probe.toFixed(2)}`);
    });
  };
  /** @param {{layer: number, position: number}} at */
  const fork = ({ position }) => {
    if (!ctx.options.decoders?.length) return null;
    const row = make("div", "", { className: "choice" });
    const choice = document.createElement("select");
    choice.ariaLabel = "Decoder";
    choice.append(...ctx.options.decoders.map((name) => make("option", name)));
    row.append(make("span", "Go on from here with"), choice, make("button", "Fork", { onclick: () => act({ type: "fork", position, decoder: choice.value }) }));
    return row;
  };
  // The panel is drawn with every move of the pointer: its choice of decoder is kept as long as its token.
  let forked = -1;
  /** @type {HTMLElement | null} */
  let offer = null;
  const part = mapPart(ctx, model, {
    bar,
    panelActions(at) {
      if (at.position !== forked) {
        forked = at.position;
        offer = fork(at);
      }
      return offer;
    },
  });
  ctx.body.prepend(text);
  scrubber.value = String(model.layers.length - 1);
  const finish = (/** @type {string} */ line) => {
    over = true;
    stop.hidden = true;
    status.textContent = line;
  };
  return {
    ...part,
    /** @param {any} event */
    push(event) {
      if (event.token !== undefined) {
        model.add(event);
        const span = make("bdi", event.token);
        spans.push(span);
        text.append(span);
        if (!over) status.textContent = `${model.positions()} tokens`;
        retell();
        part.grown();
      }
      if (event.note) text.after(make("p", String(event.note), { className: "note" }));
      if (event.done !== undefined) finish(`${model.positions()} tokens, finished: ${event.done}`);
      if (event.error !== undefined) {
        finish(`Broken off after ${model.positions()} tokens`);
        const line = make("p", `${event.error} What came before it is shown.`, { className: "fault" });
        line.setAttribute("role", "alert");
        text.after(line);
      }
    },
  };
}
