// The head of the page: facts, the strip of layers, and the lists of what stays full.

function drawFacts() {
  const states = [...operators.values()].map((op) => op.state);
  const of = (name) => states.filter((each) => each === name).length;
  const { flops_before: old, flops_after: now, prompt } = summary;
  const bar = el("span", { class: "saved", "aria-hidden": "true" }, el("span"));
  bar.firstChild.style.width = old > 0 && known(now) ? `${Math.min(100, (100 * now) / old)}%` : "100%";
  const visual = prompt ? list(prompt.visual) : [];
  const first = visual.slice(0, 6).map(number).join(" + ") || "not known how many";
  const some = visual.length > 6 ? `${first} + \u2026` : first;
  $("facts").append(
    term("FLOPs of the decoder", el("strong", {}, change(old, now, flops)), " ", el("em", {}, cut(old, now)),
      known(old) && known(now) ? bar : ""),
    term("Operators", `${of("skip")} of ${number(states.length)} skipped`,
      of("missed") ? el("b", { class: "warn" }, `, ${of("missed")} missed`) : "",
      el("small", {}, `${plural(summary.num_layers ?? layers.length, "layer")}`)),
    term("Schedule", summary.schedule || "not known", el("small", {}, summary.schedule_origin || "")),
    term("Prompt", prompt ? `${number(prompt.rows)} rows, ${some} visual` : "not known",
      el("small", {}, prompt ? `batch of ${number(prompt.batch)}; ` : "",
        `visual rows: ${summary.row_source || "not known"}`)),
    term("Nodes", change(summary.nodes_before, summary.nodes_after), el("div", { class: "chips" }, chips(summary))),
  );
  $("reason").hidden = !summary.reason;
  if (summary.reason) $("reason").append(el("strong", {}, "Nothing was rewritten: "), summary.reason);
}

function cell(layer, kind, op) {
  const name = op ? op.name : `${layer.layer}.${kind}`;
  const at = op && STATES[op.state] ? op.state : "absent";
  const parts = op ? [change(op.rows_before, op.rows_after), change(op.flops_before, op.flops_after, flops)] : [];
  const label = [name, at, ...(op ? [`rows ${parts[0]}`, `FLOPs ${parts[1]}`] : [STATES.absent[1]]), op && op.reason];
  const button = el("button", {
    type: "button", class: `cell ${at}`, "data-op": name, "data-state": at, tabindex: "-1",
    "aria-label": label.filter(Boolean).join(", "), click: () => choose(name),
    mouseenter: () => showTip(button, layer, kind, op, at), mouseleave: hideTip,
    focus: () => showTip(button, layer, kind, op, at), blur: hideTip,
  }, STATES[at][0]);
  const left = op && op.flops_before > 0 && known(op.flops_after) ? op.flops_after / op.flops_before : 0;
  if (at === "skip") button.style.setProperty("--left", `${Math.round(100 * Math.min(1, left))}%`);
  return button;
}

let columns = 0;
function drawStrip() {
  const most = Math.max(8, Math.floor(($("strip").clientWidth - 76) / 21));
  const wide = Math.ceil(layers.length / Math.ceil(layers.length / most)) || 1;
  if (wide === columns) return;
  columns = wide;
  const rows = [];
  for (let i = 0; i < layers.length; i += wide) {
    const row = el("div", { class: "row" }, el("div", { class: "names", "aria-hidden": "true" },
      el("span", {}, "layer"), el("span", {}, "attention"), el("span", {}, "FFN")));
    for (const layer of layers.slice(i, i + wide)) {
      const column = el("div", { class: "layer", role: "group", "aria-label": `layer ${layer.layer}, ${layer.state}` },
        el("span", { class: "number", "aria-hidden": "true" }, `${layer.layer}`));
      for (const kind of Object.keys(KINDS)) {
        const found = list(layer.operators).filter((op) => op.kind === kind);
        column.append(...(found.length ? found : [null]).map((op) => cell(layer, kind, op)));
      }
      row.append(column);
    }
    rows.push(row);
  }
  if (!rows.length) rows.push(el("p", { class: "dim" }, "No decoder layer was found in this graph."));
  $("strip").replaceChildren(...rows);
  markCell();
}

