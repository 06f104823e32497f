// The live page: asks the server, hands what comes to the views, stops, forks, and shows where answers part.

import { mountLive } from "./live.js";
import { readEvents } from "./stream.js";

/**
 * @typedef {object} Answer
 * @property {number} n
 * @property {string} decoder
 * @property {string} form
 * @property {number[]} before ids that the model was given
 * @property {{id: number, text: string}[]} inherited what a fork took over of the answer it left
 * @property {{id: number, text: string}[]} tokens
 * @property {string | null} text whole, once it has ended
 * @property {string} state
 * @property {import("../types").Handle | null} handle
 * @property {AbortController} controller
 */

const get = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const [form, prompt, kinds, decoder, other, most, clear, trouble, said, compared, place] =
  ["ask", "prompt", "form", "decoder", "other", "tokens", "clear", "trouble", "said", "compared", "answers"].map(get);

const FORMS = /** @type {Record<string, string>} */ ({ text: "a text to go on from", question: "a question, after six examples", chat: "a chat turn" });
const FINISHES = /** @type {Record<string, string>} */ ({ eos: "ended by the model", stop: "ended before a next question", length: "as many as were asked for" });
/** @type {string[]} */
let decoders = [];
/** @type {Answer[]} */
let answers = [];
let counted = 0;

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @param {string} text @param {...(Node | string)} more */
function make(tag, text, ...more) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...more);
  return made;
}

/** @param {string} text nothing: all is well */
function complain(text) {
  trouble.textContent = text;
  trouble.hidden = !text;
}

/** @param {unknown} error @returns {string} */
function reason(error) {
  if (error instanceof TypeError) return "The server does not answer: is exitlens serve still running?";
  return error instanceof Error ? error.message : String(error);
}

/** @param {Response} response @returns {Promise<any>} */
async function body(response) {
  const found = await response.json().catch(() => null);
  if (!response.ok) throw new Error(found?.error?.message ?? `The server said ${response.status}.`);
  return found;
}

async function start() {
  try {
    const about = await body(await fetch("/live"));
    decoders = about.decoders;
    get("model").textContent = about.model;
    document.title = `${about.model}, live in exitlens`;
    get("about").textContent = `${about["layers"]} layers, each asked what it would write next.` + (about.probe ? ` Probe: ${about.probe}.` : "");
    if (about.run !== null) {
      const link = make("a", `Open the run ${about.run}`);
      link.href = "/run";
      link.target = "_blank";
      link.rel = "noopener";
      get("about").append(" ", link);
    }
    for (const name of about.forms) kinds.append(Object.assign(make("option", FORMS[name] ?? name), { value: name }));
    kinds.value = "question";
    get("decoders").append(...decoders.map((name) => Object.assign(make("option", ""), { value: name })));
    decoder.value = about.decoder;
    most.max = String(about.max_tokens);
    most.value = String(Math.min(40, about.max_tokens));
  } catch (error) {
    complain(reason(error));
  }
}

/**
 * @param {string | number[]} asked
 * @param {string} kind
 * @param {string} name of the decoder
 * @param {number} tokens
 * @param {{answer: Answer, position: number} | null} from
 */
