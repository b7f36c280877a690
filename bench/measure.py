"""Paired measurements: ours and a baseline in turns, so that a change of load meets both."""

from __future__ import annotations

import operator
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
# What a gang of two gives each of its ranks on two cores; the baselines get the same.
THREADS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Target:
    """The bound that the compared figure has to keep: `Target(">=", 1.6)`."""

    relation: str
    bound: float
    unit: str = "x"

    def holds(self, figure: float) -> bool:
        """Whether `figure` keeps it."""
        return _COMPARE[self.relation](figure, self.bound)

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g} {self.unit}"


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        value, baseline_value: medians of both sides, in `unit`.
        ratio: median of the pairwise ratios, ours to the baseline's.
        compared: the figure that is held against the target: the ratio, or a difference.
        details: what else is worth keeping, the single measurements among it.
    """

    name: str
    value: float
    unit: str
    against: str
    baseline_value: float
    ratio: float
    compared: float
    target: Target
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "against": self.against,
            "baseline_value": _rounded(self.baseline_value),
            "ratio": _rounded(self.ratio),
            "compared": _rounded(self.compared),
            "target": str(self.target),
            "holds": self.target.holds(self.compared),
            "details": self.details,
        }


def alternate(
    ours: Callable[[], float], baseline: Callable[[], float], pairs: int
) -> list[tuple[float, float]]:
    """Measure in turns, the baseline first."""
    measured = []
    for _ in range(pairs):
        other = baseline()
        mine = ours()
        measured.append((mine, other))
        print(f"    ours {_rounded(mine)}, baseline {_rounded(other)}", flush=True)
    return measured


def compare(
    name: str,
    pairs: Sequence[tuple[float, float]],
    *,
    unit: str,
    against: str,
    target: Target,
    difference: bool = False,
    **details: Any,
) -> Result:
    """Make a result of paired measurements.

    Args:
        name: of the benchmark.
        pairs: (ours, baseline).
        unit: of both.
        against: what the baseline is.
        target: of the ratio, or of the difference.
        difference: hold the median of ours minus the baseline's against the target, not the ratio.
        details: kept as they are.
    """
    ratio = statistics.median(mine / other for mine, other in pairs)
    return Result(
        name=name,
        value=statistics.median(mine for mine, _ in pairs),
        unit=unit,
        against=against,
        baseline_value=statistics.median(other for _, other in pairs),
        ratio=ratio,
        compared=statistics.median(mine - other for mine, other in pairs) if difference else ratio,
        target=target,
        details={**details, "pairs": [[_rounded(mine), _rounded(other)] for mine, other in pairs]},
    )


def python(*args: str, **environment: str) -> str:
    """Run this interpreter and return the last line of its output."""
    return run_python(sys.executable, *args, **environment)


def run_python(interpreter: str, *args: str, **environment: str) -> str:
    """Run an interpreter and return the last line of its output."""
    return _last_line([interpreter, *args], environment)


def horovodrun(module: str, *args: str) -> str:
    """Run a module on two ranks of this machine, as `horovodrun` starts them; the last line of its output."""
    command = Path(sys.executable).with_name("horovodrun")
    return _last_line([str(command), "-np", str(RANKS), sys.executable, "-m", module, *args], THREADS)


def spark_submit(application: Path, slots: int, *args: str, **environment: str) -> str:
    """Run an application on some task slots of this machine and return the last line of its output."""
    command = Path(sys.executable).with_name("spark-submit")
    environment = {"PYSPARK_PYTHON": sys.executable, **environment}
    return _last_line([str(command), "--master", f"local[{slots}]", str(application), *args], environment)


def _last_line(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _rounded(number: float) -> float:
    return float(f"{number:.4g}") if abs(number) < 1000 else round(number)
