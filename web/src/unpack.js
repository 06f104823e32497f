// From the JSON of a view to arrays: checked against schema.json, which Python writes from its own list.

import schema from "./schema.json" with { type: "json" };

/** @typedef {import("./types").Values} Values */

export const VERSION = schema.version;

/** By kind of view, the arrays it has. @type {Record<string, string[]>} */
export const FORMS = schema.kinds;

/** A fault of the view, in a sentence for the reader. */
export class ViewError extends Error {}

/** @param {string} what */
const damaged = (what) => new ViewError(`This view is damaged (${what}): write it again.`);

/** @type {Record<string, any>} */
const ARRAYS = {
  __proto__: null, // "constructor" is no type
  b1: Uint8Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array,
  f4: Float32Array, f8: Float64Array, q1: Uint8Array, q2: Uint16Array,
  s1: Uint8Array, s2: Uint16Array, s4: Uint32Array,
};

/** Most bytes of a block: more is a mistake or an attack. */
const MOST = 2 ** 28;

/** A place or length: no fraction, no text, not below 0. @param {unknown} value */
const whole = (value) => value === Number(value) >>> 0;

/** @param {string} base64 @returns {Uint8Array<ArrayBuffer>} */
function bytes(base64) {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

/** @param {string} data @param {number} size */
async function inflate(data, size) {
  if (!(size >= 0 && size <= MOST)) throw 0;
  const stream = new Blob([bytes(data)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.getReader();
  const out = new Uint8Array(size);
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > size) throw 0;
    out.set(value, at);
    at += value.length;
  }
  if (at !== size) throw 0;
  return out;
}

/**
 * @param {import("./types").Packed} entry
 * @param {Uint8Array<ArrayBuffer>} all
 * @param {string[]} texts
 * @returns {Values}
 */
function array(entry, all, texts) {
  const Kind = ARRAYS[entry.type];
  const shape = entry.shape;
  const length = shape.reduce((a, b) => a * b, 1);
  if (![...shape, entry.at].every(whole)) throw 0;
  // Throws for what is not in the block, or lies askew.
  const stored = new Kind(all.buffer, entry.at, length);
  const none = 256 ** Kind.BYTES_PER_ELEMENT - 1;
  const first = entry.type[0];
  if (first === "s") {
    if (stored.some((/** @type {number} */ v) => v !== none && !(v < texts.length))) throw 0;
    return { shape, length, type: "text", numbers: stored, at: (i) => (stored[i] === none ? null : texts[stored[i]]) };
  }
  if (first === "b") {
    return { shape, length, type: "flag", numbers: stored, at: (i) => (stored[i] === none ? null : stored[i] === 1) };
  }
  let numbers = stored;
  if (first === "q") {
    const low = entry.low ?? 0;
    const step = (((entry.high ?? 0) - low) || 1) / (none - 1);
    numbers = new Float64Array(length);
    for (let i = 0; i < length; i++) numbers[i] = stored[i] === none ? NaN : low + stored[i] * step;
  }
  return { shape, length, type: "number", numbers, at: (i) => numbers[i] };
}

/** @param {import("./types").Block} block @returns {Promise<Map<string, Values>>} */
async function arrays(block) {
  let name = "data";
  try {
    const all = await inflate(block.data, block.size);
    const texts = JSON.parse(new TextDecoder().decode(all.subarray(0, block.texts)));
    return new Map(Object.entries(block.arrays).map(([each, entry]) => [name = each, array(entry, all, texts)]));
  } catch (error) {
    throw error instanceof ViewError ? error : damaged(name);
  }
}

/**
 * Throws a ViewError where the arrays are not those that the kind has, by lines like `number lens layer?: entropy kl`,
 * or where the columns of a table (`table.column`) are not of one length.
 * @param {Map<string, Values>} found
 * @param {string[]} lines
 */
function check(found, lines) {
  /** @type {Record<string, number>} */
  const sizes = {};
  const fits = (/** @type {string} */ axis, /** @type {number} */ size) => size === (sizes[axis] ??= size ?? -1);
  for (const [name, values] of found) {
    const [table, column] = name.split(".");
    if (column && !fits(table, values.shape[0])) throw damaged(name);
  }
  for (const line of lines) {
    const [head, names] = line.split(": ");
    const [type, ...axes] = head.replace("?", "").split(" ");
    for (const name of names.split(" ")) {
      const values = found.get(name);
      if (!values && head.endsWith("?")) continue;
      if (!values || values.type !== type || values.shape.length !== axes.length || !axes.every((axis, i) => fits(axis, values.shape[i]))) throw damaged(name);
    }
  }
}

/**
 * @param {any} view
 * @returns {Promise<import("./types").Unpacked>}
 */
export async function unpack(view) {
  if (view?.format !== "exitlens-view") throw new ViewError("This is not a view of exitlens.");
  if (view.version > VERSION) {
    throw new ViewError(
      `This view is of a newer exitlens (form ${view.version}; here ${VERSION}): update exitlens to see it.`,
    );
  }
  if (!(view.version >= 1)) throw damaged("version");
  if (!Object.hasOwn(FORMS, view.kind)) throw new ViewError(`Unknown kind of view: ${String(view.kind).slice(0, 80)}.`);
  if (typeof DecompressionStream === "undefined") {
    throw new ViewError("This browser is too old: update it.");
  }
  const found = await arrays(view.block);
  check(found, FORMS[view.kind]);
  /** @type {Promise<Map<string, Values>>[]} */
  const pages = [];
  const { format, block, pages: packed = [], ...about } = view;
  return {
    title: "",
    notes: [],
    meta: {},
    ...about,
    arrays: found,
    pages: packed.length,
    page: (i) => (pages[i] ??= arrays(packed[i]).then((page) => (check(page, FORMS[`${view.kind}/page`]), page))),
  };
}

/** All values of an array; of none, none. @param {Values | undefined} values @returns {any[]} */
export const listed = (values) => Array.from({ length: values?.length ?? 0 }, (_, i) => /** @type {Values} */ (values).at(i));

/**
 * The rows of a table: arrays named `name.column`.
 * @param {Map<string, Values>} arrays
 * @param {string} name
 * @returns {import("./types").Row[]}
 */
export function rows(arrays, name) {
  const columns = [...arrays].filter(([key, values]) => key.startsWith(`${name}.`) && values.shape.length === 1);
  const count = columns.length ? columns[0][1].length : 0;
  return Array.from({ length: count }, (_, i) =>
    Object.fromEntries(columns.map(([key, values]) => [key.slice(name.length + 1), values.at(i)])),
  );
}
