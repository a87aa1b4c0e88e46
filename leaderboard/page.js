"use strict";
const bar = document.getElementById("bar"), field = document.getElementById("filter"), count = document.getElementById("count");
const nothing = document.getElementById("nothing");
const LONG = 100, FOUND = 40, SOME = 20;  // lines of a table that are shown at first, while filtering, and at least of each part
const lines = [...document.querySelectorAll("tr.line")];
const listed = Object.fromEntries([...document.querySelectorAll("nav li")].map(li => [li.firstElementChild.hash.slice(1), li]));

/* What a filter looks for: the board, the text of the line, its flags, and the heads of the columns in which it has a value. */
document.querySelectorAll(".board .wide table").forEach(table => {
  const heads = [...table.querySelectorAll("tr.heads th")].map(th => th.textContent);
  const board = table.closest("section").getAttribute("aria-label");
  table.querySelectorAll("tr.line").forEach(tr => {
    const measured = heads.filter((_, i) => tr.children[i].dataset.v);
    tr.words = [board, tr.textContent, tr.dataset.flags, ...measured].join(" ").toLowerCase();
  });
});

function filter() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  lines.forEach(tr => tr.found = words.every(w => tr.words.includes(w)));
  document.querySelectorAll(".wide table").forEach(show);
  document.querySelectorAll(".board").forEach(s => {
    s.hidden = words.length > 0 && !s.querySelector("tr.line:not([hidden])");
    if (listed[s.id]) listed[s.id].hidden = s.hidden;
  });
  document.querySelectorAll(".contents section, .contents details").forEach(s => s.hidden = !s.querySelector("li:not([hidden])"));
  const left = lines.filter(tr => tr.found).length;
  count.textContent = words.length ? left + " of " + lines.length + " entries" : lines.length + " entries";
  nothing.hidden = !words.length || left > 0;
  if (words.length) reveal(words);
}

/* The lines of a table that the filter finds: the first of them, until somebody wants to see all. */
function show(table) {
  const most = field.value.trim() ? FOUND : LONG;
  let more = 0, shown = 0;
  [...table.tBodies].forEach(body => {
    let room = table.whole ? Infinity : Math.max(most - shown, SOME);
    const own = [...body.querySelectorAll("tr.line")];
    own.forEach(tr => {
      const seen = tr.found && room-- > 0;
      more += tr.found && !seen;
      shown += seen;
      if (tr.hidden === seen) tr.hidden = !seen;
    });
    body.hidden = own.length > 0 && own.every(tr => tr.hidden);
  });
  const button = table.closest(".sheet").querySelector(".whole");
  if (button) button.parentNode.hidden = !more;
  if (button && more) button.textContent = "Show " + more + " more entries";
}
document.querySelectorAll(".wide table").forEach(table => {
  if (table.querySelectorAll("tr.line").length <= FOUND) return;
  const line = document.createElement("p"), button = document.createElement("button");
  line.className = "empty";
  button.type = "button";
  button.className = "whole";
  button.addEventListener("click", () => { table.whole = true; show(table); table.closest(".wide").focus(); });
  line.append(button);
  table.closest(".sheet").append(line);
});

/* Switch on the columns that a filter names. */
function reveal(words) {
  document.querySelectorAll(".board:not([hidden]) .switch:not(:checked)").forEach(box => {
    const heads = [...box.closest(".sheet").querySelectorAll("tr.heads ." + box.dataset.part)].map(th => th.textContent.toLowerCase());
    box.checked = heads.some(h => words.some(w => w.length > 2 && h.includes(w)));
  });
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
  show(th.closest("table"));
}

document.querySelectorAll("tr.heads th").forEach(th => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  button.addEventListener("click", () => sort(th));
  th.append(button);
});

/* Rows lie as text in <noscript> until somebody opens the entry or follows a link to one of them. */
function unfold(within) {
  within.querySelectorAll("noscript").forEach(held => {
    const box = document.createElement("template");
    box.innerHTML = held.textContent;
    held.replaceWith(box.content);
  });
}
document.addEventListener("toggle", event => {
  const opened = event.target;
  if (!opened.open) return;
  if (opened.matches(".group") || opened.closest("#others")) unfold(opened);
  if (opened.matches(".versus")) prepare(opened);
}, true);

function find(id) {
  const there = document.getElementById(id);
  if (there || !id.startsWith("row-")) return there;
  const held = [...document.querySelectorAll("noscript")].find(e => e.textContent.includes('id="' + id + '"'));
  if (held) unfold(held.parentNode);
  return document.getElementById(id);
}

