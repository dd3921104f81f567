// One job: how it stands, its curves, its events, and what can be done about it. Brought up to date in place.

import { Curves } from "./curves.js";
import { confirmed, count, duration, el, facts, item, moment, percent, wide } from "./elements.js";
import { askAtHome, command } from "./first_steps.js";
import { ROUTES, ask } from "./service.js";
import { complain, guarded, say } from "./status.js";

const ACTIVE = ["queued", "running"];
const ACTIONS = {
  pause: { route: ROUTES.pauseJob, name: "Pause", from: ["queued", "running"], done: "It rests, and goes on from there when it is resumed." },
  resume: { route: ROUTES.resumeJob, name: "Resume", from: ["paused"], done: "It is queued again." },
  cancel: {
    route: ROUTES.cancelJob, name: "Cancel", from: ["queued", "running", "paused"], done: "Nothing of it was kept.",
    question: "Cancel this job? Nothing of it will be kept.",
  },
};

// Severity of a state; one that is not here says nothing.
const TONES = { running: "plain", paused: "caution", succeeded: "good", failed: "bad" };

export const isActive = (job) => ACTIVE.includes(job.status);

// A job's score is asked for when its line is seen, once: a list may be of hundreds.
const watched = new WeakMap();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    watched.get(target).glance().catch(complain);
  }
});

/** A job on the page. `update` takes its newest state; `poll` asks for what happened since. */
export class JobView {
  constructor(job, { open = false } = {}) {
    this.job = job;
    this.events = [];
    this.polled = false;
    this.toldOf = null; // the status that it had when its events were fetched last
    this.state = el("span", { class: "state" });
    this.figures = el("small", {});
    const loss = { show: (value) => value.toFixed(value < 0.1 ? 3 : 2) };
    this.drawings = [
      { curves: new Curves({ title: "Task loss", ...loss }), lines: { training: "train_loss", validation: "full_valid_loss" } },
      {
        curves: new Curves({ title: "Accuracy", top: 1, show: percent, mark: () => "100 %" }),
        lines: { training: "train_mean_token_accuracy", validation: "full_valid_mean_token_accuracy" },
      },
      { curves: new Curves({ title: "Reconstruction loss", ...loss }), lines: { training: "reconstruction_loss" } },
    ];
    this.curves = el("div", { class: "curves", hidden: true }, this.drawings.map(({ curves }) => curves.element));
    this.told = el("div", {});
    this.buttons = el("div", { class: "buttons" });
    this.log = el("ol", { class: "events", tabindex: 0, "aria-label": "Events, newest first" });
    this.element = item({
      name: job.suffix ?? "rapt", detail: [`${job.model} · ${job.method.type.replaceAll("_", " ")} · `, moment(job.created_at)],
      value: [this.state, this.figures], open,
      inside: () => [this.curves, this.buttons, this.told, el("h3", {}, "Events"), this.log],
    });
    this.element.dataset.search = [job.id, job.fine_tuned_model, job.training_file].join(" ");
    seen.observe(this.element);
    watched.set(this.element, this);
    this.element.addEventListener("toggle", () => { if (this.element.open && !this.polled) guarded(() => this.poll())(); });
    this.update(job);
  }

  /** Whether events may be missing here. */
  get isBehind() {
    return isActive(this.job) || this.toldOf !== this.job.status;
  }

  update(job) {
    this.job = job;
    this.state.className = `state ${job.status} ${TONES[job.status] ?? ""}`;
    this.state.textContent = job.status;
    const asked = job.method[job.method.type].hyperparameters;
    this.told.replaceChildren(
      job.error ? el("p", { class: "warning" }, `${job.error.code}: ${job.error.message}`) : "",
      job.rapt.waits_because ? el("p", { class: "note" }, job.rapt.waits_because) : "",
      job.fine_tuned_model && asked.task !== "generation" ? command(askAtHome(job.fine_tuned_model)) : "",
      facts({
        Model: job.fine_tuned_model && wide(el("a", { href: "#/models" }, job.fine_tuned_model)),
        Task: asked.task, Epochs: asked.n_epochs, "Batch size": asked.batch_size, "Learning rate": asked.learning_rate,
        "Virtual tokens": asked.num_virtual_tokens, Rank: asked.r,
        Reconstruction: asked.reconstruction ? `λ = ${asked.reconstruction.weight}` : "off",
        Seed: job.seed, Priority: job.rapt.priority || null,
        "Trained tokens": job.trained_tokens && count(job.trained_tokens),
        Created: moment(job.created_at), Ended: job.finished_at && moment(job.finished_at),
        "From asking to the end": job.finished_at && duration(job.finished_at - job.created_at),
        File: wide(el("code", {}, job.training_file)), Id: wide(el("code", {}, job.id)),
      }));
    this.summarize();
    const possible = Object.entries(ACTIONS).filter(([, action]) => action.from.includes(job.status));
    const wanted = possible.map(([name]) => name).join();
    if (this.buttons.dataset.for === wanted) return;
    const hadFocus = this.buttons.contains(document.activeElement);
    this.buttons.dataset.for = wanted;
    this.buttons.replaceChildren(...possible.map(([, action]) => this.button(action)));
    if (hadFocus) (this.buttons.querySelector("button") ?? this.element.querySelector("summary")).focus();
  }