function markCell() {
  const cells = [...$("strip").querySelectorAll(".cell")];
  const chosen = cells.find((each) => each.dataset.op === state.op);
  for (const each of cells) {
    if (each === chosen) each.setAttribute("aria-current", "true");
    else each.removeAttribute("aria-current");
    each.tabIndex = each === (chosen || cells[0]) ? 0 : -1;
  }
}

function showTip(anchor, layer, kind, op, at) {
  const rows = [["state", `${at}: ${STATES[at][1]}`], ["layer", `${layer.layer}, ${layer.state}`]];
  if (op) {
    rows.push(["rows", change(op.rows_before, op.rows_after)],
      ["FLOPs", `${change(op.flops_before, op.flops_after, flops)} ${cut(op.flops_before, op.flops_after)}`],
      ["source", change(op.entry_source, op.exit_source, sourceOf)]);
    if (op.reason) rows.push(["reason", op.reason]);
  }
  $("tip").replaceChildren(el("strong", {}, op ? op.name : `${layer.layer}.${kind}`),
    el("dl", {}, rows.map(([name, text]) => term(name, text))));
  $("tip").hidden = false;
  const [box, tip] = [anchor.parentNode, $("tip")].map((node) => node.getBoundingClientRect());
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.width - 8);
  const below = box.bottom + 8 + tip.height < window.innerHeight;
  $("tip").style.left = `${Math.max(8, left)}px`;
  $("tip").style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - tip.height - 8)}px`;
  anchor.setAttribute("aria-describedby", "tip");
}

function hideTip(event) {
  $("tip").hidden = true;
  event.target.removeAttribute("aria-describedby");
}

function drawLegend() {
  for (const [name, [glyph, text]] of Object.entries(STATES)) {
    $("legend").append(el("li", {}, el("span", { class: `cell ${name}`, "aria-hidden": "true" }, glyph),
      el("span", {}, el("b", {}, name), ` ${text}`)));
  }
  const sample = $("legend").querySelector(".skip");
  sample.style.setProperty("--left", "30%");
  sample.nextSibling.append(", the filled part is what it still computes");
}

function details(title, items, row) {
  if (!items.length) return null;
  const body = el("ul");
  const fill = () => {
    if (body.childElementCount) return;
    body.append(...items.slice(0, MOST_HITS).map((item) => el("li", {}, row(item))));
    const more = items.length - MOST_HITS;
    if (more > 0) body.append(el("li", { class: "dim" }, `and ${number(more)} more`));
  };
  const box = el("details", { open: items.length <= 8, toggle: fill }, el("summary", {}, title), body);
  if (box.open) fill();
  return box;
}

function drawLists() {
  const [misses, stops] = [list(diff.misses), list(diff.stops)];
  const operator = (name) => (isThere(name) ? link(name, () => choose(name)) : el("b", {}, name || "-"));
  const source = (text) => el("span", { class: "dim" }, ` ${sourceOf(text)}`);
  const boxes = [
    details(`Operators of the schedule that stay full: ${misses.length}`, misses, (miss) => [
      operator(`${miss.layer}.${miss.kind}`), miss.node ? [" at ", nodeLink(miss.node)] : "", source(miss.source),
      el("p", {}, miss.reason || "reason not known",
        miss.nearest ? el("span", { class: "dim" }, ` (nearest: ${miss.nearest})`) : "")]),
    details(`Operations of skipped operators that compute every row: ${stops.length}`, stops, (stop) => [
      nodeLink(stop.node), ` ${stop.operation || ""} in `, operator(stop.operator), source(stop.source),
      el("p", {}, stop.reason || "reason not known")]),
  ].filter(Boolean);
  const clean = [...operators.values()].some((op) => op.state === "skip") && !summary.reason;
  if (!boxes.length && clean) boxes.push(el("p", { class: "dim" }, "Nothing of the schedule stays full."));
  $("lists").append(...boxes);
}
