// The comparison of one row: a slider, both sides, or one of them, with the regions drawn over.

const VIEWS = { slider: "Slider", both: "Both", before: "Before", after: "After" };

function regionsOver(details) {
  const [width, height] = details.size;
  const svg = make("svg", { class: "regions", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const { box: [x0, y0, x1, y1], kind, score } of details.regions) {
    const label = score === null ? kind : `${kind}, ${figure(score)}`;
    const rect = { x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0), class: `region ${kind}` };
    svg.append(make("rect", { ...rect, class: "region halo" }), make("rect", rect, make("title", {}, label)));
  }
  return svg;
}

// Boxes fit only if the frame has the picture's own proportions, so they decide its width.
function sized(element, details) {
  if (details.size) {
    element.classList.add("sized");
    element.style.setProperty("--wide", `${details.size[0]}px`);
    element.style.setProperty("--ratio", details.size[0] / details.size[1]);
  }
  return element;
}

function side(details, name, title) {
  const source = name === "before" && !details.same ? details.before : details.after;
  const frame = make("div", { class: `side ${name}` });
  if (!source) {
    const why = name === "after" ? "Withheld: no picture leaves." : "There is no picture of the original.";
    frame.classList.add("empty");
    frame.append(make("p", {}, why));
    return frame;
  }
  const image = make("img", { alt: `${title}, ${name}`, src: source, width: details.size[0], height: details.size[1], decoding: "async", draggable: "false" });
  frame.append(image, regionsOver(details), make("span", { class: "tag", "aria-hidden": "true" }, details.same ? "before and after" : name));
  return sized(frame, details);
}

function slider(details, title) {
  const box = make("div", { class: "slider" }, side(details, "after", title), side(details, "before", title));
  const input = make("input", {
    type: "range", min: "0", max: "100", value: "50", "aria-label": `${title}: how much of the before side is shown`,
    oninput: () => {
      box.style.setProperty("--at", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % before`);
    },
  });
  box.append(make("span", { class: "knob", "aria-hidden": "true" }), input);
  return sized(box, details);
}

// The ways in which a row can be shown: a slider needs two different pictures.
function viewsOf(details) {
  if (!details.before) return ["after"];
  return details.after ? Object.keys(VIEWS) : ["both", "before"];
}

function startingView(details) {
  const views = viewsOf(details);
  return views.includes(state.view) ? state.view : views[0];
}

function comparison(details, title, view) {
  const box = make("div", { class: "comparison" });
  const buttons = new Map();
  const stage = make("div", { class: "stage" });
  const show = (wanted) => {
    box.dataset.view = wanted;
    for (const [name, button] of buttons) button.setAttribute("aria-pressed", String(name === wanted));
    if (wanted === "slider") stage.replaceChildren(slider(details, title));
    else if (wanted === "both") stage.replaceChildren(make("div", { class: "pair" }, side(details, "before", title), side(details, "after", title)));
    else stage.replaceChildren(side(details, wanted, title));
  };
  const views = viewsOf(details);
  for (const name of views) buttons.set(name, make("button", { type: "button", onclick: () => show(name) }, VIEWS[name]));
  if (details.same) box.append(make("p", { class: "muted small" }, "Untouched: the same pixels before and after, compared; metadata removed."));
  else if (views.length > 1) box.append(make("div", { class: "segments", role: "group", "aria-label": `${title}: pictures` }, ...buttons.values()));
  box.append(stage);
  box.show = (wanted) => views.includes(wanted) && show(wanted);
  box.next = () => show(views[(views.indexOf(box.dataset.view) + 1) % views.length]);
  box.flip = () => box.show(box.dataset.view === "before" ? "after" : "before");
  show(views.includes(view) ? view : views[0]);
  return box;
}
