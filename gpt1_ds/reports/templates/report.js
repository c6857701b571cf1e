// The page of a report: its controls, and a chart for each group of curves.
const {runs, axes, charts, marks, csv} = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const TIME = axes.findIndex(axis => axis.name === "time");
const TIME_UNITS = [["days", 86400, 4], ["hours", 3600, 2], ["minutes", 60, 2], ["seconds", 1, 0]];
const KINDS = {
  start: "short ticks: starts", changed: "solid lines: a start with changed settings",
  spike: "dashed lines: loss spikes undone", lost: "dotted lines: the loss is not a number",
};
const state = {axis: axes.findIndex(axis => axis.has_data), hidden: new Set(), hiddenRuns: new Set()};

// The unit in which the longest time of the page is easy to read, with its seconds.
function timeUnit() {
  const times = charts.flatMap(chart => chart.series.flatMap(s => s.points.map(point => point[TIME] || 0)));
  const longest = highest([0, ...times]);
  return TIME_UNITS.find(([, seconds, least]) => longest >= seconds * least);
}

const [timeName, timeSeconds] = timeUnit();
const keyOf = (chart, series) => `${chart.title}\n${series.label}`;
const isHidden = (chart, series) => state.hidden.has(keyOf(chart, series)) || state.hiddenRuns.has(series.run);

function currentView() {
  const isTime = state.axis === TIME;
  return {
    axis: state.axis, isHidden, isHiddenRun: run => state.hiddenRuns.has(run), hasRuns: runs.length > 1,
    axisName: isTime ? timeName : axes[state.axis].name, unit: isTime ? timeSeconds : 1,
    isLog: byId("log").checked, isLogAxis: byId("log-axis").checked, smoothing: +byId("smoothing").value,
  };
}

function marksOf(isFirst) {
  const shown = marks.filter(mark => !state.hiddenRuns.has(mark.run));
  return isFirst ? shown : shown.filter(mark => mark.kind === "changed");
}

function drawAll() {
  const view = currentView();
  charts.forEach((chart, i) => {
    chart.box.textContent = "";
    drawPlot(chart, chart.box, marksOf(i === 0), {...view, isFirst: i === 0});
  });
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.setAttribute("aria-pressed", +button.dataset.axis === state.axis);
  }
  document.querySelector("output").textContent = view.smoothing.toFixed(2);
}

// A button that switches `key` of `hidden` on and off.
function toggle(parent, series, label, hidden, key) {
  const button = el("button", parent);
  button.type = "button";
  swatch(button, series);
  button.append(label);
  button.setAttribute("aria-pressed", true);
  button.addEventListener("click", () => {
    if (!hidden.delete(key)) hidden.add(key);
    button.setAttribute("aria-pressed", !hidden.has(key));
    drawAll();
  });
}

function makeChart(chart, figure) {
  el("h3", figure, "", chart.title);
  if (chart.legend) {
    const legend = el("div", figure, "legend");
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", `Curves of ${chart.title}`);
    for (const series of chart.series) toggle(legend, series, series.label, state.hidden, keyOf(chart, series));
  }
  chart.box = el("div", figure);
}

async function download() {
  const bytes = Uint8Array.from(atob(csv), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const text = await new Response(stream).blob();
  const link = document.createElement("a");
  const address = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.setAttribute("href", address);
  link.download = `${(runs.length > 1 ? "runs" : runs[0]).replace(/[^\w.-]+/g, "_")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

function chooseAxis(index) {
  if (!axes[index] || !axes[index].has_data) return;
  state.axis = index;
  drawAll();
}

function listen() {
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => chooseAxis(+button.dataset.axis));
  }
  for (const id of ["log", "log-axis", "smoothing"]) byId(id).addEventListener("input", drawAll);
  byId("download").addEventListener("click", download);
  byId("download").disabled = !window.DecompressionStream;
  addEventListener("hashchange", readHash);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
  });
}

// `report.html#tokens` opens with that axis.
function readHash() {
  chooseAxis(axes.findIndex(axis => axis.name === location.hash.slice(1)));
}

function start() {
  byId("plots").hidden = !charts.length;
  if (!charts.length) return;
  if (runs.length > 1) runs.forEach((name, run) => toggle(byId("runs"), {color: run, dash: 0}, name, state.hiddenRuns, run));
  const kinds = Object.keys(KINDS).filter(kind => marks.some(mark => mark.kind === kind));
  byId("kinds").textContent = kinds.map(kind => KINDS[kind]).join(" · ");
  charts.forEach((chart, i) => {
    const figure = i ? el("figure", byId("others"), chart.labels ? "card wide" : "card") : byId("first");
    makeChart(chart, figure);
  });
  listen();
  drawAll();
  readHash();
}

start();
document.body.dataset.drawn = "yes";
