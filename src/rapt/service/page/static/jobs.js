// Jobs, live: while one of them runs or waits the page looks every second, else every ten.

import { el } from "./elements.js";
import { JobView, isActive } from "./job_view.js";
import { ROUTES, all } from "./service.js";
import { complain } from "./status.js";

const BUSY = 1000;
const IDLE = 10_000;

/** The section of jobs; it looks again until `signal` is aborted. */
export async function showJobs(place, signal) {
  const views = new Map();
  const box = el("div", {});
  place.replaceChildren(box);
  const look = async () => {
    const jobs = await all(ROUTES.jobs, { most: 200 });
    if (!jobs.length) {
      box.replaceChildren(el("p", { class: "empty" }, "No jobs yet. Open a file and tune on it."));
    } else if (!views.size) {
      box.replaceChildren();
    }
    let previous = null;
    for (const job of jobs) {
      const known = views.get(job.id);
      const view = known ?? new JobView(job, { open: !views.size });
      views.set(job.id, view);
      view.update(job);
      if (!known) previous ? previous.after(view.element) : box.prepend(view.element);
      previous = view.element;
      if (view.element.open && view.isBehind) await view.poll();
    }
    return jobs.some(isActive);
  };
  const again = async () => {
    if (signal.aborted) return;
    let busy = false;
    try {
      busy = document.hidden ? false : await look();
    } catch (error) {
      complain(error);
      if (error.status === 401) return;
    }
    if (!signal.aborted) setTimeout(again, busy ? BUSY : IDLE);
  };
  const seen = () => { if (!document.hidden) look().catch(complain); };
  document.addEventListener("visibilitychange", seen, { signal });
  const busy = await look();
  setTimeout(again, busy ? BUSY : IDLE);
}
