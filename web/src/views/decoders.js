// View 3: two decoders' answers side by side, below the figures of both: where they part, which layers had a say.

import { bdi, choice, h } from "../dom.js";
import { finite, number, tokenText, visible } from "../text.js";
import { listed, rows } from "../unpack.js";
import { figuresView } from "./figures.js";

const LISTED = 60;

/** What two texts have in common at their beginning, whole words, and the rest of each. @param {string} a @param {string} b */
export function parting(a, b) {
  const [left, right] = [[...a], [...b]];
  let i = 0;
  while (i < left.length && left[i] === right[i]) i++;
  // Back to the beginning of the word: half a word is no place to part.
  while (i > 0 && /[\p{L}\p{N}]/u.test(left[i - 1])) i--;
  return [left.slice(0, i).join(""), left.slice(i).join(""), right.slice(i).join("")];
}

/** @param {import("../types").Context} ctx */
export function decodersView(ctx) {
  const { arrays } = ctx.view;
  const list = (/** @type {string} */ name) => listed(arrays.get(name));
  const names = list("decoders");
  const judges = list("judges");
  const answers = rows(arrays, "answers");
  const steps = rows(arrays, "steps");
  const candidates = list("candidates");
  const d = () => Math.max(names.indexOf(ctx.state.decoder), 1);
  const text = (/** @type {number} */ i, /** @type {number} */ k) => arrays.get("answers.text")?.at(i * names.length + k) ?? "";
  const verdict = (/** @type {number} */ i, /** @type {number} */ k) => {
    const j = Math.max(judges.indexOf(ctx.state.judge), 0);
    return arrays.get("verdicts.correct")?.at((i * names.length + k) * judges.length + j) ?? null;
  };
  /** @type {[string, string, (i: number) => boolean][]} */
  const filters = [
    ["parted", "Parted", (i) => text(i, 0) !== text(i, d())],
    ["better", "Incorrect → correct", (i) => verdict(i, 0) === false && verdict(i, d()) === true],
    ["worse", "Correct → incorrect", (i) => verdict(i, 0) === true && verdict(i, d()) === false],
    ["all", "All", () => true],
  ];
  /** Where the two part, and how far each candidate layer was from the last there. @param {number} i */
  const stepsOf = (i) => {
    const at = steps.findIndex((row) => row.answer === i && row.decoder === names[d()]);
    const values = arrays.get("partings.divergence");
    if (at < 0 || !values) return "";
    const row = steps[at];
    const far = candidates.map((layer, c) => [layer, values.numbers[at * candidates.length + c]]).filter(([, value]) => finite(value));
    return h("p", { class: "small", text: `Parted at token ${row.position}, “${tokenText(row.token)}”; layer chosen: ${number(row.chosen)}; divergence by layer: ${far.map(([layer, value]) => `${layer}: ${number(value, 6)}`).join(", ")}.` });
  };
  const pairs = () => {
    const filter = filters.find(([name]) => name === ctx.state.filter) ?? filters[0];
    const found = answers.map((_, i) => i).filter(filter[2]);
    const line = (/** @type {number} */ i, /** @type {number} */ k, /** @type {string} */ both, /** @type {string} */ rest) => {
      const judged = verdict(i, k);
      return h("p", { class: "answer" }, h("span", { class: "small", text: `${visible(names[k])}${judged === null ? "" : judged ? " ✓ correct" : " ✗ incorrect"}: ` }), h("bdi", {}, visible(both), h("mark", { text: visible(rest) })));
    };
    return [
      h("div", { class: "tools" },
        choice("Answers", filters.filter(([name]) => judges.length || name === "parted" || name === "all").map(([value, label]) => ({ value, label })), filter[0], (value) => ctx.set({ filter: value })),
        h("span", { class: "small", role: "status", text: `${found.length} of ${answers.length}${found.length > LISTED ? `; the first ${LISTED} are shown` : ""}` })),
      h("div", { class: "list", tabindex: "0", role: "group", "aria-label": "Answers" }, ...found.slice(0, LISTED).map((i) => {
        const [both, left, right] = parting(text(i, 0), text(i, d()));
        return h("div", {}, h("h3", {}, bdi(visible(answers[i].question))), line(i, 0, both, left), line(i, d(), both, right), stepsOf(i));
      })),
    ];
  };
  const part = figuresView(ctx, { below: pairs });
  const sheets = () => [
    ...part.sheets(),
    { name: "texts", columns: ["question_id", "decoder", "answer"], rows: answers.flatMap((row, i) => names.map((name, k) => [row.id, name, text(i, k)])) },
  ];
  return { ...part, sheets };
}
