// Elements from plain objects. Text goes in as text only: there is no way from a string to markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [given] attributes; functions named on… become listeners; `class`, `text` and `style`
 *   as one expects; null and false are left out
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(made.style, value);
    else if (name in made && typeof value !== "string") /** @type {any} */ (made)[name] = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child || child === "") made.append(child);
  return made;
}

/** @param {string} tag @param {Record<string, any>} given */
export function s(tag, given) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) {
    if (value !== undefined && value !== null) made.setAttribute(name, String(value));
  }
  return made;
}

/** A text that keeps its direction to itself. @param {string} text @param {string} [name] */
export function bdi(text, name) {
  return h("bdi", { class: name, text });
}

/**
 * A labelled choice: a row of buttons for a few, a menu for many.
 * @param {string} label
 * @param {{value: any, label: string, title?: string}[]} options
 * @param {any} value
 * @param {(value: any) => void} chosen
 */
export function choice(label, options, value, chosen) {
  if (options.length > 6 || options.some((o) => o.label.length > 26)) {
    const select = h(
      "select",
      { onchange: () => chosen(options[select.selectedIndex].value) },
      ...options.map((o) => h("option", { text: o.label, selected: o.value === value })),
    );
    return h("label", { class: "choice" }, h("span", { text: label }), select);
  }
  return h(
    "div",
    { class: "choice", role: "group", "aria-label": label },
    h("span", { text: label }),
    ...options.map((o) =>
      h("button", { text: o.label, title: o.title, "aria-pressed": `${o.value === value}`, onclick: () => chosen(o.value) }),
    ),
  );
}

/**
 * A table that scrolls.
 * @param {string} caption
 * @param {string[]} heads
 * @param {(Node | string)[][]} rows
 * @param {boolean[]} [numeric] columns of numbers
 */
export function grid(caption, heads, rows, numeric = []) {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h("table", {}, h("caption", { text: caption }),
      h("thead", {}, h("tr", {}, ...heads.map((text, i) => h("th", { text, class: numeric[i] && "n" })))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((value, i) => h("td", { class: numeric[i] && "n" }, value)))))));
}

/**
 * A table of a sheet, for those who read tables rather than pictures.
 * @param {import("./types").Sheet} sheet
 * @param {(value: any) => string} write
 */
export function tableOf(sheet, write) {
  const shown = sheet.rows.slice(0, 200);
  const name = sheet.rows.length > 200 ? `${sheet.name}: first 200 of ${sheet.rows.length} rows; copy as CSV for all` : sheet.name;
  return grid(name, sheet.columns, shown.map((row) => row.map((value) => bdi(write(value)))), sheet.columns.map((_, i) => shown.every((row) => row[i] === null || typeof row[i] === "number")));
}
