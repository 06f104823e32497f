// View 9: the map while it is computed. Tokens come one by one; a reader goes through the layers, stops, and forks at a
// token with another decoder. It stands in a module of its own, which only the live page loads.

import { mapPart, mount, show } from "./view.js";
import style from "./live.css";
import { liveModel } from "./model.js";

export { mount };

/** @typedef {import("../types").Context} Context */

/** @type {CSSStyleSheet | undefined} */
let sheet;

/**
 * Draws a view that grows.
 *
 * `view` is a packed map without tokens: it says layers, lenses, model. `handle.push(event)` adds to it:
 * `{token, top, p, entropy, kl, margin, chosen, probe}` a token that was read or written, with the top tokens and their
 * probabilities `[layer][rank]`, statistics `[layer]`, the layer that a decoder chose, and what a probe reads there
 * (P(true)); all but the token may come later, as `{at: position, top, …}`; `{note}` a line for the reader;
 * `{done: finish}` the end; `{error}` a stream that broke off. `options.onAction` hears `{type: "stop"}` and
 * `{type: "fork", position, decoder}`.
 * @param {HTMLElement} element
 * @param {import("../types").ViewJson} view
 * @param {import("../types").Options} [options]
 */
export function mountLive(element, view, options = {}) {
  return show(element, view, options, { map: liveView });
}

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @param {string} text @param {Record<string, any>} [more] */
function make(tag, text, more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...more });
}

/** A token as one reads it: spaces and line breaks are visible, nothing turns its neighbours round. @param {string} token */
function legible(token) {
  const shown = token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f-\u009f\u200b\u202a-\u202e\u2066-\u2069\ufeff]/g, "�");
  return shown[0] === " " ? `·${shown.slice(1)}` : shown || "∅";
}

