"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const read = (id) => JSON.parse($(id).textContent);
const data = read("data");
const { cases, texts, systems, conditions } = data;
const BLANK = 0, POSITIVE = 1, UNCERTAIN = 3;
const present = (state) => state === POSITIVE || state === UNCERTAIN;
const NO_FINDING = conditions.length - 1;
const models = systems.map((each, i) => i).filter((i) => systems[i].kind === "model");
const REPORT = 0, THINK = 1, STATES = 2, MARKS = 3, SCORE = 4, ERRORS = 5; // of one report

// Every text goes through here: a string becomes a text node, never markup.
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) made.setAttribute(name, String(value));
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// ---- pictures: a block of JSON is read when one of its pictures is first shown
const blocks = new Map();
function picture(number) {
  const block = Math.floor(number / data.block);
  if (!blocks.has(block)) {
    blocks.set(block, read(`images-${block}`));
    if (blocks.size > 12) blocks.delete(blocks.keys().next().value);
  }
  return "data:image/jpeg;base64," + blocks.get(block)[number % data.block];
}

// ---- texts
const text = (number) => (number < 0 ? "" : typeof texts[number] === "string" ? texts[number] : texts[number][0]);
const cut = (number) => (number < 0 || typeof texts[number] === "string" ? 0 : texts[number][1]);
function more(number) {
  const left = cut(number);
  return left ? el("span", { class: "cut" }, ` … ${left.toLocaleString("en")} more characters are not shown here`) : null;
}

// Marks count characters as Python does: one each, where JavaScript counts some as two.
function sliced(value) {
  if (!/[\ud800-\udbff][\udc00-\udfff]/.test(value)) return (start, end) => value.slice(start, end);
  const characters = Array.from(value);
  return (start, end) => characters.slice(start, end).join("");
}

function marked(number, marks, describe) {
  const slice = sliced(text(number));
  const out = [];
  let position = 0;
  for (const [start, length, kind, ...said] of marks) {
    out.push(slice(position, start));
    const pairs = [];
    for (let i = 0; i < said.length; i += 2) pairs.push([said[i], said[i + 1]]);
    const { name, note, after } = describe(kind, pairs);
    const [finding] = pairs.find((pair) => present(pair[1])) || [-1];
    const mark = el("mark", { class: finding < 0 ? name : `${name} present`, title: note,
      "data-c": pairs.map((pair) => pair[0]).join(" ") }, slice(start, start + length), after);
    mark.style.setProperty("--hue", (finding * 137.5) % 360); // a colour for each finding, where a view shows them
    out.push(mark);
    position = start + length;
  }
  out.push(slice(position));
  return [...out, more(number)];
}

const word = (state) => data.words[state];

function markedReport(number, marks, labels) {
  return marked(number, marks, (kind, pairs) => ({
    name: data.kinds[kind],
    note: pairs.map(([c, state]) => `${conditions[c]}: ${word(state)}, reference: ${word(labels[c])}`).join("; "),
  }));
}

// In the reference a finding is "missing" where a shown report does not mention it; letters say which.
function markedReference(row, columns) {
  return marked(row.reference, row.marks, (kind, pairs) => {
    const found = pairs.filter(([c]) => present(row.labels[c])).map(([c]) => c);
    const without = columns.filter(({ report }) => report && found.some((c) => report[STATES][c] === BLANK));
    const said = pairs.map(([c, state]) => `${conditions[c]}: ${word(state)}`).join("; ");
    if (!without.length) return { name: "said", note: said };
    const letters = without.map((column) => column.letter).join(" ");
    const names = without.map((column) => column.name).join(", ");
    return {
      name: "missing", note: `${said}; missing in: ${names}`,
      after: columns.length > 1 ? el("sup", { "aria-label": `missing in ${names}` }, letters) : null,
    };
  });
}

// ---- the list of cases
const state = { order: cases.map((_, i) => i), at: 0, shown: cases.map((_, i) => i), open: -1,
  view: data.alone ? "all" : "systems" };
