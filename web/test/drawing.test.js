// Colours, texts, CSV and files: what must hold of them whatever the data.

import assert from "node:assert/strict";
import { test } from "node:test";
import { PALETTE, contrast, ramp } from "../src/colour.js";
import { barChart } from "../src/bars.js";
import { lineChart, ticks } from "../src/chart.js";
import { toCsv } from "../src/exports.js";
import { toSvg } from "../src/scene.js";
import { interval, number, tokenText, visible } from "../src/text.js";

test("text reads at 4.5 : 1 and marks at 3 : 1, light and dark", () => {
  for (const mode of [0, 1]) {
    const paper = PALETTE.paper[mode];
    for (const name of ["ink", "muted"]) assert.ok(contrast(PALETTE[name][mode], paper) >= 4.5, `${name} ${mode}`);
    for (const name of ["line", "s0", "s1", "s2", "s3", "s4", "s5", "s6"]) {
      assert.ok(contrast(PALETTE[name][mode], paper) >= 3, `${name} ${mode} ${contrast(PALETTE[name][mode], paper)}`);
    }
  }
});

test("every cell's text reads at 4.5 : 1 on its fill", () => {
  for (const dark of [false, true]) for (const signed of [false, true]) {
    for (const { fill, ink } of ramp(dark, signed)) assert.ok(contrast(fill, ink) >= 4.5, `${fill} ${ink}`);
  }
});

test("a one-signed ramp goes one way in lightness: away from the paper", () => {
  for (const dark of [false, true]) {
    const away = ramp(dark).map(({ fill }) => contrast(fill, PALETTE.paper[dark ? 1 : 0]));
    assert.ok(away.every((value, i) => i === 0 || value >= away[i - 1] * 0.97), String(away));
    assert.ok(away.at(-1) > 7);
  }
});

test("texts show what is invisible and turn nothing around", () => {
  assert.equal(visible("a\u0000b\u202ec\nd"), "a␀b⟨U+202E⟩c↵d");
  assert.equal(tokenText(" the"), "·the");
  assert.equal(tokenText(""), "∅");
  assert.equal(visible("👩‍👩‍👧 é שלום"), "👩‍👩‍👧 é שלום");
});

test("numbers are short and true", () => {
  assert.equal(number(-0.12345), "−0.123");
  assert.equal(number(1e-7), "1.0e−7");
  assert.equal(number(NaN), "–");
  assert.equal(interval(0.5, 0.4, 0.6), "0.500 [0.400, 0.600]");
  assert.equal(interval(0.5, NaN, 0.6), "0.500");
});

test("CSV quotes what must be quoted, and no cell is a formula", () => {
  const made = toCsv({ name: "t", columns: ["a,b", "n"], rows: [['x"y\n', 0.1], ["=1+1", null], [null, NaN]] });
  assert.equal(made, '"a,b",n\r\n"x""y\n",0.1\r\n\'=1+1,\r\n,\r\n');
});

test("a file's SVG holds texts as texts only", () => {
  const hostile = '</text><script>alert(1)</script><a href="javascript:x">';
  const scene = lineChart({ name: "x", label: hostile, width: 400, x: hostile, y: "y", series: [{ name: hostile, points: [{ x: 0, y: 1, low: 0, high: 2 }, { x: 1, y: 2, low: 1, high: 3 }] }] });
  for (const print of [false, true]) {
    const text = toSvg(scene, print);
    assert.ok(!/<script|<a /.test(text));
    assert.ok(text.includes("&#60;script"));
    assert.ok(!text.includes("var(--"));
  }
  assert.ok(toSvg(scene, true).includes('mm"'));
  assert.ok(!toSvg(scene, true).includes("fill-opacity"));
});

test("ticks are round and inside", () => {
  assert.deepEqual(ticks(0, 1, 5).map((v) => Math.round(v * 10)), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(ticks(0, 30, 4), [0, 10, 20, 30]);
});

test("an axis by decades says true values, and that it is one", () => {
  const scene = (high, height) => lineChart({ name: "kl", label: "", width: 400, height, x: "layer", y: "nats", log: true, series: [{ name: "logit", points: [{ x: 0, y: 0 }, { x: 1, y: high }] }] });
  for (const [high, wanted] of [[4, [0, 1, 2, 3, 4]], [12, [0, 1, 3, 10]], [300, [0, 1, 3, 10, 30, 100, 300]], [49151, [0, 10, 100, 1000, 10000]]]) {
    const made = scene(high, 220);
    const marks = made.items.filter((item) => item.anchor === "end" && item.x === 40);
    assert.deepEqual(marks.map((item) => Number(item.text)), wanted, String(high));
    // Where a value is written there it lies: the lowest and the highest point of the line are 0 and `high`.
    const [zero, top] = made.hits.map((hit) => hit.y);
    for (const mark of marks) {
      const place = zero + (top - zero) * Math.log10(1 + Number(mark.text)) / Math.log10(1 + high);
      assert.ok(Math.abs(place + 4 - mark.y) < 1, `${mark.text} of ${high}`);
    }
    const places = marks.map((item) => item.y).sort((a, b) => a - b);
    assert.ok(places.every((y, i) => !i || y - places[i - 1] >= 8), `${high}: ${places}`);
    assert.ok(made.items.some((item) => item.text === "nats (log scale)"));
  }
});

test("a bar says its interval, and its bar begins at zero", () => {
  const made = barChart({ name: "b", label: "", width: 400, bars: [{ label: "logit", value: 0.03, low: 0.02, high: 0.05 }, { label: "raw", value: NaN }] });
  assert.deepEqual(made.hits.map((hit) => hit.label), ["logit: 0.030 [0.020, 0.050]", "raw: –"]);
});

test("a drawing in a file says itself what the page says around it, and no band hides a line", () => {
  const points = (low) => [0, 1, 2].map((x) => ({ x, y: low + x, low: low + x - 1, high: low + x + 1 }));
  const scene = lineChart({ name: "a", label: "A title", width: 300, x: "layer", y: "nats", series: [{ name: "first <line>", points: points(0) }, { name: "second", points: points(0.2) }] });
  for (const print of [false, true]) {
    const text = toSvg({ ...scene, notes: ["n = 3; bands: 95% intervals.", "a model"] }, print);
    for (const word of ["A title", "first &#60;line&#62;", "second", "n = 3; bands: 95% intervals.", "a model"]) assert.ok(text.includes(`>${word}</text>`), word);
    const shapes = text.split("\n");
    const bands = shapes.map((shape, i) => (shape.includes("Z") && !shape.includes('fill="none"') ? i : -1)).filter((i) => i >= 0);
    const lines = shapes.map((shape, i) => (shape.includes('stroke-width="1.8"') ? i : -1)).filter((i) => i >= 0);
    assert.ok(bands.length === 2 && lines.length >= 2 && Math.max(...bands) < Math.min(...lines));
    assert.equal(text.includes("fill-opacity"), !print);
    const [, top, width, height] = text.match(/viewBox="0 (\S+) (\S+) (\S+)"/).map(Number);
    for (const [, x, y] of text.matchAll(/<text fill="[^"]*" x="([^"]*)" y="([^"]*)"/g)) assert.ok(x >= 0 && x <= width && y > top && y < top + height, `${x} ${y}`);
  }
});
