"""Honest audits: what a protection is still worth when the adversary adapts."""

from loraguard.fingerprint import fingerprint
from loraguard.metrics import Estimate, estimate

from .checks import Check
from .compare import Comparison, compare
from .controls import Controls, train_controls
from .detection import calibrate_detector
from .matrix import curves, matrix
from .paired import Difference, paired_difference
from .protocol import place, run_audit
from .report import write_report
from .result import AuditResult
from .situation import Photo, Situation
from .words import table, verdict

__all__ = [
    "AuditResult",
    "Check",
    "Comparison",
    "Controls",
    "Difference",
    "Estimate",
    "Photo",
    "Situation",
    "calibrate_detector",
    "compare",
    "curves",
    "estimate",
    "fingerprint",
    "matrix",
    "paired_difference",
    "place",
    "run_audit",
    "table",
    "train_controls",
    "verdict",
    "write_report",
]
