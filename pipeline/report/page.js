"use strict";
// The theme: the system's, until the button says otherwise. Charts follow it.
const root = document.documentElement;
function draw() {
  const style = getComputedStyle(root);
  const text = style.getPropertyValue("--text").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  for (const node of document.querySelectorAll("[data-chart]")) {
    const figure = CHARTS[node.dataset.chart];
    if (!figure) { node.textContent = "Nothing to draw."; continue; }
    const layout = { ...figure.layout, font: { ...figure.layout.font, color: text } };
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    Plotly.react(node, figure.data, layout, { responsive: true, displaylogo: false });
  }
}
function theme(name) { root.dataset.theme = name; draw(); }
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", (event) => theme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));

// A click on a column's head sorts by it: numbers as numbers, a second click the other way.
for (const head of document.querySelectorAll("th")) {
  head.addEventListener("click", () => {
    const index = [...head.parentNode.children].indexOf(head), body = head.closest("table").tBodies[0];
    const up = head.dataset.order !== "up";
    for (const other of head.parentNode.children) delete other.dataset.order;
    head.dataset.order = up ? "up" : "down";
    const value = (row) => row.cells[index]?.textContent ?? "";
    const order = (a, b) => {
      const x = parseFloat(value(a).replaceAll(",", "")), y = parseFloat(value(b).replaceAll(",", ""));
      return Number.isNaN(x) || Number.isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
    };
    for (const row of [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)))) body.append(row);
  });
}
