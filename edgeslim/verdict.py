"""From a report's verdicts to the command's exit code; ``build`` and ``check`` end in the same way."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgeslim.errors import BudgetError, CheckError

if TYPE_CHECKING:
    from edgeslim.core import Report

__all__ = ["CORRECTNESS_CHECKS", "judge_report"]

CORRECTNESS_CHECKS = ("files", "lossless", "signature", "operators", "export")


def judge_report(report: Report, *, require_judged: bool, hint: str) -> None:
    """Returns if all is well, with a warning on stderr for limits that nobody could judge.

    ``hint`` says what follows from a finding that failed.

    Raises:
        CheckError: the package isn't right.
        BudgetError: it is right but misses its budget or, with ``require_judged``, a limit is unjudged.
    """
    failed = report.failed()
    wrong = [finding for finding in failed if finding.check in CORRECTNESS_CHECKS]
    if wrong:
        raise CheckError(
            f"{wrong[0].check}.{wrong[0].metric}",
            wrong[0].note or f"{wrong[0].value:g}",
            expected=f"at most {wrong[0].limit:g}",
            hint=hint,
        )
    if failed:
        lines = ", ".join(f"{item.check}.{item.metric} {item.value:g} > {item.limit:g}" for item in failed)
        raise BudgetError("budget", lines, expected="every figure within its limit", hint=hint)
    unjudged = report.unjudged()
    if unjudged:
        text = ", ".join(f"{item.check}.{item.metric}" for item in unjudged)
        if require_judged:
            raise BudgetError(
                "budget", f"unjudged: {text}", expected="every limit judged", hint="give a device, or data"
            )
        sys.stderr.write(f"warning: unjudged: {text}\n")
