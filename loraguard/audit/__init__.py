"""Honest audits: what a protection is still worth when the adversary adapts."""

from loraguard.metrics import Estimate, estimate

from .paired import Difference, paired_difference
from .protocol import AuditResult, Situation, fingerprint, run_audit
from .report import table, verdict, write_report

__all__ = [
    "AuditResult",
    "Difference",
    "Estimate",
    "Situation",
    "estimate",
    "fingerprint",
    "paired_difference",
    "run_audit",
    "table",
    "verdict",
    "write_report",
]
