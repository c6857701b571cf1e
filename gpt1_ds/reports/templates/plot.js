// Draws one chart as SVG. Knows nothing of the page's controls: `view` says what is wanted.
const NS = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 40;
const DASHES = ["", "7 4", "2 3", "11 3 2 3", "14 5", "5 2 1 2 1 2", "1 4", "10 2 4 2"];
const LETTER = 7.4;  // pixels, of bold text of 11 pixels
const LINE = 13;

function svg(name, parent, attributes, text) {
  const made = parent.appendChild(document.createElementNS(NS, name));
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

function el(name, parent, className, text) {
  const made = parent.appendChild(document.createElement(name));
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const colorOf = series => `var(--c${series.color % 8})`;
const dashOf = series => DASHES[series.dash % DASHES.length];

function swatch(parent, series) {
  const look = {stroke: colorOf(series), "stroke-width": 2.5, "stroke-dasharray": dashOf(series)};
  const picture = svg("svg", parent, {"aria-hidden": "true", viewBox: "0 0 28 10"});
  svg("line", picture, {x1: 1, x2: 27, y1: 5, y2: 5, ...look});
}

// Numbers

function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return +(value / unit).toPrecision(4) + letter;
  }
  if (size && size < 1e-3) return (+value.toPrecision(3)).toExponential();
  return String(+value.toPrecision(4));
}

function evenTicks(low, high, count) {
  const raw = (high - low) / count || 1, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * base).find(s => s >= raw * 0.999);
  const all = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) all.push(i * step);
  return all;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 1) return evenTicks(low, high, count).filter(value => value > 0);
  const digits = decades * 3 <= count ? [1, 2, 5] : [1], every = Math.ceil(decades / count);
  const all = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += every) {
    all.push(...digits.map(digit => digit * 10 ** e));
  }
  return all.filter(value => value >= low * 0.999 && value <= high * 1.001);
}

// A function from values to pixels, with its inverse and its ticks.
function makeScale(low, high, start, end, isLog, count) {
  const place = isLog ? Math.log10 : value => value, a = place(low), b = place(high);
  const scale = value => start + (place(value) - a) / (b - a || 1) * (end - start);
  scale.inverse = pixel => {
    const placed = a + (pixel - start) / (end - start) * (b - a);
    return isLog ? 10 ** placed : placed;
  };
  scale.ticks = (isLog ? logTicks : evenTicks)(low, high, count);
  return scale;
}

// The exponential moving average of TensorBoard: what is missing at the start is divided out.
function smoothed(values, weight) {
  let sum = 0, share = 1;
  return values.map(value => {
    sum = weight * sum + (1 - weight) * value;
    share *= weight;
    return sum / (1 - share);
  });
}

function nearest(points, x) {
  let a = 0, b = points.length - 1;
  while (b - a > 1) {
    const middle = (a + b) >> 1;
    if (points[middle].x < x) a = middle; else b = middle;
  }
  return Math.abs(points[a].x - x) <= Math.abs(points[b].x - x) ? points[a] : points[b];
}

// What is visible

// The curves of a chart that have points in the view: {x, y, raw} each.
function visibleSeries(chart, view) {
  const found = [];
  for (const series of chart.series) {
    if (view.isHidden(chart, series)) continue;
    const placed = series.points.filter(point => point[view.axis] !== null);
    const raw = placed.map(point => point[point.length - 1]);
    const means = view.smoothing ? smoothed(raw, view.smoothing) : raw;
    const points = placed.map((point, i) => ({x: point[view.axis] / view.unit, y: means[i], raw: raw[i]}))
      .filter(point => point.x > 0 || !view.isLogAxis);
    if (points.length) found.push({...series, points});
  }
  return found;
}

