"use strict";
const bar = document.getElementById("bar"), field = document.getElementById("filter"), count = document.getElementById("count");
const lines = [...document.querySelectorAll("tr.line")];
lines.forEach(tr => tr.words = (tr.closest("section").getAttribute("aria-label") + " " + tr.textContent).toLowerCase());

function filter() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  lines.forEach(tr => tr.hidden = !words.every(w => tr.words.includes(w)));
  document.querySelectorAll(".board tbody").forEach(b => b.hidden = !b.querySelector("tr.line:not([hidden])"));
  document.querySelectorAll(".board").forEach(s => s.hidden = words.length > 0 && !s.querySelector("tr.line:not([hidden])"));
  const left = lines.filter(tr => !tr.hidden).length;
  count.textContent = words.length ? left + " of " + lines.length + " entries" : lines.length + " entries";
}

function sort(th) {
  const place = [...th.parentNode.children].indexOf(th), text = th.matches(".text, .entry, .rank");
  const now = th.getAttribute("aria-sort"), way = now ? (now === "ascending" ? -1 : 1) : text ? 1 : -1;
  th.closest("table").querySelectorAll("[aria-sort]").forEach(e => e.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  th.closest("table").querySelectorAll("tbody").forEach(body => {
    const value = tr => tr.children[place].dataset.v;
    const order = [...body.querySelectorAll("tr.line")].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays last
      return way * (text ? x.localeCompare(y, "en", {numeric: true}) : x - y);
    });
    body.append(...order);
  });
}

document.querySelectorAll("tr.heads th").forEach(th => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  button.addEventListener("click", () => sort(th));
  th.append(button);
});

function follow() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith("q=")) { field.value = hash.slice(2); filter(); return; }
  const goal = hash && document.getElementById(hash);
  if (!goal) return;
  for (let e = goal; e; e = e.parentElement) { if (e.tagName === "DETAILS") e.open = true; e.hidden = false; }
  goal.scrollIntoView();
}

field.addEventListener("input", () => {
  filter();
  history.replaceState(null, "", field.value ? "#q=" + encodeURIComponent(field.value) : location.pathname + location.search);
});
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("data").textContent], {type: "application/json"}));
  link.download = "leaderboard.json";
  link.click();
});
document.querySelectorAll("[data-go]").forEach(mark => mark.addEventListener("click", () => { location.hash = mark.dataset.go; }));
addEventListener("hashchange", follow);
addEventListener("beforeprint", () => { field.value = ""; filter(); });
bar.hidden = false;
filter();
follow();
