"""Honest audits: what a protection is still worth when the adversary adapts."""

from loraguard.fingerprint import fingerprint
from loraguard.metrics import Estimate, estimate

from .protocol import AuditResult, Situation, run_audit
from .report import table, verdict, write_report

__all__ = [
    "AuditResult",
    "Estimate",
    "Situation",
    "estimate",
    "fingerprint",
    "run_audit",
    "table",
    "verdict",
    "write_report",
]
