// One job: how it stands, its curves, its events, and what can be done about it. Brought up to date in place.

import { figure } from "./curves.js";
import { confirmed, count, el, facts, item, moment, percent, wide } from "./elements.js";
import { ROUTES, ask } from "./service.js";
import { guarded, say } from "./status.js";

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

/** A job on the page. `update` takes its newest state; `poll` asks for what happened since. */
export class JobView {
  constructor(job, { open = false } = {}) {
    this.job = job;
    this.events = [];
    this.polled = false;
    this.toldOf = null; // the status that it had when its events were fetched last
    this.state = el("span", { class: "state" });
    this.figures = el("small", {});
    this.curves = el("div", { class: "curves" });
    this.told = el("div", {});
    this.buttons = el("div", { class: "buttons" });
    this.log = el("ol", { class: "events", tabindex: 0, "aria-label": "Events, newest first" });
    this.element = item({
      name: job.suffix ?? "rapt", detail: `${job.model} · ${job.method.type.replaceAll("_", " ")}`,
      value: [this.state, this.figures], open,
      inside: () => [this.curves, this.buttons, this.told, el("h3", {}, "Events"), this.log],
    });
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
      facts({
        Model: job.fine_tuned_model && wide(el("a", { href: "#/models" }, job.fine_tuned_model)),
        Task: asked.task, Epochs: asked.n_epochs, "Batch size": asked.batch_size, "Learning rate": asked.learning_rate,
        "Virtual tokens": asked.num_virtual_tokens, Rank: asked.r,
        Reconstruction: asked.reconstruction ? `λ = ${asked.reconstruction.weight}` : "off",
        Seed: job.seed, Priority: job.rapt.priority || null,
        "Trained tokens": job.trained_tokens && count(job.trained_tokens),
        Created: moment(job.created_at), Ended: job.finished_at && moment(job.finished_at),
        File: wide(el("code", {}, job.training_file)), Id: wide(el("code", {}, job.id)),
      }));
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
    // A run that went on from a state tells of some steps twice, with the same figures.
    const steps = new Map(this.events.filter((event) => event.type === "metrics").map(({ data }) => [data.step, data]));
    const data = [...steps.values()].sort((one, other) => one.step - other.step);
    const latest = data.at(-1);
    if (!latest) return;
    this.figures.textContent = `step ${count(latest.step)} of ${count(latest.total_steps)}`;
    const line = (name, from) => ({ name, points: data.filter((row) => row[from] != null).map((row) => [row.step, row[from]]) });
    this.curves.replaceChildren(
      figure({
        title: "Loss", steps: latest.total_steps, show: (value) => value.toFixed(value < 0.1 ? 3 : 2),
        lines: [line("task", "train_loss"), line("reconstruction", "reconstruction_loss")],
      }),
      figure({ title: "Accuracy", steps: latest.total_steps, top: 1, show: percent, mark: () => "100 %", lines: [line("on the training text", "train_mean_token_accuracy")] }));
  }
}
