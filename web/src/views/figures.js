// Views that are figures over tables: entropy, probes, exits, attribution, lenses, runs. What stands where is data
// (`meta` of the view, see report/view_figures.py); here is how it is drawn and what a reader can do with it.

import { barChart, matrix } from "../bars.js";
import { arrange, chartFigure, lineChart } from "../chart.js";
import { bdi, choice, grid, h } from "../dom.js";
import { distinct, finite, interval, number, visible } from "../text.js";
import { listed, rows } from "../unpack.js";

/** @typedef {import("../types").Row} Row */
/** @typedef {import("../types").Series} Series */
/** @typedef {import("../types").Figure} Figure */

const SHOWN = 40; // answers of a list

/**
 * @param {import("../types").Context} ctx
 * @param {{below?: () => (HTMLElement | string)[], tables?: () => Record<string, Row[]>}} [more] what stands below, and
 *   tables that change
 * @returns {import("../types").Part}
 */
export function figuresView(ctx, { below = () => [], tables: living = () => ({}) } = {}) {
  const { state, view: { arrays, meta } } = ctx;
  const still = Object.fromEntries(distinct([...arrays.keys()].filter((key) => key.includes(".")).map((key) => key.split(".")[0])).map((name) => [name, rows(arrays, name)]));
  const tables = () => ({ ...living(), ...still });
  const table = (/** @type {string} */ name) => tables()[name] ?? [];
  /** Values of a switch with what they are called. @type {(s: any) => any[][]} */
  const valuesOf = (s) => distinct(matching(s.table, s.where).map((row) => row[s.key])).filter((v) => v !== null && !s.without?.includes(v)).map((v) => [v, visible(v)]);
  // Those that depend on another switch are looked up each time.
  /** @type {any[]} */
  const switches = [];
  const optionsOf = (/** @type {string} */ key) => {
    const found = switches.find((s) => s.key === key);
    return found?.options ?? (found ? valuesOf(found) : []);
  };
  /** The value of a switch in force. @param {string} key */
  const now = (key) => {
    const options = optionsOf(key);
    return options.some((/** @type {any} */ o) => o[0] === state[key]) ? state[key] : options[0]?.[0];
  };
  const name = (/** @type {string} */ column) => (column[0] === "$" ? now(column.slice(1)) : column);
  /** @type {(from: string, where?: string[], only?: Row) => Row[]} */
  const matching = (from, where = [], only = {}) => {
    const wanted = where.map((w) => (w[0] === "=" ? picked()?.[w.slice(1)] : now(w)));
    const fixed = Object.entries(only);
    return table(from).filter((each) => fixed.every(([key, value]) => each[key] === value) &&
      where.every((w, i) => (w[0] === "=" ? Math.abs(each[w.slice(1)] - wanted[i]) < 1e-9 : each[w] === wanted[i])));
  };
  const of = (/** @type {Figure} */ f) => matching(f.table, f.where, f.only);
  /** The row that the slider is at. @returns {Row | undefined} */
  const picked = () => {
    const all = sliding();
    return all[Math.min(state.step ?? Math.floor(all.length / 2), all.length - 1)];
  };
  const sliding = () => (meta.slider ? matching(meta.slider.table, meta.slider.where).sort((a, b) => a[meta.slider.order] - b[meta.slider.order]) : []);
  /** A text with `{column}` filled in. @param {string} text @param {Row | undefined} row */
  const filled = (text, row) => text.replace(/\{(\$?\w+)\}/g, (_, key) => {
    if (key[0] === "$") return visible(optionsOf(key.slice(1)).find((/** @type {any} */ o) => o[0] === now(key.slice(1)))?.[1] ?? "");
    const value = row?.[key] ?? state[key] ?? now(key);
    return typeof value === "number" ? number(value) : visible(value);
  });
  const ends = (/** @type {Row} */ row, /** @type {string} */ y, /** @type {Partial<Figure>} */ f = {}) => ({ low: row[`${y}_low`] ?? row[f.low ?? ""], high: row[`${y}_high`] ?? row[f.high ?? ""] });
  const told = (/** @type {Row} */ row, /** @type {string} */ y) => interval(row[y], ends(row, y).low, ends(row, y).high);
  const points = (/** @type {Row[]} */ items, /** @type {string} */ x, /** @type {string} */ y, /** @type {Figure} */ f) =>
    items.filter((row) => finite(row[x])).map((row) => ({
      x: row[x], y: row[y], ...ends(row, y, f), key: row,
      label: f.label && `${filled(f.label, row)}: ${told(row, y)}`,
    })).sort((a, b) => a.x - b.x);

  /** @param {Figure} f @returns {Series[]} */
  const series = (f) => {
    const items = of(f).filter((row) => !f.without?.includes(row[f.by ?? ""]));
    /** @type {Series[]} */
    const made = f.lines
      ? f.lines.map(([column, label], colour) => ({ name: label, colour, points: points(items, f.x, column, f) }))
      : distinct(items.filter((row) => finite(row[f.x])).map((row) => row[f.by ?? ""])).map((each, colour) => ({ name: visible(each), colour, points: points(items.filter((row) => row[f.by ?? ""] === each), f.x, name(f.y), f) }));
    if (f.diagonal) made.push({ name: f.diagonal, colour: 4, dashed: true, points: [{ x: 0, y: 0 }, { x: 1, y: 1 }] });
    return made;
  };
  /** @param {Figure} f @param {number} width @param {boolean} dark @returns {import("../types").Scene} */
  const scene = (f, width, dark = false) => {
    const items = of(f);
    const base = { name: f.name, label: filled(f.title, items[0]), width };
    if (f.type === "bar") {
      const colours = distinct(items.map((row) => row[f.by ?? ""]));
      return barChart({ ...base, signed: f.signed, most: f.range?.[1], bars: items.filter((row) => !f.without?.includes(row[f.by ?? ""])).map((row) => {
        const y = name(f.y);
        return { label: filled(f.label ?? "", row), value: row[y], ...ends(row, y, f), colour: Math.max(colours.indexOf(row[f.by ?? ""]), 0), note: f.percent ? `${number(100 * row[y], 1)}%` : undefined };
      }) });
    }
    if (f.type === "matrix") {
      const [one, other] = [f.x, f.by ?? ""].map((column) => distinct(items.map((row) => row[column])));
      const at = new Map(items.map((row) => [`${row[f.x]}\0${row[f.by ?? ""]}`, row]));
      const row = (/** @type {number} */ i, /** @type {number} */ j) => at.get(`${one[i]}\0${other[j]}`);
      const most = Math.max(...items.map((each) => Math.abs(each[f.y])).filter(finite), 1e-9);
      return matrix({
        ...base, rows: one.map(String), columns: other.map(String), dark, low: f.range?.[0] ?? 0, high: f.signed ? most : (f.range?.[1] ?? most), signed: f.signed,
        value: (i, j) => row(i, j)?.[f.y] ?? NaN,
        text: (i, j) => `${visible(one[i])}, ${visible(other[j])}: ${told(row(i, j) ?? {}, f.y)}`,
      });
    }
    const flat = f.flat ? items.filter((row) => !finite(row[f.x])).map((row) => ({ y: row[name(f.y)], label: `${visible(row[f.by ?? ""])} ${number(row[name(f.y)])}` })) : [];
    const refs = (f.refs ?? []).filter((ref) => !ref[2] || ref[2].includes(now(f.y.slice(1)))).map(([y, text]) => ({ y: Number(y), label: String(text) }));
    const here = f.marks ? [...f.marks.map(([x, y, text]) => ({ x, y, label: text })), ...table(f.table).filter((row) => f.without?.includes(row[f.by ?? ""]) && row[f.x]).map((row, i) => ({ x: row[f.x], y: row[f.y], label: i ? "" : visible(row[f.by ?? ""]) }))] : [];
    const row = f.marks && picked();
    if (row) here.push({ x: row[f.x], y: row[f.y], label: filled(meta.slider.mark, row) });
    return lineChart({ ...base, height: f.height, x: filled(f.xLabel ?? f.x, items[0]), y: filled(f.yLabel ?? name(f.y), items[0]), whole: f.x === "layer", range: f.range, domain: f.domain, log: f.log, series: series(f), refs: [...refs, ...flat], marks: here, at: f.pick ? state[f.pick] : null });
  };
  /** @type {Figure[]} */
  const declared = meta.figures ?? [];
  /** The column that a figure needs and its table lacks. @param {Figure} f */
  const lacking = (f) => {
    const row = table(f.table)[0];
    return row && [f.x, f.by ?? f.x, ...(f.lines?.map(([column]) => column) ?? [name(f.y)]), ...(f.where ?? [])].find((column) => !(column.replace("=", "") in row));
  };
  const shown = () => declared.filter((f) => of(f).length && !lacking(f));

  const pick = (/** @type {Figure} */ f, /** @type {import("../types").Hit} */ hit) => {
    const row = hit.key;
    if (f.pick) ctx.set({ [f.pick]: row[f.x] });
    else if (f.marks && row[meta.slider.where[0]]) {
      state[meta.slider.where[0]] = row[meta.slider.where[0]];
      ctx.set({ step: sliding().indexOf(row) });
    }
  };
  /** What stands below the figures: the facts of the row picked, the answers behind the point picked. */
  const facts = () => {
    const row = picked();
    if (!row) return [];
    return [h("dl", { class: "numbers" }, ...meta.slider.facts.flatMap((/** @type {string[]} */ [column, label]) => [h("dt", { text: label }), h("dd", { text: told(row, column) })]))];
  };
  const list = () => {
    const o = meta.list;
    const values = o && arrays.get(o.values);
    if (!values) return [];
    const at = state[o.key];
    if (at === undefined) return [h("p", { class: "hint", text: o.hint })];
    const axis = /** @type {import("../types").Values} */ (arrays.get(o.axis));
    const j = listed(axis).indexOf(at);
    const flags = arrays.get(o.flags);
    const flagged = arrays.get(o.flagAxis);
    const k = listed(flagged).indexOf(now(o.flagKey));
    const all = table(o.table)
      .map((row, i) => ({ row, value: values.numbers[i * axis.length + j], flag: flags && k >= 0 ? flags.at(i * /** @type {import("../types").Values} */ (flagged).length + k) : null }))
      .filter((each) => finite(each.value)).sort((a, b) => b.value - a.value);
    return [
      h("h3", { text: filled(o.title, matching(o.from, o.where).find((row) => row[o.key] === at)) }),
      grid("Answers", [o.unit, "verdict", ...o.columns], all.slice(0, SHOWN).map(({ row, value, flag }) => [number(value), flag === null ? "–" : flag ? "✓ correct" : "✗ incorrect", ...o.columns.map((/** @type {string} */ c) => bdi(visible(row[c])))])),
      h("p", { class: "small", text: `${Math.min(SHOWN, all.length)} of ${all.length}` }),
    ];
  };

  for (const s of meta.switches ?? []) switches.push(s.where ? s : { ...s, options: s.options ?? valuesOf(s) });

  const slider = h("input", { type: "range", oninput: () => ctx.set({ step: Number(slider.value) }) });
  const marked = h("span");
  const sliderLabel = meta.slider && h("label", { class: "choice" }, h("span", { text: meta.slider.label }), slider, marked);
  const tools = h("div", { class: "tools" });
  const place = h("div", { class: "columns" });
  const under = h("div");
  ctx.body.append(tools, place, under);
  return {
    draw() {
      if (meta.slider) {
        slider.max = String(Math.max(sliding().length - 1, 0));
        slider.value = String(sliding().indexOf(picked() ?? {}));
        marked.textContent = filled(meta.slider.mark, picked());
        slider.setAttribute("aria-valuetext", marked.textContent);
      }
      tools.replaceChildren(
        ...switches.map((s) => ({ s, options: optionsOf(s.key) })).filter(({ options }) => options.length > 1).map(({ s, options }) => choice(s.label, options.map((/** @type {any} */ [value, label]) => ({ value, label })), now(s.key), (value) => ctx.set({ [s.key]: value }))),
        ...(sliderLabel && sliding().length > 1 ? [sliderLabel] : []),
      );
      const charts = shown().map((f) => {
        const first = of(f)[0];
        const lines = f.type === "line" ? series(f) : [];
        const made = chartFigure((width) => scene(f, width, ctx.dark()), { name: filled(f.title, first), series: lines.length > 1 ? lines : [], onpick: (hit) => pick(f, hit) });
        if (f.note) made.figure.append(h("p", { class: "small", text: filled(f.note, first) }));
        return made;
      });
      place.replaceChildren(...charts.map((chart) => chart.figure));
      arrange(place);
      charts.forEach((chart) => chart.draw());
      under.replaceChildren(...declared.filter(lacking).map((f) => h("p", { class: "fault", text: `Figure ${f.name} lacks ${f.table}.${lacking(f)}.` })), ...facts(), ...list(), ...below());
    },
    sheets: () => Object.entries(tables()).filter(([, all]) => all.length).map(([label, all]) => {
      const columns = Object.keys(all[0]);
      return { name: label, columns, rows: all.map((row) => columns.map((column) => row[column])) };
    }),
    scenes: () => shown().map((f) => ({ ...scene(f, 640), note: filled(f.note ?? "", of(f)[0]) })),
  };
}
