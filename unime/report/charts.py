"""One chart a meta-task: Precision@1 of each model on each task, as SVG whose bytes depend on the figures only.

Colours are Okabe and Ito's, told apart with any common colour vision and by lightness, and belong to a model on every chart.
"""

from __future__ import annotations

import io
import re

from unime.evaluate.tasks import META, MODELS, members, task
from unime.report.table import Row, Table

COLOURS = {
    "zero_shot": "#bdbdbd",
    "in_batch": "#56b4e9",
    "hard_negatives": "#e69f00",
    "unime_v2": "#0072b2",
    "unime_v2_reranker": "#d55e00",
}
_TASK_INCHES, _BAR = 1.35, 0.165  # width of a task on the page; width of a bar, where a task is 1 wide
_INK, _FAINT = "#222222", "#e4e4e4"


def charts(table: Table) -> dict[str, str]:
    """Meta-task -> SVG text, for the meta-tasks that ran."""
    return {meta: chart(table, meta) for meta in table.groups()}


def chart(table: Table, meta: str) -> str:
    """Grouped bars: tasks in the table's order with IND before OOD, the meta-task's mean last, behind a line."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = sorted(members(meta, table.tasks), key=lambda name: task(name).split)  # "ind" < "ood"; the order within stays
    own = {key: row for key, shown in MODELS.items() for row in table.rows if row.model == shown and row.source == "this run"}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nobody's matplotlibrc
        matplotlib.rcParams.update({"svg.hashsalt": meta, "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 10})
        figure = Figure(figsize=(max(9.0, 1.0 + _TASK_INCHES * (len(names) + 1)), 4.3), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for k, (key, row) in enumerate(own.items()):
            _bars(axes, row, names, meta, (k - (len(own) - 1) / 2) * _BAR, COLOURS[key])
        _frame(axes, names, meta)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(own),
            frameon=False,
            columnspacing=1.4,
            handlelength=1.4,
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+\n", "\n", out.getvalue())


def _bars(axes, row: Row, names: list[str], meta: str, shift: float, colour: str) -> None:  # type: ignore[no-untyped-def]
    values = [100 * row.tasks[name] for name in names] + [100 * row.means[meta]]
    places = [place + shift for place in _places(len(names))]
    axes.bar(places, values, width=_BAR * 0.92, color=colour, label=row.model, zorder=2)
    for place, value in zip(places, values, strict=True):
        axes.text(place, value + 1.2, f"{value:.0f}", ha="center", va="bottom", fontsize=7, color=_INK)


def _frame(axes, names: list[str], meta: str) -> None:  # type: ignore[no-untyped-def]
    places = _places(len(names))
    axes.set_title(f"{META[meta]}: Precision@1 (%)", loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xticks(places, [*(f"{_wrapped(name)}\n{task(name).split.upper()}" for name in names), f"mean of {len(names)}"])
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.set_xlim(places[0] - 0.55, places[-1] + 0.55)
    axes.axvline((places[-2] + places[-1]) / 2, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 107)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color=_FAINT, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _places(tasks: int) -> list[float]:
    """Centre of each task's group, and of the mean's, a little apart."""
    return [*(float(k) for k in range(tasks)), tasks + 0.15]


def _wrapped(name: str) -> str:
    """A long name on two lines, broken after the `-` or `_` nearest to its middle."""
    breaks = [k + 1 for k, letter in enumerate(name) if letter in "-_"]
    if len(name) <= 15 or not breaks:
        return name
    at = min(breaks, key=lambda k: abs(k - len(name) / 2))
    return f"{name[:at]}\n{name[at:]}"
