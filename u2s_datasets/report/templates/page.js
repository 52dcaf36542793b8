// The page: filters, pages, keys.

const byId = (id) => document.getElementById(id);
let shown = [];

function showProblem(message) {
  byId("problem").textContent = message;
  byId("problem").hidden = false;
}
function hideProblem() {
  byId("problem").hidden = true;
}

const NOTES = {
  worst: "Worst first: rows that would leave with something left, then those whose faces or words are most alike, then the least changed; withheld rows after them, untouched rows last. An untouched row has no scores: what the detectors overlooked would be among those, so look at some of them too.",
  attempts: "A run stores no time per row. Each attempt is one more edit and one more inspection, so rows with the most attempts are as a rule the slowest.",
};

function drawStatuses() {
  const counts = count(index.status);
  const tiles = STATUSES.map((status) => {
    const rows = counts.get(status) || 0;
    const share = index.status.length ? (100 * rows) / index.status.length : 0;
    const segment = make("span", { class: status });
    segment.style.setProperty("flex-grow", rows);
    if (rows) byId("bar").append(segment);
    return make("button", { type: "button", class: `tile ${status}`, "aria-pressed": "false", "data-status": status, onclick: () => toggle(state.status, status) },
      make("span", { class: "name" }, status), make("strong", {}, rows.toLocaleString("en")), make("span", { class: "muted" }, `${share.toFixed(share && share < 10 ? 1 : 0)} %`));
  });
  byId("statuses").replaceChildren(...tiles);
}

function drawChoices() {
  const groups = [...count(index.groups.flat())].sort((a, b) => b[1] - a[1]);
  byId("groups").replaceChildren(...(groups.length ? groups.map(([group, rows]) =>
    make("button", { type: "button", class: "chip", "aria-pressed": "false", "data-group": group, onclick: () => toggle(state.groups, group) }, group, " ", make("span", { class: "muted" }, rows.toLocaleString("en")))) : [make("span", { class: "muted" }, "none found")]));
  addOptions("reason", [...count(index.reason.filter(Boolean))].sort((a, b) => b[1] - a[1]).map(([reason, rows]) => [reason, `${reason} (${rows})`]));
  if (byId("split")) addOptions("split", [...count(index.split)].map(([split, rows]) => [split, `${split} (${rows})`]));
  const scores = index.kinds.filter(({ name }) => index.checks[name].some((value) => value !== null)).map(({ name, label }) => [name, label]);
  addOptions("score", [...scores, ["attempts", "Attempts"]]);
  addOptions("order", scores.map(([name, label]) => [name, `${label}, highest first`]));
}

function addOptions(id, options) {
  byId(id).append(...options.map(([value, label]) => make("option", { value }, label)));
}

function toggle(set, value) {
  if (!set.delete(value)) set.add(value);
  update();
}

function readFilters() {
  const number = (id) => (byId(id).value === "" || Number.isNaN(byId(id).valueAsNumber) ? null : byId(id).valueAsNumber);
  Object.assign(state, {
    reason: byId("reason").value, decision: byId("decision").value, split: byId("split")?.value || "",
    score: byId("score").value, low: number("low"), high: number("high"), order: byId("order").value, view: byId("view").value,
  });
}

function chooseRange(name, low, high) {
  byId("score").value = name;
  const plain = (value) => String(Number(value.toPrecision(4)));
  byId("low").value = plain(low);
  byId("high").value = plain(high);
  readFilters();
  update();
}

// What the filters leave has changed: back to the first page.
function update() {
  for (const [selector, set, key] of [[".tile", state.status, "status"], [".chip", state.groups, "group"]]) {
    for (const button of document.querySelectorAll(selector)) button.setAttribute("aria-pressed", String(set.has(button.dataset[key])));
  }
  shown = shownRows();
  drawCharts(byId("charts"), shown, chooseRange);
  byId("order-note").textContent = NOTES[state.order] || "";
  goTo(0);
}

const pageCount = () => Math.max(1, Math.ceil(shown.length / PER_PAGE));

