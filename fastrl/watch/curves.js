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
// reward/FUNCTION/mean and its like, one chart a kind; what has no such end is drawn with the means.
const REWARDS_BY = [["mean", "reward by function"], ["positive", "reward by function, of positive credit"], ["negative", "reward by function, of negative credit"], ["judged_share", "share of rollouts judged, by function"]];
const endOf = name => REWARDS_BY.map(([end]) => end).find(end => name.endsWith(`/${end}`)) || "mean";
const OWN_REWARDS = new Set(["reward/mean", "reward/correct_share"]);

function pointsOf(run, name) {
  const values = run.metrics[name] || [];
  return values.map((value, i) => [run.steps[i], value]).filter(p => p[1] !== null);
}

function curvesView(runs) {
  const series = metrics => runs.flatMap((one, number) => metrics.map(([name, label, color]) =>
    ({ name: runs.length > 1 && number ? `${label} (${one.name})` : label, points: pointsOf(one, name), color, isDashed: number > 0 })));
  const line = curve => lineChart(curve, series(curve.metrics));
  const isTold = (run, name) => name.endsWith("/judged_share") ? pointsOf(run, name).some(p => p[1] !== 1) : name.includes("/", 7) || pointsOf(run, name).some(p => p[1]);
  const isOwn = (run, name) => name.startsWith("reward/") && !OWN_REWARDS.has(name) && isTold(run, name);
  const rewards = [...new Set(runs.flatMap(run => Object.keys(run.metrics).filter(name => isOwn(run, name))))];
  const byFunction = REWARDS_BY.map(([end, title]) => line({ title, metrics: rewards.filter(name => endOf(name) === end)
    .map((name, i) => [name, name.slice(7).replace(new RegExp(`/${end}$`), ""), i]) }));
  const whose = run => runs.length > 1 ? ` of ${run.name}` : "";
  const signs = run => stackChart({ title: `sign of the rollouts' credit${whose(run)}`, unit: "rollouts a step", fromZero: true },
    SIGNS.map(([name, label, color]) => ({ name: label, color, points: run.steps.map((step, i) => [step, run.metrics[name]?.[i] ?? 0]) })));
  const [first, ...others] = CURVES;
  const charts = [line(first), ...byFunction, ...runs.map(signs), ...others.map(line), ...runs.map(run => timeChart(run, whose(run))), ...passCharts(runs)].filter(Boolean);
  if (!charts.length) return el("p", { class: "empty" }, "No step has been written yet.");
  return el("div", {}, notesOn(runs), el("div", { class: "charts" }, ...charts), ...runs.map((run, number) => warnings(run, whose(run), number)));
}

function notesOn(runs) {
  const [run, other] = runs, said = [];
  if (other) said.push(`solid: ${run.name}, dashed: ${other.name}`);
  for (const one of runs) if (one.steps_a_point > 1) said.push(`each point${other ? ` of ${one.name}` : ""} is the mean of ${one.steps_a_point} steps`);
  return said.length ? el("p", { class: "note" }, visible(said.join(" · "))) : null;
}

function timeChart(run, whose) {
  const total = name => run.metrics[name].reduce((sum, value) => sum + (value || 0), 0);
  const names = Object.keys(run.metrics).filter(name => name.startsWith("time/")).sort((a, b) => total(b) - total(a));
  const all = names.reduce((sum, name) => sum + total(name), 0);
  const large = names.filter(name => total(name) > all / 200).slice(0, 7), small = names.filter(name => !large.includes(name));
  const points = some => run.steps.map((step, i) => [step, some.reduce((sum, name) => sum + (run.metrics[name][i] || 0), 0)]);
  const series = large.map((name, i) => ({ name: name.slice(5, -2), color: i, points: points([name]) }));
  return stackChart({ title: `time of a step by phase${whose}`, unit: "s" }, [...series, { name: "other", color: 7, points: points(small) }]);
}

function passCharts(runs) {
  const found = [], of = (run, split) => run.evaluations.filter(e => e.split === split);
  for (const split of new Set(runs.flatMap(run => run.evaluations.map(e => e.split)))) {
    const ks = [...new Set(runs.flatMap(run => of(run, split)).flatMap(e => Object.keys(e.pass_at_k).map(Number)))].sort((a, b) => a - b);
    const some = [...new Set([ks[0], ks[Math.floor(ks.length / 2)], ks.at(-1)])];
    if (runs.some(run => of(run, split).length > 1)) {
      const grown = (run, number) => some.map((k, i) => ({ name: `k = ${k}${number ? ` (${run.name})` : ""}`, color: i, isDashed: number > 0, points:
        of(run, split).filter(e => e.pass_at_k[k]).map(e => [e.step, ...e.pass_at_k[k]]) }));
      found.push(lineChart({ title: `pass@k along the run, ${split}`, form: percent }, runs.flatMap(grown)));
    }
    const drawn = (run, number) => of(run, split).slice(number ? -1 : 0).map((e, i, all) => evaluationCurve(e, i + 1 === all.length, (i + 1) / all.length, number ? run : null));
    found.push(lineChart({ title: `pass@k, ${split}`, x: "k", isLog: true, ticks: ks, form: percent, note: "Bands: 95 % bootstrap over problems, of the last evaluation." }, runs.flatMap(drawn)));
  }
  return found;
}

// The last one has its band, those before are the paler the older; of a second run there is the last one.
function evaluationCurve(found, isLast, age, other) {
  const points = Object.entries(found.pass_at_k).map(([k, v]) => [Number(k), ...(isLast ? v : v.slice(0, 1))]);
  return { name: `step ${found.step}${other ? ` (${other.name})` : ""}`, color: isLast ? 1 : 0, opacity: isLast ? 1 : 0.1 + 0.75 * age, isDashed: other !== null, points };
}

function warnings(run, whose, number) {
  if (!run.warnings.length) return null;
  return el("details", { open: state.isWarned[number], ontoggle: event => { state.isWarned[number] = event.target.open; } }, el("summary", {}, `${run.warnings.length} warnings${whose}, the last at step ${run.warnings.at(-1)[0]}`),
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
