// Curves of a run as SVG: strokes keep their width, every word stands beside the drawing.

import { count, drawn, el } from "./elements.js";

const STYLES = ["line-1", "line-2"];

/** A figure of some lines over one axis of steps.
 *
 * lines: each {name, points: [[step, value], ...]}; `top` fixes the upper end, else it is that of the values.
 * `show` writes a value in a sentence, `mark` one at the end of the axis.
 */
export function figure({ title, lines, steps, top, show, mark = show }) {
  const drawnLines = lines.filter((line) => line.points.length);
  const values = drawnLines.flatMap((line) => line.points.map(([, value]) => value));
  const highest = top ?? Math.max(...values, 1e-9);
  const last = (line) => line.points[line.points.length - 1][1];
  const caption = el("figcaption", {}, el("strong", {}, title), drawnLines.map((line, place) =>
    el("span", {}, drawnLines.length > 1 ? swatch(place) : "", `${line.name} ${show(last(line))}`)));
  return el("figure", { role: "group", "aria-label": spoken(title, drawnLines, show) }, caption,
    el("div", { class: "frame", "aria-hidden": "true" },
      el("span", { class: "up" }, mark(highest)), el("span", { class: "down" }, "0"),
      plot(drawnLines, { steps, highest }),
      el("span", { class: "left" }, "step 0"), el("span", { class: "right" }, count(steps))));
}

function plot(lines, { steps, highest }) {
  const box = drawn("svg", { class: "plot", viewBox: "0 0 100 100", preserveAspectRatio: "none" });
  for (const height of [0, 50, 100]) {
    box.append(drawn("line", { class: "grid", x1: 0, x2: 100, y1: height, y2: height }));
  }
  lines.forEach((line, place) => {
    const at = ([step, value]) => `${(100 * step / Math.max(steps, 1)).toFixed(2)},${(100 - 100 * value / highest).toFixed(2)}`;
    // One point alone is a dot: a line from itself to itself, with round ends.
    const points = line.points.length > 1 ? line.points : [line.points[0], line.points[0]];
    box.append(drawn("polyline", { class: STYLES[place % STYLES.length], points: points.map(at).join(" ") }));
  });
  return box;
}

function swatch(place) {
  return drawn("svg", { class: "swatch", width: 22, height: 4, "aria-hidden": "true" },
    drawn("line", { class: STYLES[place % STYLES.length], x1: 0, x2: 22, y1: 2, y2: 2 }));
}

function spoken(title, lines, show) {
  if (!lines.length) return `${title}: no figures yet`;
  return `${title}: ${lines.map(({ name, points }) => {
    const [[from, first], [to, last]] = [points[0], points[points.length - 1]];
    return `${name} ${show(first)} at step ${from}, ${show(last)} at step ${to}`;
  }).join("; ")}`;
}