const hidden = new Set();
const named = (row) => (row.scenario ? row.group : row.id); // the scenario stands beside it
const groups = new Map();
cases.forEach((row, i) => groups.set(row.group, [...(groups.get(row.group) || []), i]));
for (const [name, members] of groups) {
  const known = new Set(members.map((i) => cases[i].scenario));
  if (known.size < 2) groups.delete(name);
  else members.sort((a, b) => data.scenarios.indexOf(cases[a].scenario) - data.scenarios.indexOf(cases[b].scenario));
}

const filters = { finding: $("finding"), kind: $("kind"), system: $("system"), scenario: $("scenario") };
conditions.forEach((name, i) => filters.finding.append(el("option", { value: i }, name)));
[["any", "any error"], ["none", "no error"]].forEach(([value, name]) =>
  filters.kind.append(el("option", { value }, name)));
data.errors.forEach((name, i) => filters.kind.append(el("option", { value: i }, name)));
systems.forEach((each, i) => filters.system.append(
  el("option", { value: i }, each.kind === "model" ? each.name : `${each.name} (${each.kind})`)));
data.scenarios.forEach((name) => filters.scenario.append(el("option", { value: name }, name)));
$("scenario-label").hidden = data.scenarios.length < 2;
if (!data.errors.length) filters.kind.parentElement.hidden = true;

const counted = () => (filters.system.value === "" ? (models.length ? models : systems.map((_, i) => i))
  : [Number(filters.system.value)]);
const reportsOf = (row) => counted().map((i) => row.reports[i]).filter(Boolean);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : -1);
const scoreOf = (row) => mean(reportsOf(row).map((report) => report[SCORE]));
const errorsOf = (row) => reportsOf(row).flatMap((report) => report[ERRORS]);

let haystack = null;
function searched(i) {
  haystack ||= cases.map((row) => [row.id, row.scenario, text(row.reference), text(row.indication), text(row.prior),
    ...row.reports.filter(Boolean).flatMap((report) => [text(report[REPORT]), text(report[THINK])])]
    .join("\n").toLowerCase());
  return haystack[i];
}

function matches(row, i, words, wanted) {
  if (wanted.scenario && row.scenario !== wanted.scenario) return false;
  if (wanted.finding !== null && wanted.kind === null && !present(row.labels[wanted.finding])) return false;
  if (wanted.kind !== null) {
    const reports = reportsOf(row);
    const found = reports.flatMap((report) => report[ERRORS])
      .filter((error) => wanted.finding === null || error[1] === wanted.finding);
    if (wanted.kind === "none" ? !reports.length || found.length
      : !found.some((error) => wanted.kind === "any" || error[0] === wanted.kind)) return false;
  }
  return words.every((each) => searched(i).includes(each));
}

function apply(keep) {
  const selected = state.shown[state.at];
  const number = (value) => (value === "" ? null : Number(value));
  const kind = filters.kind.value;
  const wanted = {
    finding: number(filters.finding.value), scenario: filters.scenario.value,
    kind: kind === "any" || kind === "none" ? kind : number(kind),
  };
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = state.order.filter((i) => matches(cases[i], i, words, wanted));
  const spread = (row) => {
    const scores = models.map((i) => row.reports[i]).filter(Boolean).map((report) => report[SCORE]);
    return scores.length ? Math.max(...scores) - Math.min(...scores) : 0;
  };
  const keys = {
    low: (row) => scoreOf(row), high: (row) => -scoreOf(row), errors: (row) => -errorsOf(row).length,
    spread: (row) => -spread(row),
  };
  const key = keys[$("order").value];
  if (key) {
    const values = new Map(rows.map((i) => [i, key(cases[i])]));
    rows.sort((a, b) => values.get(a) - values.get(b) || a - b);
  } else if ($("order").value === "id") {
    rows.sort((a, b) => cases[a].id.localeCompare(cases[b].id, "en", { numeric: true }) || a - b);
  }
  state.shown = rows;
  const again = keep ? rows.indexOf(selected) : -1;
  state.at = Math.max(again, 0);
  $("count").textContent = rows.length === cases.length
    ? `${cases.length.toLocaleString("en")} cases`
    : `${rows.length.toLocaleString("en")} of ${cases.length.toLocaleString("en")} cases`;
  head();
  $("list").scrollTop = 0;
  draw(true);
  reveal();
}