function goTo(page) {
  state.page = Math.min(Math.max(page, 0), pageCount() - 1);
  const start = state.page * PER_PAGE;
  const rows = shown.slice(start, start + PER_PAGE);
  const cards = rows.map((number) => card(number, openLarge));
  byId("rows").replaceChildren(...(cards.length ? cards : [make("li", { class: "nothing" }, "No row passes these filters.")]));
  const total = index.row.length.toLocaleString("en");
  const range = rows.length ? `${(start + 1).toLocaleString("en")}–${(start + rows.length).toLocaleString("en")} of ` : "";
  byId("count").textContent = `${range}${shown.length.toLocaleString("en")} rows shown, ${total} in the run`;
  byId("page").value = state.page + 1;
  byId("page").max = pageCount();
  byId("pages").textContent = `of ${pageCount().toLocaleString("en")}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = byId("next-below").disabled = state.page === pageCount() - 1;
}

function turn(step) {
  const before = state.page;
  goTo(state.page + step);
  if (state.page === before) return false;
  byId("pager").scrollIntoView({ block: "start" });
  return true;
}

function openLarge(number, details, view) {
  byId("large-title").textContent = titleOf(number);
  byId("large-body").replaceChildren(comparison(details, `${titleOf(number)}, large`, view));
  byId("large").showModal();
}

const cards = () => [...byId("rows").querySelectorAll(".card")];

// The row that keys act on: the one with the focus, or the first one.
function current() {
  return document.activeElement?.closest(".card") || cards().find((card) => card.classList.contains("current")) || null;
}

function focusCard(card) {
  for (const other of cards()) other.classList.toggle("current", other === card);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const all = cards();
  const place = all.indexOf(current());
  const next = place < 0 ? (by > 0 ? 0 : all.length - 1) : place + by;
  if (all[next]) focusCard(all[next]);
  else if (turn(by)) focusCard(by > 0 ? cards()[0] : cards().at(-1));
}

function setRegions(on) {
  state.regions = byId("regions").checked = on;
  document.body.classList.toggle("no-regions", !on);
}

const onCurrent = (action) => () => {
  const card = current() || cards()[0];
  if (card?.pictures) {
    focusCard(card);
    action(card);
  }
};
const KEYS = {
  j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1),
  b: onCurrent((card) => card.pictures.flip()), v: onCurrent((card) => card.pictures.next()),
  o: onCurrent((card) => card.open()), r: () => setRegions(!state.regions),
  f: () => { byId("filters-panel").open = true; byId("reason").focus(); },
  a: onCurrent((card) => card.decide("accept")), d: onCurrent((card) => card.decide("redo")),
  w: onCurrent((card) => card.decide("withhold")), u: onCurrent((card) => card.decide(null)),
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  const types = event.target.closest("select, textarea, input:not([type=range], [type=checkbox])");
  if (event.ctrlKey || event.metaKey || event.altKey || types || document.querySelector("dialog[open]")) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

byId("rows").addEventListener("focusin", (event) => {
  const card = event.target.closest(".card");
  if (card) for (const other of cards()) other.classList.toggle("current", other === card);
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(() => {
  state.status.clear();
  state.groups.clear();
  setRegions(true);
  readFilters();
  update();
}));
byId("filters").addEventListener("change", (event) => {
  if (event.target.id === "regions") return setRegions(event.target.checked);
  readFilters();
  if (event.target.id === "view") cards().forEach((card) => card.pictures?.show(state.view));
  else update();
});
for (const [id, by] of [["previous", -1], ["next", 1], ["next-below", 1]]) byId(id).addEventListener("click", () => turn(by));
byId("page").addEventListener("change", (event) => goTo((event.target.valueAsNumber || 1) - 1));
byId("help").addEventListener("click", () => byId("keys").showModal());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
byId("large").addEventListener("close", () => byId("large-body").replaceChildren());

const isDark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
}
byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
isDark.addEventListener("change", () => setTheme(isDark.matches));

setTheme(isDark.matches);
// On a phone the rows come first.
if (matchMedia("(max-width: 760px)").matches) byId("charts-panel").open = byId("filters-panel").open = false;
drawStatuses();
drawChoices();
update();
