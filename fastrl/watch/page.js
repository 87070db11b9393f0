"use strict";
// Tabs, evaluations, and what keeps the page up to date.

const LOOK_EVERY_MS = 2000;
const TABS = { curves: ["Curves", curvesView], rollouts: ["Rollouts", rolloutsView], evaluations: ["Evaluations", evaluationsView], ledger: ["Ledger", ledgerView], settings: ["Settings", configView] };
const state = { runs: [], tab: TABS[location.hash.slice(1)] ? location.hash.slice(1) : "curves", isWarned: [], asked: { name: null, text: "", which: "", offset: 0, run: 0 } };

function evaluationsView(runs) {
  const parts = [];
  runs.forEach((run, number) => {
    if (!run.evaluations.length) return;
    const ks = [...new Set(run.evaluations.flatMap(e => Object.keys(e.pass_at_k).map(Number)))].sort((a, b) => a - b);
    const opener = e => e.has_completions ? el("button", { type: "button", onclick: () => open(number, e.name) }, "completions") : "";
    parts.push(el("h2", {}, visible(`${run.name}: pass@k, % of problems`)), table(["", "", ...ks.map(k => `k = ${k}`), "tokens", "entropy", "truncated", "solved"],
      run.evaluations.map(e => [`${e.split} ${e.step}`, opener(e), ...ks.map(k => interval(e.pass_at_k[k])), plain(e.mean_length), plain(e.mean_token_entropy), percent(e.truncated_share), `${e.num_solved} of ${e.num_problems}`])));
  });
  if (!parts.length) return el("p", { class: "empty" }, "No evaluation has been written yet.");
  const answers = el("section", { id: "answers" });
  const open = (run, name) => { state.asked = { ...state.asked, run, name, offset: 0 }; drawAnswers(answers); };
  if (state.asked.name) drawAnswers(answers);
  return el("div", {}, el("div", { class: "charts" }, ...passCharts(runs).filter(Boolean)), ...parts, el("p", { class: "note" }, "95 % intervals, bootstrap over problems. Solved: correct with any sample."), answers);
}

async function drawAnswers(section) {
  const { name, offset, run } = state.asked, again = change => { Object.assign(state.asked, change); drawAnswers(section); };
  const asked = JSON.stringify(state.asked), isOutdated = () => asked !== JSON.stringify(state.asked);
  let found;
  try {
    found = await source.completions(run, name, offset, state.asked.text, state.asked.which);
  } catch (error) {
    return isOutdated() || section.replaceChildren(el("p", { class: "empty" }, visible(error.message)));
  }
  if (isOutdated()) return;  // another question was asked meanwhile
  const search = el("input", { type: "search", value: state.asked.text, onchange: () => again({ text: search.value, offset: 0 }) });
  const last = Math.min(found.total, offset + found.rows.length);
  const pages = el("p", { class: "filters" }, choice("which", [["", "all"], ["correct", "correct"], ["wrong", "wrong"]], state.asked.which, which => again({ which, offset: 0 })),
    el("label", {}, "text ", search), `${found.total ? offset + 1 : 0}–${last} of ${found.total}`,
    found.kept > found.embedded ? ` (of ${found.kept} that were kept ${found.embedded} are in this file)` : "",
    el("button", { type: "button", disabled: !offset, onclick: () => again({ offset: Math.max(0, offset - 50) }) }, "before"),
    el("button", { type: "button", disabled: last >= found.total, onclick: () => again({ offset: last }) }, "next"));
  const byProblem = Map.groupBy(found.rows, row => row.problem_id);
  section.replaceChildren(el("h2", {}, visible(`what was answered: ${state.runs.length > 1 ? `${state.runs[run].name}, ` : ""}${name}`)), pages, ...[...byProblem].map(([problem, rows]) =>
    el("div", { class: "problem" }, el("h3", {}, visible(String(problem))), textBox(rows[0].prompt, "prompt"), el("div", { class: "answers" }, ...rows.map(answerNode)))));
}

function answerNode(row) {
  const head = el("p", { class: "facts" }, el("b", { class: row.is_correct ? "positive" : "negative" }, row.is_correct ? "correct" : "wrong"), ` · reward ${plain(row.reward)} · ${row.num_tokens} tokens · `, visible(`${row.reason || ""}${row.answer ? `, answer ${row.answer}` : ""}`));
  return el("div", { class: "answer" }, head, textBox(row.completion), cutNote(row.completion.length, row.characters, "characters"));
}

function draw() {
  const view = document.getElementById("view"), [, make] = TABS[state.tab];
  view.replaceChildren(make(state.runs));
  if (state.tab === "rollouts") drawRows();
  document.getElementById("tabs").replaceChildren(...Object.entries(TABS).map(([name, [label]]) =>
    el("a", { href: `#${name}`, "aria-current": name === state.tab ? "page" : null }, label)));
}

function describe() {
  document.getElementById("name").replaceChildren(visible(state.runs.map(one => one.name).join(" · ")));
  return state.runs.map(run => (state.runs.length > 1 ? `${run.name}: ` : "") + stateOf(run)).join(" · ");
}

function stateOf(run) {
  const age = run.written === null ? null : Math.max(0, Date.now() / 1000 - run.written);
  const ago = age === null ? "" : age < 120 ? `${Math.round(age)} s ago` : age < 7200 ? `${Math.round(age / 60)} min ago` : new Date(1000 * run.written).toLocaleString("en-GB");
  const when = source.isLive ? `, written ${ago}` : `, report of ${run.written === null ? "an empty run" : new Date(1000 * run.written).toLocaleString("en-GB")}`;
  const broken = run.unreadable.map(said => ` · cannot be read: ${said}`).join("");
  return (run.steps.length ? `step ${run.last_step} of ${run.num_steps ?? "?"}${when}` : "no step has been written yet") + broken;
}

// A text box that is being typed into, or an open page of answers, is not drawn anew.
function isBusy() {
  return state.tab === "rollouts" || (state.tab === "evaluations" && state.asked.name !== null);
}

async function look() {
  const line = document.getElementById("state");
  try {
    const found = await source.runs(state.runs.map(run => run.version));
    const isNew = found.some(Boolean), isFirst = !state.runs.length;
    state.runs = found.map((run, i) => run || state.runs[i]);
    line.replaceChildren(visible(describe()));
    line.className = "";
    if (isFirst || (isNew && !isBusy())) draw();
    lookAgain();
  } catch (error) {
    line.textContent = `cannot be brought up to date: ${error.message}`;
    line.className = "error";
  }
  if (source.isLive) setTimeout(look, LOOK_EVERY_MS);
}

window.addEventListener("hashchange", () => {
  const name = location.hash.slice(1);
  if (TABS[name] && state.runs.length) state.tab = name, draw();
});
look();
