"""What the service does for the demo: two runs of tuning on one privatized file, and predictions for queries.

Both runs read the same token ids. The one without reconstruction leaves the plain tokens out, in tuning and in
prediction; RAPT keeps them and learns to reconstruct them. So the runs differ in the method alone.
"""

from __future__ import annotations

from typing import Final

from rapt.audit.report.values import Line
from rapt.demo.narrator import Narrator
from rapt.demo.plan import DemoPlan
from rapt.demo.trusted_side import TrustedSide
from rapt.local.client import ServiceClient
from rapt.local.job_progress import follow_job
from rapt.local.service_objects import JobInfo

PROMPT_TUNING: Final = "prompt tuning on privatized text"
RAPT: Final = "RAPT on privatized text"


def start_jobs(client: ServiceClient, side: TrustedSide, plan: DemoPlan) -> dict[str, JobInfo]:
    """Upload the privatized file and queue both runs; the service works on one after the other."""
    uploaded = client.upload(side.training_path)
    rapt = {} if plan.reconstruction_weight is None else {"weight": plan.reconstruction_weight}
    return {
        name: client.create_job(
            file_id=uploaded.id,
            model=plan.model,
            method={
                "type": "prompt_tuning",
                "prompt_tuning": {
                    "hyperparameters": {
                        "num_virtual_tokens": plan.prompt_length,
                        "n_epochs": plan.epochs,
                        "reconstruction": reconstruction,
                    }
                },
            },
            suffix="demo",
            seed=plan.seed,
        )
        for name, reconstruction in ((PROMPT_TUNING, None), (RAPT, rapt))
    }


def follow(client: ServiceClient, job: JobInfo, *, name: str, narrator: Narrator) -> str:
    """The name of the tuned model, once the job has ended. Raises `TuningError` if it did not succeed."""
    with narrator.meter(f"service: {name}", unit="steps") as meter:
        ended = follow_job(client, job.id, on_step=lambda done, total, losses: meter(done, total=total, note=losses))
    return str(ended.fine_tuned_model)


def losses_of(client: ServiceClient, job: JobInfo, *, name: str) -> Line:
    """The training loss of a run over its steps, in nats."""
    steps = [event.data for event in client.events(job.id) if event.data is not None and "step" in event.data]
    return Line(name=name, points=tuple((float(data["step"]), float(data["train_loss"])) for data in steps))


def predict_queries(client: ServiceClient, model: str, side: TrustedSide) -> list[str]:
    """Predicted labels of the privatized queries, in order."""
    return [prediction.label for prediction in client.classify(model, side.privatized_queries())]
