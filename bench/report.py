"""Results -> results.json and RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """What the figures depend on: nothing that names the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Package -> version, and Java's."""
    from airflow_hydrogen.runtime.versions import installed

    found = {**installed(), "java": _java()}
    for package in ("apache-airflow", "apache-airflow-providers-apache-spark", "pandas"):
        found[package] = metadata.version(package)
    return found


def write(folder: Path, document: dict[str, Any]) -> None:
    """Write both files."""
    (folder / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "RESULTS.md").write_text(to_markdown(document))


def to_markdown(document: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    system, packages = document["machine"], document["versions"]
    used = (
        "python",
        "java",
        "pyspark",
        "pyarrow",
        "tensorflow",
        "keras",
        "onnxruntime",
        "horovod",
        "apache-airflow",
    )
    return "\n".join(
        [
            "# Results of `make bench`",
            "",
            "Written by `bench/run.py`; docs/benchmarks.md says what is measured, and how, and has plots.",
            "",
            *table(document["results"]),
            "",
            *ranks(document["results"]),
            f"On {system['cores']} cores ({system['cpu']}), {system['memory_gb']} GB, {system['system']}; "
            f"load average before: {system['load_before']}.",
            f"With {', '.join(f'{name} {packages[name]}' for name in used if name in packages)}.",
            *peers(document["results"]),
            "",
        ]
    )


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| what | ours | against | theirs | ratio | target | holds |", "|---|---|---|---|---|---|---|"]
    for result in results:
        unit = result["unit"]
        lines.append(
            f"| {result['name']} | {_number(result['value'])} {unit} | {result['against']} "
            f"| {_number(result['baseline_value'])} {unit} | {result['ratio']:.4g} "
            f"| {result['target']} | {_verdict(result)} |"
        )
    return lines


def ranks(results: Sequence[dict[str, Any]]) -> list[str]:
    """The seconds by number of ranks, where results have them."""
    lines = []
    for result in results:
        if seconds := result["details"].get("seconds_by_np"):
            numbers = [f"{value:g}" for value in seconds.values()]
            lines += [
                "Seconds from asking for a gang whose `main` does nothing to its end, against its ranks:",
                "",
                f"| np | {' | '.join(seconds)} |",
                "|---|" + "---|" * len(seconds),
                f"| seconds | {' | '.join(numbers)} |",
                "",
            ]
    return lines


def peers(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the systems beside ours ran with."""
    found = {
        result["details"]["peer"]: result["details"]["versions"]
        for result in results
        if "peer" in result["details"]
    }
    return [
        f"{name} ran with {', '.join(f'{package} {version}' for package, version in packages.items())}."
        for name, packages in found.items()
    ]


def _verdict(result: dict[str, Any]) -> str:
    compared = (
        "" if result["compared"] == result["ratio"] else f" ({result['compared']:+.3g} {result['unit']})"
    )
    return ("yes" if result["holds"] else "**no**") + compared


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    command = f"{home}/bin/java" if home else "java"
    printed = subprocess.run([command, "-version"], capture_output=True, text=True, check=True).stderr
    return printed.split('"')[1]
