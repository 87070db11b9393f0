"use strict";
// The ledger as pictures: what moved between the kinds of completions, at each measurement and in all.

const KINDS = [["penalised", "penalised", 1], ["correct", "correct", 0], ["other_wrong", "other wrong", 4], ["rest", "not drawn", 6]];

function ledgerView(runs) {
  const parts = runs.flatMap(run => run.ledger.length ? [el("h2", {}, visible(run.name)), ...ledgerOf(run.ledger)] : []);
  if (parts.length) return el("div", {}, ...parts);
  const isKept = runs.some(run => run.config["ledger.every"]), isBroken = runs.some(run => run.unreadable.some(said => said.includes("ledger.jsonl")));
  return el("p", { class: "empty" }, isBroken ? "The ledger cannot be read." : isKept ? "No measurement has been written yet." : "This run keeps no ledger: ledger.every is 0.");
}

function ledgerOf(lines) {
  const last = lines.at(-1);
  const change = line => KINDS.map(([kind]) => line.mass[kind] - line.base_mass[kind]);
  const series = KINDS.map(([, name, color], i) => ({ name, color, points: lines.map(line => [line.step, change(line)[i]]) }));
  const over = stackChart({ title: "change of probability since step 0", unit: "mean over prompts", isBars: true, form: percent, note: "Above 0: gained. Below: lost. Both sides are equal at every step." }, series);
  return [el("div", { class: "charts" }, flow(last, change(last)), over),
    table(["", "at step 0", `at step ${last.step}`, "change"], KINDS.map(([kind, name], i) => [name, percent(last.base_mass[kind]), percent(last.mass[kind]), `${change(last)[i] > 0 ? "+" : ""}${percent(change(last)[i]).replace(" %", " points")}`]))];
}

// From those that lost to those that gained. With several of both it is not known whose went where: in proportion.
function flow(line, changes) {
  const lost = KINDS.map((kind, i) => [...kind, -changes[i]]).filter(k => k[3] > 1e-9);
  const gained = KINDS.map((kind, i) => [...kind, changes[i]]).filter(k => k[3] > 1e-9);
  const total = gained.reduce((sum, k) => sum + k[3], 0);
  const options = { title: `where probability went by step ${line.step}` };
  if (!total) return el("figure", {}, el("figcaption", {}, el("b", {}, options.title)), el("p", { class: "note" }, "Nothing has moved yet."));
  const high = HIGH - 40, gap = 10, inner = high - gap * (Math.max(lost.length, gained.length) - 1);
  const scale = inner / Math.max(total, lost.reduce((sum, k) => sum + k[3], 0));
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": options.title });
  const place = side => { let y = 24; return side.map(k => { const at = y; y += k[3] * scale + gap; return at; }); };
  const lostAt = place(lost), gainedAt = place(gained), from = [...lostAt], to = [...gainedAt], x1 = 150, x2 = WIDE - 150;
  lost.forEach((source, i) => gained.forEach((target, j) => {
    const size = source[3] * target[3] / total * scale, middle = (x1 + x2) / 2;
    const d = `M${x1} ${from[i]}C${middle} ${from[i]} ${middle} ${to[j]} ${x2} ${to[j]}V${to[j] + size}C${middle} ${to[j] + size} ${middle} ${from[i] + size} ${x1} ${from[i] + size}Z`;
    chart.append(svg("path", { class: "ribbon", d, style: { fill: color(target[2]) } }));
    from[i] += size, to[j] += size;
  }));
  const column = (side, at, x, anchor) => side.forEach((k, i) => {
    const middle = at[i] + k[3] * scale / 2, isLeft = anchor === "end";
    chart.append(svg("rect", { x: isLeft ? x - 6 : x, width: 6, y: at[i], height: Math.max(1, k[3] * scale), style: { fill: color(k[2]) } }),
      svg("text", { class: "label", x: x + (isLeft ? -12 : 12), y: middle + 4, "text-anchor": anchor }, `${k[1]} ${isLeft ? "−" : "+"}${percent(k[3])}`));
  });
  column(lost, lostAt, x1, "end"), column(gained, gainedAt, x2, "start");
  chart.append(svg("text", { class: "tick", x: x1, y: 12, "text-anchor": "end" }, "lost"), svg("text", { class: "tick", x: x2, y: 12 }, "gained"));
  const note = lost.length > 1 && gained.length > 1 ? "What each lost and gained is exact; which went where is not known and drawn in proportion." : "Exact, of the probe set's prompts.";
  return el("figure", {}, el("figcaption", {}, el("b", {}, options.title), `, ${percent(total)} of a prompt's probability`), chart, el("p", { class: "note" }, note));
}