function head() {
  const order = $("order").value, chosen = filters.system.value;
  $("head").replaceChildren(el("span", {}), el("span", {}, "case, and what its reference finds"),
    el("span", { class: "cells" }, systems.map((each, i) => el("button", {
      type: "button", tabindex: -1, class: each.kind, title: `${each.name}: lowest or highest MCCS first`,
      onclick: () => {
        const again = filters.system.value === String(i) && order === "low";
        filters.system.value = String(i);
        $("order").value = again ? "high" : "low";
        apply();
      },
    }, each.name, chosen === String(i) ? { low: " ▲", high: " ▼" }[order] : null))));
}

const list = $("list"), space = $("space");
let drawn = "";
const height = () => parseFloat(getComputedStyle(list).getPropertyValue("--row")) || 76;

function glyphs(report) {
  const counts = new Map();
  for (const [kind] of report[ERRORS]) counts.set(kind, (counts.get(kind) || 0) + 1);
  return [...counts].sort((a, b) => a[0] - b[0]).map(([kind, count]) =>
    el("span", { class: "count", title: `${data.errors[kind]}: ${count}` },
      el("span", { class: "glyph", "data-kind": data.errors[kind], role: "img", "aria-label": data.errors[kind] }), count));
}

function chips(labels) {
  const found = conditions.map((_, c) => c).filter((c) => c !== NO_FINDING && present(labels[c]));
  if (!found.length) return [el("span", { class: "chip none" }, "no finding")];
  return found.map((c) => el("span", { class: "chip" }, conditions[c] + (labels[c] === UNCERTAIN ? "?" : "")));
}

function line(position) {
  const row = cases[state.shown[position]];
  const made = el("div", {
    class: "row", role: "option", id: `row-${position}`, "aria-selected": position === state.at,
    "aria-posinset": position + 1, "aria-setsize": state.shown.length,
    onclick: () => { select(position); open(position); },
  },
  el("span", { class: "thumb" }, row.images.length
    ? el("img", { src: picture(row.images[0]), alt: "", width: 56, height: 56, decoding: "async" }) : null),
  el("span", { class: "what" },
    el("span", { class: "id" }, named(row), row.scenario ? el("span", { class: "badge" }, row.scenario) : null),
    el("span", { class: "chips" }, chips(row.labels))),
  el("span", { class: "cells" }, row.reports.map((report, i) => {
    if (!report) return el("span", { class: "cell" }, "–");
    const bar = el("i");
    bar.style.width = `${100 * report[SCORE]}%`;
    return el("span", { class: `cell ${systems[i].kind}${filters.system.value === String(i) ? " chosen" : ""}` },
      el("span", { class: "small" }, systems[i].name),
      el("b", { title: `${systems[i].name}: MCCS ${report[SCORE].toFixed(2)}` }, report[SCORE].toFixed(2)),
      el("span", { class: "bar" }, bar), el("span", { class: "glyphs" }, glyphs(report)));
  })));
  made.style.top = `${position * height()}px`;
  return made;
}

function draw(force) {
  const tall = height(), visible = list.clientHeight || 600;
  const first = Math.max(0, Math.floor(list.scrollTop / tall) - 4);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + visible) / tall) + 4);
  const now = `${first} ${last} ${state.at}`;
  if (!force && now === drawn) return;
  drawn = now;
  space.style.height = `${state.shown.length * tall}px`;
  const rows = [];
  for (let position = first; position < last; position++) rows.push(line(position));
  if (!state.shown.length) rows.push(el("p", { class: "empty" }, "No case fits. Clear a filter."));
  space.replaceChildren(...rows);
  if (state.shown.length) list.setAttribute("aria-activedescendant", `row-${state.at}`);
  else list.removeAttribute("aria-activedescendant");
}

function reveal() {
  const tall = height(), top = state.at * tall;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + tall > list.scrollTop + list.clientHeight) list.scrollTop = top + tall - list.clientHeight;
}

function select(position) {
  if (!state.shown.length) return;
  state.at = Math.min(Math.max(position, 0), state.shown.length - 1);
  reveal();
  draw();
}

// ---- one case
const dialog = $("case");
const letter = (i) => String.fromCharCode(65 + (i % 26));

