// Colours: viridis for one-signed quantities, a diverging ramp for signed ones, five hues for series.

/** Names of colours in scenes and style: light, then dark. @type {Record<string, [string, string]>} */
export const PALETTE = {
  paper: ["#ffffff", "#15191e"],
  ink: ["#1f2730", "#e4e8ec"],
  muted: ["#5f6974", "#9aa5b1"],
  grid: ["#dfe3e8", "#2d343c"],
  line: ["#7c8691", "#75808c"],
  wash: ["#f3f5f8", "#1f262d"],
  // Okabe and Ito (2008), darkened or lightened to 3 : 1 against the paper; two more for questions of seven choices
  s0: ["#0072b2", "#4ea8de"],
  s1: ["#c65300", "#f0843c"],
  s2: ["#00805d", "#35c39a"],
  s3: ["#a04a7b", "#d58fb6"],
  s4: ["#946500", "#e0ab3a"],
  s5: ["#59646f", "#b6c0ca"],
  s6: ["#8f1d1d", "#ff9d90"],
};

// viridis (Smith and van der Walt 2015) at five places: even in lightness, read alike with every common colour vision.
const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
const DIVERGING = ["#b44a00", "#eab690", "#a6cbe2", "#045b91"];

/** @param {string} hex @returns {number[]} */
export function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** @param {number[]} c */
export function hex(c) {
  return `#${c.map((v) => Math.round(v).toString(16).padStart(2, "0")).join("")}`;
}

/** @param {number[]} a @param {number[]} b @param {number} t */
export function mix(a, b, t) {
  return a.map((v, i) => v + (b[i] - v) * t);
}

/** @param {string[]} stops @param {number} t */
function along(stops, t) {
  const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return mix(rgb(stops[i]), rgb(stops[i + 1]), place - i);
}

/** Relative luminance (WCAG 2). @param {number[]} c */
function luminance(c) {
  const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Contrast of two colours (WCAG 2), 1 to 21. @param {string} a @param {string} b */
export function contrast(a, b) {
  const [low, high] = [luminance(rgb(a)), luminance(rgb(b))].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/** Black or white, whichever reads better on the colour: never under 4.5 : 1. @param {string} fill */
export function inkOn(fill) {
  // At this luminance both have the same contrast: (1 + .05) / (L + .05) = (L + .05) / .05.
  return luminance(rgb(fill)) > 0.1791 ? "#000000" : "#ffffff";
}

const STEPS = 64;
/** @type {Map<string, {fill: string, ink: string}[]>} */
const made = new Map();

/**
 * The ramp as 64 fills with their inks. Confident cells stand out on either ground: the ramp begins at the paper and
 * runs through viridis away from it, darker on light paper and lighter on dark.
 * @param {boolean} dark
 * @param {boolean} [diverging]
 */
export function ramp(dark, diverging = false) {
  const key = `${dark}${diverging}`;
  let found = made.get(key);
  if (!found) {
    const paper = rgb(PALETTE.paper[dark ? 1 : 0]);
    found = Array.from({ length: STEPS }, (_, i) => {
      const t = i / (STEPS - 1);
      let colour;
      if (diverging) {
        colour = mix(paper, along(DIVERGING, t), Math.min(1, Math.abs(4 * t - 2)));
      } else {
        colour = mix(paper, along(VIRIDIS, dark ? 0.1 + 0.8 * t : 0.9 - 0.78 * t), Math.min(1, 0.03 + t * 1.25));
      }
      const fill = hex(colour);
      return { fill, ink: inkOn(fill) };
    });
    made.set(key, found);
  }
  return found;
}

/** The step of the ramp for a share of it. @param {boolean} dark @param {number} t @param {boolean} [diverging] */
export function shade(dark, t, diverging) {
  return ramp(dark, diverging)[Math.min(STEPS - 1, Math.max(0, Math.round(t * (STEPS - 1))))];
}

/** A colour's name, or a colour itself, as a hex value on light paper. @param {string} name */
export function resolve(name) {
  return PALETTE[name]?.[0] ?? name;
}
