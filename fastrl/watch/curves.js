"use strict";
// The views of numbers: curves over steps, evaluations, settings.

const SIGNS = [["rollouts/num_positive", "positive", 0], ["rollouts/num_negative", "negative", 1], ["rollouts/num_zero", "zero", 6]];
const CURVES = [
  { title: "reward", metrics: [["reward/mean", "mean", 0], ["reward/correct_share", "correct share", 2]] },
  { title: "entropy", unit: "nats a token", metrics: [["entropy/mean", "all", 6], ["entropy/correct", "correct", 0], ["entropy/wrong", "wrong", 1]] },
  { title: "|Δlogp|, trainer − sampler", unit: "nats a token", fromZero: true, metrics: [["mismatch/mean_abs", "all", 6], ["mismatch/mean_abs_correct", "correct", 0], ["mismatch/mean_abs_wrong", "wrong", 1]] },
  { title: "log-prob of what was sampled", unit: "nats a token", metrics: [["logprob/correct", "correct", 0], ["logprob/wrong", "wrong", 1]] },
  { title: "tokens a completion", metrics: [["rollouts/mean_tokens", "mean", 0]] },
  { title: "shares of the rollouts", fromZero: true, metrics: [["rollouts/truncated_share", "truncated", 1], ["groups/equal_share", "of groups: all rewards equal", 6], ["update/kept_share", "trained on", 0]] },
  { title: "gradient norm", fromZero: true, metrics: [["grad_norm", "mean of the step's updates", 0]] },
  { title: "clipped share of tokens", fromZero: true, metrics: [["clip/positive", "positive", 0], ["clip/negative", "negative", 1]] },
  { title: "tokens/s", unit: "completion tokens over the whole step", fromZero: true, metrics: [["throughput/tokens_per_s", "tokens/s", 0]] },
  { title: "memory", unit: "GiB", fromZero: true, metrics: [["memory/resident_gib", "resident", 0], ["memory/gpu_peak_gib", "GPU peak so far", 1]] },
  { title: "KL to the reference (k3)", metrics: [["kl/reference_k3", "k3", 0]] },
];
const OWN_REWARDS = new Set(["reward/mean", "reward/correct_share"]);

function pointsOf(run, name) {
  const values = run.metrics[name] || [];
  return values.map((value, i) => [run.steps[i], value]).filter(p => p[1] !== null);
}

function curvesView(runs) {
  const [run] = runs;
  const series = metrics => runs.flatMap((one, number) => metrics.map(([name, label, color]) =>
    ({ name: runs.length > 1 && number ? `${label} (${one.name})` : label, points: pointsOf(one, name), color, isDashed: number > 0 })));
  const line = curve => lineChart(curve, series(curve.metrics));
  const rewards = Object.keys(run.metrics).filter(name => name.startsWith("reward/") && !OWN_REWARDS.has(name) && pointsOf(run, name).some(p => p[1]));
  const byFunction = rewards.length ? line({ title: "reward by function", metrics: rewards.map((name, i) => [name, name.slice(7), i]) }) : null;
  const signs = stackChart({ title: "sign of the rollouts' credit", unit: "rollouts a step", fromZero: true },
    SIGNS.map(([name, label, color]) => ({ name: label, color, points: run.steps.map((step, i) => [step, run.metrics[name]?.[i] ?? 0]) })));
  const [first, ...others] = CURVES;
  const charts = [line(first), byFunction, signs, ...others.map(line), timeChart(run), ...passCharts(runs)].filter(Boolean);
  if (!charts.length) return el("p", { class: "empty" }, "No step has been written yet.");
  return el("div", {}, notesOn(runs), el("div", { class: "charts" }, ...charts), warnings(run));
}

function notesOn(runs) {
  const [run, other] = runs, said = [];
  if (other) said.push(`solid: ${run.name}, dashed: ${other.name}`);
  if (run.steps_a_point > 1) said.push(`each point is the mean of ${run.steps_a_point} steps`);
  return said.length ? el("p", { class: "note" }, visible(said.join(" · "))) : null;
}

