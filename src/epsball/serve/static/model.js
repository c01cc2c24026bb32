// A model's column: its predictions before and after the attack, in words, pictures, bars and curves.

import { chances, chart, element, percent, short } from "./drawing.js";
import { reach } from "./state.js";

export function sentence(found, asked, names) {
  const { before, after, label } = found;
  const prediction = `${names[after.prediction]}, ${percent(after.probabilities[after.prediction])}`;
  const now = asked.iterate === null ? "" : `Iterate ${Math.min(asked.iterate, (found.path ?? [0]).length - 1)}. `;
  if (asked.target !== null) return `${now}${after.fooled ? "At" : "Not at"} its goal, ${names[asked.target]}: ${names[before.prediction]} before, now ${prediction}.`;
  if (before.prediction !== label) return `${now}Misclassified without attack: ${names[before.prediction]} instead of ${names[label]}. Now ${prediction}.`;
  if (after.fooled) return `${now}Fooled: ${names[before.prediction]} before, now ${prediction}.`;
  return `${now}Still correct: ${prediction}.`;
}

// `width` is read before anything is drawn: afterwards the browser would have to lay out the page again.
export function drawModel(article, found, original, asked, { classes: names, norms }, width) {
  const find = name => article.querySelector(name);
  const { before, after, label, line, path } = found;
  const rival = asked.target ?? after.prediction;
  find(".sentence").textContent = sentence(found, asked, names);
  find(".sentence").classList.toggle("fooled", after.fooled);
  article.dataset.fooled = after.fooled;
  for (const [name, source] of [
    [".original", original],
    [".perturbation", found.perturbation],
    [".adversarial", found.adversarial],
  ]) if (find(name).src !== source) find(name).src = source; // the same one again would be decoded again
  find(".original").alt = `The image, predicted as ${names[before.prediction]}`;
  find(".perturbation").alt = `The perturbation, amplified ${short(found.factor)} times`;
  find(".adversarial").alt = `The adversarial image, predicted as ${names[after.prediction]}`;
  find(".factor").textContent = found.distance === 0 ? "no change" : `change × ${short(found.factor)}`;
  chances(find(".chances tbody"), names, before.probabilities, after.probabilities, label, rival);

  const lines = find(".line");
  lines.querySelector("figcaption").textContent = line ? "Logits along the way" : "Logits along the way: nothing has changed";
  for (const part of ["svg", ".legend"]) lines.querySelector(part).toggleAttribute("hidden", !line);
  if (line) {
    const kind = number => number === label ? "label" : number === rival ? "wrong" : "";
    const curves = line.logits.map((values, number) => ({ values, kind: kind(number) }));
    curves.sort((one, other) => Boolean(one.kind) - Boolean(other.kind));
    const name = `Logits from ${-reach(asked.eps)} to ${reach(asked.eps)}; at ${short(line.here)}: `
      + after.logits.map((value, number) => `${names[number]} ${short(value)}`).join(", ");
    const norm = norms.find(known => known.id === asked.norm);
    const unit = norm.whole ? "way from the image" : `${norm.name.split(":")[0]} distance from the image`;
    chart(lines.querySelector("svg"), { width, at: line.at, curves, here: line.here, name, unit });
    const what = asked.target === null ? "what is prediction now" : "its goal";
    legend(lines.querySelector(".legend"), names, label, rival, what, `dotted: the adversarial image, at ${short(line.here)}`);
  }

  const ways = find(".way");
  ways.hidden = !path;
  if (path) {
    const numbers = path.map((_, number) => number), here = Math.min(asked.iterate, path.length - 1);
    ways.querySelector("figcaption").textContent = "Margin at each iterate: above 0 it fools";
    const name = `Margin, iterate by iterate; ${short(path[here].margin)} at ${here}`;
    const curves = [{ values: path.map(one => one.margin), kind: "label" }];
    if (path.length > 1) chart(ways.querySelector("svg"), { width, at: numbers, curves, here, name, unit: "iterate" });
    const point = path[here];
    ways.querySelector(".legend").textContent =
      `At ${here}: ${names[point.prediction]}, ${percent(point.confidence)}; margin ${short(point.margin)}, distance ${short(point.distance)}.`;
  }
  find(".kept").textContent = "";
}

function legend(place, names, label, rival, what, more) {
  const parts = [element("span", { class: "label" }, `━ ${names[label]}`), ", its class; "];
  if (rival !== label) parts.push(element("span", { class: "wrong" }, `╍ ${names[rival]}`), `, ${what}; `);
  place.replaceChildren(...parts, more);
}
