"use strict";
// The list of rollouts: only the rows in sight exist, and only their pages are asked for.

const ROW_HIGH = 46, ROWS_A_PAGE = 100, MOST_LISTED = 300000;
const FIELDS = [["min_reward", "reward from", 5], ["max_reward", "to", 5], ["min_tokens", "tokens from", 6], ["max_tokens", "to", 6], ["min_step", "step from", 6], ["max_step", "to", 6]];
const listing = { run: 0, filter: { order: "newest" }, pages: new Map(), waiting: new Set(), total: 0, generation: 0, chosen: null, state: {}, nodes: null };

function rolloutsView(runs) {
  if (!listing.nodes) buildListing(runs);
  return listing.nodes.root;
}

function buildListing(runs) {
  const inside = el("div", { class: "rows" }), status = el("p", { class: "note", role: "status" });
  const list = el("div", { class: "list", tabindex: "0", role: "listbox", "aria-label": "rollouts", onscroll: drawRows, onkeydown: moveChoice }, inside);
  const detail = el("div", { class: "detail" }, el("p", { class: "empty" }, "Choose a rollout."));
  const bounds = FIELDS.map(([name, label, size]) => el("label", {}, `${label} `, el("input", { type: "text", inputmode: "decimal", size, name, oninput: changed })));
  const parts = [["problem", 14], ["text", 18]].map(([name, size]) => el("label", {}, `${name} `, el("input", { type: "search", size, name, oninput: changed })));
  const form = el("form", { class: "filters", onsubmit: event => event.preventDefault() }, ...bounds, ...parts,
    choice("order", Object.keys(ORDERS).map(name => [name, name]), "newest", order => refilter({ ...listing.filter, order })),
    runs.length > 1 ? choice("run", runs.map((run, i) => [String(i), run.name]), "0", run => { listing.run = Number(run); refilter(listing.filter); }) : null);
  listing.nodes = { root: el("div", { class: "browser" }, form, status, list, detail), list, inside, detail, status, form };
  new ResizeObserver(drawRows).observe(list);
  refilter(listing.filter);
}

let typing = null;
function changed() {
  clearTimeout(typing);
  typing = setTimeout(() => {
    const given = Object.fromEntries(new FormData(listing.nodes.form));
    for (const [name] of FIELDS) {
      const isBad = given[name].trim() !== "" && !Number.isFinite(Number(given[name].replace(",", ".")));
      listing.nodes.form.elements[name].setAttribute("aria-invalid", String(isBad));
      given[name] = isBad ? "" : given[name].trim().replace(",", ".");
    }
    refilter({ ...given, order: listing.filter.order });
  }, 200);
}

function refilter(filter) {
  listing.filter = filter;
  listing.generation++;
  listing.pages.clear(), listing.waiting.clear();
  listing.nodes.list.scrollTop = 0;
  fetchPage(0);
}

async function fetchPage(page) {
  if (listing.waiting.has(page)) return;
  listing.waiting.add(page);
  const { generation, filter, run } = listing;
  try {
    const found = await source.rollouts(run, filter, page * ROWS_A_PAGE, ROWS_A_PAGE);
    if (generation !== listing.generation) return;
    const isSame = found.total === listing.total && JSON.stringify(found.rows) === JSON.stringify(listing.pages.get(page));
    if (found.total !== listing.total) listing.pages.clear();  // all of them have moved
    listing.pages.set(page, found.rows);
    listing.total = found.total;
    listing.state = found;
    if (isSame) return say();  // the rows stay: one may be under a finger
  } catch (error) {
    if (generation === listing.generation) listing.nodes.status.replaceChildren(visible(error.message));
    return;
  } finally {
    if (generation === listing.generation) listing.waiting.delete(page);
  }
  say(), drawRows();
}

function say() {
  const { state, total } = listing, said = [`${total.toLocaleString("en")} rollouts`];
  if (total > MOST_LISTED) said.push(`the first ${MOST_LISTED.toLocaleString("en")} are listed`);
  if (state.num_indexed < state.num_files) said.push(`${state.num_indexed} of ${state.num_files} steps are indexed so far`);
  if (state.num_unreadable) said.push(`${state.num_unreadable} files cannot be read`);
  if (state.trouble) said.push(state.trouble);
  if (!source.isLive) said.push(`a sample: ${state.num_sampled_files} of ${state.num_files} steps; fastrl watch shows all`);
  listing.nodes.status.replaceChildren(visible(said.join(" · ")));
}

