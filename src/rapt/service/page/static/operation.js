// For the provider: whether the service works, and what it has done, from its own health and metrics routes.

import { bar, bytes, count, el, facts, list, moment, plural } from "./elements.js";
import { ROUTES, ask, send } from "./service.js";

/** The section of operation. */
export async function showOperation(place) {
  const state = async (route) => ask(route).then(() => null, (error) => error);
  const [alive, unready, text, audit] = await Promise.all([
    ask(ROUTES.alive), state(ROUTES.ready), send(ROUTES.metrics).then((answer) => answer.text()),
    ask(ROUTES.audit, { query: { limit: 20 } }),
  ]);
  const samples = parseMetrics(text);
  const sum = (name, keep = () => true) => samples.filter((one) => one.name === name && keep(one.labels)).reduce((total, one) => total + one.value, 0);
  const answered = (first) => sum("rapt_requests_total", (labels) => labels.status.startsWith(first));
  const total = sum("rapt_requests_total");
  const rows = (name, label) => samples.filter((one) => one.name === name).map((one) => [one.labels[label], one.value]);
  place.replaceChildren(
    el("div", { class: `statement ${unready ? "bad" : "good"}` },
      el("p", { class: "headline" }, unready ? `Not ready: ${unready.message}` : "The service is ready."),
      el("p", { class: "note" }, `Version ${alive.version}. Its database answers, its disk has room and its worker lives, or it says which does not.`)),
    facts({
      "Requests since the start": count(total), Succeeded: count(answered("2") + answered("3")),
      Refused: count(answered("4")), Failed: count(answered("5")),
      "Bytes of files": bytes(sum("rapt_file_bytes")),
      ...Object.fromEntries(rows("rapt_objects", "kind").map(([kind, value]) => [`Rows: ${kind}`, count(value)])),
    }),
    el("h2", {}, "Jobs"), share(rows("rapt_jobs", "status"), "No jobs yet."),
    el("h2", {}, "Slowest routes"), slowest(samples),
    el("h2", {}, "Audit log"),
    el("p", { class: "note" }, "Who changed what, newest first. Nothing in it was written by a user."),
    el("ol", { class: "events dated", tabindex: 0, "aria-label": "Audit log, newest first" }, audit.data.map((entry) =>
      el("li", {}, moment(entry.created_at), el("span", {}, `${entry.tenant} · ${entry.action} · `, el("code", {}, entry.target))))));
}

function share(rows, empty) {
  const total = rows.reduce((sum, [, value]) => sum + value, 0);
  return rows.length
    ? el("div", { class: "bars" }, rows.map(([name, value]) => bar({ name, value: count(value), share: value / total })))
    : list([], empty);
}

function slowest(samples) {
  const of = (name) => new Map(samples.filter((one) => one.name === name).map((one) => [one.labels.route, one.value]));
  const [sums, counts] = [of("rapt_request_seconds_sum"), of("rapt_request_seconds_count")];
  const means = [...sums].map(([route, seconds]) => [route, 1000 * seconds / counts.get(route), counts.get(route)])
    .sort((one, other) => other[1] - one[1]).slice(0, 5);
  return el("div", { class: "bars" }, means.map(([route, mean, times]) =>
    bar({ name: [el("code", {}, route), el("small", {}, plural(times, "request"))], value: `${mean.toFixed(1)} ms`, share: mean / means[0][1] })));
}

/** Prometheus's text format: one {name, labels, value} for each sample. */
function parseMetrics(text) {
  return [...text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)].map(([, name, inside, value]) => ({
    name, value: Number(value),
    labels: Object.fromEntries([...(inside ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, held]) => [key, held])),
  }));
}
