// Bars and curves. Everything is text nodes and attributes: no markup is ever made from what the server says.

const HEIGHT = 200; // of a chart, as in page.css
const SVG = "http://www.w3.org/2000/svg";

export function percent(share) {
  return share === null ? "none" : `${(100 * share).toFixed(2)} %`;
}

export function short(number) {
  return number === null ? "none" : String(Number(number.toPrecision(3)));
}

export function element(kind, attributes = {}, ...inner) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inner);
  return made;
}

function drawn(kind, attributes, ...inner) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inner);
  return made;
}

// The classes worth a row: all of them up to twelve, else those that are likely before or after, and the label.
function worth(before, after, label) {
  const every = before.map((_, number) => number);
  if (every.length <= 12) return every;
  const most = number => Math.max(before[number] ?? 0, after[number] ?? 0, number === label ? 2 : 0);
  return every.sort((one, other) => most(other) - most(one)).slice(0, 10).sort((one, other) => one - other);
}

export function chances(body, names, before, after, label, predicted) {
  const rows = worth(before, after, label);
  while (body.rows.length > rows.length) body.deleteRow(-1);
  while (body.rows.length < rows.length) {
    const cell = () => element("td", {}, element("div", { class: "chance" }, element("div"), element("span")));
    body.append(element("tr", {}, element("th", { scope: "row" }), cell(), cell()));
  }
  rows.forEach((number, place) => {
    const row = body.rows[place];
    row.className = number === label ? "label" : number === predicted ? "wrong" : "";
    row.dataset.class = number;
    row.cells[0].textContent = names[number];
    row.cells[0].title = names[number];
    [before[number], after[number]].forEach((share, column) => {
      const [bar, text] = row.cells[column + 1].firstChild.children;
      bar.style.width = `${100 * (share ?? 0)}%`;
      text.textContent = percent(share);
    });
  });
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(times => times * unit >= rough) * unit;
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(6)));
  return found;
}

// Curves over `at`: `curves` is a list of {values, kind}, drawn in their order; `here` is marked on the x axis.
export function chart(svg, { width, at, curves, here, name, unit }) {
  const height = HEIGHT;
  const left = 44, right = width - 8, top = 8, bottom = height - 36;
  const values = curves.flatMap(curve => curve.values).filter(value => value !== null);
  let low = Math.min(0, ...values), high = Math.max(0, ...values);
  if (low === high) high = low + 1;
  const x = value => left + (right - left) * (value - at[0]) / (at[at.length - 1] - at[0] || 1);
  const y = value => bottom - (bottom - top) * (value - low) / (high - low);
  const parts = [];
  for (const value of ticks(low, high, 4)) {
    parts.push(drawn("line", { class: value ? "grid" : "axis", x1: left, x2: right, y1: y(value), y2: y(value) }));
    parts.push(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const value of ticks(at[0], at[at.length - 1], width < 300 ? 3 : 5)) {
    const anchor = x(value) > right - 12 ? "end" : "middle";
    parts.push(drawn("text", { x: x(value), y: bottom + 16, "text-anchor": anchor }, String(value)));
  }
  parts.push(drawn("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, unit));
  for (const { values, kind } of curves) {
    let line = "", open = false;
    values.forEach((value, place) => {
      if (value !== null) line += `${open ? "L" : "M"}${x(at[place]).toFixed(1)} ${y(value).toFixed(1)}`;
      open = value !== null;
    });
    parts.push(drawn("path", { class: kind, d: line }));
  }
  if (here >= at[0] && here <= at[at.length - 1]) {
    parts.push(drawn("line", { class: "here", x1: x(here), x2: x(here), y1: top, y2: bottom, "data-here": here }));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", name);
  svg.replaceChildren(...parts);
}
