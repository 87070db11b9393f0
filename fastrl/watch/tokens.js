"use strict";
// One rollout, token by token, in the colours of what is known of its tokens.

const MODES = {
  credit: { of: "credits", label: "credit", isSigned: true },
  change: { of: "change", label: "log-prob change by the update", isSigned: true },
  gap: { of: "gap", label: "log-prob, trainer − sampler", isSigned: true },
  logprob: { of: "logprobs", label: "log-prob", isSigned: false },
  entropy: { of: "entropy", label: "entropy", isSigned: false },
};
let tokenMode = "credit";

function rolloutView(rollout, row, redraw) {
  const known = Object.entries(MODES).filter(([, mode]) => rollout[mode.of]);
  const mode = rollout[MODES[tokenMode].of] ? tokenMode : known[0]?.[0];
  const switcher = el("p", { class: "modes" }, "colour: ", ...Object.entries(MODES).map(([name, { label, of }]) =>
    el("button", { type: "button", "aria-pressed": String(name === mode), disabled: !rollout[of], title: rollout[of] ? null : missing(name), onclick: () => { tokenMode = name; redraw(); } }, label)));
  const facts = [["step", row.step], ["problem", rollout.problem_id], ["reward", plain(rollout.reward)], ...Object.entries(rollout.rewards).map(([name, value]) => [`reward ${name}`, plain(value)]), ["penalty", plain(rollout.penalty)], ["reason", rollout.reason],
    ["credit", rollout.advantage === null ? "differs by token" : signed(rollout.advantage)], ["tokens", rollout.tokens], ["finish", rollout.finish_reason], ["weights of step", rollout.weight_version]];
  return el("article", {},
    el("dl", {}, ...facts.map(([name, value]) => el("div", {}, fill(el("dt"), {}, [visible(name)]), fill(el("dd"), {}, [visible(String(value ?? "–"))])))),
    el("h3", {}, "prompt"), textBox(rollout.prompt), cutNote(rollout.prompt.length, rollout.prompt_characters, "characters of the prompt"),
    el("h3", {}, "completion"), switcher, mode ? scale(rollout, mode) : el("p", { class: "note" }, "This file holds no texts of tokens: an older version wrote it."),
    coloured(rollout, mode), rollout.is_cut ? cutNote(rollout.pieces.length, rollout.tokens, "tokens") : null);
}

function missing(name) {
  return name === "change" ? "not measured at this step: run.rescored_every" : "not in this file";
}

function cutNote(shown, all, what) {
  return shown < all || what === "tokens" ? el("p", { class: "note" }, `cut: ${plain(shown)} of ${plain(all)} ${what} are shown`) : null;
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), 0);
}

function scale(rollout, mode) {
  const { of, isSigned } = MODES[mode], most = largest(rollout[of]);
  const ends = isSigned ? [`−${plain(most, 3)}`, "0", `+${plain(most, 3)}`] : mode === "logprob" ? [`−${plain(most, 3)}`, "0"] : ["0", plain(most, 3)];
  const isReversed = mode === "logprob";
  return el("p", { class: "scale" }, ends[0], el("i", { class: isSigned ? "signed" : isReversed ? "falling" : "rising" }), ends.at(-1));
}

function shade(value, most, isSigned) {
  if (value === null || value === undefined || !most || !value) return null;
  const strength = Math.round(70 * Math.abs(value) / most);
  const hue = !isSigned ? "var(--c3)" : value > 0 ? "var(--c0)" : "var(--c1)";
  return strength ? `color-mix(in srgb, ${hue} ${strength}%, transparent)` : null;
}

function coloured(rollout, mode) {
  const box = el("div", { class: "text tokens", dir: "auto" });
  const { of, isSigned } = MODES[mode] || {}, values = mode ? rollout[of] : null, most = values ? largest(values) : 0;
  rollout.pieces.forEach((piece, i) => {
    const isReply = rollout.turns && rollout.turns[i] < 0;
    const background = values ? shade(values[i], most, isSigned) : null;
    const token = el("span", { class: isReply ? "reply" : null, title: tip(rollout, i, isReply), style: background ? { background } : {} });
    token.append(visible(piece.replaceAll("\n", "↵\n").replaceAll("\t", "→\t")));
    box.append(token);
  });
  return box;
}

function tip(rollout, i, isReply) {
  const said = Object.values(MODES).filter(({ of }) => rollout[of] && rollout[of][i] !== null).map(({ of, label }) => `${label} ${signed(rollout[of][i], 4)}`);
  return `token ${i + 1}${isReply ? ", of the environment" : ""}\n${said.join("\n")}`;
}
