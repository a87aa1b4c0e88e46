"use strict";
const bar = document.getElementById("bar"), field = document.getElementById("filter"), count = document.getElementById("count");
const nothing = document.getElementById("nothing");
const LONG = 30, FOUND = 20, SOME = 10;  // lines of a table that are shown at first, while filtering, and at least of each part
const lines = [...document.querySelectorAll("tr.line")];
const listed = Object.fromEntries([...document.querySelectorAll("nav li")].map(li => [li.firstElementChild.hash.slice(1), li]));
const parts = [...document.querySelectorAll(".contents section, .contents details")].map(part => ({part, items: [...part.querySelectorAll("li")]}));

/* A text of which each word can be found by its beginning: ` contrast scale`. */
const begun = text => " " + text.toLowerCase().replace(/[^a-z0-9]+/g, " ").trim();

/* All tables, looked up once: a filter asks for them with every key. */
const tables = [...document.querySelectorAll(".board .wide table")].map(table => {
  const board = table.closest(".board"), sheet = table.closest(".sheet");
  const heads = [...table.querySelectorAll("tr.heads th")].map(th => th.textContent);
  const bodies = [...table.tBodies].map(body => ({body, lines: [...body.querySelectorAll("tr.line")]}));
  const switches = [...sheet.querySelectorAll(".switch")].map(box => ({
    box, heads: [...table.querySelectorAll("tr.heads ." + box.dataset.part)].map(th => begun(th.textContent)),
  }));
  /* What a filter looks for: the board, the text of the line, its flags, and the heads of the columns in which it has a value. */
  bodies.forEach(({lines}) => lines.forEach(tr => {
    const cells = tr.children, measured = heads.filter((_, i) => cells[i].dataset.v);
    tr.words = [board.getAttribute("aria-label"), tr.textContent, tr.dataset.flags, ...measured].join(" ").toLowerCase();
  }));
  const found = {table, board, bodies, switches, whole: false, more: null};
  if (bodies.reduce((n, {lines}) => n + lines.length, 0) > FOUND) found.more = button(found, sheet);
  return found;
});
const put = (element, hidden) => { if (element.hidden !== hidden) element.hidden = hidden; };

/* The button below a long table. */
function button(found, sheet) {
  const line = document.createElement("p"), more = document.createElement("button");
  line.className = "empty";
  more.type = "button";
  more.className = "whole";
  more.addEventListener("click", () => { found.whole = true; show(found); found.table.closest(".wide").focus(); });
  line.append(more);
  sheet.append(line);
  return more;
}

function filter() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  lines.forEach(tr => tr.found = words.every(w => tr.words.includes(w)));
  tables.forEach(found => {
    const shown = show(found), board = found.board;
    put(board, words.length > 0 && !shown);
    if (listed[board.id]) put(listed[board.id], board.hidden);
    if (words.length && shown) reveal(found, words);
  });
  parts.forEach(({part, items}) => put(part, items.every(li => li.hidden)));
  const left = lines.filter(tr => tr.found).length;
  count.textContent = words.length ? left + " of " + lines.length + " entries" : lines.length + " entries";
  nothing.hidden = !words.length || left > 0;
}

/* The lines of a table that the filter finds: the first of them, until somebody wants to see all. Returns how many. */
function show(found) {
  const most = field.value.trim() ? FOUND : LONG;
  let more = 0, shown = 0;
  found.bodies.forEach(({body, lines}) => {
    let room = found.whole ? Infinity : Math.max(most - shown, SOME), here = 0;
    lines.forEach(tr => {
      const seen = tr.found && room-- > 0;
      more += tr.found && !seen;
      here += seen;
      put(tr, !seen);
    });
    shown += here;
    put(body, lines.length > 0 && !here);
  });
  if (found.more) put(found.more.parentNode, !more);
  if (found.more && more) found.more.textContent = "Show " + more + " more entries";
  return shown;
}

/* Switch on the columns that a filter names, by the beginning of a word: `tra` is meant for transfer, not for contrast. */
function reveal(found, words) {
  const named = words.map(begun).filter(w => w.length > 3);
  found.switches.forEach(({box, heads}) => {
    if (!box.checked && heads.some(h => named.some(w => h.includes(w)))) box.checked = true;
  });
}

function sort(th) {
  const place = [...th.parentNode.children].indexOf(th), text = th.matches(".text, .entry, .rank");
  const now = th.getAttribute("aria-sort"), way = now ? (now === "ascending" ? -1 : 1) : text ? 1 : -1;
  const found = tables.find(found => found.table.contains(th));
  found.table.querySelectorAll("[aria-sort]").forEach(e => e.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  found.bodies.forEach(part => {
    const values = new Map(part.lines.map(tr => [tr, tr.children[place].dataset.v]));
    part.lines.sort((a, b) => {
      const x = values.get(a), y = values.get(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays last
      return way * (text ? order.compare(x, y) : x - y);
    });
    part.body.append(...part.lines);
  });
  show(found);
}
const order = new Intl.Collator("en", {numeric: true});

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
  const [one, two] = picks.map(pick => found[pick.value]), out = box.querySelector(".met"), noun = box.dataset.noun + "s";
  out.textContent = "";
  if (one.images !== two.images) { element("p", "They were measured on different numbers of " + noun + ".", out); return; }
  const a = bits(one), b = bits(two), names = [one, two].map(line => Object.values(line.names).join(" / "));
  const ids = box.dataset.ids ? box.dataset.ids.split(" ") : a.map((_, i) => i);
  const only = [a.flatMap((kept, i) => kept && !b[i] ? [i] : []), b.flatMap((kept, i) => kept && !a[i] ? [i] : [])];
  const both = a.filter((kept, i) => kept && b[i]).length, p = mcnemar(only[0].length, only[1].length);
  const told = element("p", "Of " + one.images + " " + noun + " both keep " + both + ". p = " + (p < 0.001 ? p.toExponential(1) : p.toFixed(3)) + ".", out);
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
  tables.forEach(found => { found.whole = true; });
  field.value = "";
  filter();
});
bar.hidden = false;
filter();
follow();
