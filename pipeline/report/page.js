"use strict";
// The theme follows the system until the button is used; charts follow the theme.
const root = document.documentElement, narrow = matchMedia("(max-width: 480px)");
function drawCharts() {
  const style = getComputedStyle(root);
  const text = style.getPropertyValue("--text").trim(), line = style.getPropertyValue("--line").trim();
  for (const node of document.querySelectorAll("[data-chart]")) {
    const figure = CHARTS[node.dataset.chart];
    const layout = { ...figure.layout, font: { ...figure.layout.font, color: text } };
    for (const name of ["xaxis", "xaxis2", "yaxis", "yaxis2"]) {
      if (layout[name]) layout[name] = { ...layout[name], gridcolor: line, zerolinecolor: line, linecolor: line };
    }
    // Scrolling by touch must not zoom into a chart.
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    if (narrow.matches) { layout.margin = { ...layout.margin, l: 44, r: 8 }; layout.font.size = 11; }
    Plotly.react(node, figure.data, layout, { responsive: true, displayModeBar: false });
  }
}
function theme(name) { root.dataset.theme = name; drawCharts(); }
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", (event) => theme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));

// Content wider than the screen starts at its middle.
for (const box of document.querySelectorAll(".centre")) box.scrollLeft = (box.scrollWidth - box.clientWidth) / 2;

// A click on a table head sorts by that column, numbers numerically; a second click reverses.
function sort(head) {
  const index = [...head.parentNode.children].indexOf(head), body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[index]?.dataset.value ?? row.cells[index]?.textContent ?? "";
  const order = (a, b) => {
    const x = parseFloat(value(a).replaceAll(",", "")), y = parseFloat(value(b).replaceAll(",", ""));
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? -1 : 1;
    return Number.isNaN(x) ? value(a).localeCompare(value(b)) : x - y;
  };
  for (const row of [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)))) body.append(row);
}

// A click on an image enlarges it; the arrow keys go to its neighbours.
const zoom = document.getElementById("zoom"), images = [...document.querySelectorAll("[data-zoom]")];
let shown = 0;
function show(number) {
  shown = (number + images.length) % images.length;
  const image = images[shown], note = image.closest("figure")?.querySelector("figcaption small")?.textContent;
  const large = zoom.querySelector("img");
  large.src = image.src;
  large.alt = image.alt;
  large.classList.toggle("wide", image.naturalWidth > image.naturalHeight);
  zoom.querySelector("p").textContent = [image.alt, image.dataset.note ?? note].filter(Boolean).join(" · ");
  if (!zoom.open) zoom.showModal();
}
zoom.addEventListener("click", (event) => { if (event.target.tagName !== "P") zoom.close(); });
zoom.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
});
function act(target) {
  if (target.matches("th")) sort(target);
  else if (target.matches("[data-zoom]")) show(images.indexOf(target));
}
document.querySelector("main").addEventListener("click", (event) => act(event.target));
document.querySelector("main").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { if (event.target.matches("th, [data-zoom]")) event.preventDefault(); act(event.target); }
});
document.getElementById("only-wrong")?.addEventListener("change", (event) => document.getElementById("evaluated").classList.toggle("only", event.target.checked));
