// Bundles the sources into the wheel's assets. `node build.mjs --check` compares instead of writing, and holds the
// component to its budget: 60 kB, 20 kB as gzip. esbuild bundles and minifies; terser takes what is left.
import { build } from "esbuild";
import { minify } from "terser";
import { readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const ASSETS = new URL("../src/exitlens/report/assets/", import.meta.url);
const MOST = 60_000;
const MOST_GZIP = 20_000;

/** The style sheet is text inside of the module; esbuild minifies it on its own first. */
const style = {
  name: "style",
  setup(made) {
    made.onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const css = await build({ entryPoints: [path], minify: true, write: false, loader: { ".css": "css" } });
      return { contents: css.outputFiles[0].text.trim(), loader: "text" };
    });
  },
};

// live.js reaches into view.js by the names that they got there.
let names = {};

async function bundle(entry) {
  // widget.js stands behind view.js in one module: it must not have names at the top that are view.js's too.
  const alone = entry !== "src/widget.js";
  const { outputFiles, mangleCache } = await build({
    mangleCache: names,
    absWorkingDir: new URL(".", import.meta.url).pathname,
    entryPoints: [entry],
    bundle: true,
    minifySyntax: true,
    format: alone ? "esm" : "iife",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    // Names of the component's own: none is of the page, of a view's JSON or of a host.
    mangleProps: /^(topP|onpick|onat|onfocus|onopen|grown|reveal|scroller|panelActions|announce|dashed|anchor|hits|items|wide|alpha|turn|down|ranks|positions|colour|scenes|numbers|points|bars|series|draw|figure|element|frame|dash|layers|dark|bold|tag|button|make|actions|go)$/,
    external: ["./view.js", "./live.js"],
    plugins: [style],
    write: false,
  });
  names = mangleCache;
  const { code } = await minify(outputFiles[0].text, {
    module: alone,
    toplevel: alone,
    ecma: 2020,
    // The second line is what makes the zipped text smaller, found by trying.
    compress: {
      passes: 4, unsafe_arrows: true, pure_getters: true, unsafe: true, keep_fargs: false,
      sequences: false, hoist_vars: true, booleans: false, unsafe_math: true, lhs_constants: false, hoist_funs: true,
    },
    format: { ascii_only: false, quote_style: 2 },
  });
  return Buffer.from(`${code}\n`);
}

const check = process.argv.includes("--check");
for (const [name, entry] of [["view.js", "src/index.js"], ["page.js", "src/page.js"], ["widget.js", "src/widget.js"], ["live.js", "src/live/index.js"], ["live_page.js", "src/live/page.js"]]) {
  const made = await bundle(entry);
  const zipped = gzipSync(made, { level: 9 }).length;
  const budget = name === "view.js" ? ` (at most ${MOST} and ${MOST_GZIP})` : "";
  console.log(`${name}: ${made.length} bytes, ${zipped} as gzip${budget}`);
  const place = new URL(name, ASSETS);
  let fault = "";
  if (budget && (made.length > MOST || zipped > MOST_GZIP)) fault = `${name} is over its budget`;
  else if (made.includes("</script") || made.includes("<!--")) fault = `${name} cannot stand inside of a page`;
  else if (!check) writeFileSync(place, made);
  else if (!made.equals(readFileSync(place))) fault = `the committed ${name} is not what these sources give: run npm run build in web/`;
  if (fault) {
    console.error(`error: ${fault}`);
    process.exitCode = 1;
  }
}
