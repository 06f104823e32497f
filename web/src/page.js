// A page of exitlens: every `<div class="exitlens-view" data-view="id">` shows the JSON of `<script id="id">`. The
// state of all views stands in the address, so that a link shows what its sender saw.

/** @typedef {import("./types").State} State */

/** What view.js, which stands before this script, leaves for it. @type {{mount: typeof import("./index.js").mount}} */
const api = /** @type {any} */ (globalThis).exitlens;

/** @returns {Record<string, State>} */
function readAddress() {
  const text = location.hash.startsWith("#~") ? location.hash.slice(2) : "";
  try {
    const found = JSON.parse(decodeURIComponent(text) || "{}");
    return found && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {};
  }
}

/** @param {Record<string, State>} states */
function writeAddress(states) {
  const kept = Object.fromEntries(Object.entries(states).filter(([, state]) => Object.keys(state).length));
  const hash = Object.keys(kept).length ? `#~${encodeURIComponent(JSON.stringify(kept))}` : "#";
  try {
    history.replaceState(null, "", hash);
  } catch {
    // A frame without an address of its own: the state lives as long as the frame.
  }
}

const STEP = 12;

/** What a notebook's page told the frame by its height: a third of a step more for a dark page, two for a light one. */
function hostTheme() {
  const root = document.documentElement;
  const third = "framed" in root.dataset ? Math.round(((innerHeight % STEP) * 3) / STEP) : 0;
  const theme = /** @type {const} */ (["auto", "dark", "light"])[third] ?? "auto";
  root.dataset.theme = theme;
  return theme;
}

/** Tells the page of the frame how high the frame would be without scroll bars: now, when asked, when it changes. */
function tellHeight() {
  const tell = () => parent.postMessage({ exitlens: document.body.offsetHeight }, "*");
  addEventListener("message", (event) => event.source === parent && tell());
  new ResizeObserver(tell).observe(document.body);
}

function startPage() {
  const framed = "framed" in document.documentElement.dataset;
  let theme = hostTheme();
  const states = readAddress();
  /** @type {Map<string, import("./types").Handle>} */
  const handles = new Map();
  /** @param {HTMLElement} element */
  const start = (element) => {
    const id = element.dataset.view ?? "";
    const source = document.getElementById(id);
    if (!source || handles.has(id)) return;
    let view = null;
    try {
      view = JSON.parse(source.textContent ?? "");
    } catch {
      // mount says it
    }
    const state = states[id];
    const handle = api.mount(element, view, {
      theme,
      state: state && typeof state === "object" ? state : {},
      onState(now) {
        states[id] = now;
        clearTimeout(timer);
        timer = window.setTimeout(() => writeAddress(states), 200);
      },
    });
    handles.set(id, handle);
    // Where a view cannot be shown, the table or the figures that stand beside it are.
    const looked = () => {
      if (!element.shadowRoot?.querySelector(".view > .fault")) return;
      document.documentElement.classList.add("faulty");
      element.closest("section")?.querySelector("details.paper")?.setAttribute("open", "");
    };
    void handle.ready.then(looked, looked);
    // What was kept free for the view is given back, where the frame follows the view's height.
    if (framed) handle.ready.then(() => (element.style.minHeight = ""));
  };
  let timer = 0;
  const elements = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".exitlens-view"));
  // A view is unpacked when it comes near the window: a long report opens at once.
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        start(/** @type {HTMLElement} */ (entry.target));
      }
    },
    { rootMargin: "600px" },
  );
  elements.forEach((element) => near.observe(element));
  document.documentElement.classList.add("scripted");
  if (framed) tellHeight();
  document.querySelectorAll("details.paper").forEach((made) => made.removeAttribute("open"));
  /** @type {Element[]} */
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((made) => made.setAttribute("open", ""));
  });
  addEventListener("afterprint", () => opened.splice(0).forEach((made) => made.removeAttribute("open")));
  addEventListener("resize", () => {
    const was = theme;
    theme = hostTheme();
    if (theme === was) return;
    const drawn = [...elements].filter((element) => handles.has(element.dataset.view ?? ""));
    for (const handle of handles.values()) handle.destroy();
    handles.clear();
    drawn.forEach(start);
  });
  addEventListener("hashchange", () => {
    if (!location.hash.startsWith("#~")) return;
    const now = readAddress();
    for (const [id, handle] of handles) handle.setState(now[id] ?? {});
  });
  /** For those who drive the page: tests, and readers in the console. */
  Object.assign(api, { handles, start: () => elements.forEach(start) });
}

startPage();
