// The page: choices on one side, and for each model what becomes of the image, of its probabilities and of its logits.

import { file, get, newest, post, upload } from "./asking.js";
import { element, percent, short } from "./drawing.js";
import { drawModel, sentence } from "./model.js";
import { radius, reach, read, step, write } from "./state.js";

const at = id => document.getElementById(id);
const PAGE = 24, POINTS = 41, PATIENCE = 400, SLOW = 300;

let about, last = null, start = 0, total = 0;
let state = {};
let picture = null; // an uploaded image, as a data URL; it is kept here and nowhere else

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => element("option", { value: key }, text)));
  select.value = value ?? "";
}

const norm = () => about.norms.find(known => known.id === state.norm);
const attack = () => about.attacks.find(known => known.id === state.attack);

// What is chosen, made to fit: an attack that the norm has, a row that there is.
function settle() {
  const fallback = about.norms.some(known => known.id === about.ball.norm) ? about.ball.norm : about.norms[0].id;
  if (!norm()) state.norm = fallback;
  const fits = about.attacks.filter(known => known.norms.includes(state.norm));
  if (!fits.includes(attack())) state.attack = fits[0].id;
  if (!(state.eps >= 0)) state.eps = about.ball.eps;
  const whole = (name, below) => {
    if (!(Number.isInteger(state[name]) && state[name] >= 0 && state[name] < below)) state[name] = null;
  };
  whole("label", about.classes.length);
  whole("target", about.classes.length);
  whole("made_on", about.models.length);
  whole("row", about.data.count);
  whole("seed", Infinity);
  whole("iterate", Infinity);
  if (!attack().iterates) state.iterate = null;
  if (!picture && state.row === null) state.row = 0;
  state.seed ??= 0;
}

// The controls show the state.
function show() {
  settle();
  const classes = about.classes.map((name, number) => [number, name]);
  at("norm").value = state.norm;
  options(at("attack"), about.attacks.filter(a => a.norms.includes(state.norm)).map(a => [a.id, a.name]), state.attack);
  options(at("label"), [["", picture ? "what each model says" : "as the data say"], ...classes], state.label);
  const goals = classes.map(([number, name]) => [number, `towards ${name}`]);
  options(at("target"), [["", "away from its class"], ...goals], state.target);
  at("made_on").value = state.made_on ?? "";
  at("seed").value = state.seed;
  at("stepping").checked = state.iterate !== null;
  at("stepping-field").hidden = !attack().iterates;
  at("iterates").hidden = state.iterate === null;
  showRadius(true);
  at("image-now").textContent = picture ? "uploaded" : `example ${state.row}`;
  at("attack-now").textContent = attack().name;
  for (const input of at("thumbnails").querySelectorAll("input")) input.checked = Number(input.value) === state.row;
}

function showRadius(number) {
  at("eps").value = step(state.eps, norm());
  at("eps").setAttribute("aria-valuetext", `${short(state.eps)} ${norm().unit}`);
  if (number) at("eps-number").value = state.eps;
  at("unit").textContent = norm().whole ? norm().unit : `${norm().unit}, ${about.data.lo} to ${about.data.hi}`;
}

function question() {
  const { row, label, target, made_on, iterate, seed, eps } = state;
  const image = picture ? { png: picture.split(",")[1] } : { row };
  return { ...image, label, target, made_on, iterate, seed, eps, norm: state.norm, attack: state.attack };
}

function fail(error) {
  at("error").textContent = error.message;
  at("error").hidden = false;
}

let began = null;

const ask = newest(async () => {
  const asked = question(), from = began;
  const slow = setTimeout(() => at("models").setAttribute("aria-busy", "true"), SLOW);
  try {
    const answer = await post("/api/attack", { ...asked, points: POINTS, reach: reach(asked.eps) });
    last = { asked, answer };
    at("error").hidden = true;
    draw();
    if (from !== null) performance.measure("drag", { start: from, end: performance.now() });
    document.body.dataset.answered = JSON.stringify(asked);
  } catch (error) {
    fail(error);
  } finally {
    clearTimeout(slow);
    at("models").removeAttribute("aria-busy");
  }
});

