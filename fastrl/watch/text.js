"use strict";
// Elements and texts. Whatever comes from a run becomes a text node; nothing is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Control, direction and zero-width characters, lone surrogates: they are shown by their number. Tabs and line ends are not.
const HIDDEN = /(?![\t\n])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800\ufff9-\ufffb]/gu;

function visible(text) {
  const found = document.createDocumentFragment();
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > from) found.append(text.slice(from, match.index));
    const number = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    found.append(el("span", { class: "hidden-sign" }, `U+${number}`));
    from = match.index + match[0].length;
  }
  if (from < text.length) found.append(text.slice(from));
  return found;
}

// A text in a box of its own: its direction ends with it, and line ends are seen.
function textBox(text, className) {
  const box = el("div", { class: `text ${className || ""}`, dir: "auto" });
  box.append(visible(text));
  return box;
}

function plain(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value).replace("-", "−");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(Math.max(0, digits - 2)) : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "−");
}

function signed(value, digits = 3) {
  return value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + plain(value, digits);
}

function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`.replace("-", "−");
}

function interval(found) {
  return found ? `${(100 * found[0]).toFixed(1)} [${(100 * found[1]).toFixed(1)}, ${(100 * found[2]).toFixed(1)}]` : "–";
}

function table(header, rows, className) {
  const cell = (tag, value) => el(tag, {}, value instanceof Node ? value : visible(String(value)));
  return el("div", { class: "scrolls", tabindex: "0" }, el("table", { class: className },
    el("thead", {}, el("tr", {}, ...header.map(value => cell("th", value)))),
    el("tbody", {}, ...rows.map(row => el("tr", {}, ...row.map(value => cell("td", value)))))));
}

function choice(label, options, value, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) },
    ...options.map(([name, text]) => el("option", { value: name, selected: name === value }, text)));
  return el("label", {}, `${label} `, select);
}
