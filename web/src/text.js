// Texts and numbers as a reader sees them: nothing invisible, nothing that turns the order of its neighbours.

const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ue000-\uf8ff]/gu;

/** @type {(value: unknown) => boolean} */
export const finite = Number.isFinite;

/** Control characters as pictures (NUL: ␀), overrides as ⟨U+202E⟩. @param {unknown} value */
export function visible(value) {
  if (value === null || value === undefined) return "";
  return String(value).replace(HIDDEN, (c) => {
    const code = /** @type {number} */ (c.codePointAt(0));
    if (c === "\n") return "↵";
    if (c === "\t") return "⇥";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** A token: a leading space as ·, the empty one as ∅. @param {unknown} value */
export function tokenText(value) {
  if (value === null || value === undefined) return "";
  const text = visible(value);
  if (!text) return "∅";
  return text[0] === " " ? `·${text.slice(1)}` : text;
}

/** A number with no more digits than a reader needs. @param {number | null | undefined} value @param {number} digits */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!finite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value)) return String(value).replace("-", "−");
  const size = Math.abs(value);
  const text = size !== 0 && size < 0.5 * 10 ** -digits ? value.toExponential(1) : value.toFixed(digits);
  return text.replaceAll("-", "−");
}

/** `0.52 [0.48, 0.56]`. @param {number} value @param {number} [low] @param {number} [high] @param {number} digits */
export function interval(value, low, high, digits = 3) {
  const text = number(value, digits);
  return finite(low) && finite(high) ? `${text} [${number(low, digits)}, ${number(high, digits)}]` : text;
}

/** At most so many characters. @param {string} text @param {number} most */
export function shorten(text, most) {
  const all = [...text];
  return all.length <= most ? text : `${all.slice(0, most - 1).join("")}…`;
}

/** Different values, in order of appearance. @template T @param {T[]} values @returns {T[]} */
export function distinct(values) {
  return [...new Set(values)];
}