function changed() {
  began = performance.now();
  ask();
}

function draw() {
  const { asked, answer } = last;
  const articles = [...at("models").children], widths = articles.map(article => article.querySelector(".sentence").clientWidth);
  answer.models.forEach((found, number) => drawModel(articles[number], found, answer.original, asked, about, widths[number]));
  const warned = answer.warnings.map(text => ` ${text}.`).join("");
  at("cost").textContent = `Answered in ${(1000 * answer.seconds).toFixed(1)} ms.${warned}`;
  const way = answer.models.find(found => found.path)?.path;
  if (way) {
    at("iterate").max = Math.max(...answer.models.map(found => found.path ? found.path.length - 1 : 0));
    at("iterate").value = asked.iterate;
    at("iterate-shown").textContent = `${Math.min(asked.iterate, at("iterate").max)} of ${at("iterate").max}`;
  }
  rest();
}

// When the slider has come to rest, screen readers hear the results and the address is written: browsers slow down, or
// refuse, one that is written with every move.
let resting = null;

function rest() {
  clearTimeout(resting);
  resting = setTimeout(() => {
    history.replaceState(null, "", write(state));
    const { asked, answer } = last;
    const told = answer.models.map((found, number) => `${about.models[number].name}: ${sentence(found, asked, about.classes)}`);
    at("spoken").textContent = `Radius ${short(asked.eps)}. ${told.join(" ")}`;
  }, PATIENCE);
}

const thumbnails = newest(async () => {
  const only = at("filter").value, first = start;
  try {
    const query = new URLSearchParams({ start: first, count: PAGE, ...(only === "" ? {} : { label: only }) });
    const { total: count, examples } = await get(`/api/examples?${query}`);
    total = count;
    at("thumbnails").replaceChildren(...examples.map(({ row, label, picture: image }) => {
      const name = `Example ${row}, labelled ${about.classes[label]}`;
      const input = element("input", { type: "radio", name: "row", value: row, "aria-label": name, title: name });
      return element("label", {}, input, element("img", { src: image, alt: "" }));
    }));
    at("shown").textContent = total ? `${first + 1} to ${first + examples.length} of ${total.toLocaleString("en")}` : "none";
    at("earlier").disabled = first === 0;
    at("later").disabled = first + PAGE >= total;
    show();
  } catch (error) {
    fail(error);
  }
});

async function uploaded() {
  const chosen = at("upload").files[0];
  if (!chosen) return;
  try {
    if (chosen.size > 4 << 20) throw new Error(`The image must have at most 4 MB, got ${(chosen.size / (1 << 20)).toFixed(1)}; shrink it.`);
    const { picture: taken, notes } = await upload(chosen);
    picture = taken;
    state.row = state.label = null;
    at("uploaded").textContent = `Taken as it is shown${notes.length ? `: ${notes.join(", ")}` : ""}. It stays on this machine.`;
    at("error").hidden = true;
    show();
    changed();
  } catch (error) {
    at("uploaded").textContent = "";
    fail(error);
  }
  at("upload").value = "";
}

let keeping = false;

