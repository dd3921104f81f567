// Answers of a classifier for several texts: a table on the page, and all of them as CSV.

import { count, el, percent } from "./elements.js";

const SHOWN = 100; // rows of the table; the file has all of them

/** The table and its download. `rows` are probabilities, one list a text, in the order of `labels`. */
export function predictionTable(labels, rows, { lengths }) {
  const best = rows.map((row) => row.indexOf(Math.max(...row)));
  const head = ["Text", "Tokens", "Label", ...labels.map((label) => `p(${label})`)];
  const cells = (row, place) => [place + 1, lengths[place], labels[best[place]], ...row];
  const save = () => {
    const lines = [head.map((name) => name.toLowerCase()), ...rows.map(cells)].map((line) => line.map(quoted).join(","));
    download("predictions.csv", `${lines.join("\r\n")}\r\n`);
  };
  return el("div", { class: "answer" },
    el("div", { class: "buttons" }, el("button", { type: "button", onclick: save }, "Download CSV"),
      el("small", {}, labels.map((label, place) => `${label} ${count(best.filter((one) => one === place).length)}`).join(" · "))),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Predictions" },
      el("table", {},
        el("thead", {}, el("tr", {}, head.map((name, place) => el("th", { scope: "col", class: place === 2 ? null : "n" }, name)))),
        el("tbody", {}, rows.slice(0, SHOWN).map((row, place) => el("tr", {},
          el("th", { scope: "row", class: "n" }, count(place + 1)), el("td", { class: "n" }, count(lengths[place])),
          el("td", { class: "value" }, labels[best[place]]),
          row.map((share, at) => el("td", { class: at === best[place] ? "n value" : "n" }, percent(share)))))))),
    rows.length > SHOWN ? el("p", { class: "note" }, `The first ${SHOWN} of ${count(rows.length)}; the file has all of them.`) : "");
}

/** A cell as RFC 4180 has it. */
const quoted = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
