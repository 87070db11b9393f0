"use strict";
// Charts as SVG: lines with bands, stacked areas. Every chart tells its values where the pointer is.

const WIDE = 460, HIGH = 230, LEFT = 52, RIGHT = 18, TOP = 8, BOTTOM = 26;
const color = number => `var(--c${number % 8})`;

function ticks(low, high, most) {
  const span = high - low || 1, rough = span / most, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map(n => n * power).find(n => span / n <= most);
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + span * 1e-9; i++) found.push(Number((i * size).toPrecision(12)));
  return found;
}

function axes(range, options) {
  const [xLow, xHigh] = options.isLog ? range.x.map(Math.log2) : range.x;
  const [yLow, yHigh] = range.y;
  const xOf = value => LEFT + ((options.isLog ? Math.log2(value) : value) - xLow) / (xHigh - xLow || 1) * (WIDE - LEFT - RIGHT);
  const yOf = value => HIGH - BOTTOM - (value - yLow) / (yHigh - yLow || 1) * (HIGH - TOP - BOTTOM);
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": options.title });
  for (const tick of ticks(yLow, yHigh, 5)) {
    chart.append(svg("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: yOf(tick), y2: yOf(tick) }),
      svg("text", { class: "tick", x: LEFT - 6, y: yOf(tick) + 4, "text-anchor": "end" }, (options.form || plain)(tick)));
  }
  const xTicks = options.isLog ? options.ticks : ticks(xLow, xHigh, 6).filter(Number.isInteger);
  for (const tick of xTicks) {
    chart.append(svg("text", { class: "tick", x: xOf(tick), y: HIGH - 9, "text-anchor": "middle" }, plain(tick)));
  }
  return { chart, xOf, yOf };
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function bounds(values, fromZero) {
  const known = values.filter(Number.isFinite);
  if (!known.length) return null;
  let low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  if (fromZero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [fromZero && low === 0 ? 0 : low - room, high + room];
}

// series: {name, points: [[x, y, low?, high?]], color, isDashed}. Null where no series has a point.
function lineChart(options, series) {
  const drawn = withoutTwins(series.map(one => ({ ...one, points: one.points.filter(p => Number.isFinite(p[1])) })).filter(one => one.points.length));
  if (!drawn.length) return null;
  const points = drawn.flatMap(one => one.points), xs = points.map(p => p[0]);
  const range = { x: [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))], y: bounds(points.flatMap(p => p.slice(1)), options.fromZero) };
  const { chart, xOf, yOf } = axes(range, { ...options, ticks: options.ticks || [] });
  for (const one of drawn) {
    const style = { stroke: color(one.color), opacity: one.opacity || 1 };
    if (one.isDashed) style["stroke-dasharray"] = "5 4";
    if (one.points[0].length > 2) {
      const band = [...one.points.map(p => [xOf(p[0]), yOf(p[3])]), ...one.points.toReversed().map(p => [xOf(p[0]), yOf(p[2])])];
      chart.append(svg("path", { class: "band", d: path(band) + "Z", style: { fill: color(one.color) } }));
      for (const p of one.points) chart.append(svg("line", { class: "whisker", x1: xOf(p[0]), x2: xOf(p[0]), y1: yOf(p[2]), y2: yOf(p[3]), style: { stroke: color(one.color) } }));
    }
    chart.append(svg("path", { class: "line", d: path(one.points.map(p => [xOf(p[0]), yOf(p[1])])), style }));
    if (one.points.length < 12) for (const p of one.points) chart.append(svg("circle", { cx: xOf(p[0]), cy: yOf(p[1]), r: 3, style: { fill: color(one.color), opacity: one.opacity || 1 } }));
  }
  return panel(options, chart, drawn, xOf);
}

// A curve under another one cannot be seen: both names are said of one.
function withoutTwins(series) {
  const found = [];
  for (const one of series) {
    const twin = found.find(other => other.isDashed === one.isDashed && JSON.stringify(other.points) === JSON.stringify(one.points));
    if (twin) twin.name += ` = ${one.name}`;
    else found.push(one);
  }
  return found;
}

// Areas on top of each other, or bars where values have both signs; series as above, all over the same x.
function stackChart(options, series) {
  const drawn = series.filter(one => one.points.some(p => p[1]));
  if (!drawn.length) return null;
  const xs = drawn[0].points.map(p => p[0]), highs = xs.map(() => 0), lows = xs.map(() => 0);
  const layers = drawn.map(one => one.points.map(([x, y], i) => {
    const sums = (y || 0) < 0 ? lows : highs, from = sums[i];
    sums[i] += y || 0;
    return [x, from, sums[i]];
  }));
  const edge = options.isBars ? (xs.at(-1) - xs[0] || 1) / xs.length / 2 : 0;
  const range = { x: [xs[0] - edge, xs.at(-1) + edge], y: [Math.min(...ends(lows)), Math.max(...ends(highs)) * 1.04 || 1] };
  const { chart, xOf, yOf } = axes(range, options);
  const half = Math.min(12, (WIDE - LEFT - RIGHT) / xs.length * 0.4);
  if (options.isBars) layers.forEach((layer, number) => layer.forEach(([x, from, to]) => chart.append(svg("rect",
    { class: "area", x: xOf(x) - half, width: 2 * half, y: Math.min(yOf(from), yOf(to)), height: Math.abs(yOf(from) - yOf(to)), style: { fill: color(drawn[number].color) } }))));
  else layers.forEach((layer, number) => {
    const area = [...layer.map(p => [xOf(p[0]), yOf(p[2])]), ...layer.toReversed().map(p => [xOf(p[0]), yOf(p[1])])];
    if (xs.length === 1) area.splice(0, area.length, [LEFT, yOf(layer[0][2])], [WIDE - RIGHT, yOf(layer[0][2])], [WIDE - RIGHT, yOf(layer[0][1])], [LEFT, yOf(layer[0][1])]);
    chart.append(svg("path", { class: "area", d: path(area) + "Z", style: { fill: color(drawn[number].color) } }));
  });
  return panel(options, chart, drawn, xOf);
}

function ends(values) {
  return [values.reduce((a, b) => Math.min(a, b), 0), values.reduce((a, b) => Math.max(a, b), 0)];
}

function panel(options, chart, series, xOf) {
  const told = el("p", { class: "told" }, " ");
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HIGH - BOTTOM, x1: -9, x2: -9 });
  chart.append(cursor);
  chart.addEventListener("pointermove", event => {
    const box = chart.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * WIDE;
    const all = series.flatMap(one => one.points.map(p => p[0]));
    const nearest = all.reduce((best, value) => Math.abs(xOf(value) - x) < Math.abs(xOf(best) - x) ? value : best, all[0]);
    cursor.setAttribute("x1", xOf(nearest)), cursor.setAttribute("x2", xOf(nearest));
    const said = series.map(one => [one.name, one.points.find(p => p[0] === nearest)]).filter(([, p]) => p);
    told.textContent = `${options.x || "step"} ${plain(nearest)}: ` + said.map(([name, p]) => `${name} ${(options.form || plain)(p[1])}`).join(", ");
  });
  chart.addEventListener("pointerleave", () => { told.textContent = "\u00a0"; cursor.setAttribute("x1", -9), cursor.setAttribute("x2", -9); });
  const legend = el("p", { class: "legend" }, ...series.filter(one => !one.isDashed || series.every(other => other.isDashed)).map(one =>
    el("span", {}, el("i", { style: { background: color(one.color), opacity: one.opacity || 1 } }), visible(one.name))));
  return el("figure", {}, el("figcaption", {}, el("b", {}, options.title), options.unit ? `, ${options.unit}` : ""), legend, chart, told,
    options.note ? el("p", { class: "note" }, options.note) : null);
}
