// What a map reads its cells from: a packed trace, or a live stream that grows token by token.

import { listed } from "../unpack.js";
import { finite, number } from "../text.js";

/**
 * @typedef {object} Metric
 * @property {string} label
 * @property {string} unit
 * @property {string} hint
 */

/** @type {Record<string, Metric>} */
export const METRICS = {
  p: { label: "Probability", unit: "", hint: "probability of the layer's top-1 token" },
  entropy: { label: "Entropy", unit: "nats", hint: "entropy of the layer's distribution" },
  kl: { label: "KL", unit: "nats", hint: "divergence of the last layer from this one" },
  margin: { label: "Margin", unit: "", hint: "probability of the top-1 token minus the second's" },
  rank: { label: "Rank", unit: "", hint: "rank of the pinned token, else of the text's next token" },
};

/**
 * A map's cells. `lens`, `layer` and `position` are indices; values are NaN where there is none.
 * @typedef {object} Model
 * @property {string[]} lenses
 * @property {number[]} layers
 * @property {() => number} positions
 * @property {(position: number) => string} token
 * @property {(position: number) => string | null} next
 * @property {number} ranks how many of the top tokens are known
 * @property {(lens: number, layer: number, position: number, rank: number) => string | null} top
 * @property {(lens: number, layer: number, position: number, rank: number) => number} topP
 * @property {(metric: string, lens: number, layer: number, position: number, pin?: string) => number} value
 * @property {(metric: string) => boolean} has
 * @property {string[]} pins tokens whose rank is known everywhere
 * @property {(position: number) => number} chosen the layer that a decoder chose there, or an early exit left at
 * @property {(metric: string, lens: number) => [number, number]} range
 */

/** @param {import("../types").Unpacked} view @returns {Model} */
export function packedModel(view) {
  const get = (/** @type {string} */ name) => view.arrays.get(name);
  const need = (/** @type {string} */ name) => /** @type {import("../types").Values} */ (get(name));
  const [lenses, layers, tokens] = ["lenses", "layers", "tokens"].map(need);
  /** Without top tokens there are only statistics to show. @type {import("../types").Values} */
  const none = { shape: [0, 0, 0, 0], type: "number", length: 0, numbers: [], at: () => null };
  const [top, topP] = [get("top") ?? none, get("top_p") ?? none];
  const L = layers.length;
  const P = tokens.length;
  const K = top.shape[3];
  const pins = listed(get("pins"));
  const cell = (/** @type {number} */ l, /** @type {number} */ j, /** @type {number} */ p) => (l * L + j) * P + p;
  /** @type {Map<string, [number, number]>} */
  const ranges = new Map();

  /** @type {Model["value"]} */
  const value = (metric, l, j, p, pin) => {
    const i = cell(l, j, p);
    if (metric === "p") return pin === undefined ? (topP.numbers[i * K] ?? NaN) : pinned(i, p, pin)[0];
    if (metric === "rank") return pin === undefined ? (get("next_rank")?.numbers[i] ?? NaN) : pinned(i, p, pin)[1];
    if (metric === "margin" && !get("margin")) return K > 1 ? topP.numbers[i * K] - topP.numbers[i * K + 1] : NaN;
    return get(metric)?.numbers[i] ?? NaN;
  };
  /** Probability and rank of a token: of pins and next tokens everywhere, of others where they are among the top. @type {(i: number, p: number, pin: string) => [number, number]} */
  const pinned = (i, p, pin) => {
    const known = pins.indexOf(pin);
    if (known >= 0) {
      const at = i * pins.length + known;
      return [need("pin_p").numbers[at], need("pin_rank").numbers[at]];
    }
    for (let k = 0; k < K; k++) if (top.at(i * K + k) === pin) return [topP.numbers[i * K + k], k];
    if (get("next")?.at(p) === pin) return [get("next_p")?.numbers[i] ?? NaN, get("next_rank")?.numbers[i] ?? NaN];
    return [NaN, NaN];
  };
  return {
    lenses: listed(lenses),
    layers: listed(layers),
    positions: () => P,
    token: (p) => tokens.at(p) ?? "",
    next: (p) => get("next")?.at(p) ?? null,
    ranks: K,
    top: (l, j, p, k) => top.at(cell(l, j, p) * K + k),
    topP: (l, j, p, k) => topP.numbers[cell(l, j, p) * K + k],
    value,
    has: (metric) => (metric === "p" && K > 0) || (metric === "margin" && K > 1) || Boolean(get(metric === "rank" ? "next_rank" : metric)) || (metric === "rank" && pins.length > 0),
    pins,
    chosen: (p) => get("chosen")?.numbers[p] ?? NaN,
    range(metric, l) {
      const key = `${metric}/${l}`;
      let found = ranges.get(key);
      if (!found) {
        let high = 0;
        for (let j = 0; j < L; j++) for (let p = 0; p < P; p++) {
          const v = value(metric, l, j, p);
          if (v > high && v < 1 / 0) high = v;
        }
        found = [0, metric === "p" || metric === "margin" ? 1 : high || 1];
        ranges.set(key, found);
      }
      return found;
    },
  };
}

/** How far along the ramp: 1 is what stands out. @param {string} metric @param {number} value @param {[number, number]} range */
export function strength(metric, value, range) {
  if (Number.isNaN(value)) return -1;
  // Ranks span five decades, and the difference between 0 and 10 matters most.
  if (metric === "rank") return 1 - Math.log10(1 + value) / 5;
  return (value - range[0]) / (range[1] - range[0] || 1);
}

/** @param {string} metric @param {number} value */
export function valueText(metric, value) {
  const unit = METRICS[metric].unit;
  return `${number(value, metric === "rank" ? 0 : value < 0.01 ? 4 : 3)}${unit && finite(value) ? ` ${unit}` : ""}`;
}
