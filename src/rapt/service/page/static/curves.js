// Curves of a run as SVG: strokes keep their width, every word stands beside the drawing. The values at a step are read
// off by pointing at it, or with the arrow keys.

import { count, drawn, el } from "./elements.js";

const STYLES = ["line-1", "line-2"];
const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };

/** One figure of some lines over an axis of steps, brought up to date in place.
 *
 * `top` fixes the upper end, else it is that of the values. `show` writes a value in a sentence, `mark` one at the end of
 * the axis.
 */
export class Curves {
  constructor({ title, top, show, mark = show }) {
    Object.assign(this, { title, top, show, mark, lines: [], steps: 1, at: null });
    this.caption = el("figcaption", {});
    this.ends = { up: el("span", { class: "up" }), right: el("span", { class: "right" }) };
    this.box = drawn("svg", { class: "plot", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.pad = el("div", {
      class: "pad", tabindex: 0, role: "slider", "aria-label": `${title}, values by step`, "aria-valuemin": 0,
      onpointermove: (event) => this.point(event), onpointerdown: (event) => this.point(event),
      onpointerleave: () => { if (document.activeElement !== this.pad) this.choose(null); },
      onkeydown: (event) => this.press(event),
      onfocus: () => { if (this.at == null) this.choose(this.places().at(-1)); }, onblur: () => this.choose(null),
    }, this.box);
    this.element = el("figure", { role: "group" }, this.caption,
      el("div", { class: "frame" }, this.ends.up, el("span", { class: "down" }, "0"), this.pad,
        el("span", { class: "left" }, "step 0"), this.ends.right));
  }

  /** lines: each {name, points: [[step, value], ...]}, steps rising. */
  update({ lines, steps }) {
    this.lines = lines.filter((line) => line.points.length);
    this.steps = Math.max(steps, 1);
    this.element.hidden = !this.lines.length;
    this.element.setAttribute("aria-label", spoken(this.title, this.lines, this.show));
    this.pad.setAttribute("aria-valuemax", this.steps);
    this.draw();
  }

  places() {
    return [...new Set(this.lines.flatMap((line) => line.points.map(([step]) => step)))].sort((one, other) => one - other);
  }

  point(event) {
    const { left, width } = this.pad.getBoundingClientRect();
    const wanted = this.steps * (event.clientX - left) / width;
    const nearest = this.places().reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), Infinity);
    this.choose(nearest);
  }

  press(event) {
    const by = KEYS[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const places = this.places();
    const now = Math.max(places.indexOf(this.at), 0);
    this.choose(places[Math.min(Math.max(now + by, 0), places.length - 1)]);
  }

  choose(step) {
    if (this.at === step) return;
    this.at = step;
    this.draw();
  }

  draw() {
    const values = this.lines.flatMap((line) => line.points.map(([, value]) => value));
    const highest = this.top ?? Math.max(...values, 1e-9);
    const spot = (step, value) => [(100 * step / this.steps).toFixed(2), (100 - 100 * value / highest).toFixed(2)];
    this.ends.up.textContent = this.mark(highest);
    this.ends.right.textContent = count(this.steps);
    this.box.replaceChildren(...[0, 50, 100].map((height) => drawn("line", { class: "grid", x1: 0, x2: 100, y1: height, y2: height })));
    this.lines.forEach((line, place) => {
      // One point alone is a dot: a line from itself to itself, with round ends.
      const points = line.points.length > 1 ? line.points : [line.points[0], line.points[0]];
      this.box.append(drawn("polyline", { class: STYLES[place % STYLES.length], points: points.map((point) => spot(...point).join(",")).join(" ") }));
    });
    const chosen = this.at == null ? null : this.lines.map((line) => upTo(line, this.at));
    if (chosen) {
      const [x] = spot(this.at, 0);
      this.box.append(drawn("line", { class: "chosen", x1: x, x2: x, y1: 0, y2: 100 }));
      chosen.forEach((point, place) => {
        if (!point) return;
        const [left, up] = spot(...point);
        this.box.append(drawn("line", { class: `dot ${STYLES[place % STYLES.length]}`, x1: left, x2: left, y1: up, y2: up }));
      });
    }
    const words = this.lines.map((line, place) => {
      const point = chosen ? chosen[place] : line.points.at(-1);
      return `${line.name} ${point ? this.show(point[1]) : "not yet"}`;
    });
    this.caption.replaceChildren(el("strong", {}, this.title),
      ...words.map((said, place) => el("span", {}, this.lines.length > 1 ? swatch(place) : "", said)),
      chosen ? el("span", { class: "at" }, `step ${count(this.at)}`) : "");
    this.pad.setAttribute("aria-valuenow", this.at ?? this.places().at(-1) ?? 0);
    this.pad.setAttribute("aria-valuetext", `step ${this.at ?? this.places().at(-1) ?? 0}: ${words.join(", ")}`);
  }
}

/** The last point of a line at a step or before it; undefined where there is none. */
const upTo = (line, step) => line.points.findLast(([at]) => at <= step);

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
