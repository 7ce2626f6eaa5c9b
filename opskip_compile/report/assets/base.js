"use strict";

// What the other scripts share: the diff that stands in the page as JSON, the words and signs for it, and formats.
// Every text of the diff goes into the document through text nodes and attributes.

const diff = JSON.parse(document.getElementById("diff").textContent);
const list = (value) => (Array.isArray(value) ? value : []);
const summary = diff.summary || {};
const [layers, groups, before, after] = [diff.layers, diff.groups, diff.before, diff.after].map(list);
const state = { op: "", node: "", q: "", theme: "", only: false };

const STATES = {
  full: ["", "computes every row"],
  skip: ["S", "leaves rows out"],
  missed: ["!", "stays full although the schedule names it"],
  absent: ["\u2013", "not found in this graph"],
};
const STATUSES = {
  changed: ["~", "same operation on another shape or other operands"],
  added: ["+", "only in the graph after"],
  removed: ["\u2212", "only in the graph before"],
  rewired: ["\u2192", "same operation and shape, reads another node"],
  kept: ["", "the same in both graphs"],
};
const ROWS = { visual: "visual rows left out", through_visual: "rows up to the last visual row left out" };
const KINDS = { attention: "attention", ffn: "FFN" };
const DTYPES = { float32: "f32", float64: "f64", float16: "f16", bfloat16: "bf16", bool: "b8", int64: "i64",
  int32: "i32", int16: "i16", int8: "i8", uint8: "u8" };
const MOST_LINES = 400;
const MOST_HITS = 200;

const $ = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(key, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const link = (text, go) => el("button", { type: "button", class: "link", click: go }, text);
const term = (name, ...content) => el("div", {}, el("dt", {}, name), el("dd", {}, ...content));

const known = (value) => value !== null && value !== undefined;
const number = (value) => (known(value) ? value.toLocaleString("en-US") : "not known");

function flops(value) {
  if (!known(value)) return "not known";
  for (const [scale, unit] of [[1e15, "PFLOPs"], [1e12, "TFLOPs"], [1e9, "GFLOPs"], [1e6, "MFLOPs"], [1e3, "kFLOPs"]]) {
    if (value >= 0.9995 * scale) return `${(value / scale).toPrecision(3)} ${unit}`;
  }
  return `${value} FLOPs`;
}

function change(old, now, format = number) {
  const [a, b] = [format(old), format(now)];
  if (a === b) return a;
  const unit = a.slice(a.lastIndexOf(" "));
  const short = known(old) && unit.startsWith(" ") && b.endsWith(unit) ? a.slice(0, -unit.length) : a;
  return `${short} \u2192 ${b}`;
}

function cut(old, now) {
  if (!known(old) || !known(now) || !(old > 0) || old === now) return "";
  const percent = (100 * Math.abs(old - now)) / old;
  return `${percent.toFixed(1)} % ${now < old ? "fewer" : "more"}`;
}

const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const shortSource = (source) => source.replace(/^modeling_/, "").replace(/\.py:/, ":");
const sourceOf = (source) => source || "source not known";

const operators = new Map();
for (const layer of layers) for (const op of list(layer.operators)) operators.set(op.name, { ...op, layer });
const groupAt = new Map(groups.map((group, index) => [group.name, index]));
const lines = (group) => list(group && group.lines);
const pair = ([, i, j]) => [known(i) ? before[i] : null, known(j) ? after[j] : null];
const isChanged = (group) => lines(group).some(([status]) => status !== "kept");
const place = new Map(); // node name -> group and line, the graph after first
for (const side of [1, 0]) {
  groups.forEach((group) => lines(group).forEach((line, index) => {
    const node = pair(line)[side];
    if (node && !place.has(node.name)) place.set(node.name, [group.name, index]);
  }));
}

const isThere = (name) => groupAt.has(name) || operators.has(name);

function nodeLink(name) {
  if (!name) return el("span", { class: "dim" }, "not known");
  if (!place.has(name)) return el("code", {}, name);
  return el("button", { type: "button", class: "link mono", click: () => choose(place.get(name)[0], name) }, name);
}

function chips(counts) {
  const shown = Object.entries(STATUSES).filter(([status]) => counts[status]);
  return shown.map(([status, [sign, text]]) =>
    el("span", { class: `chip ${status}`, title: text }, sign ? el("i", { "aria-hidden": "true" }, sign) : "",
      `${number(counts[status] || 0)} ${status}`));
}