// What the curves are compared with: {x, low, high} each.
function visibleBands(chart, view) {
  return (chart.bands || []).map(band => {
    const placed = band.points.filter(point => point[view.axis] !== null).map(point => ({
      x: point[view.axis] / view.unit, low: point[point.length - 2], high: point[point.length - 1],
    }));
    return {...band, points: placed.filter(point => point.x > 0 || !view.isLogAxis)};
  }).filter(band => band.points.length && !view.isHiddenRun(band.run));
}

const lowest = values => values.reduce((a, b) => a < b ? a : b, Infinity);
const highest = values => values.reduce((a, b) => a > b ? a : b, -Infinity);

function verticalRange(chart, values, isLog) {
  let low = chart.zero && !isLog ? 0 : lowest(values), high = highest(values);
  if (low === high && isLog) { low /= 2; high *= 2; }
  if (low === high) { low -= Math.abs(low) / 2 || 1; high += Math.abs(high) / 2 || 1; }
  if (isLog) {
    const pad = (high / low) ** 0.04;
    return [low / pad, high * pad];
  }
  const pad = (high - low) * 0.04;
  return [chart.zero ? low : low - pad, high + pad];
}

// Sizes, scales and the empty drawing.
function makeFrame(chart, series, box, view) {
  const width = Math.max(260, box.clientWidth);
  const height = view.isFirst ? Math.min(430, Math.max(270, width * 0.42)) : 205;
  const references = chart.references || [], bands = visibleBands(chart, view);
  const all = series.flatMap(s => s.points.flatMap(p => view.smoothing ? [p.y, p.raw] : [p.y]))
    .concat(references.map(reference => reference.value), bands.flatMap(band => band.points.flatMap(p => [p.low, p.high])));
  const isLog = view.isLog && all.some(value => value > 0);
  const [low, high] = verticalRange(chart, isLog ? all.filter(value => value > 0) : all, isLog);
  const xs = series.flatMap(s => s.points.map(point => point.x));
  const first = view.isLogAxis ? lowest(xs) : Math.min(0, lowest(xs)), last = highest(xs);
  // More names than the height has room for are left to the legend.
  const hasNames = chart.labels && series.length * LINE <= height - BOTTOM - TOP;
  const letters = hasNames ? Math.min(highest(series.map(s => s.label.length)), Math.floor(width * 0.4 / LETTER)) : 0;
  const right = width - RIGHT - letters * LETTER;
  const X = makeScale(first, last, LEFT, right, view.isLogAxis, Math.max(3, Math.floor(width / 90)));
  const Y = makeScale(low, high, height - BOTTOM, TOP, isLog, view.isFirst ? 6 : 4);
  return {chart, series, references, bands, width, height, right, first, last, X, Y, isLog, letters};
}

// The parts of a drawing

function drawAxes(plot, frame, view) {
  const {X, Y, right, height} = frame;
  for (const value of Y.ticks) {
    svg("line", plot, {class: "rule", x1: LEFT, x2: right, y1: Y(value), y2: Y(value)});
    svg("text", plot, {x: LEFT - 8, y: Y(value) + 4, "text-anchor": "end"}, short(value));
  }
  for (const value of X.ticks) {
    const anchor = X(value) > frame.width - 30 ? "end" : "middle";
    svg("text", plot, {x: X(value), y: height - BOTTOM + 17, "text-anchor": anchor}, short(value));
  }
  svg("text", plot, {x: (LEFT + right) / 2, y: height - 6, "text-anchor": "middle"}, view.axisName);
  for (const {label, value} of frame.references) {
    if (frame.isLog && value <= 0) continue;
    svg("line", plot, {class: "reference", x1: LEFT, x2: right, y1: Y(value), y2: Y(value)});
    svg("text", plot, {class: "name", x: LEFT + 4, y: Y(value) - 4}, label);
  }
}

const MARK_LOOKS = {
  start: {color: null, dash: "", isShort: true},
  changed: {color: null, dash: ""},
  spike: {color: "var(--bad)", dash: "3 3"},
  lost: {color: "var(--bad)", dash: "1 3"},
};

