// The hook of anywidget: a notebook's widget whose traits are `view`, `state` and `theme`. It stands behind view.js in
// one module and is called with what says in a notebook's page that it is dark or light.

/** What view.js, which stands before this, leaves for it. @type {{mount: typeof import("./index.js").mount, widget?: any}} */
const exitlens = /** @type {any} */ (globalThis).exitlens;

exitlens.widget = (/** @type {[string, string]} selectors of a dark and of a light page */ [dark, light]) => ({
  /** @param {{model: any, el: HTMLElement}} given */
  render({ model, el }) {
    const element = document.createElement("div");
    // Where this stands, the frame that a notebook keeps for times without a kernel is hidden.
    element.className = model.get("mark");
    el.append(element);
    const shown = () => {
      const own = model.get("theme");
      if (own !== "auto") return own;
      return document.querySelector(dark) ? "dark" : document.querySelector(light) ? "light" : "auto";
    };
    let theme = shown();
    let own = false;
    const draw = () =>
      exitlens.mount(element, model.get("view"), {
        state: model.get("state"),
        theme,
        onState(state) {
          own = true;
          model.set("state", state);
          model.save_changes();
          own = false;
        },
      });
    let handle = draw();
    const anew = () => {
      handle.destroy();
      theme = shown();
      handle = draw();
    };
    const restored = () => own || handle.setState(model.get("state"));
    model.on("change:view", anew);
    model.on("change:theme", anew);
    model.on("change:state", restored);
    const switched = new MutationObserver(() => shown() !== theme && anew());
    for (const root of [document.documentElement, document.body]) switched.observe(root, { attributes: true });
    // JupyterLab takes letters for commands (a: a new cell, d d: the cell is gone) wherever it sees no input, and it sees
    // none inside of the view. While a reader types there, it shall not look.
    el.addEventListener("focusin", (event) => {
      const typing = /** @type {Element} */ (event.composedPath()[0]).matches("input,select");
      el.toggleAttribute("data-lm-suppress-shortcuts", typing);
    });
    return () => {
      model.off("change:view", anew);
      model.off("change:theme", anew);
      model.off("change:state", restored);
      switched.disconnect();
      handle.destroy();
    };
  },
});
