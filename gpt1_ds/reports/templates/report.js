"use strict";
const {charts, marks} = JSON.parse(document.getElementById("data").textContent);
const AXES = ["steps", "tokens", "hours"], NS = "http://www.w3.org/2000/svg", home = document.getElementById("plots");
let axis = 0;
function svg(name, parent, attributes) {
  const e = parent.appendChild(document.createElementNS(NS, name));
  for (const key in attributes) e.setAttribute(key, attributes[key]);
  return e;
}
function el(name, parent, cls, text) {
  const e = parent.appendChild(document.createElement(name));
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
}
function short(v) {
  const a = Math.abs(v);
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (a >= size) return +(v / size).toPrecision(4) + unit;
  return a && a < 1e-3 ? (+v.toPrecision(3)).toExponential() : String(+v.toPrecision(4));
}
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * base).find(s => s >= raw * 0.999), all = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) all.push(i * step);
  return all;
}
function nearest(points, x) {
  let a = 0, b = points.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; points[m][0] < x ? a = m : b = m; }
  return Math.abs(points[a][0] - x) <= Math.abs(points[b][0] - x) ? points[a] : points[b];
}
const color = s => `var(--c${s.color % 8})`, dash = s => ["", "7 4", "2 3", "9 3 2 3"][s.dash % 4];
function draw(chart, index, box) {
  el("h3", box, "", chart.title);
  const W = Math.max(260, box.clientWidth - 34), H = index ? 190 : Math.min(420, Math.max(260, W * 0.42));
  const series = chart.series.map(s => ({...s, points: s.points.filter(p => p[axis] !== null && p[3] !== null)
    .map(p => [p[axis], p[3]])})).filter(s => s.points.length);
  if (index === 0 || chart.legend) {
    const legend = el("div", box, "legend");
    for (const s of series) {
      const item = el("span", legend);
      svg("line", svg("svg", item, {}), {x1: 1, x2: 23, y1: 5, y2: 5, stroke: color(s), "stroke-width": 2.5, "stroke-dasharray": dash(s), opacity: s.faint ? 0.55 : 1});
      item.append(s.label);
    }
  }
  if (!series.length) return el("p", box, "dim", `no record against ${AXES[axis]}`);
  const xs = series.flatMap(s => s.points.map(p => p[0])), ys = series.flatMap(s => s.points.map(p => p[1])).sort((a, b) => a - b);
  const min = (a, b) => a < b ? a : b, max = (a, b) => a > b ? a : b;
  const x0 = xs.reduce(min, 0), x1 = xs.reduce(max);
  let y0 = chart.zero ? 0 : ys[0], y1 = ys[ys.length - 1];
  if (y0 === y1) { y0 -= Math.abs(y0) / 2 || 1; y1 += Math.abs(y1) / 2 || 1; }
  const pad = (y1 - y0) * 0.04, L = 48, R = 12, T = 8, B = 26;
  y1 += pad; if (!chart.zero) y0 -= pad;
  const X = v => L + (v - x0) / (x1 - x0 || 1) * (W - L - R), Y = v => H - B - (v - y0) / (y1 - y0) * (H - T - B);
  const plot = svg("svg", box, {class: "plot", viewBox: `0 0 ${W} ${H}`, height: H, role: "img", "aria-label": `${chart.title} against ${AXES[axis]}`});
  for (const v of ticks(y0, y1, index ? 4 : 6)) {
    svg("line", plot, {class: "rule", x1: L, x2: W - R, y1: Y(v), y2: Y(v)});
    svg("text", plot, {x: L - 8, y: Y(v) + 4, "text-anchor": "end"}).textContent = short(v);
  }
  for (const v of ticks(x0, x1, W / 110)) svg("text", plot, {x: X(v), y: H - 8, "text-anchor": X(v) > W - 30 ? "end" : "middle"}).textContent = short(v);
  if (index === 0) for (const m of marks) {
    if (m.at[axis] === null || m.at[axis] < x0 || m.at[axis] > x1) continue;
    const x = X(m.at[axis]), line = svg("line", plot, {class: "mark", x1: x, x2: x, y1: m.bad ? T : H - B - 9, y2: H - B, stroke: m.bad ? "var(--c1)" : color(m), "stroke-width": 1.5, opacity: 0.8, "stroke-dasharray": m.bad ? "3 3" : ""});
    svg("title", line, {}).textContent = m.text;
  }
  for (const s of series) {
    svg("path", plot, {class: "curve", d: s.points.map((p, i) => `${i ? "L" : "M"}${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`).join(""),
      stroke: color(s), "stroke-dasharray": dash(s), opacity: s.faint ? 0.5 : 1, "data-points": s.points.length, "data-label": s.label});
    if (s.points.length <= 60) for (const p of s.points) svg("circle", plot, {cx: X(p[0]), cy: Y(p[1]), r: s.points.length > 1 ? 2.2 : 4, fill: color(s)});
  }
  const cursor = svg("line", plot, {y1: T, y2: H - B, stroke: "var(--dim)", "stroke-width": 1, visibility: "hidden"}), read = el("p", box, "read");
  const last = () => { read.textContent = ""; cursor.setAttribute("visibility", "hidden"); };
  plot.addEventListener("pointermove", event => {
    const frame = plot.getBoundingClientRect(), px = (event.clientX - frame.left) * W / frame.width;
    const x = x0 + (px - L) / (W - L - R) * (x1 - x0), near = series.map(s => nearest(s.points, x));
    const at = near.map(p => p[0]).reduce((a, b) => Math.abs(a - x) < Math.abs(b - x) ? a : b);
    for (const [k, v] of [["x1", X(at)], ["x2", X(at)], ["visibility", "visible"]]) cursor.setAttribute(k, v);
    read.textContent = `${AXES[axis]} ${short(at)}`;
    series.forEach((s, i) => { read.append(" · ", `${s.label} `); el("b", read, "", short(near[i][1])).style.color = color(s); });
  });
  plot.addEventListener("pointerleave", last);
}
function show() {
  const top = window.scrollY;
  home.textContent = "";
  const bar = el("div", home, "bar"), choice = el("div", bar, "choice");
  el("span", bar, "dim", marks.length ? "short ticks: starts · dashed lines: batches skipped" : "");
  AXES.forEach((name, i) => {
    const button = el("button", choice, "", name);
    button.setAttribute("aria-pressed", i === axis);
    button.addEventListener("click", () => { axis = i; show(); });
  });
  const first = el("figure", home, "card chart"), grid = el("div", home, "grid");
  const boxes = [first, ...charts.slice(1).map(() => el("figure", grid, "card chart"))];  // laid out before they are measured
  charts.forEach((chart, i) => draw(chart, i, boxes[i]));
  window.scrollTo(0, top);
}
if (AXES.includes(location.hash.slice(1))) axis = AXES.indexOf(location.hash.slice(1));
show();
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; show(); } });
document.body.dataset.drawn = "yes";