/** @param {Context} ctx */
function liveView(ctx) {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(style);
  }
  const root = /** @type {ShadowRoot} */ (ctx.body.getRootNode());
  root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheet];
  const model = liveModel(ctx.view);
  const last = model.layers.length - 1;
  const act = (/** @type {Record<string, any>} */ action) => ctx.options.onAction?.(action);
  const stop = make("button", "Stop", { type: "button", onclick: () => act({ type: "stop" }) });
  const scrubber = make("input", "", { type: "range", min: "0", max: String(last), value: String(last), ariaLabel: "Layer" });
  const named = make("output", "");
  const count = make("span", "waiting for the first token", { className: "small" });
  const status = make("p", "", { className: "small" });
  // Only beginning and end are told aloud: a voice that counts tokens helps nobody.
  status.setAttribute("role", "status");
  const bar = make("div", "", { className: "live-bar" });
  const label = make("label", "");
  label.append(make("span", "Layer"), scrubber, named);
  bar.append(stop, label, count);
  const told = make("p", "", { className: "small" });
  const line = make("ol", "", { className: "line" });
  line.setAttribute("aria-label", "The text, token by token");
  line.tabIndex = 0; // it scrolls
  /** @type {{token: HTMLElement, guess: HTMLElement, probe: HTMLElement}[]} */
  const items = [];
  let over = false;

  const layer = () => Number(scrubber.value);
  scrubber.addEventListener("input", () => {
    const position = Math.min(ctx.state.at?.[1] ?? Infinity, model.positions() - 1);
    retell();
    if (position >= 0) ctx.set({ at: [layer(), position] });
  });
  /** Under each token: what the layer would have written there, and what the probe reads after it. @param {number} p */
  const tell = (p) => {
    const item = items[p];
    const guess = p > 0 ? model.top(0, layer(), p - 1, 0) : null;
    const same = guess !== null && guess === model.token(p);
    item.guess.textContent = p === 0 ? "" : guess === null ? "…" : legible(guess);
    item.guess.className = same ? "guess same" : "guess";
    item.guess.title = p === 0 ? "" : same ? "the layer says the same" : "the layer says something else";
    const chosen = p > 0 ? model.chosen(p - 1) : NaN;
    item.token.title = Number.isNaN(chosen) ? "" : `the decoder chose layer ${chosen}`;
    const read = model.probe(p);
    item.probe.textContent = Number.isNaN(read) ? "" : read.toFixed(2);
    item.probe.hidden = Number.isNaN(read);
    if (!Number.isNaN(read)) item.probe.style.setProperty("--p", String(read));
  };
  const retell = () => {
    const number = model.layers[layer()];
    named.textContent = layer() === last ? `${number}, the last` : number === 0 ? "0, the embeddings" : String(number);
    const some = (/** @type {(p: number) => number} */ value) => items.some((_, p) => !Number.isNaN(value(p)));
    told.textContent = `Above, the text; below it, what layer ${number} would have written there, ✓ where it agrees` +
      (some(model.probe) ? "; last, the probe's P(true) after each token." : ".") +
      (some(model.chosen) ? " Outlined in the map: the layer that the decoder chose." : "");
    items.forEach((_, p) => tell(p));
  };
  /** @param {{layer: number, position: number}} at */
  const fork = ({ position }) => {
    if (!ctx.options.decoders?.length) return null;
    const row = make("div", "", { className: "fork" });
    const choice = make("select", "", { ariaLabel: "Decoder of the fork" });
    choice.append(...ctx.options.decoders.map((name) => make("option", name)));
    row.append(make("span", "Go on after this token with"), choice, make("button", "Fork", { type: "button", onclick: () => act({ type: "fork", position, decoder: choice.value }) }));
    return row;
  };
  // The panel is drawn with every move of the pointer: its choice of decoder is kept as long as its token.
  let forked = -1;
  /** @type {HTMLElement | null} */
  let offer = null;
  const part = mapPart(ctx, model, {
    panelActions(at) {
      if (at.position !== forked) {
        forked = at.position;
        offer = fork(at);
      }
      return offer;
    },
  });
  // Stop stands above the text: what grows must not move it away from under the pointer.
  ctx.body.prepend(bar, status, line, told);
  // Several answers stand in one page: each landmark has a name of its own.
  ctx.body.querySelectorAll("aside, [role=region], [role=group][tabindex]").forEach((made) => {
    made.setAttribute("aria-label", `${made.getAttribute("aria-label") ?? ""}, ${ctx.view.title}`);
  });
  retell();
  const finish = (/** @type {string} */ text) => {
    over = true;
    stop.hidden = true;
    count.textContent = "";
    status.textContent = text;
  };
  // Many cells may come at once: they are drawn once a frame.
  let due = false;
  const grown = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      retell();
      part.grown();
      if (!over) count.textContent = `${model.positions() - 1} tokens, layers of ${model.read()} read`;
    });
  };
  return {
    ...part,
    draw() {
      // A cell that was opened decides the layer, and the layer the line.
      if (ctx.state.at && ctx.state.at[0] !== layer()) scrubber.value = String(ctx.state.at[0]);
      retell();
      part.draw();
    },
    /** @param {any} event */
    push(event) {
      if (event.token !== undefined || event.at !== undefined) {
        model.add(event);
        if (event.token !== undefined) {
          const position = items.length;
          const item = { token: make("bdi", legible(event.token), { className: "token" }), guess: make("bdi", "…"), probe: make("span", "", { className: "probe", title: "the probe's P(true)" }) };
          const place = make("li", "", { className: position ? "" : "before", onclick: () => ctx.set({ at: [layer(), position] }) });
          place.append(item.token, item.guess, item.probe);
          items.push(item);
          line.append(place);
        }
        grown();
      }
      if (event.note) line.after(make("p", String(event.note), { className: "note" }));
      if (event.done !== undefined) finish(`${Math.max(model.positions() - 1, 0)} tokens, ${event.done}.`);
      if (event.error !== undefined) {
        finish(`Broken off after ${Math.max(model.positions() - 1, 0)} tokens.`);
        const fault = make("p", `${event.error} What came before it is shown.`, { className: "fault" });
        fault.setAttribute("role", "alert");
        line.before(fault);
      }
    },
  };
}
