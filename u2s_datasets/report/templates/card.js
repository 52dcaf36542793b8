// One row: its pictures beside what is known of it.

const DECISIONS = { accept: ["Accept", "a"], redo: ["Redo", "d"], withhold: ["Withhold", "w"] };

const titleOf = (number) => `${index.split[number]}, row ${index.row[number]}`;

function checksOf(number) {
  const list = make("dl", { class: "checks" });
  for (const { name, label, about, axis } of index.kinds) {
    const value = index.checks[name][number];
    if (value === null) continue;
    const bad = axis === "count" ? value > 0 : name === "change_outside" && value > 0;
    const meter = make("span", { class: "meter", "aria-hidden": "true" });
    if (axis !== "count") meter.style.setProperty("--share", `${100 * Math.min(1, Math.max(0, value))}%`);
    list.append(make("div", { class: bad ? "bad" : null, title: about }, make("dt", {}, label), make("dd", {}, figure(value)), axis === "count" ? null : meter));
  }
  return list.childElementCount ? list : null;
}

function text(label, value, note, kind) {
  if (!value) return null;
  return make("div", { class: `text ${kind}` }, make("dt", {}, label, " ", make("span", { class: "note" }, note)), make("dd", { dir: "auto" }, value));
}

function textsOf(details) {
  const stays = "private, stays here";
  const leaves = "leaves with the row";
  const texts = [
    text("Private caption", details.private, stays, "private"),
    text("Read in the original", details.read.join(" · "), stays, "private"),
    text("Metadata in the original", details.metadata.join(", "), "removed", "private"),
    text("Public caption", details.public, leaves, "public"),
    text("Edit instruction", details.instruction, leaves, "public"),
    text("Combined caption", details.combined, stays, "private"),
  ].filter(Boolean);
  return texts.length ? make("dl", { class: "texts" }, ...texts) : null;
}

function factsOf(number, details) {
  const regions = count(details.regions.map((region) => region.kind));
  const found = [...regions].map(([kind, rows]) => `${rows} ${kind}`).join(", ");
  const facts = [
    ["Groups", index.groups[number].join(", ") || "none"],
    ["Regions", details.whole ? `${found || "none"}; the whole picture was edited` : found || "none"],
    ["Class", index.label[number]],
    ["Editor", details.editor],
    ["Attempts", index.attempts[number] || null],
    ["Size", details.size && `${details.size[0]} × ${details.size[1]}`],
    ["Seed", details.seed],
  ];
  return make("dl", { class: "facts" }, ...facts.filter(([, value]) => value).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, String(value)))));
}

function decisionButtons(number, decided) {
  if (!isReview) return null;
  const buttons = Object.entries(DECISIONS).map(([name, [label, key]]) =>
    make("button", { type: "button", class: `decide ${name}`, "data-decision": name, "aria-keyshortcuts": key, onclick: () => decided(index.decision[number] === name ? null : name) }, label));
  return make("div", { class: "decisions", role: "group", "aria-label": `${titleOf(number)}: decision` }, ...buttons);
}

function markDecision(card, number) {
  const decision = index.decision[number];
  card.querySelector(".badge.decision").textContent = decision ? `decision: ${decision}` : "";
  card.dataset.decision = decision || "";
  for (const button of card.querySelectorAll("[data-decision]")) {
    button.setAttribute("aria-pressed", String(button.dataset.decision === decision));
  }
}

function card(number, open) {
  const title = titleOf(number);
  const status = index.status[number];
  const heading = make("h3", { id: `title-${number}` }, title);
  const head = make("header", {}, heading, make("span", { class: `badge ${status}` }, status), make("span", { class: "badge decision" }));
  const body = make("div", { class: "card-body", "aria-busy": "true" }, make("p", { class: "muted" }, "Opening…"));
  const element = make("li", { class: "card", tabindex: "-1", "data-number": number, "aria-labelledby": `title-${number}` }, head, body);
  markDecision(element, number);
  detailsOf(number).then((details) => fill(element, body, number, details, open)).catch((error) => {
    body.removeAttribute("aria-busy");
    body.replaceChildren(make("p", { class: "failed" }, `This row can't be shown: ${error.message}`));
  });
  return element;
}

function fill(element, body, number, details, open) {
  const pictures = comparison(details, titleOf(number), startingView(details));
  const reason = index.reason[number];
  const decided = async (decision) => {
    try {
      index.decision[number] = await sendDecision(number, decision);
      hideProblem();
    } catch (error) {
      showProblem(`The decision was not written: ${error.message}`);
    }
    markDecision(element, number);
  };
  const facts = make("div", { class: "about" },
    reason ? make("p", { class: "reason" }, make("span", { class: "muted" }, "Reason: "), reason) : null,
    checksOf(number), textsOf(details), factsOf(number, details), decisionButtons(number, decided));
  const larger = make("button", { type: "button", class: "quiet larger", "aria-keyshortcuts": "o", onclick: () => open(number, details, pictures.dataset.view) }, "Larger");
  body.removeAttribute("aria-busy");
  body.replaceChildren(make("div", { class: "pictures" }, pictures, details.size && larger), facts);
  element.pictures = pictures;
  element.open = () => details.size && open(number, details, pictures.dataset.view);
  element.decide = isReview ? decided : () => {};
  markDecision(element, number);
}
