// What was measured of a setting, and statements: figures with their n and interval, never one between them.

import { bar, count, drawn, el, item } from "./elements.js";

/** A strength with its letter. */
export const named = (unit, strength) => `${unit === "text" ? "ε" : "η"} = ${Number(strength.toPrecision(4))}`;

/** A share as people say it, never 0 or 100 for what is neither. */
export function of100(share) {
  if (share > 0 && share < 0.005) return "fewer than 1 of 100";
  if (share < 1 && share >= 0.995) return "more than 99 of 100";
  return `${Math.round(100 * share)} of 100`;
}

/** A bound as percent with two digits, rounded up. */
export function atMost(share) {
  const digits = share > 0 && share < 0.01 ? 1 - Math.floor(Math.log10(100 * share)) : 1;
  return `${(Math.ceil(share * 100 * 10 ** digits - 1e-9) / 10 ** digits).toFixed(digits)} %`;
}

const interval = ({ low, high }) => `${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)} %`;
const tenth = (share) => `${(100 * share).toFixed(1)} %`;

/** What was measured of the gateway's setting, with a mark at a strength; `setting` is that of the gateway. */
export function measured(setting, strength) {
  const { figures, unit } = setting;
  if (!figures) {
    const what = unit === "text" ? "code" : "vocabulary and mechanism";
    return el("p", { class: "empty" }, `Not measured for this ${what}. Measure it on texts of your own: `,
      el("code", {}, "rapt audit"), " says what an attacker reads, ", el("code", {}, "rapt compare"), " how good answers are.");
  }
  const exact = figures.points.find(({ at }) => at === strength);
  const around = exact ? [exact] : nearest(figures.points, strength);
  return el("div", {},
    exact ? "" : el("p", { class: "note" }, `Not measured at ${named(unit, strength)}; the nearest that were are shown, and nothing is drawn between them.`),
    el("div", { class: "measured" }, around.map((point) => card(point, figures, unit))),
    picture(figures, strength, unit),
    el("p", { class: "note" }, `Read: ${figures.named}. Right: ${figures.task}; learned from ${figures.learned_from}. `,
      figures.clear.map((clear) => `Without privacy ${tenth(clear.value)} (${clear.kind}; ${interval(clear)}).`), " Another task and other texts differ."));
}

function nearest(points, strength) {
  const below = points.filter(({ at }) => at < strength).at(-1);
  const above = points.find(({ at }) => at > strength);
  return [below, above].filter(Boolean);
}

function card({ at, named: read, right }, figures, unit) {
  return el("div", { class: `card ${read.severity}` },
    el("h3", {}, `Measured at ${named(unit, at)}`),
    el("div", { class: "bars" },
      bar({ name: [unit === "text" ? "Texts recognized among 1,000" : "Words read by the strongest attack",
        el("small", {}, `${read.by}; ${interval(read)}, n = ${count(read.n)}; blindly ${tenth(read.blind)}`)],
        value: tenth(read.value), share: read.value, tone: read.severity }),
      right.map((one) => bar({ name: [`Right answers: ${one.kind}`, el("small", {}, `${interval(one)}, n = ${count(one.n)}`)],
        value: tenth(one.value), share: one.value, tone: "plain" })),
      right.length ? "" : el("p", { class: "note" }, "How good answers are was not measured here.")));
}

/** Both figures over every strength that was measured, on a logarithmic axis, with a mark at the one that is looked at. */
function picture({ points }, strength, unit) {
  const ends = [Math.min(points[0].at, strength), Math.max(points.at(-1).at, strength)].map(Math.log);
  const across = (at) => (100 * (Math.log(at) - ends[0]) / Math.max(ends[1] - ends[0], 1e-9)).toFixed(2);
  const line = (style, found) => [
    drawn("polyline", { class: style, points: found.map(([at, value]) => `${across(at)},${(100 - 100 * value).toFixed(2)}`).join(" ") }),
    found.map(([at, value]) => drawn("line", { class: `${style} dot`, x1: across(at), x2: across(at), y1: (100 - 100 * value).toFixed(2), y2: (100 - 100 * value).toFixed(2) })),
  ].flat();
  const read = points.map((point) => [point.at, point.named.value]);
  const right = points.filter((point) => point.right.length).map((point) => [point.at, point.right[0].value]);
  const kind = points.find((point) => point.right.length)?.right[0].kind;
  const box = drawn("svg", { class: "plot", viewBox: "0 0 100 100", preserveAspectRatio: "none" },
    [0, 50, 100].map((height) => drawn("line", { class: "grid", x1: 0, x2: 100, y1: height, y2: height })),
    drawn("line", { class: "here", x1: across(strength), x2: across(strength), y1: 0, y2: 100 }),
    line("read", read), line("right-answers", right));
  const key = (style, said) => el("span", {}, drawn("svg", { class: "swatch", width: 22, height: 4, "aria-hidden": "true" },
    drawn("line", { class: style, x1: 0, x2: 22, y1: 2, y2: 2 })), said);
  const spoken = points.map((point) => `${named(unit, point.at)}: ${tenth(point.named.value)} read${point.right.length ? `, ${tenth(point.right[0].value)} right` : ""}`);
  return el("figure", { role: "group", "aria-label": `What was measured: ${spoken.join("; ")}` },
    el("figcaption", {}, el("strong", {}, "Every strength that was measured"), key("read", unit === "text" ? "recognized among 1,000" : "words read"), key("right-answers", `right answers, ${kind}`)),
    el("div", { class: "frame", "aria-hidden": "true" }, el("span", { class: "up" }, "100 %"), el("span", { class: "down" }, "0"), box,
      el("span", { class: "left" }, named(unit, Math.exp(ends[0]))), el("span", { class: "right" }, named(unit, Math.exp(ends[1])))));
}

/** A privacy statement: what is protected, how well unless that stands beside it already, and what is not. */
export function statement(found, { bounds = true } = {}) {
  return el("div", {},
    el("div", { class: `statement ${found.severity}` },
      found.warning ? el("p", { class: "headline" }, found.warning) : "", el("p", {}, found.says)),
    bounds && [el("h3", {}, "How often a guess can be right, at most, by any attack"),
      el("div", { class: "bars" }, found.bounds.map((bound) =>
        bar({ name: [bound.what, el("small", {}, `blindly ${atMost(bound.blind)}`)], value: atMost(bound.right), share: bound.right, tone: bound.severity })))],
    item({ name: "What is not protected", detail: `${count(found.not_protected.length)} things`, inside: () =>
      el("ul", {}, found.not_protected.map(({ what, why }) => el("li", {}, el("strong", {}, what), `: ${why}`))) }),
    item({ name: "The whole statement", detail: "as rapt guarantee prints it", inside: () =>
      el("pre", { tabindex: 0, "aria-label": "The whole statement" }, found.page) }));
}
