// View 2: the choices of every question by layer. Questions are found by words and by what happened to them; the figures
// of the question chosen are those of figures.js, over a table that is unpacked with its page.

import { bdi, choice, h } from "../dom.js";
import { finite, number, shorten, visible } from "../text.js";
import { listed, rows } from "../unpack.js";
import { figuresView } from "./figures.js";

const LISTED = 300;

/** @param {import("../types").Context} ctx @returns {import("../types").Part} */
export function choicesView(ctx) {
  const { view, state } = ctx;
  const [layers, lenses] = ["layers", "lenses"].map((name) => listed(view.arrays.get(name)));
  const questions = rows(view.arrays, "questions");
  const entropies = questions.map((q) => q.entropy).filter(finite).sort((a, b) => a - b);
  const high = entropies[Math.floor(entropies.length * 0.75)];
  /** @type {[string, string, (q: import("../types").Row) => boolean][]} */
  const filters = [
    ["all", "All", () => true],
    ["correct", "Correct", (q) => q.outcome === "correct"],
    ["incorrect", "Incorrect", (q) => q.outcome === "incorrect"],
    ["changed", "Changed by a decoder", (q) => Boolean(q.changed)],
    ["entropy", "High early entropy", (q) => q.entropy >= high],
  ];
  const offered = filters.filter(([, , keep], i) => !i || questions.some(keep));
  const at = () => Math.min(Math.max(state.question ?? 0, 0), questions.length - 1);

  /** Rows of the question in sight. @type {Record<string, import("../types").Row[]>} */
  let tables = { choices: [], top: [] };
  let loaded = -1;
  const load = async (/** @type {number} */ i) => {
    const page = await view.page(questions[i].page);
    if (i !== at()) return;
    const value = (/** @type {string} */ name) => /** @type {import("../types").Values} */ (page.get(name));
    const inPage = i - questions.findIndex((q) => q.page === questions[i].page);
    const [first, count, total] = [value("first").numbers[inPage], value("count").numbers[inPage], value("choice").length];
    const Q = value("count").length;
    tables = { choices: [], top: [] };
    lenses.forEach((lens, l) => layers.forEach((layer, j) => {
      const cell = l * layers.length + j;
      for (let c = first; c < first + count; c++) {
        const correct = value("correct").at(c);
        tables.choices.push({
          question: questions[i].id, lens, layer, choice: value("choice").at(c), correct, mark: correct ? "✓ " : "",
          probability: value("probability").numbers[cell * total + c], share: value("share").numbers[cell * total + c], mass: value("mass").numbers[cell * Q + inPage],
        });
      }
      const K = page.get("top")?.shape[3] ?? 0;
      for (let rank = 0; rank < K; rank++) {
        const k = (cell * Q + inPage) * K + rank;
        tables.top.push({ question: questions[i].id, lens, layer, rank, token: value("top").at(k), probability: value("top_p").numbers[k] });
      }
    }));
    loaded = i;
  };

  const found = () => {
    const keep = (offered.find(([name]) => name === state.filter) ?? offered[0])[2];
    const words = String(state.search ?? "").toLowerCase().split(/\s+/);
    return questions.map((q, i) => ({ q, i })).filter(({ q }) => keep(q) && words.every((word) => `${q.text} ${q.id}`.toLowerCase().includes(word)));
  };
  const items = h("ul", { class: "list" });
  const count = h("p", { class: "small", role: "status" });
  const search = h("input", { type: "search", placeholder: "Search questions", "aria-label": "Search questions", oninput: () => ctx.set({ search: search.value }) });
  const filter = h("div");
  const heading = h("div");
  const body = h("div");
  const single = questions.length < 2;
  ctx.body.append(h("div", { class: single ? "" : "browser" }, single ? "" : h("div", {}, search, filter, count, items), h("div", {}, heading, body)));
  const figures = figuresView({ ...ctx, body }, { tables: () => tables });

  const drawQuestion = () => {
    const q = questions[at()];
    const facts = [q.outcome && `at the last layer ${q.outcome}`, q.changed && `changed by ${visible(q.changed)}`, finite(q.entropy) && `entropy at layer ${view.meta.early}: ${number(q.entropy, 2)} nats`];
    heading.replaceChildren(h("p", { class: "big" }, bdi(visible(q.text))), h("p", { class: "small", text: facts.filter(Boolean).join(" · ") }));
    figures.draw();
  };
  return {
    ...figures,
    draw() {
      if (!single) {
        const all = found();
        filter.replaceChildren(offered.length > 1 ? choice("Show", offered.map(([value, label]) => ({ value, label })), state.filter ?? "all", (value) => ctx.set({ filter: value })) : "");
        if (search.value !== (state.search ?? "")) search.value = state.search ?? "";
        count.textContent = `${all.length} of ${questions.length} questions${all.length > LISTED ? `; the first ${LISTED} are shown` : ""}`;
        items.replaceChildren(...all.slice(0, LISTED).map(({ q, i }) =>
          h("li", {}, h("button", { "aria-current": String(i === at()), onclick: () => ctx.set({ question: i }) },
            q.outcome ? (q.outcome === "correct" ? "✓ " : "✗ ") : "", bdi(shorten(visible(q.text), 150))))));
      }
      if (loaded === at()) drawQuestion();
      else load(at()).then(drawQuestion, (error) => body.replaceChildren(h("p", { class: "fault", role: "alert", text: error.message })));
    },
  };
}