function stateCell(own, reference) {
  if (reference === undefined) return el("td", { class: `state s${own}` }, own === BLANK ? "–" : word(own));
  let kind = "", note = "";
  if (own === BLANK) kind = present(reference) ? "missing" : "";
  else if (reference === BLANK) kind = present(own) ? "extra" : "unsaid";
  else if (present(own) !== present(reference)) kind = "mismatch";
  else kind = own === reference ? "match" : "near";
  if (kind) note = data.legend[kind];
  return el("td", { class: `state ${kind}`, title: note }, own === BLANK ? (kind ? "missing" : "–") : word(own));
}

function findings(columns) {
  const shown = columns.filter((column) => column.report);
  const rows = conditions.map((_, c) => c).filter((c) => columns.some(({ row, report }) =>
    row.labels[c] !== BLANK || (report && report[STATES][c] !== BLANK)));
  const one = columns.every(({ row }) => row.labels.join() === columns[0].row.labels.join());
  const heads = shown.flatMap((column) => [
    one ? null : el("th", { scope: "col" }, `reference, ${column.name}`),
    el("th", { scope: "col" }, el("span", { class: "letter" }, column.letter), " ", column.name)]);
  return el("div", { class: "scroll" }, el("table", { class: "findings" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "finding"),
      one ? el("th", { scope: "col" }, "reference") : null, heads)),
    el("tbody", {}, rows.map((c) => el("tr", { "data-c": c },
      el("th", { scope: "row" }, conditions[c]),
      one ? stateCell(columns[0].row.labels[c]) : null,
      shown.flatMap(({ row, report }) => [one ? null : stateCell(row.labels[c]),
        stateCell(report[STATES][c], row.labels[c])]))))));
}

function errorList(report) {
  if (!report[ERRORS].length) return null;
  return el("details", { class: "errors" },
    el("summary", {}, `${report[ERRORS].length} error${report[ERRORS].length > 1 ? "s" : ""} `,
      el("span", { class: "glyphs" }, glyphs(report))),
    el("ul", {}, report[ERRORS].map(([kind, condition, generated, reference]) => el("li", { "data-c": condition },
      el("span", { class: "glyph", "data-kind": data.errors[kind], "aria-hidden": "true" }), el("b", {}, ` ${data.errors[kind]}`),
      `, ${conditions[condition]}`,
      generated >= 0 ? el("q", {}, text(generated), more(generated)) : null,
      reference >= 0 ? el("span", { class: "quoted" }, "reference: ", el("q", {}, text(reference), more(reference)))
        : null))));
}

function column({ letter: sign, name, kind, report, row }, scenarios, same) {
  if (!report) return el("article", { class: "report" }, el("h3", {}, name), el("p", { class: "soft" }, "no report"));
  const missing = conditions.filter((_, c) => c !== NO_FINDING && present(row.labels[c]) && report[STATES][c] === BLANK);
  return el("article", { class: `report ${kind}` },
    el("h3", {}, el("span", { class: "letter" }, sign), " ", name,
      kind === "model" ? null : el("span", { class: "kind" }, kind),
      el("span", { class: "score", title: "MCCS of this report" }, report[SCORE].toFixed(2))),
    scenarios ? inputs(row, true) : null,
    report[REPORT] < 0 ? el("p", { class: "soft" }, "(an empty report)")
      : el("p", { class: "text" }, markedReport(report[REPORT], report[MARKS], row.labels)),
    missing.length ? el("p", { class: "lacks" }, missing.map((finding) =>
      el("mark", { class: "missing", title: data.legend.missing, "data-c": conditions.indexOf(finding) }, finding))) : null,
    errorList(report),
    report[THINK] >= 0 ? el("details", { class: "think" }, el("summary", {}, "reasoning (<think>)"),
      el("p", { class: "text" }, text(report[THINK]), more(report[THINK]))) : null,
    scenarios && !same ? el("details", { class: "own" }, el("summary", {}, "reference of this scenario"),
      el("p", { class: "text" }, markedReference(row, [{ report, letter: sign, name }]))) : null);
}

