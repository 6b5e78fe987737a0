// DOM elements and number formats. Texts become text nodes, so labels and file names cannot inject markup.

const SVG = "http://www.w3.org/2000/svg";
const NARROW_SPACE = "\u202f";

export const find = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Format a fraction 0..1 as a percentage. Only exact 0 and 1 become 0 % and 100 %. */
export function percent(fraction) {
  const text = (fraction * 100).toFixed(1);
  if (fraction > 0 && text === "0.0") return `<0.1${NARROW_SPACE}%`;
  if (fraction < 1 && text === "100.0") return `>99.9${NARROW_SPACE}%`;
  return `${text}${NARROW_SPACE}%`;
}

/** Format a number with about three significant digits. */
export function digits(value) {
  const size = Math.abs(value);
  if (size === 0 || size >= 100) return value.toFixed(0);
  return value.toFixed(size >= 10 ? 1 : 2);
}

export const milliseconds = (value) => `${digits(value)}${NARROW_SPACE}ms`;

export function bytes(count) {
  if (count < 1000) return plural(count, "byte", "bytes");
  const [size, unit] = count < 1e6 ? [count / 1e3, "kB"] : [count / 1e6, "MB"];
  return `${Number(size.toPrecision(3))}${NARROW_SPACE}${unit}`;
}

export const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
