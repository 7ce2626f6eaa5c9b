// The code of the chosen group, before and after, line by line. No other group is in the document.

const TOKEN = /\b(?:l_self_\w+|[A-Za-z_]\w*(?:\.\w+){2,}(?![\w.(]))|\w+|\s+|[^\w\s]/gu;
const WEIGHT = /^(?:l_self_\w+|[A-Za-z_]\w*(?:\.\w+){2,})$/;

const COLUMNS = [["sign", ""], ["code old", "before"], ["shape", "shape"], ["sign", ""], ["code new", "after"],
  ["shape", "shape"], ["source", "source"]];

/** Which tokens of a are not part of the longest common subsequence with b. */
function ownTokens(a, b) {
  const own = new Array(a.length).fill(true);
  let [head, end, other] = [0, a.length, b.length];
  while (head < end && head < other && a[head] === b[head]) own[head++] = false;
  while (end > head && other > head && a[end - 1] === b[other - 1]) { own[--end] = false; other--; }
  const [n, m] = [end - head, other - head];
  if (n * m > 40000) return own;
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      best[i][j] = a[head + i] === b[head + j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[head + i] === b[head + j]) { own[head + i] = false; i++; j++; }
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return own;
}

/** A long path may break behind a dot, a call behind its bracket. */
function breakable(text, style) {
  const at = style.includes("weight") ? /(?<=\.)|(?<=_)(?=(?:modules|parameters)_)/ : /(?<=\()(?=[^)])/;
  return text.split(at).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

function codeParts(node, other) {
  const tokens = (node.code || "").match(TOKEN) || [];
  const own = other ? ownTokens(tokens, (other.code || "").match(TOKEN) || []) : [];
  const parts = [];
  tokens.forEach((token, i) => {
    const marks = [i === 0 && "def", WEIGHT.test(token) && "weight", own[i] && /[\w+\-*\/@&|<>]/.test(token) && "own"];
    const style = marks.filter(Boolean).join(" ");
    const last = parts[parts.length - 1];
    if (last && last[0] === style) last[1] += token;
    else parts.push([style, token]);
  });
  return parts.map(([style, text], i) => {
    const pieces = breakable(text, style);
    if (!style && text.endsWith("(") && i + 1 < parts.length) pieces.push(el("wbr"));
    return style ? el("span", { class: style }, pieces) : pieces;
  });
}

function shapeParts(node, other) {
  if (!node) return [];
  const kind = (node.dtype || "").replace(/^torch\./, "");
  if (!Array.isArray(node.shape)) return [el("span", { class: "dim", title: "shape not known" }, "\u2013")];
  const size = other && Array.isArray(other.shape) && other.shape.length === node.shape.length ? other.shape : null;
  const dims = node.shape.map((dim, i) => {
    const comma = i ? ", " : "";
    if (node.row_dim === i) return [comma, el("b", { class: "rows", title: "kept rows only" }, `${dim}`)];
    return size && `${size[i]}` !== `${dim}` ? [comma, el("b", {}, `${dim}`)] : `${comma}${dim}`;
  });
  return [el("span", { class: "dim" }, DTYPES[kind] || kind), "[", ...dims.flat(), "]"];
}

function about(node) {
  if (!node) return null;
  const shape = Array.isArray(node.shape) ? `[${node.shape.join(", ")}]` : "shape not known";
  return `${node.name}\n${shape} ${node.dtype || "dtype not known"}\n${sourceOf(node.source)}`;
}

function drawLine(line, index, last) {
  const [status] = line;
  const [old, now] = pair(line);
  const [sign, text] = STATUSES[status] || ["?", status];
  const source = (now && now.source) || (old && old.source) || "";
  const differ = status === "changed" || status === "rewired";
  const half = (node, other, side) => [
    el("span", { class: "sign", role: "cell", "aria-label": node ? status : "" }, node ? sign : ""),
    el("code", { class: `code ${side}`, role: "cell", title: about(node) },
      node ? codeParts(node, differ ? other : null) : ""),
    el("span", { class: "shape", role: "cell" }, shapeParts(node, other)),
  ];
  const row = el("div", { class: `line ${status}`, role: "row", "data-line": index },
    half(old, now, "old"), half(now, old, "new"),
    el("span", { class: "source", role: "cell", title: `${sourceOf(source)}\n${status}: ${text}` },
      source === last ? "" : shortSource(source).split(/(?=:\d+$)/).map((part) => el("span", {}, part))));
  if (state.node && [old, now].some((node) => node && node.name === state.node)) row.classList.add("target");
  return [row, source];
}

/** Which lines to show: changes with two lines around them, short runs of kept lines, and the searched line. */
function visible(all, target) {
  const context = state.only ? 0 : 2;
  const whole = !state.only && all.length <= 80 && !all.some(([status]) => status !== "kept");
  const shown = new Array(all.length).fill(whole);
  all.forEach(([status], i) => {
    const around = status !== "kept" ? context : i === target ? 3 : -1;
    for (let j = Math.max(0, i - around); j <= Math.min(all.length - 1, i + around); j++) shown[j] = true;
  });
  if (!state.only) {
    for (let i = 0; i < all.length;) {
      let end = i;
      while (end < all.length && all[end][0] === "kept") end++;
      if (end - i <= 8) shown.fill(true, i, end);
      i = end + 1;
    }
  }
  const first = target > MOST_LINES / 2 ? target - MOST_LINES / 2 : 0;
  let room = MOST_LINES;
  return shown.map((show, i) => show && i >= first && room-- > 0);
}

function drawLines(all, shown, from, to) {
  const part = document.createDocumentFragment();
  let last = "";
  for (let i = from; i < to;) {
    if (shown[i]) {
      const [row, source] = drawLine(all[i], i, last);
      part.append(row);
      last = source || last;
      i++;
      continue;
    }
    let end = i;
    while (end < to && !shown[end]) end++;
    part.append(drawFold(all, i, end));
    i = end;
  }
  return part;
}

function drawFold(all, from, to) {
  const kept = all.slice(from, to).every(([status]) => status === "kept");
  const text = plural(to - from, kept ? "unchanged line" : "more line");
  const fold = el("button", { type: "button", class: "fold", "data-lines": to - from, click: () => {
    const shown = new Array(all.length).fill(false).fill(true, from, Math.min(to, from + MOST_LINES));
    fold.replaceWith(drawLines(all, shown, from, to));
    $("table").focus({ preventScroll: true });
  } }, text);
  return fold;
}

function drawHead(group) {
  const op = operators.get(state.op);
  const at = op && (STATES[op.state] ? op.state : "absent");
  const words = op ? `${KINDS[op.kind] || op.kind} of layer ${op.layer.layer}, ${op.layer.state}` : "";
  const title = el("h2", {}, el("code", {}, op || !group ? state.op : group.title || group.name),
    op ? el("span", { class: `badge ${at}` }, STATES[at][0], ` ${at}`) : "", el("span", { class: "dim" }, words),
    el("span", { class: "chips" }, chips((group && group.counts) || {})));
  const facts = el("dl", { class: "facts" });
  if (op) {
    facts.append(
      term("Rows", change(op.rows_before, op.rows_after), 
        el("small", {}, op.state === "skip" ? ROWS[op.rows] || op.rows || "" : "")),
      term("FLOPs", change(op.flops_before, op.flops_after, flops),
        el("small", {}, cut(op.flops_before, op.flops_after))),
      term("Entry", nodeLink(op.entry), el("small", {}, sourceOf(op.entry_source))),
      term("Exit", nodeLink(op.exit), el("small", {}, sourceOf(op.exit_source))));
    if (list(op.remaining).length) facts.append(term("Still on every row", list(op.remaining).join(", ")));
  }
  $("head").replaceChildren(title, op ? facts : "",
    op && op.reason ? el("p", { class: "notice" }, el("b", {}, at === "missed" ? "Stays full: " : ""), op.reason) : "");
}

function drawGroup() {
  const group = groups[groupAt.get(state.op)];
  const all = lines(group);
  drawHead(group);
  const target = all.findIndex((line) => state.node && pair(line).some((node) => node && node.name === state.node));
  const none = all.length ? "Nothing changed in this part of the graph." : "No code: this part is not in the graph.";
  $("table").replaceChildren(isChanged(group) ? "" : el("p", { class: "none dim" }, none),
    all.length ? el("div", { class: "line top", role: "row" }, COLUMNS.map(([style, text]) =>
      el("span", { class: style, role: "columnheader" }, text))) : "",
    drawLines(all, visible(all, target), 0, all.length));
  const row = $("table").querySelector(".target");
  if (row) row.scrollIntoView({ block: "center" });
}
