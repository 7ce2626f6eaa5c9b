// Navigation: the chosen operator, search, keys and theme. What is chosen stands in the address, so a link shows it.

let shownGroups = groups;
let index = null;

function drawBar() {
  shownGroups = state.only ? groups.filter((group) => isChanged(group) || group.name === state.op) : groups;
  $("groups").replaceChildren(...shownGroups.map((group) => {
    const op = operators.get(group.name);
    const changes = lines(group).filter(([status]) => status !== "kept").length;
    const words = [op ? op.name : group.title || group.name, op && op.state !== "full" && op.state,
      changes && plural(changes, "change")];
    return el("option", { value: group.name }, words.filter(Boolean).join("  \u00b7  "));
  }));
  $("groups").value = state.op;
  const at = shownGroups.findIndex((group) => group.name === state.op);
  $("previous").disabled = at <= 0;
  $("next").disabled = at >= shownGroups.length - 1;
  $("only").checked = state.only;
}

function step(by) {
  const group = shownGroups[shownGroups.findIndex((each) => each.name === state.op) + by];
  if (group) choose(group.name);
}

function choose(op, node = "") {
  Object.assign(state, { op, node });
  closeHits();
  writeHash(true);
  draw();
}

function draw() {
  drawBar();
  markCell();
  drawGroup();
}

// ---- search

function lineIndex() {
  index ||= groups.flatMap((group) => lines(group).map((line) => {
    const nodes = pair(line).filter(Boolean).reverse();
    const texts = nodes.map((node) => [node.name, node.code, node.source].join("\n").toLowerCase());
    return { group, line, nodes, texts };
  }));
  return index;
}

function search() {
  const terms = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  if (!terms.length) return closeHits();
  const matches = (text) => terms.every((each) => text.includes(each));
  const found = lineIndex().filter((entry) => entry.texts.some(matches));
  const rows = found.slice(0, MOST_HITS).map(({ group, line: [status], nodes, texts }) => {
    const node = nodes[texts.findIndex(matches)];
    const code = node.code || node.name;
    const [at, length] = [code.toLowerCase().indexOf(terms[0]), terms[0].length];
    const start = at > 50 ? at - 30 : 0;
    const mark = at < 0 ? code : [(start ? "\u2026" : "") + code.slice(start, at),
      el("mark", {}, code.slice(at, at + length)), code.slice(at + length)];
    const go = () => choose(group.name, node.name);
    return el("button", { type: "button", class: `hit ${status}`, title: about(node), click: go },
      el("b", {}, group.name), el("span", { class: "sign" }, (STATUSES[status] || ["?"])[0]), el("code", {}, mark),
      el("span", { class: "source" }, shortSource(node.source || "")));
  });
  const more = found.length - rows.length;
  const text = found.length ? `${plural(found.length, "line")} found` : "No line found";
  $("hits").replaceChildren(el("p", { class: "dim" }, text), ...rows,
    more > 0 ? el("p", { class: "dim" }, `and ${number(more)} more`) : "");
  $("hits").hidden = false;
  $("say").textContent = text;
}

function closeHits() {
  $("hits").hidden = true;
  $("hits").replaceChildren();
}

function moveInHits(by) {
  const stops = [$("search"), ...$("hits").querySelectorAll(".hit")];
  const to = stops[stops.indexOf(document.activeElement) + by];
  if (to) to.focus();
}

// ---- address and theme

function writeHash(push) {
  const words = new URLSearchParams();
  for (const key of ["op", "node", "q", "theme"]) if (state[key]) words.set(key, state[key]);
  if (state.only) words.set("only", "1");
  if (`#${words}` !== location.hash) history[push ? "pushState" : "replaceState"](null, "", `#${words}`);
}

function firstGroup() {
  const changed = groups.find((group) => operators.has(group.name) && isChanged(group)) || groups.find(isChanged);
  return (changed || groups.find((group) => operators.has(group.name)) || groups[0] || { name: "" }).name;
}

function readHash() {
  const words = new URLSearchParams(location.hash.slice(1));
  const given = words.get("op") || "";
  const there = isThere(given);
  if (given && !there) $("say").textContent = `There is no ${given} in this graph.`;
  const theme = words.get("theme");
  Object.assign(state, {
    op: there ? given : firstGroup(), node: (there && words.get("node")) || "", q: words.get("q") || "",
    theme: theme === "dark" || theme === "light" ? theme : "", only: words.get("only") === "1",
  });
  $("search").value = state.q;
  closeHits();
  drawTheme();
  draw();
  if (state.q && !given) search();
}

function drawTheme() {
  document.documentElement.dataset.theme = state.theme || "auto";
  $("theme").textContent = `Theme: ${state.theme || "auto"}`;
  $("theme").title = "auto follows the system";
}

// ---- events

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const { key, target } = event;
  const inSearch = target.closest(".search");
  const go = (run) => { event.preventDefault(); run(); };
  if (key === "Escape") {
    $("tip").hidden = true;
    if (inSearch) go(() => { closeHits(); $("search").blur(); });
  } else if (inSearch) {
    const first = $("hits").querySelector(".hit");
    if (key === "ArrowDown") go(() => moveInHits(1));
    else if (key === "ArrowUp") go(() => moveInHits(-1));
    else if (key === "Enter" && target === $("search") && first) go(() => first.click());
  } else if (target.closest("select")) {
    return;
  } else if (target.closest(".strip .cell") && key.startsWith("Arrow")) {
    go(() => moveInStrip(target, key));
  } else if (key === "/") go(() => $("search").select());
  else if (key === "[" || key === "ArrowLeft") go(() => step(-1));
  else if (key === "]" || key === "ArrowRight") go(() => step(1));
}

function moveInStrip(cell, key) {
  const columns = [...$("strip").querySelectorAll(".layer")];
  const at = columns.indexOf(cell.parentNode);
  const row = [...cell.parentNode.querySelectorAll(".cell")].indexOf(cell);
  const side = { ArrowLeft: -1, ArrowRight: 1 }[key] || 0;
  const cells = columns[at + side] ? columns[at + side].querySelectorAll(".cell") : [];
  const to = cells[Math.min(cells.length - 1, row + ({ ArrowUp: -1, ArrowDown: 1 }[key] || 0))];
  if (to) to.focus();
}

let waiting = 0;
$("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.q = $("search").value; writeHash(false); search(); }, 120);
});
$("search").addEventListener("focus", () => { if (state.q && $("hits").hidden) search(); });
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("groups").addEventListener("change", () => choose($("groups").value));
$("only").addEventListener("change", () => { state.only = $("only").checked; writeHash(false); draw(); });
$("theme").addEventListener("click", () => {
  state.theme = { "": "light", light: "dark", dark: "" }[state.theme];
  writeHash(false);
  drawTheme();
});
document.addEventListener("keydown", onKey);
document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".search")) closeHits(); });
window.addEventListener("popstate", readHash);
window.addEventListener("resize", drawStrip);

drawFacts();
drawLegend();
drawStrip();
drawLists();
readHash();
