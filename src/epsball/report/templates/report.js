"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;

  // A colour is the name of a style sheet's variable: what it is depends on the window, light or dark.
  const coloured = (value, style) => {
    if (typeof value === "string" && value.startsWith("--")) return style.getPropertyValue(value).trim() || value;
    if (Array.isArray(value)) return value.map(part => coloured(part, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, coloured(part, style)]));
    }
    return value;
  };

  const draw = () => {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink").trim(), surface = style.getPropertyValue("--surface").trim();
    for (const {id, data, layout} of figures) {
      const narrow = document.getElementById(id).clientWidth < 480;
      Plotly.react(id, coloured(data, style), {
        ...coloured(layout, style),
        autosize: true,
        dragmode: false,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: {family: style.fontFamily, size: narrow ? 11 : 13, color: ink},
        hoverlabel: {bgcolor: surface, bordercolor: ink, font: {color: ink}},
        margin: {l: 8, r: narrow ? 12 : 24, t: 24, b: 8},
      }, {displayModeBar: false, responsive: true, doubleClick: false, showTips: false});
    }
  };
  if (figures.length) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  // The gallery: a few of the weakest at first, all of a class where one is chosen.
  const filter = document.getElementById("class-filter"), more = document.getElementById("more");
  if (filter) {
    const few = 12, cards = [...document.querySelectorAll(".gallery > li")], shown = document.getElementById("shown");
    let all = cards.length <= few;
    const apply = () => {
      const of = cards.filter(card => filter.value === "" || card.dataset.label === filter.value);
      const seen = all || filter.value !== "" ? of : of.slice(0, few);
      for (const card of cards) card.hidden = !seen.includes(card);
      shown.textContent = `${seen.length} of ${cards.length} shown`;
      more.hidden = seen.length === of.length;
      more.textContent = `Show all ${of.length}`;
    };
    filter.addEventListener("change", apply);
    more.addEventListener("click", () => {
      const next = cards[few].querySelector("article");
      all = true;
      apply();
      next.tabIndex = -1;
      next.focus();
    });
    apply();
  }

  // On paper everything is open, and light.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const part of closed) if (!part.querySelector("pre")) part.open = true;
    root.classList.add("paper");
    if (figures.length) draw();
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
    root.classList.remove("paper");
    if (figures.length) draw();
  });
})();
