// The sections of the service's page, and who may see them.

import { showAccount } from "./account.js";
import { showFiles } from "./files.js";
import { showJobs } from "./jobs.js";
import { showModels } from "./models.js";
import { showOperation } from "./operation.js";
import { startPage } from "./sections.js";
import { ROUTES, ask, hasKey } from "./service.js";
import { complain } from "./status.js";
import { showTenants } from "./tenants.js";

const SECTIONS = {
  files: { title: "Files", show: showFiles },
  jobs: { title: "Jobs", show: showJobs },
  models: { title: "Models", show: showModels },
  account: { title: "Account", show: showAccount },
  tenants: { title: "Tenants", show: showTenants },
  operation: { title: "Operation", show: showOperation },
};

async function enter() {
  const usage = await ask(ROUTES.usage);
  // A key does not say its role: only an admin's may list tenants.
  const isAdmin = await ask(ROUTES.tenants, { query: { limit: 1 } }).then(() => true, (error) => {
    if (error.status !== 403) throw error;
    return false;
  });
  for (const link of document.querySelectorAll(".for-admin")) link.hidden = !isAdmin;
  return `Tenant ${usage.tenant}${isAdmin ? ", admin" : ""}${hasKey() ? "" : ", without a key on this machine"}`;
}

ask(ROUTES.alive).then(({ version }) => { document.getElementById("version").textContent = `Version ${version}.`; }, complain);
startPage({ name: "rapt service", about: "Tuning and prediction on privatized text", sections: SECTIONS, enter });