function timeChart(run) {
  const total = name => run.metrics[name].reduce((sum, value) => sum + (value || 0), 0);
  const names = Object.keys(run.metrics).filter(name => name.startsWith("time/")).sort((a, b) => total(b) - total(a));
  const all = names.reduce((sum, name) => sum + total(name), 0);
  const large = names.filter(name => total(name) > all / 200).slice(0, 7), small = names.filter(name => !large.includes(name));
  const points = some => run.steps.map((step, i) => [step, some.reduce((sum, name) => sum + (run.metrics[name][i] || 0), 0)]);
  const series = large.map((name, i) => ({ name: name.slice(5, -2), color: i, points: points([name]) }));
  return stackChart({ title: "time of a step by phase", unit: "s" }, [...series, { name: "other", color: 7, points: points(small) }]);
}

function evaluatedSplits(run) {
  const splits = [...new Set(run.evaluations.map(e => e.split))];
  return splits.map(split => [split, run.evaluations.filter(e => e.split === split)]);
}

function passCharts(runs) {
  const [run] = runs, found = [];
  for (const [split, evaluations] of evaluatedSplits(run)) {
    const ks = [...new Set(evaluations.flatMap(e => Object.keys(e.pass_at_k).map(Number)))].sort((a, b) => a - b);
    const some = [...new Set([ks[0], ks[Math.floor(ks.length / 2)], ks.at(-1)])];
    if (evaluations.length > 1) {
      const grown = (one, isDashed) => some.map((k, i) => ({ name: `k = ${k}`, color: i, isDashed, points:
        one.evaluations.filter(e => e.split === split && e.pass_at_k[k]).map(e => [e.step, ...e.pass_at_k[k]]) }));
      found.push(lineChart({ title: `pass@k along the run, ${split}`, form: percent }, [...grown(run, false), ...(runs[1] ? grown(runs[1], true) : [])]));
    }
    found.push(lineChart({ title: `pass@k, ${split}`, x: "k", isLog: true, ticks: ks, form: percent, note: "Bands: 95 % bootstrap over problems, of the last evaluation." },
      evaluations.map((e, i) => ({ name: `step ${e.step}`, color: i === evaluations.length - 1 ? 1 : 0, opacity: i === evaluations.length - 1 ? 1 : 0.25 + 0.6 * i / evaluations.length,
        points: Object.entries(e.pass_at_k).map(([k, v]) => [Number(k), ...(i === evaluations.length - 1 ? v : v.slice(0, 1))]) }))));
  }
  return found;
}

function warnings(run) {
  if (!run.warnings.length) return null;
  return el("details", { open: state.isWarned, ontoggle: event => { state.isWarned = event.target.open; } }, el("summary", {}, `${run.warnings.length} warnings, the last at step ${run.warnings.at(-1)[0]}`),
    table(["step", "warning"], run.warnings.map(([step, text]) => [step, text]), "wraps"));
}

function configView(runs) {
  const [run, other] = runs, names = [...new Set(runs.flatMap(one => Object.keys(one.config)))];
  const differs = name => other && JSON.stringify(run.config[name]) !== JSON.stringify(other.config[name]);
  const said = value => value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
  const rows = names.map(name => [name, ...runs.map(one => said(one.config[name]))]);
  const parts = [];
  if (other) {
    const found = rows.filter(row => differs(row[0]));
    parts.push(el("h2", {}, found.length ? `${found.length} settings differ` : "No setting differs"), found.length ? table(["setting", ...runs.map(one => one.name)], found, "wraps") : null);
  }
  parts.push(el("h2", {}, "All settings"), table(["setting", ...runs.map(one => one.name)], rows, "wraps"));
  return el("div", {}, ...parts);
}