function drawMarks(plot, frame, marks, view) {
  for (const mark of marks) {
    const at = mark.at[view.axis] === null ? null : mark.at[view.axis] / view.unit;
    if (at === null || at < frame.first || at > frame.last) continue;
    const look = MARK_LOOKS[mark.kind], x = frame.X(at), bottom = frame.height - BOTTOM;
    const line = svg("line", plot, {
      class: "mark", "data-kind": mark.kind, x1: x, x2: x, y1: look.isShort ? bottom - 9 : TOP, y2: bottom,
      stroke: look.color || (view.hasRuns ? `var(--c${mark.run % 8})` : "var(--dim)"), "stroke-dasharray": look.dash,
    });
    svg("title", line, {}, mark.text);
  }
}

function pathOf(points, key, frame) {
  const drawn = frame.isLog ? points.filter(point => point[key] > 0) : points;
  return drawn.map((p, i) => `${i ? "L" : "M"}${frame.X(p.x).toFixed(1)} ${frame.Y(p[key]).toFixed(1)}`).join("");
}

// Behind the curves: the expected loss with its tolerance.
function drawBands(plot, frame) {
  for (const {points, label} of frame.bands) {
    const place = (p, y) => `${frame.X(p.x).toFixed(1)} ${frame.Y(y).toFixed(1)}`;
    const ring = [...points.map(p => place(p, p.high)), ...[...points].reverse().map(p => place(p, p.low))];
    const band = svg("path", plot, {class: "band", d: `M${ring.join("L")}Z`, "data-points": points.length});
    svg("title", band, {}, label);
  }
}

function drawCurves(plot, frame, view) {
  for (const series of frame.series) {
    const {points} = series, stroke = colorOf(series);
    if (view.smoothing) svg("path", plot, {class: "raw", d: pathOf(points, "raw", frame), stroke});
    svg("path", plot, {
      class: "curve", d: pathOf(points, "y", frame), stroke, "stroke-dasharray": dashOf(series),
      opacity: series.faint && !view.smoothing ? 0.7 : 1, "data-points": points.length, "data-label": series.label,
    });
    if (points.length > 60) continue;
    for (const point of points) {
      if (frame.isLog && point.y <= 0) continue;
      const radius = points.length > 1 ? 2.2 : 4;
      svg("circle", plot, {cx: frame.X(point.x), cy: frame.Y(point.y), r: radius, fill: stroke});
    }
  }
}

// The names of the curves at their ends, moved apart.
function drawNames(plot, frame) {
  const low = frame.height - BOTTOM, ends = frame.series.map(series => {
    const last = lastOf(series), y = frame.isLog && last.y <= 0 ? low : frame.Y(last.y);
    return {series, wanted: y};
  }).sort((a, b) => a.wanted - b.wanted);
  let y = low + 4 + LINE;
  for (const end of [...ends].reverse()) end.y = y = Math.min(end.wanted + 4, y - LINE);
  for (const end of ends) {
    const {label} = end.series, isLong = label.length > frame.letters;
    const at = {class: "name", x: frame.right + 8, y: end.y, style: `fill: ${colorOf(end.series)}`};
    svg("text", plot, at, isLong ? `${label.slice(0, frame.letters - 1)}…` : label);
  }
}

const lastOf = series => series.points[series.points.length - 1];

function endsEarly(series, frame) {
  const others = frame.series.filter(s => s.run !== series.run && s.kind === series.kind);
  const goesOn = others.some(other => lastOf(other).x > lastOf(series).x);
  return goesOn && !(frame.isLog && lastOf(series).y <= 0);
}