function drawRows() {
  const { list, inside } = listing.nodes, num = Math.min(listing.total, MOST_LISTED);
  inside.style.height = `${num * ROW_HIGH}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HIGH) - 5), last = Math.min(num, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HIGH) + 5);
  for (let page = Math.floor(first / ROWS_A_PAGE); page * ROWS_A_PAGE < last; page++) if (!listing.pages.has(page)) fetchPage(page);
  const rows = [];
  for (let i = first; i < last; i++) rows.push(rowNode(i, listing.pages.get(Math.floor(i / ROWS_A_PAGE))?.[i % ROWS_A_PAGE]));
  inside.replaceChildren(...rows);
}

function rowNode(i, row) {
  const isChosen = Boolean(row) && isSameRollout(row, listing.chosen);
  const node = el("div", { class: `row ${isChosen ? "chosen" : ""}`, role: "option", "aria-selected": String(isChosen), style: { top: `${i * ROW_HIGH}px` }, onclick: () => choose(i) });
  if (!row) return fill(node, {}, ["…"]);
  const sign = row.credit > 0 ? "positive" : row.credit < 0 ? "negative" : "zero";
  const facts = el("span", { class: "facts" }, el("b", { class: sign }, plain(row.reward, 3)), ` · step ${row.step} · ${row.tokens} tokens · ${row.credit === null ? "" : "credit " + signed(row.credit) + " · "}`, visible(row.problem));
  return fill(node, {}, [facts, fill(el("span", { class: "snippet", dir: "auto" }), {}, [visible(row.snippet.replaceAll("\n", "↵"))])]);
}

function isSameRollout(row, chosen) {
  return chosen !== null && chosen.run === listing.run && row.step === chosen.step && row.line === chosen.line;
}

// Where the chosen one is by now, or where it was: rows move when a run goes on.
function chosenIndex() {
  for (const [page, rows] of listing.pages) {
    const found = rows.findIndex(row => isSameRollout(row, listing.chosen));
    if (found >= 0) return page * ROWS_A_PAGE + found;
  }
  return listing.chosen ? listing.chosen.index : -1;
}

function moveChoice(event) {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!move || !listing.total) return;
  event.preventDefault();
  const next = Math.max(0, Math.min(Math.min(listing.total, MOST_LISTED) - 1, chosenIndex() + move)), { list } = listing.nodes;
  if (next * ROW_HIGH < list.scrollTop) list.scrollTop = next * ROW_HIGH;
  if ((next + 1) * ROW_HIGH > list.scrollTop + list.clientHeight) list.scrollTop = (next + 1) * ROW_HIGH - list.clientHeight;
  choose(next);
}

async function choose(i) {
  const row = listing.pages.get(Math.floor(i / ROWS_A_PAGE))?.[i % ROWS_A_PAGE], { detail } = listing.nodes;
  if (!row) return;
  const chosen = listing.chosen = { run: listing.run, step: row.step, line: row.line, index: i };
  drawRows();
  try {
    const rollout = await source.rollout(listing.run, row);
    if (listing.chosen !== chosen) return;
    const draw = () => detail.replaceChildren(rolloutView(rollout, row, draw));
    draw();
    detail.scrollTop = 0;
  } catch (error) {
    detail.replaceChildren(el("p", { class: "empty" }, visible(error.message)));
  }
}

// What was written meanwhile: at the top of the list, where nobody reads further down.
function lookAgain() {
  if (!listing.nodes || !source.isLive || listing.waiting.size) return;
  if (listing.nodes.list.scrollTop === 0) {
    fetchPage(0);
  } else if (listing.state.num_indexed < listing.state.num_files) {
    source.rollouts(listing.run, listing.filter, 0, 1).then(found => { listing.state = found; say(); }, () => {});
  }
}
