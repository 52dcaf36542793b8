// Histograms of the checks and of the attempts, over the rows that the filters leave.

const BINS = 16;
const FEWEST = 8; // bins of a count, so that a single value is a bar and not a block
const CHART = { width: 240, height: 72, base: 56 };

function binsOf(values, axis) {
  const highest = Math.max(...values);
  if (axis === "count") {
    const step = Math.max(1, Math.ceil((highest + 1) / BINS));
    const size = Math.max(FEWEST, Math.floor(highest / step) + 1);
    return { low: 0, step, counts: tally(values, 0, step, size) };
  }
  const low = Math.min(0, ...values.filter((value) => value < 0));
  const top = axis === "share" ? 1 : highest || 1;
  const step = (top - low) / BINS;
  return { low, step, counts: tally(values, low, step, BINS) };
}

function tally(values, low, step, size) {
  const counts = new Array(size).fill(0);
  for (const value of values) counts[Math.min(size - 1, Math.max(0, Math.floor((value - low) / step)))]++;
  return counts;
}

function rangeOf(bins, place, axis) {
  const low = bins.low + place * bins.step;
  const high = axis === "count" ? low + bins.step - 1 : low + bins.step;
  return [low, high];
}

function chart({ name, label, about, axis }, values, choose) {
  const bins = binsOf(values, axis);
  const tallest = Math.max(...bins.counts);
  const width = CHART.width / bins.counts.length;
  const sorted = [...values].sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  const told = `${label}: ${values.length} rows, lowest ${figure(sorted[0])}, median ${figure(median)}, highest ${figure(sorted.at(-1))}`;
  const svg = make("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", "aria-label": told });
  bins.counts.forEach((rows, place) => {
    const [low, high] = rangeOf(bins, place, axis);
    const height = rows ? Math.max(2, (rows / tallest) * (CHART.base - 4)) : 0;
    const range = low === high ? figure(low) : `${figure(low)} to ${figure(high)}`;
    const x = place * width;
    svg.append(make("g", { class: "bin", onclick: () => rows && choose(name, low, high) },
      make("rect", { class: "hit", x, y: 0, width, height: CHART.base }),
      make("rect", { class: "fill", x: x + 1, y: CHART.base - height, width: Math.max(1, width - 2), height, rx: 1.5 }),
      make("title", {}, `${range}: ${rows} rows`)));
  });
  svg.append(make("line", { x1: 0, x2: CHART.width, y1: CHART.base, y2: CHART.base, class: "axis" }));
  const ends = [rangeOf(bins, 0, axis)[0], rangeOf(bins, bins.counts.length - 1, axis)[1]];
  svg.append(make("text", { x: 0, y: CHART.height - 2 }, figure(ends[0])),
    make("text", { x: CHART.width, y: CHART.height - 2, "text-anchor": "end" }, figure(ends[1])));
  return make("figure", { class: "chart", title: about },
    make("figcaption", {}, make("strong", {}, label), make("span", { class: "muted" }, `n ${values.length} · median ${figure(median)}`)), svg);
}

function drawCharts(box, rows, choose) {
  const kinds = [...index.kinds, { name: "attempts", label: "Attempts", about: "how often the row was edited", axis: "count" }];
  const charts = kinds.map((kind) => {
    const values = rows.map((number) => valueOf(kind.name, number)).filter((value) => value !== null);
    return values.length ? chart(kind, values, choose) : null;
  }).filter(Boolean);
  box.replaceChildren(...(charts.length ? charts : [make("p", { class: "muted" }, "No row here has a score.")]));
}
