// Elements from values. Text goes in as text: nothing here, and nothing on the page, writes HTML from a string.

const SVG = "http://www.w3.org/2000/svg";
let counted = 0;

/** An element; `on...` properties are listeners, true and false switch an attribute. */
export function el(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** The same in a drawing. */
export function drawn(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** A labelled control, by its label; the two are tied together. */
export function field(label, control, hint) {
  control.id ||= `field-${++counted}`;
  const note = hint ? el("small", { id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return el("div", {}, el("label", { for: control.id }, label), control, note);
}

/** A choice to tick. */
export const tick = (input, ...words) => el("label", { class: "choice" }, input, el("span", {}, ...words));

/** Pairs of a name and a value; what has no value is left out. */
export function facts(pairs) {
  const shown = Object.entries(pairs).filter(([, value]) => value != null && value !== "");
  return el("dl", { class: "facts" }, shown.map(([name, value]) =>
    el("div", { class: value.classList?.contains("wide") ? "whole" : null }, el("dt", {}, name), el("dd", {}, value))));
}

/** A value that takes a line of its own among facts. */
export const wide = (...values) => el("span", { class: "wide" }, ...values);

/** The parameter that says how strong a guarantee is: ε of whole texts, or η of tokens. */
export function strength({ epsilon, eta }) {
  return epsilon == null ? `η = ${eta}` : `ε = ${epsilon}`;
}

/** A line of a list that opens; `inside` is made when it is opened first. */
export function item({ name, detail, value, inside, open = false }) {
  const body = el("div", { class: "inside" });
  const made = el("details", { class: "item" },
    el("summary", {}, el("span", { class: "name" }, name, el("small", {}, detail)), el("span", { class: "value" }, value ?? "")),
    body);
  made.addEventListener("toggle", () => {
    if (made.open && !body.hasChildNodes()) body.append(...[inside()].flat());
  });
  made.open = open;
  return made;
}

/** A button that puts a text on the clipboard; where browsers have none, because the page is not secure, it says so. */
export function copyButton(text) {
  const told = el("span", {}, "Copy");
  const copy = async () => {
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    told.textContent = done ? "Copied" : "Select it and copy it by hand";
    setTimeout(() => { told.textContent = "Copy"; }, 2000);
  };
  return el("button", { type: "button", class: "copy", "aria-live": "polite", onclick: copy }, told);
}

/** A list of items, or a word about why there are none. */
export const list = (items, empty) => (items.length ? el("div", {}, items) : el("p", { class: "empty" }, empty));

/** The severity of a share of a quota that is used, by the limits that `rapt.severity` put into the style. */
export function weighUse(share) {
  const style = getComputedStyle(document.documentElement);
  const [warned, full] = ["--nearly-used", "--used-up"].map((name) => Number(style.getPropertyValue(name)));
  return share >= full ? "bad" : share >= warned ? "caution" : "plain";
}

/** A bar for a share between 0 and 1, with words above it; `tone` is its severity. */
export function bar({ name, value, share, other = false, tone = "plain" }) {
  const width = `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(2)}%`;
  return el("div", { class: other ? "row other" : "row" },
    el("span", { class: "name" }, name), el("span", { class: "value" }, value),
    drawn("svg", { class: "bar", width: "100%", height: 14, "aria-hidden": "true" },
      drawn("rect", { class: "track", width: "100%", height: 14, rx: 3 }),
      drawn("rect", { class: other ? "filled" : `filled ${tone}`, width, height: 14, rx: 3 })));
}

/** Whether the user means it. */
export function confirmed(question, { yes }) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-label": question });
    const answer = (said) => () => dialog.close(said);
    dialog.append(el("p", {}, question), el("div", { class: "buttons" },
      el("button", { type: "button", class: "danger", onclick: answer("yes") }, yes),
      el("button", { type: "button", autofocus: true, onclick: answer("") }, "No")));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export const count = (number) => number.toLocaleString("en");
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** A size in the unit that fits. */
export function bytes(number) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const power = number < 1024 ? 0 : Math.min(Math.floor(Math.log2(number) / 10), units.length - 1);
  return `${power ? (number / 1024 ** power).toFixed(1) : number} ${units[power]}`;
}

/** A span of time in the two largest units that fit. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

/** A time for a person, from seconds since 1970. */
export function moment(seconds) {
  const at = new Date(1000 * seconds);
  return el("time", { datetime: at.toISOString() }, at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
}

export const shortHash = (hash) => hash.replace(/^sha256:/, "").slice(0, 12);
