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
    const compare = (a, b) => numeric ? key(a) - key(b) : key(a).localeCompare(key(b));
    const sign = order === "ascending" ? 1 : -1;
    [...body.rows].sort((a, b) => sign * compare(a, b)).forEach((row) => body.append(row));
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

// Buttons that choose a tier: rows of other tiers go.
for (const filter of document.querySelectorAll(".filter")) {
  filter.hidden = false;
  filter.addEventListener("click", (event) => {
    const chosen = event.target.closest("button")?.dataset.choose;
    if (chosen === undefined) return;
    document.querySelectorAll(".filter button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.choose === chosen));
    document.querySelectorAll("[data-tier]").forEach((row) => { row.hidden = !["", row.dataset.tier].includes(chosen); });
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
