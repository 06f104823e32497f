// The packed form, as Python writes it: fixtures are made here byte by byte, so nothing is compared with itself.

import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateRawSync } from "node:zlib";
import { ViewError, rows, unpack } from "../src/unpack.js";

/** @param {string[]} texts @param {[string, any][]} parts */
function block(texts, parts) {
  const head = Buffer.from(JSON.stringify(texts));
  const pieces = [head];
  let at = head.length;
  const arrays = {};
  for (const [name, { type, shape, bytes, ...rest }] of parts) {
    const gap = (8 - (at % 8)) % 8;
    pieces.push(Buffer.alloc(gap), Buffer.from(bytes));
    at += gap;
    arrays[name] = { type, shape, at, ...rest };
    at += bytes.length;
  }
  const whole = Buffer.concat(pieces);
  return { arrays, texts: head.length, size: whole.length, data: deflateRawSync(whole).toString("base64") };
}

const exits = (more = {}) => ({
  format: "exitlens-view", version: 1, kind: "exits", title: "t",
  block: block(["margin"], [
    ["policies.policy", { type: "s1", shape: [2], bytes: [0, 255] }],
    ["policies.threshold", { type: "f4", shape: [2], bytes: Buffer.from(new Float32Array([0.5, NaN]).buffer) }],
    ["policies.agreement", { type: "q1", shape: [2], bytes: [254, 255], low: 0, high: 1 }],
    ["policies.layers_saved", { type: "q2", shape: [2], bytes: [0, 0, 0xfe, 0xff], low: -1, high: 3 }],
    ["policies.n", { type: "u2", shape: [2], bytes: [1, 2, 0, 0] }],
  ]),
  ...more,
});

test("numbers, texts and missing values come out as they went in", async () => {
  const view = await unpack(exits());
  assert.deepEqual(rows(view.arrays, "policies"), [
    { policy: "margin", threshold: 0.5, agreement: 1, layers_saved: -1, n: 513 },
    { policy: null, threshold: NaN, agreement: NaN, layers_saved: 3, n: 0 },
  ]);
});

test("a newer form is refused in words that say what to do", async () => {
  await assert.rejects(unpack(exits({ version: 2 })), /newer exitlens \(form 2.*update exitlens/);
});

for (const [what, change, message] of [
  ["another format", { format: "x" }, /not a view/],
  ["an unknown kind", { kind: "toString" }, /Unknown kind of view: toString/],
  ["a kind whose arrays are not there", { kind: "map" }, /damaged \(lenses\)/],
]) {
  test(`${what} is refused`, async () => {
    await assert.rejects(unpack(exits(change)), (error) => error instanceof ViewError && message.test(error.message));
  });
}

test("damage is a sentence, whatever is damaged", async () => {
  const shapes = exits();
  shapes.block.arrays["policies.n"].shape = [1];
  await assert.rejects(unpack(shapes), /damaged \(policies.n\)/);
  const outside = exits();
  outside.block.arrays["policies.n"].at = 8000;
  await assert.rejects(unpack(outside), /damaged \(policies.n\)/);
  const short = exits();
  short.block.size += 1;
  await assert.rejects(unpack(short), /damaged \(data\)/);
  const bomb = exits();
  bomb.block.size = 4;
  await assert.rejects(unpack(bomb), /damaged \(data\)/);
  const noise = exits();
  noise.block.data = "AAAA";
  await assert.rejects(unpack(noise), ViewError);
});
