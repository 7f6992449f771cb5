"""What came of a scenario."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

OUTCOMES = "returned", "raised", "cancelled", "lost", "refused"


@dataclass
class Result:
    """How often something was done, what became of the calls, and what was not as promised.

    `figures` are lines to be printed with it.
    """

    times: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        counts = "".join(f"{self.outcomes[outcome]:10}" for outcome in OUTCOMES)
        found = "; ".join(self.violations[:3]) or "none"
        more = f" and {len(self.violations) - 3} more" if len(self.violations) > 3 else ""
        lines = [f"{name:14}{self.times:6}{counts}  {found}{more}"]
        return "\n".join([*lines, *(f"{'':14}  {figure}" for figure in self.figures)])


HEAD = f"{'what':14}{'times':>6}{''.join(f'{each:>10}' for each in OUTCOMES)}  violations"
