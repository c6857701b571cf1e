// What tests ask of a page that is open: `chartsOfPage()` and `faultsOfPage()`.
var all = (where, selector) => [...where.querySelectorAll(selector)];
var texts = (where, selector) => all(where, selector).map(e => e.textContent);

function chartsOfPage() {
  const curveOf = curve => ({
    points: +curve.dataset.points,
    path: curve.getAttribute("d"),
    look: [curve.getAttribute("stroke"), curve.getAttribute("stroke-dasharray")],
  });
  const drawn = all(document, "figure").filter(figure => figure.querySelector("h3"));
  return drawn.map(figure => ({
    title: figure.querySelector("h3").textContent,
    label: figure.querySelector(".plot")?.getAttribute("aria-label"),
    curves: Object.fromEntries(all(figure, ".curve").map(c => [c.dataset.label, curveOf(c)])),
    names: all(figure, ".name").map(name => [name.textContent, +name.getAttribute("y")]),
    marks: all(figure, ".mark").map(mark => [mark.dataset.kind, mark.textContent]),
    ends: texts(figure, ".end text"),
    ticks: texts(figure, ".plot text"),
    read: figure.querySelector(".read")?.textContent,
  }));
}

function numbers(color) {
  return color.match(/[0-9.]+/g).map(Number);
}

function luminance(color) {
  const linear = numbers(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return linear[0] * 0.2126 + linear[1] * 0.7152 + linear[2] * 0.0722;
}

// As the Web Content Accessibility Guidelines define it.
function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

function groundOf(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (numbers(color)[3] !== 0) return color;
  }
  return "rgb(255, 255, 255)";
}

function faultOf(element) {
  const frame = element.getBoundingClientRect(), isCurve = element.matches(".curve");
  const text = element.textContent.trim();
  if (!frame.width || element.disabled || !isCurve && !text) return "";
  const name = `${element.tagName} ${text.slice(0, 30)}`, style = getComputedStyle(element);
  const color = isCurve ? style.stroke : element.closest("svg") ? style.fill : style.color;
  const found = contrast(color, groundOf(element));
  if (found < (isCurve ? 3 : 4.5)) return `${name}: contrast ${found.toFixed(2)}`;
  const plot = element.closest(".plot"), edges = plot && plot.getBoundingClientRect();
  const left = plot ? edges.left : 0, right = plot ? edges.right : innerWidth;
  const isOut = frame.right > right + 1 || frame.left < left - 1;
  return isOut && !element.closest(".scroll") ? `${name}: ${frame.left} to ${frame.right}` : "";
}

// What a reader would stumble over: text that is cut off or too pale, a page that is too wide,
// a control without a name.
function faultsOfPage() {
  const seen = "h1,h2,h3,p,td,th,button,label,a,summary,pre,.plot text,.plot .curve";
  const faults = all(document, seen).map(faultOf);
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth) faults.push(`the page is ${width} wide`);
  for (const e of all(document, "button,input,a,[role=img],[role=region],[role=group]")) {
    const isNamed = e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length;
    if (!isNamed) faults.push(`${e.outerHTML.slice(0, 80)} has no name`);
  }
  return faults.filter(fault => fault);
}
