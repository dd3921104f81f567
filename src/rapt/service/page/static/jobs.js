// Jobs, live: while one of them runs or waits the page looks every second, else every ten.

import { el } from "./elements.js";
import { firstSteps } from "./first_steps.js";
import { JobView, isActive } from "./job_view.js";
import { searchable } from "./search.js";
import { ROUTES, all } from "./service.js";
import { complain } from "./status.js";

const BUSY = 1000;
const IDLE = 10_000;

/** The section of jobs; it looks again until `signal` is aborted. */
export async function showJobs(place, signal) {
  const views = new Map();
  const box = el("div", {});
  const bases = (await all(ROUTES.models)).filter((model) => model.id === model.rapt.base);
  const search = searchable(box, "jobs");
  place.replaceChildren(search.element);
  const look = async () => {
    const jobs = await all(ROUTES.jobs, { most: 200 });
    if (!jobs.length) {
      if (!box.hasChildNodes()) {
        box.append(el("p", {}, "No jobs yet. Open a file and tune on it, or use a terminal."), firstSteps("privatize", { bases }));
      }
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
    search.again();
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