function inputs(row, small) {
  return [
    small ? null : images(row),
    row.indication >= 0 ? el("p", { class: "input" }, el("b", {}, "Indication "), text(row.indication), more(row.indication)) : null,
    row.prior >= 0 ? el("details", { class: "prior" }, el("summary", {}, "prior report"),
      el("p", { class: "text" }, text(row.prior), more(row.prior))) : null,
  ];
}

function images(row) {
  if (!row.images.length) return el("p", { class: "soft" }, "no image");
  return el("div", { class: "images" }, row.images.map((number, i) => el("img", {
    src: picture(number), alt: `X-ray ${i + 1} of ${row.images.length} of study ${row.id}`, decoding: "async" })));
}

function reference(row, columns) {
  return el("article", { class: "report reference" }, el("h3", {}, "Reference"),
    row.reference < 0 ? el("p", { class: "soft" }, "(an empty reference)")
      : el("p", { class: "text" }, markedReference(row, columns)));
}

// One scenario where all stand on one page: what its models read, its reference, and the reports of all systems.
function scenario(row, columns, same) {
  return el("section", { class: "scenario" }, el("h3", {}, "Scenario ", el("span", { class: "badge" }, row.scenario)),
    inputs(row, true), same ? null : reference(row, columns),
    el("div", { class: "reports" }, columns.map((each) => column(each, false, true))));
}

function draw_case() {
  const row = cases[state.open];
  const members = groups.get(row.group);
  if (!members) state.view = "systems";
  $("case-title").replaceChildren(named(row), ...(row.scenario && state.view === "systems"
    ? [el("span", { class: "badge" }, row.scenario)] : []));
  $("case-place").textContent = `${state.at + 1} of ${state.shown.length.toLocaleString("en")}`;
  $("previous").disabled = state.at <= 0;
  $("next").disabled = state.at >= state.shown.length - 1;
  $("views").hidden = !members;
  const views = { systems: "Systems", scenarios: `${members ? members.length : 0} scenarios`, all: "All" };
  $("views").replaceChildren(...Object.entries(views).map(([view, name]) => el("button", {
    type: "button", "aria-pressed": state.view === view, onclick: () => { state.view = view; draw_case(); },
  }, name)));
  const scenarios = state.view === "scenarios", all = state.view === "all";
  if (scenarios && state.system === undefined) state.system = counted()[0];
  $("chosen").hidden = systems.length < 2;
  $("chosen").replaceChildren(...systems.map((each, i) => el("button", {
    type: "button", "aria-pressed": scenarios ? state.system === i : !hidden.has(i), class: each.kind,
    onclick: () => {
      if (scenarios) state.system = i;
      else if (!hidden.delete(i)) hidden.add(i);
      draw_case();
      $("chosen").children[i].focus();
    },
  }, scenarios ? null : el("span", { class: "letter" }, letter(i)), scenarios ? null : " ", each.name)));

  const of = (own) => systems.map((each, i) => ({ row: own, report: own.reports[i], letter: letter(i), name: each.name,
    kind: each.kind, i })).filter((each) => !hidden.has(each.i));
  const blocks = all ? members.map((i) => of(cases[i])) : [];
  const columns = scenarios
    ? members.map((i, place) => ({ row: cases[i], report: cases[i].reports[state.system], letter: letter(place),
      name: cases[i].scenario, kind: systems[state.system].kind }))
    : all ? blocks.flat().map((each) => ({ ...each, name: `${each.name}, ${each.row.scenario}` })) : of(row);
  const rows = members && state.view !== "systems" ? members.map((i) => cases[i]) : [row];
  const same = rows.every((each) => each.reference === row.reference);
  const side = state.view === "systems" ? inputs(row)
    : images(rows.reduce((most, each) => (each.images.length > most.images.length ? each : most)));
  $("body").classList.toggle("all", all);
  $("body").replaceChildren(
    el("aside", {}, side),
    el("div", { class: "main" },
      same ? reference(row, all ? [] : columns) : null,
      all ? members.map((i, place) => scenario(cases[i], blocks[place], same))
        : el("div", { class: "reports" }, columns.map((each) => column(each, scenarios, same))),
      el("h3", {}, "Findings"), findings(columns)));
  if (location.hash !== `#case=${encodeURIComponent(row.id)}`) {
    history.replaceState(null, "", `#case=${encodeURIComponent(row.id)}${row.scenario ? `&${row.scenario}` : ""}`);
  }
}