async function keep(number) {
  const place = at("models").children[number].querySelector(".kept"), asked = question(), names = about.classes;
  if (keeping) return; // one click after another
  keeping = true;
  try {
    const blob = await file({ ...asked, of: number });
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const link = element("a", { href: URL.createObjectURL(blob), download: `adversarial-${number + 1}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    const { models, distance, inside } = await post("/api/look", { file: btoa(text), question: asked });
    if (JSON.stringify(question()) !== JSON.stringify(asked)) return; // the hand has gone on: it is another image now
    const { fooled, prediction, probabilities } = models[number];
    place.textContent = `The file ${fooled ? "still fools" : "does not fool"}: ${names[prediction]}, `
      + `${percent(probabilities[prediction])}. ${short(distance)} from the image, ${inside ? "in" : "outside"} the ball. `
      + `${bytes.length.toLocaleString("en")} bytes.`;
  } catch (error) {
    fail(error);
  } finally {
    keeping = false;
  }
}

function listen() {
  const chosen = (id, name, value) => at(id).addEventListener("input", () => {
    state[name] = value(at(id).value);
    show();
    changed();
  });
  const number = text => text === "" ? null : Number(text);
  chosen("attack", "attack", String);
  chosen("label", "label", number);
  chosen("target", "target", number);
  chosen("made_on", "made_on", number);
  at("seed").addEventListener("input", () => {
    const value = Number(at("seed").value);
    if (!Number.isSafeInteger(value) || value < 0) return;
    state.seed = value;
    changed();
  });
  at("norm").addEventListener("input", () => {
    state.norm = at("norm").value;
    state.eps = radius(Number(at("eps").value), norm()); // the slider stays where it is
    show();
    changed();
  });
  at("eps").addEventListener("input", () => {
    state.eps = radius(Number(at("eps").value), norm());
    showRadius(true);
    changed();
  });
  at("eps-number").addEventListener("input", () => {
    const value = Number(at("eps-number").value);
    if (at("eps-number").value === "" || !(value >= 0)) return;
    state.eps = value;
    showRadius(false);
    changed();
  });
  at("stepping").addEventListener("input", () => {
    state.iterate = at("stepping").checked ? 0 : null;
    show();
    changed();
  });
  at("iterate").addEventListener("input", () => {
    state.iterate = Number(at("iterate").value);
    changed();
  });
  at("thumbnails").addEventListener("input", event => {
    picture = null;
    at("uploaded").textContent = "";
    state.row = Number(event.target.value);
    state.label = null;
    show();
    changed();
  });
  const turn = by => {
    if (start + by < 0 || start + by >= total) return; // a click that came before the answer to the last one
    start += by;
    thumbnails();
  };
  at("filter").addEventListener("input", () => { start = total = 0; thumbnails(); });
  at("earlier").addEventListener("click", () => turn(-PAGE));
  at("later").addEventListener("click", () => turn(PAGE));
  at("upload").addEventListener("change", uploaded);
  at("choices").addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", () => {
    state = read(location.hash);
    if (state.row !== undefined) picture = null;
    show();
    changed();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (last && innerWidth !== width) draw();
    width = innerWidth;
  });
}

async function begin() {
  try {
    about = await get("/api/about");
  } catch (error) {
    fail(error);
    return;
  }
  const { data, models, classes } = about;
  at("subject").textContent = `${data.name}: ${data.count.toLocaleString("en")} images, ${data.shape.join("×")}, ${classes.length} classes`;
  options(at("filter"), [["", "all classes"], ...classes.map((name, number) => [number, `only ${name}`])], "");
  options(at("norm"), about.norms.map(known => [known.id, known.name]), "");
  options(at("made_on"), [["", "each model, for itself"], ...models.map(({ name }, number) => [number, `${name}, for all`])], "");
  at("made-field").hidden = models.length < 2;
  models.forEach(({ name, origin }, number) => {
    const article = at("model").content.cloneNode(true).firstElementChild;
    article.dataset.model = number;
    article.querySelector("h2").textContent = name;
    article.querySelector(".origin").textContent = origin === name ? "" : origin;
    article.querySelector("table").setAttribute("aria-label", `Probabilities of ${name}`);
    article.querySelector("button").addEventListener("click", () => keep(number));
    at("models").append(article);
  });
  if (matchMedia("(max-width: 59.99rem)").matches) for (const part of document.querySelectorAll("details")) part.open = false;
  listen();
  state = read(location.hash);
  show();
  changed();
  await thumbnails();
}

begin();