function follow() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith("q=")) { field.value = hash.slice(2); filter(); return; }
  const goal = hash && find(hash);
  if (!goal) return;
  const section = goal.closest(".board");
  if (section && section.hidden) { field.value = ""; filter(); }
  for (let e = goal; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (goal.matches(".target")) unfold(goal);
  goal.scrollIntoView();
  if (goal.hasAttribute("tabindex")) goal.focus({preventScroll: true});
}

/* Two entries image by image. */
const boards = () => boards.data || (boards.data = JSON.parse(document.getElementById("data").textContent).boards);
const bits = line => {
  const bytes = Uint8Array.from(atob(line.kept), c => c.charCodeAt(0));
  return Array.from({length: line.images}, (_, i) => bytes[i >> 3] >> (7 - (i & 7)) & 1);
};
function mcnemar(a, b) {  // two-sided, exact
  const n = a + b;
  if (!n) return 1;
  let term = -n * Math.LN2, sum = 0;
  for (let k = 0; k <= Math.min(a, b); k++) { sum += Math.exp(term); term += Math.log((n - k) / (k + 1)); }
  return Math.min(1, 2 * sum);
}
const element = (tag, text, parent) => { const e = document.createElement(tag); e.textContent = text; parent.append(e); return e; };

function prepare(box) {
  if (box.ready) return;
  box.ready = true;
  const found = boards()[box.dataset.board].lines.map((line, i) => ({...line, place: i})).filter(line => line.kept);
  const picks = [box.querySelector(".one"), box.querySelector(".two")];
  picks.forEach((pick, which) => {
    found.forEach((line, i) => { element("option", Object.values(line.names).join(" / "), pick).value = i; });
    pick.selectedIndex = Math.min(which, found.length - 1);
    pick.addEventListener("change", () => meet(box, found, picks));
  });
  box.querySelector(".pick").hidden = false;
  meet(box, found, picks);
}

function meet(box, found, picks) {
  const [one, two] = picks.map(pick => found[pick.value]), out = box.querySelector(".met");
  out.textContent = "";
  if (one.images !== two.images) { element("p", "They were measured on different numbers of images.", out); return; }
  const a = bits(one), b = bits(two), names = [one, two].map(line => Object.values(line.names).join(" / "));
  const ids = box.dataset.ids ? box.dataset.ids.split(" ") : a.map((_, i) => i);
  const only = [a.flatMap((kept, i) => kept && !b[i] ? [i] : []), b.flatMap((kept, i) => kept && !a[i] ? [i] : [])];
  const both = a.filter((kept, i) => kept && b[i]).length, p = mcnemar(only[0].length, only[1].length);
  const told = element("p", "Of " + one.images + " images both keep " + both + ". p = " + (p < 0.001 ? p.toExponential(1) : p.toFixed(3)) + ".", out);
  told.append(p < 0.05 ? " The difference is significant, before correction." : " The difference is not significant.");
  only.forEach((lost, which) => {
    const text = element("p", "", out);
    element("b", String(lost.length), text);
    text.append(" that only " + names[which] + " keeps" + (lost.length ? ": " + lost.slice(0, 60).map(i => ids[i]).join(", ") + (lost.length > 60 ? " …" : "") : ""));
    const broken = [two, one][which], pictures = shots(box, broken, lost.map(i => ids[i]));
    if (pictures.length) { const strip = element("div", "", out); strip.className = "pictures"; strip.append(...pictures); }
  });
}

/* Pictures of the images that an entry loses, where its rows have them. */
function shots(box, line, ids) {
  const group = box.closest(".board").querySelectorAll(".group")[line.place];
  const within = document.createElement("template");
  within.innerHTML = [...group.querySelectorAll("noscript")].map(e => e.textContent).join("");
  const all = [...within.content.querySelectorAll("img"), ...group.querySelectorAll("img")];
  return ids.map(id => all.find(img => img.dataset.image === String(id))).filter(Boolean).slice(0, 12).map(img => img.closest("figure").cloneNode(true));
}

field.addEventListener("input", () => {
  filter();
  history.replaceState(null, "", field.value ? "#q=" + encodeURIComponent(field.value) : location.pathname + location.search);
});
document.getElementById("clear").addEventListener("click", () => { field.value = ""; field.dispatchEvent(new Event("input")); field.focus(); });
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("data").textContent], {type: "application/json"}));
  link.download = "leaderboard.json";
  link.click();
});
document.querySelectorAll("[data-go]").forEach(mark => mark.addEventListener("click", () => { location.hash = mark.dataset.go; }));
addEventListener("hashchange", follow);
addEventListener("beforeprint", () => {
  document.querySelectorAll(".wide table").forEach(table => { table.whole = true; });
  field.value = "";
  filter();
});
bar.hidden = false;
filter();
follow();