// The last value of each run that ends before another one of the chart. Values that would lie on
// each other are moved up.
function drawEnds(plot, frame) {
  const ends = frame.series.filter(series => endsEarly(series, frame))
    .map(series => ({series, last: lastOf(series)})).sort((a, b) => a.last.y - b.last.y);
  const taken = [];
  for (const {series, last} of ends) {
    const x = frame.X(last.x), y = frame.Y(last.y), anchor = x > frame.right - 60 ? "end" : "start";
    const end = svg("g", plot, {class: "end", "data-label": series.label});
    svg("title", end, {}, `${series.label} ends here: ${short(last.y)}`);
    svg("circle", end, {cx: x, cy: y, r: 4.5, stroke: colorOf(series)});
    if (frame.letters) continue;  // no room beside the names
    let place = y - 7;
    while (taken.some(other => Math.abs(other.x - x) < 60 && Math.abs(other.y - place) < LINE)) place -= 1;
    taken.push({x, y: place});
    const at = {x: x + (anchor === "end" ? -8 : 8), y: Math.max(TOP, place), "text-anchor": anchor};
    svg("text", end, {...at, style: `fill: ${colorOf(series)}`}, short(last.y));
  }
}

// Reading values: with the pointer, or with the arrow keys after Tab.

function makeReader(plot, frame, marks, view, read) {
  const cursor = svg("line", plot, {y1: TOP, y2: frame.height - BOTTOM, stroke: "var(--dim)", visibility: "hidden"});
  const hide = () => { read.textContent = ""; cursor.setAttribute("visibility", "hidden"); };
  const showAt = wanted => {
    const near = frame.series.map(series => nearest(series.points, wanted));
    const at = near.map(point => point.x).reduce((a, b) => Math.abs(a - wanted) < Math.abs(b - wanted) ? a : b);
    const x = frame.X(at);
    for (const [key, value] of [["x1", x], ["x2", x], ["visibility", "visible"]]) cursor.setAttribute(key, value);
    read.textContent = `${view.axisName} ${short(at)}`;
    frame.series.forEach((series, i) => {
      read.append(" · ", `${series.label} `);
      el("b", read, "", short(near[i].y)).style.color = colorOf(series);
      if (view.smoothing) read.append(` (${short(near[i].raw)})`);
    });
    for (const mark of marks) {
      const place = mark.at[view.axis];
      if (place !== null && Math.abs(frame.X(place / view.unit) - x) < 5) read.append(` · ${mark.text}`);
    }
  };
  plot.addEventListener("pointermove", event => {
    const shown = plot.getBoundingClientRect();
    showAt(frame.X.inverse((event.clientX - shown.left) * frame.width / shown.width));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  listenToKeys(plot, frame, showAt, hide);
}

function listenToKeys(plot, frame, showAt, hide) {
  const stops = [...new Set(frame.series.flatMap(s => s.points.map(point => point.x)))].sort((a, b) => a - b);
  let stop = stops.length;
  plot.addEventListener("keydown", event => {
    const moves = {ArrowLeft: stop - 1, ArrowRight: stop + 1, Home: 0, End: stops.length - 1};
    if (event.key === "Escape") return hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    stop = Math.max(0, Math.min(stops.length - 1, moves[event.key]));
    showAt(stops[stop]);
  });
}

// The whole chart, into an empty box. Returns whether there was anything to draw.
function drawPlot(chart, box, marks, view) {
  const series = visibleSeries(chart, view);
  if (!series.length) {
    el("p", box, "dim", chart.series.every(s => view.isHidden(chart, s)) ? "all curves are switched off" : `no record has ${view.axisName}`);
    return;
  }
  const frame = makeFrame(chart, series, box, view);
  const title = `${chart.title} against ${view.axisName}`;
  const plot = svg("svg", box, {
    class: "plot", viewBox: `0 0 ${frame.width} ${frame.height}`, role: "img", tabindex: 0,
    "aria-label": `${title}; arrow keys read values`,
  });
  drawAxes(plot, frame, view);
  drawMarks(plot, frame, marks, view);
  drawBands(plot, frame);
  drawCurves(plot, frame, view);
  if (frame.letters) drawNames(plot, frame);
  drawEnds(plot, frame);
  const read = el("p", box, "read");
  read.setAttribute("aria-live", "polite");
  makeReader(plot, frame, marks, view, read);
}
