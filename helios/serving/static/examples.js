// What to try first, and a small drawing of a scene from its words.

import { el, svg } from "./dom.js";

/** Sentences of the bundled model's world (docs/vocabulary.md). */
const SMALL_WORLD = [
  "a large red ball bounces on green grass",
  "an orange star drifts slowly through the air at sunset",
  "a shiny blue cube spins on snow",
  "a yellow ring rolls on sand, the camera pans slowly",
  "a pink ball floats on water beside a white cone",
  "a purple pyramid swings at night",
];

const LARGE_WORLD = [
  "A red fox trots through fresh snow at dawn, soft light, close to the ground",
  "Waves roll in below a lighthouse while clouds race over the sea",
  "A paper boat sails down a rainy street in the evening, reflections of lamps",
  "Slow flight over terraced rice fields in morning mist",
];

const CHANGES = [
  "a blue cube spins on snow", "a yellow star bounces at night", "a green ring rolls on sand",
  "a white cone drifts on water", "a purple ball bounces at sunset",
];

const COLOURS = {
  red: "#d8392b", crimson: "#b3122e", scarlet: "#e0301e", orange: "#f08a24", tangerine: "#f4912e",
  yellow: "#f3c62f", lemon: "#f5dc4a", green: "#3f9a46", emerald: "#1f9d6b", blue: "#2f62c9",
  azure: "#3d9be0", purple: "#7a45b4", violet: "#8b5cd6", pink: "#ef7fa9", rose: "#e2698f",
  white: "#f4f1ea", ivory: "#f3ead2",
};

const SHAPES = {
  sphere: "ball", ball: "ball", orb: "ball", globe: "ball", cube: "box", box: "box", block: "box",
  cylinder: "drum", drum: "drum", barrel: "drum", cone: "cone", pyramid: "cone", torus: "ring",
  ring: "ring", donut: "ring", hoop: "ring", capsule: "pill", pill: "pill", star: "star",
};

/** Sky above, sky below, ground. */
const PLACES = [
  [/night|moon|starry/, ["#1b2347", "#39406b", "#2a3157"]],
  [/sunset|dusk|evening/, ["#f6a15d", "#fbd9a0", "#8a5b54"]],
  [/snow|winter/, ["#cfe0ee", "#eaf2f8", "#f4f7fa"]],
  [/water|sea|lake|waves/, ["#a9d3ee", "#d9eef8", "#3f8fbf"]],
  [/sand|desert/, ["#b9dcf0", "#eff3ea", "#e0c084"]],
  [/checker|tile|chess/, ["#d5d2cb", "#ece9e2", "#a9a59c"]],
  [/studio|backdrop/, ["#cfcac1", "#e6e2da", "#bdb7ac"]],
  [/./, ["#9cc9ea", "#e0f0f8", "#7fb25a"]],
];

export const examples = (small) => (small ? SMALL_WORLD : LARGE_WORLD);

/** A few next prompts, without the ones that were used. */
export function changes(small, used) {
  return (small ? CHANGES : LARGE_WORLD).filter((text) => !used.includes(text)).slice(0, 3);
}

/** A picture of what the words say, for cards that have no thumbnail yet. */
export function sketch(prompt) {
  const words = prompt.toLowerCase();
  const [above, below, ground] = PLACES.find(([pattern]) => pattern.test(words))[1];
  const found = words.split(/[^a-z]+/);
  const things = [];
  let colour = null;
  for (const word of found) {
    if (COLOURS[word]) colour = COLOURS[word];
    if (SHAPES[word]) { things.push([SHAPES[word], colour ?? "#b9b3a8"]); colour = null; }
  }
  const id = `sky-${Math.random().toString(36).slice(2, 8)}`;
  const image = svg("svg", { viewBox: "0 0 120 72", preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true", class: "sketch" },
    svg("defs", {}, svg("linearGradient", { id, x1: 0, y1: 0, x2: 0, y2: 1 },
      svg("stop", { offset: 0, "stop-color": above }), svg("stop", { offset: 1, "stop-color": below }))),
    svg("rect", { width: 120, height: 72, fill: `url(#${id})` }));
  if (/night|moon|starry/.test(words)) {
    for (const [x, y] of [[14, 10], [31, 20], [52, 8], [84, 14], [106, 22], [70, 24]]) {
      image.append(svg("circle", { cx: x, cy: y, r: 0.8, fill: "#fff", opacity: 0.8 }));
    }
  }
  if (/sunset|dusk|evening/.test(words)) image.append(svg("circle", { cx: 88, cy: 44, r: 8, fill: "#ffe3a6" }));
  image.append(svg("rect", { y: 46, width: 120, height: 26, fill: ground }));
  things.slice(0, 2).forEach(([shape, fill], index) => {
    const x = things.length > 1 ? 44 + index * 34 : 60;
    const up = index === 0 && /bounce|hop|jump|drift|float|swing|tumble|flip/.test(words) ? 8 : 0;
    image.append(svg("ellipse", { cx: x + 4, cy: 58, rx: 13, ry: 3, fill: "#000", opacity: 0.16 }), draw(shape, x, 44 - up, fill));
  });
  return image;
}

function draw(shape, x, y, fill) {
  const place = (tag, attributes) => svg(tag, { ...attributes, fill });
  if (shape === "ball") return place("circle", { cx: x, cy: y, r: 13 });
  if (shape === "box") return place("rect", { x: x - 12, y: y - 11, width: 24, height: 24, rx: 2 });
  if (shape === "drum") return place("rect", { x: x - 10, y: y - 13, width: 20, height: 26, rx: 5 });
  if (shape === "pill") return place("rect", { x: x - 8, y: y - 14, width: 16, height: 28, rx: 8 });
  if (shape === "cone") return place("path", { d: `M${x} ${y - 15} L${x + 14} ${y + 13} H${x - 14} Z` });
  if (shape === "ring") return svg("circle", { cx: x, cy: y, r: 10, fill: "none", stroke: fill, "stroke-width": 6 });
  const points = Array.from({ length: 10 }, (_, i) => {
    const angle = (Math.PI * i) / 5 - Math.PI / 2;
    const r = i % 2 ? 6.5 : 15;
    return `${(x + r * Math.cos(angle)).toFixed(1)},${(y + r * Math.sin(angle)).toFixed(1)}`;
  });
  return place("polygon", { points: points.join(" ") });
}

/** Cards to choose from. */
export function cards(small, onpick) {
  return examples(small).map((text) => el("li", {}, el("button", { type: "button", class: "example", onclick: () => onpick(text) },
    small ? sketch(text) : null, el("span", {}, text))));
}
