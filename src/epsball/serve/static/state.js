// What is chosen, and how it is written into the address: a link to a page shows the same image in the same ball.

const NUMBERS = ["row", "label", "target", "made_on", "iterate", "seed", "eps"];
const TEXTS = ["norm", "attack"];

export function read(hash) {
  const parameters = new URLSearchParams(hash.replace(/^#/, "")), found = {};
  for (const name of NUMBERS) {
    const value = parameters.get(name);
    if (value !== null && value !== "" && Number.isFinite(Number(value))) found[name] = Number(value);
  }
  for (const name of TEXTS) if (parameters.get(name)) found[name] = parameters.get(name);
  return found;
}

export function write(state) {
  const parameters = new URLSearchParams();
  for (const name of [...NUMBERS, ...TEXTS]) {
    if (state[name] !== null && state[name] !== undefined) parameters.set(name, state[name]);
  }
  return `#${parameters}`;
}

// The slider is cubic, so that small radii have as much room as large ones: 400 steps from 0 to the norm's greatest.
const STEPS = 400;

export function radius(step, norm) {
  const exact = norm.most * (step / STEPS) ** 3;
  return norm.whole ? Math.round(exact) : Number(exact.toPrecision(3));
}

export function step(eps, norm) {
  return Math.round(STEPS * Math.min(1, eps / norm.most) ** (1 / 3));
}

// How far the line of logits goes: 1, 2 or 5 times a power of ten, two to five times the radius, so that it seldom jumps.
export function reach(eps) {
  if (!(eps > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(2 * eps));
  return Number(([1, 2, 5, 10].find(times => times * unit >= 2 * eps) * unit).toPrecision(6));
}
