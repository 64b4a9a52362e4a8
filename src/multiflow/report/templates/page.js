"use strict";

// Light and dark: the system decides until the button is used.
const root = document.documentElement;
const theme = document.getElementById("theme");
const remembered = () => { try { return localStorage.getItem("multiflow-theme"); } catch { return null; } };
if (remembered()) root.dataset.theme = remembered();
theme.hidden = false;
theme.addEventListener("click", () => {
  const shown = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = shown === "dark" ? "light" : "dark";
  try { localStorage.setItem("multiflow-theme", root.dataset.theme); } catch { /* a page from a file may not store */ }
});

// Sections that fold: a link opens the one it leads to, a button opens them all, and so does printing.
const folds = [...document.querySelectorAll("details.folds")];
const opener = document.getElementById("folds");
const reveal = () => {
  const to = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = to?.closest("details.folds") || to?.querySelector("details.folds");
  if (!fold || fold.open) return;
  fold.open = true;
  to.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
if (opener) {
  const name = () => { opener.textContent = folds.every((fold) => fold.open) ? "Close all" : "Open all"; };
  opener.hidden = false;
  opener.addEventListener("click", () => { const open = !folds.every((fold) => fold.open); folds.forEach((fold) => { fold.open = open; }); });
  folds.forEach((fold) => fold.addEventListener("toggle", name));
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((fold) => { fold.open = true; });
});
addEventListener("afterprint", () => closed.forEach((fold) => { fold.open = false; }));

// Tables wider than their column say that they scroll.
const measure = () => document.querySelectorAll(".scroll").forEach((box) => box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1));
addEventListener("resize", measure);
folds.forEach((fold) => fold.addEventListener("toggle", measure));
measure();

// Tables: a heading sorts, numbers from high to low first.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = table.querySelectorAll("thead tr:last-child th");
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const order = head.ariaSort ? (head.ariaSort === "ascending" ? "descending" : "ascending") : (numeric ? "descending" : "ascending");
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const key = (row) => row.cells[column].dataset.key;
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => sign * (numeric ? a - b : a.localeCompare(b));
    const lacks = (row) => key(row) === undefined; // last in both orders
    const sorted = [...body.rows].sort((a, b) => lacks(a) || lacks(b) ? lacks(a) - lacks(b) : compare(key(a), key(b)));
    body.append(...sorted);
  }));
}

// Values at once: what a mark says in its title is shown where the pointer or the focus is.
const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
document.body.append(tip);
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentNode;
  mark.setAttribute("aria-label", title.textContent);
  mark.setAttribute("role", "img");
  mark.dataset.tip = title.textContent;
  title.remove();
}
document.querySelectorAll("td[data-tip]").forEach((cell) => cell.setAttribute("aria-description", cell.dataset.tip));

// One tab stop a table and a chart: arrow keys go on from value to value, in tables from heading to heading too.
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const settle = [];
const rove = (box, stops, lines) => {
  const rest = (at) => stops.forEach((stop) => stop.setAttribute("tabindex", stop === at ? "0" : "-1"));
  const first = () => rest(stops.find((stop) => !stop.closest("[hidden]")));
  first();
  settle.push(first);
  box.addEventListener("focusin", (event) => { if (stops.includes(event.target)) rest(event.target); });
  box.addEventListener("keydown", (event) => {
    const grid = lines();
    let y = grid.findIndex((line) => line.includes(event.target));
    if (y === -1 || !MOVES[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    const [down, right] = grid.length > 1 ? MOVES[event.key] : [0, MOVES[event.key][0] + MOVES[event.key][1]];
    let x = grid[y].indexOf(event.target);
    do { y += down; x += right; } while (grid[y]?.[x] === null);
    event.preventDefault();
    grid[y]?.[x]?.focus();
  });
};
for (const table of document.querySelectorAll("table")) {
  if (!table.querySelector("[data-tip]")) continue;
  const rows = () => [...table.querySelectorAll("thead tr:last-child, tbody tr:not([hidden])")];
  const stop = (cell) => cell.querySelector("thead button") || (cell.dataset.tip ? cell : null);
  rove(table, [...table.querySelectorAll("thead button, [data-tip]")], () => rows().map((row) => [...row.cells].map(stop)));
  table.setAttribute("role", "grid");
  table.closest(".scroll").removeAttribute("tabindex");
}
for (const drawing of document.querySelectorAll("svg[role=group]")) {
  const marks = [...drawing.querySelectorAll("[data-tip]")];
  const lines = [...new Set(marks.map((mark) => mark.parentNode))].map((line) => marks.filter((mark) => mark.parentNode === line));
  if (marks.length) rove(drawing, marks, () => lines);
}
const show = (event) => {
  const mark = event.target.closest?.("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect();
  const wanted = box.left + box.width / 2 - tip.offsetWidth / 2;
  tip.style.left = Math.max(8, Math.min(wanted, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (box.top > tip.offsetHeight + 12 ? box.top - tip.offsetHeight - 8 : box.bottom + 8) + "px";
};
document.addEventListener("pointerover", show);
document.addEventListener("focusin", show);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// Buttons that choose a tier: the rows of pruners that it lacks go.
for (const filter of document.querySelectorAll(".filter")) {
  filter.hidden = false;
  filter.addEventListener("click", (event) => {
    const chosen = event.target.closest("button")?.dataset.choose;
    if (chosen === undefined) return;
    filter.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.choose === chosen));
    document.querySelectorAll("[data-tiers]").forEach((row) => { row.hidden = chosen ? !row.dataset.tiers.split(" ").includes(chosen) : false; });
    settle.forEach((first) => first());
  });
}

// A name that is pointed at lights up everywhere.
const light = (event) => {
  const name = event.target.closest?.("[data-name]")?.dataset.name;
  document.querySelectorAll("[data-name].lit").forEach((mark) => mark.classList.toggle("lit", mark.dataset.name === name));
  if (name) document.querySelectorAll(`[data-name="${CSS.escape(name)}"]`).forEach((mark) => mark.classList.add("lit"));
};
document.addEventListener("pointerover", light);
document.addEventListener("focusin", light);