  button({ route, name, question, done }) {
    const act = async () => {
      if (question && !await confirmed(question, { yes: `${name} the job` })) return;
      this.update(await ask(route, { where: { job_id: this.job.id } }));
      await this.poll();
      say(`${name}: ${this.job.id}. ${done}`);
    };
    return el("button", { type: "button", class: question ? "danger" : null, onclick: guarded(act) }, name);
  }

  /** What is seen without opening it: the step that it is at, or the newest score, and how long it has taken. */
  summarize() {
    const { job, score } = this;
    const spent = isActive(job) || job.finished_at ? duration((job.finished_at ?? Date.now() / 1000) - job.created_at) : "";
    const share = score?.full_valid_mean_token_accuracy ?? score?.train_mean_token_accuracy;
    const on = score?.full_valid_mean_token_accuracy == null ? "in training" : "in validation";
    const reached = isActive(job) && score ? `step ${count(score.step)} of ${count(score.total_steps)}` : share == null ? "" : `${percent(share)} ${on}`;
    this.figures.textContent = [reached, spent].filter(Boolean).join(" · ");
  }

  /** The score of a job that was never opened, from its newest events. */
  async glance() {
    if (this.polled || this.score) return;
    const { data } = await ask(ROUTES.jobEvents, { where: { job_id: this.job.id }, query: { limit: 10 } });
    this.keepScore(data.filter((event) => event.type === "metrics"));
  }

  /** The newest figures, and of validation the newest that there are, which do not come with every step. */
  keepScore(newest) {
    if (newest.length) this.score = Object.assign({}, ...newest.map(({ data }) => data).reverse());
    this.summarize();
  }

  /** Fetches the events that are not here yet. Newest come first, so it stops at the first one that is known. */
  async poll() {
    this.polled = true;
    const { status } = this.job;
    const known = this.events[0]?.id;
    const found = [];
    const where = { job_id: this.job.id };
    let after;
    for (;;) {
      const page = await ask(ROUTES.jobEvents, { where, query: { limit: known ? 20 : 100, after } });
      const place = page.data.findIndex((event) => event.id === known);
      found.push(...(place < 0 ? page.data : page.data.slice(0, place)));
      if (place >= 0 || !page.has_more) break;
      after = page.last_id;
    }
    this.toldOf = status;
    // While this one waited, another poll may have fetched them.
    const here = new Set(this.events.map((event) => event.id));
    const fresh = found.filter((event) => !here.has(event.id));
    if (!fresh.length) return;
    this.events = [...fresh, ...this.events];
    this.log.prepend(...fresh.map((event) => el("li", { class: event.level },
      el("time", {}, new Date(1000 * event.created_at).toLocaleTimeString("en-GB")), el("span", {}, event.message))));
    this.draw();
  }

  draw() {
    const newest = this.events.filter((event) => event.type === "metrics");
    this.keepScore(newest);
    // A run that went on from a state tells of some steps twice, with the same figures.
    const steps = new Map(newest.map(({ data }) => [data.step, data]));
    const data = [...steps.values()].sort((one, other) => one.step - other.step);
    this.curves.hidden = !data.length;
    if (!data.length) return;
    const points = (from) => data.filter((row) => row[from] != null).map((row) => [row.step, row[from]]);
    for (const { curves, lines } of this.drawings) {
      curves.update({ steps: data.at(-1).total_steps, lines: Object.entries(lines).map(([name, from]) => ({ name, points: points(from) })) });
    }
  }
}
