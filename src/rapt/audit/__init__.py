"""THE ADVERSARY AND THE JUDGE: how much could the service really learn?

An attack sees only `view.AdversaryView`; the truth is held by `truth.Truth`, which only the scoring reads.

`audit_file`, `audit_model` and `audit_adapter` do what the commands `rapt audit`, `rapt audit-model` and
`rapt audit-adapter` do, and return the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapt.lazy_names import load_lazily

if TYPE_CHECKING:
    from rapt.audit.file_audit import AuditPlan as AuditPlan
    from rapt.audit.file_audit import audit_file as audit_file
    from rapt.audit.model_audit import AdapterAuditPlan as AdapterAuditPlan
    from rapt.audit.model_audit import ModelAuditPlan as ModelAuditPlan
    from rapt.audit.model_audit import audit_adapter as audit_adapter
    from rapt.audit.model_audit import audit_model as audit_model

_FILES, _MODELS = "rapt.audit.file_audit", "rapt.audit.model_audit"
__getattr__, __dir__ = load_lazily(
    __name__,
    {
        "AdapterAuditPlan": _MODELS,
        "AuditPlan": _FILES,
        "ModelAuditPlan": _MODELS,
        "audit_adapter": _MODELS,
        "audit_file": _FILES,
        "audit_model": _MODELS,
    },
)