function open(position) {
  if (!state.shown.length) return;
  state.open = state.shown[position];
  if (!dialog.open && data.alone) dialog.show();
  if (!dialog.open) { dialog.showModal(); document.body.classList.add("reading"); }
  draw_case();
  $("body").scrollTop = 0;
  $("case-title").focus();
}

function step(by) {
  const to = state.at + by;
  if (to < 0 || to >= state.shown.length) return;
  select(to);
  open(to);
}

dialog.addEventListener("close", () => {
  document.body.classList.remove("reading");
  history.replaceState(null, "", location.pathname + location.search);
  list.focus({ preventScroll: true });
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
$("close").addEventListener("click", () => dialog.close());
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));

// A finding under the pointer is shown wherever the case has it.
function light(event) {
  const target = event.target.closest("[data-c]");
  for (const each of $("body").querySelectorAll(".lit")) each.classList.remove("lit");
  if (!target) return;
  const wanted = new Set(target.dataset.c.split(" "));
  for (const each of $("body").querySelectorAll("[data-c]")) {
    if (each.dataset.c.split(" ").some((c) => wanted.has(c))) each.classList.add("lit");
  }
}
$("body").addEventListener("pointerover", light);
$("body").addEventListener("pointerleave", light);

// ---- what the user does
let waiting = 0;
$("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 90); });
for (const each of Object.values(filters)) each.addEventListener("change", () => apply(true));
$("order").addEventListener("change", () => apply());
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(apply, 0));
list.addEventListener("scroll", () => draw(), { passive: true });
new ResizeObserver(() => draw(true)).observe(list);

for (const button of document.querySelectorAll("button[data-finding]")) {
  button.addEventListener("click", () => {
    filters.finding.value = String(conditions.indexOf(button.dataset.finding));
    filters.kind.value = button.dataset.kind === undefined ? "" : String(data.errors.indexOf(button.dataset.kind));
    if (button.dataset.system !== undefined) filters.system.value = button.dataset.system;
    apply();
    $("cases").scrollIntoView();
    list.focus({ preventScroll: true });
  });
}
for (const chooser of document.querySelectorAll("select[data-shows]")) {
  const table = $(chooser.dataset.shows), rest = table.className.replace(/\bshow-\S+/, "").trim();
  const show = () => { table.className = `${rest} show-${chooser.value}`; };
  chooser.addEventListener("change", show);
  show(); // a browser may have kept an earlier choice
}

const themes = ["auto", "light", "dark"];
$("theme").addEventListener("click", () => {
  const now = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % themes.length];
  document.documentElement.dataset.theme = now;
  $("theme").textContent = `Theme: ${now}`;
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && event.target === $("search") && !dialog.open) {
    if ($("search").value) { $("search").value = ""; apply(true); } else list.focus();
    event.preventDefault();
    return;
  }
  if (event.target === $("search") && (event.key === "Enter" || event.key === "ArrowDown")) {
    clearTimeout(waiting);
    apply();
    list.focus();
    event.preventDefault();
    return;
  }
  if (field) return;
  const page = Math.max(1, Math.floor(list.clientHeight / height()) - 1);
  if (dialog.open) {
    const by = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
    $("search").select();
  } else if (event.key === "j" || event.key === "k") {
    event.preventDefault();
    if (document.activeElement !== list) { list.focus({ preventScroll: true }); list.scrollIntoView({ block: "nearest" }); }
    select(state.at + (event.key === "j" ? 1 : -1));
  } else if (event.target === list) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -cases.length, End: cases.length }[event.key];
    if (by) { event.preventDefault(); select(state.at + by); }
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(state.at); }
  }
});

document.documentElement.style.setProperty("--systems", systems.length);
$("filters").reset();
apply();
const linked = /^#case=([^&]+)(?:&(.+))?$/.exec(location.hash);
if (linked) {
  const position = state.shown.findIndex((i) => encodeURIComponent(cases[i].id) === linked[1]
    && (!linked[2] || cases[i].scenario === linked[2]));
  if (position >= 0) { select(position); open(position); }
}
if (data.alone) open(0);
document.documentElement.dataset.ready = Math.round(performance.now());
})();
