// Cells that come token by token: a token first, what the layers say after it a little later.

/**
 * @param {import("../types").Unpacked} view a map without tokens
 * @returns {import("../map/model.js").Model & {add(event: any): void, probe(position: number): number, read(): number}}
 */
export function liveModel(view) {
  const list = (/** @type {string} */ name) => {
    const values = /** @type {import("../types").Values} */ (view.arrays.get(name));
    return Array.from({ length: values.length }, (_, i) => values.at(i));
  };
  const layers = list("layers");
  /** @type {any[]} */
  const cells = [];
  const ranks = view.meta["ranks"] ?? 5;
  const offered = view.meta.stats ?? ["entropy", "kl", "margin"];
  /** Largest values so far: ramps grow with them. @type {Record<string, number>} */
  const high = {};
  const number = (/** @type {any} */ value) => (typeof value === "number" ? value : NaN);
  return {
    lenses: list("lenses"),
    layers,
    ranks,
    pins: [],
    positions: () => cells.length,
    token: (p) => cells[p].token,
    next: (p) => cells[p + 1]?.token ?? null,
    top: (_, j, p, k) => cells[p].top?.[j]?.[k] ?? null,
    topP: (_, j, p, k) => number(cells[p].p?.[j]?.[k]),
    value(metric, _, j, p, pin) {
      const cell = cells[p];
      if (metric === "p" && pin === undefined) return number(cell.p?.[j]?.[0]);
      if (metric === "p" || metric === "rank") {
        const at = cell.top?.[j]?.indexOf(pin ?? cells[p + 1]?.token) ?? -1;
        return at < 0 ? NaN : metric === "rank" ? at : number(cell.p[j][at]);
      }
      if (metric === "margin" && !cell.margin) return number(cell.p?.[j]?.[0]) - number(cell.p?.[j]?.[1]);
      return number(cell[metric]?.[j]);
    },
    has: (metric) => metric === "p" || metric === "rank" || offered.includes(metric),
    chosen: (p) => number(cells[p].chosen),
    probe: (p) => number(cells[p].probe),
    read: () => cells.reduce((sum, cell) => sum + (cell.top ? 1 : 0), 0),
    range: (metric) => [0, metric === "p" || metric === "margin" ? 1 : high[metric] || 1],
    /** A token with or without its cells, or the cells of token `at`. */
    add(event) {
      if (event.at === undefined) cells.push({ ...event });
      else if (cells[event.at]) Object.assign(cells[event.at], event);
      for (const name of offered) for (const value of event[name] ?? []) if (value > (high[name] ?? 0)) high[name] = value;
    },
  };
}
