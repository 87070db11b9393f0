"use strict";
// Where the page's data comes from: the server, or what lies in the page itself. Both answer the same questions.

const EMBEDDED = JSON.parse(document.getElementById("data").textContent);

const server = {
  isLive: true,
  async ask(path, query) {
    const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    const answer = await fetch(`/api/${path}?${new URLSearchParams(given)}`);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error || answer.statusText);
    return found;
  },
  runs(versions) { return this.ask("runs", { versions: versions.join(",") }); },
  rollouts(run, filter, offset, limit) { return this.ask("rollouts", { run, offset, limit, ...filter }); },
  rollout(run, row) { return this.ask("rollout", { run, step: row.step, line: row.line }); },
  completions(run, name, offset, text, which) { return this.ask("completions", { run, name, offset, text, which }); },
};

const ORDERS = {
  newest: (a, b) => b.step - a.step || a.line - b.line,
  oldest: (a, b) => a.step - b.step || a.line - b.line,
  reward: (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity),
  credit: (a, b) => (b.credit ?? -Infinity) - (a.credit ?? -Infinity),
  "least credit": (a, b) => (a.credit ?? -Infinity) - (b.credit ?? -Infinity),
  longest: (a, b) => b.tokens - a.tokens,
  shortest: (a, b) => a.tokens - b.tokens,
};
const ANSWERS_A_PAGE = 50;

const embedded = {
  isLive: false,
  async runs(versions) { return EMBEDDED.runs.map(run => versions.includes(run.version) ? null : run); },
  async rollouts(run, filter, offset, limit) {
    const found = EMBEDDED.rollouts.rows.filter(row => isWithin(row, filter)).sort(ORDERS[filter.order || "newest"]);
    const rows = found.slice(offset, offset + limit).map(row => ({
      ...row, problem: row.problem_id, snippet: row.pieces.join("").slice(0, 160),
    }));
    return { ...EMBEDDED.rollouts, total: found.length, rows };
  },
  async rollout(run, wanted) {
    return EMBEDDED.rollouts.rows.find(row => row.step === wanted.step && row.line === wanted.line);
  },
  async completions(run, name, offset, text, which) {
    const all = EMBEDDED.completions[name];
    if (!all) throw new Error("the completions of this evaluation are not part of this file; fastrl watch shows them");
    if (all.error) throw new Error(all.error);
    const found = all.rows.filter(row => (!which || row.is_correct === (which === "correct")) &&
      (!text || has(`${row.problem_id}\n${row.prompt}\n${row.completion}`, text)));
    return { total: found.length, rows: found.slice(offset, offset + ANSWERS_A_PAGE), kept: all.total, embedded: all.rows.length };
  },
};

function has(text, part) {
  return text.toLowerCase().includes(part.toLowerCase());
}

function isWithin(row, filter) {
  for (const name of ["reward", "tokens", "step"]) {
    const low = filter[`min_${name}`], high = filter[`max_${name}`];
    if (low !== undefined && low !== "" && !(row[name] !== null && row[name] >= Number(low))) return false;
    if (high !== undefined && high !== "" && !(row[name] !== null && row[name] <= Number(high))) return false;
  }
  return (!filter.problem || has(row.problem_id, filter.problem)) && (!filter.text || has(row.pieces.join(""), filter.text));
}

const source = EMBEDDED ? embedded : server;