async function ask(asked, kind, name, tokens, from = null) {
  /** @type {Answer} */
  const answer = {
    n: ++counted, decoder: name, form: kind, before: [], tokens: [], text: null, state: "waits for its turn", handle: null, controller: new AbortController(),
    inherited: from ? [...from.answer.inherited, ...from.answer.tokens.slice(0, from.position)] : [],
  };
  const title = make("h2", `${answer.n}. `, make("bdi", name));
  if (from) title.append(`, forked from answer ${from.answer.n} after token ${from.position}`);
  const shown = make("p", "Waits for its turn.");
  shown.className = "asked";
  shown.tabIndex = 0; // a long one scrolls
  const element = document.createElement("div");
  const article = make("article", "", title, shown, element);
  article.setAttribute("aria-label", `Answer ${answer.n}`);
  place.append(article);
  answers.push(answer);
  place.classList.toggle("many", answers.length > 1);
  clear.hidden = false;
  const add = (/** @type {any} */ event) => answer.handle?.push(event);
  const end = (/** @type {string} */ state) => {
    answer.state = state;
    said.textContent = `Answer ${answer.n}: ${answer.tokens.length} tokens, ${state}`;
    compare();
  };
  /** @param {any} begin */
  const begin = (begin) => {
    answer.before = begin.prompt_ids;
    shown.textContent = from ? `…${begin.prompt.slice(-160)}` : begin.prompt;
    answer.handle = mountLive(element, { ...begin.view, title: `Answer ${answer.n}: what every layer would write next` }, {
      decoders,
      onAction(action) {
        if (action.type === "stop") answer.controller.abort();
        else fork(answer, action.position, action.decoder);
      },
    });
    add({ token: begin.last });
    answer.state = "is being written";
  };
  let over = false;
  try {
    const response = await fetch("/live", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompt: asked, form: kind, decoder: name, max_tokens: tokens }),
      signal: answer.controller.signal,
    });
    if (!response.ok) await body(response);
    for await (const event of readEvents(/** @type {ReadableStream<Uint8Array>} */ (response.body))) {
      if (event.begin) begin(event.begin);
      if (event.token) {
        answer.tokens.push(event.token);
        add({ token: event.token.text });
        if (answer.tokens.length % 8 === 0) compare();
      }
      if (event.cell) add(event.cell);
      if (event.done) {
        over = true;
        answer.text = event.done.text;
        const speed = event.done.seconds > 0 ? `, ${(event.done.tokens / event.done.seconds).toFixed(1)} tokens a second` : "";
        add({ done: (FINISHES[event.done.finish] ?? event.done.finish) + speed });
        end(`${FINISHES[event.done.finish] ?? event.done.finish}${speed}`);
      }
      if (event.error) throw new Error(event.error.message);
    }
    if (!over) throw new Error("The connection ended before the answer did.");
  } catch (error) {
    const stopped = answer.controller.signal.aborted;
    const text = stopped ? "stopped" : reason(error);
    if (answer.handle) add(stopped ? { done: "stopped" } : { error: text });
    else {
      shown.textContent = stopped ? "Stopped before it began." : text;
      shown.className = stopped ? "asked" : "notice";
    }
    end(stopped ? "stopped" : "broken off");
  }
}

/** Goes on after token `position` of an answer (0: after the prompt). @param {Answer} answer @param {number} position @param {string} name */
function fork(answer, position, name) {
  const ids = [...answer.before, ...answer.tokens.slice(0, position).map((token) => token.id)];
  ask(ids, answer.form, name, Math.max(1, Number(most.value) - position), { answer, position });
  place.lastElementChild?.scrollIntoView({ block: "nearest" });
}

/** Answers under one another, with the token at which each parts from the first. */
function compare() {
  const shown = answers.filter((answer) => answer.tokens.length + answer.inherited.length);
  compared.hidden = shown.length < 2;
  if (compared.hidden) return;
  const whole = (/** @type {Answer} */ answer) => [...answer.inherited, ...answer.tokens];
  const first = whole(shown[0]);
  const rows = shown.map((answer) => {
    const tokens = whole(answer);
    let same = 0;
    while (same < tokens.length && same < first.length && tokens[same].id === first[same].id) same++;
    const text = document.createElement("td");
    const words = (/** @type {{text: string}[]} */ part) => part.map((token) => token.text).join("");
    // Tokens may be parts of a character: then only the whole text is legible.
    const legible = words(answer.inherited) + (answer.text ?? words(answer.tokens));
    if (answer === shown[0] || legible !== words(tokens)) text.append(make("bdi", legible));
    else {
      const common = make("bdi", words(tokens.slice(0, same)));
      common.className = "shared";
      text.append(common);
      if (same < tokens.length) text.append(make("mark", words(tokens.slice(same, same + 1))), make("bdi", words(tokens.slice(same + 1))));
    }
    const parts = answer === shown[0] ? "–" : same < Math.max(tokens.length, first.length) ? `token ${same + 1}` : "nowhere";
    const name = make("th", `${answer.n}. `, make("bdi", answer.decoder));
    name.setAttribute("scope", "row");
    const where = make("td", parts);
    where.className = "n";
    return make("tr", "", name, text, where, make("td", answer.state));
  });
  const heads = ["Decoder", "Answer", "Parts from the first at", "State"].map((text) => Object.assign(make("th", text), { scope: "col" }));
  compared.replaceChildren(make("table", "", make("caption", "Answers side by side"), make("thead", "", make("tr", "", ...heads)), make("tbody", "", ...rows)));
}

form.addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  complain("");
  const names = [decoder.value.trim(), other.value.trim()].filter(Boolean);
  const tokens = Number(most.value);
  drop();
  for (const name of names) ask(prompt.value, kinds.value, name, tokens);
});
prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
/** A new question begins anew: answers to other questions cannot be compared. */
function drop() {
  for (const answer of answers) {
    answer.controller.abort();
    answer.handle?.destroy();
  }
  answers = [];
  counted = 0;
  place.replaceChildren();
  compared.hidden = clear.hidden = true;
}
clear.addEventListener("click", () => {
  drop();
  prompt.focus();
});
addEventListener("pagehide", () => answers.forEach((answer) => answer.controller.abort()));
start();
