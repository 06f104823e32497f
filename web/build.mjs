// Bundles src/index.js into the wheel's assets. `node build.mjs --check` compares instead of writing, and holds the
// bundle to its budget: 60 kB, 20 kB as gzip.
import { build } from "esbuild";
import { readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const TARGET = new URL("../src/exitlens/report/assets/view.js", import.meta.url);
const MOST = 60_000;
const MOST_GZIP = 20_000;

const { outputFiles } = await build({
  absWorkingDir: new URL(".", import.meta.url).pathname,
  entryPoints: ["src/index.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  loader: { ".css": "text" },
  plugins: [
    {
      // The style sheet is text inside of the module; esbuild minifies it on its own first.
      name: "style",
      setup(made) {
        made.onLoad({ filter: /\.css$/ }, async ({ path }) => {
          const css = await build({ entryPoints: [path], minify: true, write: false, loader: { ".css": "css" } });
          return { contents: css.outputFiles[0].text.trim(), loader: "text" };
        });
      },
    },
  ],
  write: false,
});
const made = Buffer.from(outputFiles[0].contents);
const zipped = gzipSync(made, { level: 9 }).length;
console.log(`view.js: ${made.length} bytes (at most ${MOST}), ${zipped} as gzip (at most ${MOST_GZIP})`);
if (made.length > MOST || zipped > MOST_GZIP) {
  console.error("error: the bundle is over its budget");
  process.exit(1);
}
if (made.includes("</script")) {
  console.error("error: the bundle holds '</script' and cannot stand inside of a page");
  process.exit(1);
}
if (process.argv.includes("--check")) {
  if (!made.equals(readFileSync(TARGET))) {
    console.error("error: the committed bundle is not what these sources give: run `npm run build` in web/");
    process.exit(1);
  }
} else {
  writeFileSync(TARGET, made);
}
