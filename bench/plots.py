"""results.json -> the plots in docs/images: SVG without dates, the same bytes for the same results.

matplotlib is in the environment of the peers alone, where this is run as a program.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.environment import ROOT, peers_python
from bench.measure import run_python

FOLDER = ROOT / "docs" / "images"
RESULTS = ROOT / "bench" / "results.json"
_OURS = "airflow-hydrogen"
_ENGINES = {"tensorflow": "TensorFlow", "onnx": "ONNX Runtime"}
# Colours that stand out from a white page and from a black one.
_INK, _FAINT = "#7d8590", "#7d859055"
_COLOURS = ("#3b82f6", "#f59e0b")

Results = Mapping[str, Mapping[str, Any]]


def redraw() -> None:
    """Draw all plots from the results that are written down, without measuring anything."""
    run_python(peers_python(), "-m", "bench.plots")


def draw(results: Results, folder: Path) -> list[str]:
    """Draw each plot whose results are there; the names of the files.

    Args:
        results: by their names.
        folder: where the files go.
    """
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, plot in _PLOTS.items():
        with _figure() as figure:
            if plot(results, figure):
                figure.savefig(folder / name, metadata={"Date": None, "Creator": None}, transparent=True)
                drawn.append(name)
    return drawn


@contextmanager
def _figure() -> Iterator[Any]:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    style = {
        "svg.hashsalt": "airflow-hydrogen",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "grid.color": _FAINT,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
        ),
    }
    with mpl.rc_context(style):
        figure = pyplot.figure(figsize=(8, 3.6), layout="constrained")
        yield figure
        pyplot.close(figure)


# --- plots -------------------------------------------------------------------------------------------------


def _systems(results: Results, figure: Any) -> bool:
    """Rows a second of each system, in either engine."""
    beside = [result for result in results.values() if "peer" in result["details"]]
    udf = results.get("warm scoring of 5,000,000 rows")
    if not beside or udf is None:
        return False
    names = [_OURS, *dict.fromkeys(result["details"]["peer"] for result in beside), "predict_batch_udf"]
    rates = {engine: dict.fromkeys(names, 0.0) for engine in _ENGINES}
    for engine, found in rates.items():
        in_engine = [result for result in beside if result["details"]["engine"] == engine]
        found[_OURS] = statistics.median(result["value"] for result in in_engine)
        found |= {result["details"]["peer"]: result["baseline_value"] for result in in_engine}
    rates["tensorflow"]["predict_batch_udf"] = udf["baseline_value"]
    axes = figure.subplots()
    for number, (engine, found) in enumerate(rates.items()):
        _bars(axes, found, (number - 0.5) * 0.4, _COLOURS[number], _ENGINES[engine], _millions)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("million rows a second, 5,000,000 rows of 32 float32, Parquet to Parquet")
    axes.legend(loc="lower right")
    return True


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f}"


def _bars(
    axes: Any,
    found: Mapping[str, float],
    shift: float,
    colour: str,
    label: str | None,
    text: Callable[[float], str],
) -> None:
    places = [number + shift for number, value in enumerate(found.values()) if value]
    values = [value for value in found.values() if value]
    scale = 1e6 if max(values) > 1e4 else 1
    bars = axes.barh(places, [value / scale for value in values], 0.38, color=colour, label=label)
    axes.bar_label(bars, [text(value) for value in values], padding=3, fontsize=9)
    axes.grid(axis="x")


def _rows(results: Results, figure: Any) -> bool:
    """Rows a second, and the memory of a worker, by the number of rows."""
    rates = _detail(results, "rows_per_second_by_rows")
    memory = _detail(results, "worker_mb_by_rows")
    if rates is None or memory is None:
        return False
    left, right = figure.subplots(1, 2)
    _line(left, rates, 1e6, "million rows a second")
    _line(right, memory, 1, "memory of a worker, MB")
    return True


def _line(axes: Any, found: Mapping[str, float], scale: float, label: str) -> None:
    axes.plot(
        [int(rows) for rows in found],
        [value / scale for value in found.values()],
        marker="o",
        color=_COLOURS[0],
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.08 * max(found.values()) / scale)
    axes.set_xlabel("rows")
    axes.set_ylabel(label)
    axes.grid()


def _times_udf(results: Results, figure: Any) -> bool:
    """How many times as fast as predict_batch_udf, by what is scored."""
    found = {
        re.sub("^warm scoring(, | of )?", "", name) or "1,000,000 rows": result["ratio"]
        for name, result in results.items()
        if name.startswith("warm scoring") and result["against"].startswith("predict_batch_udf")
    }
    if not found:
        return False
    axes = figure.subplots()
    _bars(axes, found, 0, _COLOURS[0], None, "{:.2f} x".format)
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("times the rows a second of predict_batch_udf in its best settings")
    return True


def _gangs(results: Results, figure: Any) -> bool:
    """Seconds of a gang that does nothing, by its ranks."""
    seconds = _detail(results, "seconds_by_np")
    if seconds is None:
        return False
    axes = figure.subplots()
    _line(axes, seconds, 1, "seconds")
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(ranks) for ranks in seconds], list(seconds))
    axes.set_xlabel("ranks on one machine of two cores")
    return True


def _detail(results: Results, name: str) -> Mapping[str, float] | None:
    found: Sequence[Mapping[str, float]] = [
        result["details"][name] for result in results.values() if name in result["details"]
    ]
    return found[0] if found else None


_PLOTS: dict[str, Callable[[Results, Any], bool]] = {
    "scoring-systems.svg": _systems,
    "scoring-rows.svg": _rows,
    "scoring-udf.svg": _times_udf,
    "gangs.svg": _gangs,
}


def main() -> None:
    """Draw, and print the names of the files."""
    results = {result["name"]: result for result in json.loads(RESULTS.read_text())["results"]}
    print(", ".join(draw(results, FOLDER)))


if __name__ == "__main__":
    main()
