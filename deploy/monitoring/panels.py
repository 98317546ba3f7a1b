"""What a dashboard is made of, and how it becomes Grafana's JSON.

A board is a list of rows, a row a list of panels. In expressions, $where stands for the filters
that the variables of all boards set, and $rate for the window of rates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
RUNBOOK = "deploy/monitoring/runbook.md"
_WHERE = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
_COLUMNS = 24
_HEIGHTS = {"time": 7, "stat": 4}
Level = tuple[float | None, str]
"""(from this value on, colour); the first from None."""


@dataclass(frozen=True)
class Panel:
    """queries: (expression, legend). unit: Grafana's name of it. levels: colours by value, drawn
    as lines in a graph. alert: the one whose heading in the runbook says more. width: of 24."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["time", "stat"] = "time"
    levels: tuple[Level, ...] = ()
    alert: str = ""
    width: int = 8
    stack: bool = False

    @property
    def description(self) -> str:
        more = f"\n\nRunbook: {RUNBOOK}#{self.alert.lower()}" if self.alert else ""
        return self.about + more

    def expressions(self) -> list[str]:
        """As Grafana gets them."""
        return [
            expression.replace("$where", _WHERE).replace("$rate", "[$__rate_interval]")
            for expression, _ in self.queries
        ]


@dataclass(frozen=True)
class Row:
    """Panels from left to right; those that do not fit go below."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """uid: also the name of its file. versions: it has the variable `version`."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    jobs: str = "controller|assembler|mapper"
    versions: bool = False
    tags: tuple[str, ...] = field(default=("forward-ofa",))


def quantile(share: str, series: str, more: str = "", by: str = "") -> str:
    """Of a histogram of seconds, bytes, ... over the window of rates."""
    filters = f"{more}, $where" if more else "$where"
    keys = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({keys}) (rate({series}_bucket{{{filters}}}$rate)))"


def mean(series: str, more: str = "", by: str = "") -> str:
    """Of a histogram over the window of rates; no value where nothing was counted."""
    filters = f"{more}, $where" if more else "$where"
    over = f"sum by ({by}) " if by else "sum"
    return (
        f"{over}(rate({series}_sum{{{filters}}}$rate))"
        f" / ({over}(rate({series}_count{{{filters}}}$rate)) > 0)"
    )


def to_json(board: Board) -> str:
    """The file that Grafana reads; the same text for the same board."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(f"forward-ofa-{board.uid}")
        .description(board.about)
        .tags(list(board.tags))
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Forward-OFA")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(list(board.tags))
            .include_vars(True)
            .keep_time(True)
        )
        .link(
            dashboard.DashboardLink("Runbook")
            .type(models.DashboardLinkType.LINK)
            .url("${runbook}")
            .target_blank(True)
        )
    )
    for variable in _variables(board):
        made = made.with_variable(variable)
    _lay_out(made, board)
    return str(JSONEncoder(sort_keys=True, indent=2).encode(made.build())) + "\n"


def _lay_out(made: dashboard.Dashboard, board: Board) -> None:
    top = 0
    for row in board.rows:
        made.with_row(dashboard.Row(row.title).grid_pos(models.GridPos(1, _COLUMNS, 0, top)))
        top += 1
        left, below = 0, top
        for panel in row.panels:
            height = _HEIGHTS[panel.kind]
            if left + panel.width > _COLUMNS:
                left, top = 0, below
            made.with_panel(_panel(panel).grid_pos(models.GridPos(height, panel.width, left, top)))
            left += panel.width
            below = max(below, top + height)
        top = below


def _variables(
    board: Board,
) -> list[dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.TextBoxVariable]:
    up = f'up{{job=~"{board.jobs}"}}'
    found: list[
        dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.TextBoxVariable
    ] = [
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        _query("namespace", f"label_values({up}, namespace)"),
        _query("job", f"label_values({up}, job)", board.jobs),
        _query("instance", 'label_values(up{job=~"$job"}, instance)'),
    ]
    if board.versions:
        found.append(_query("version", "label_values(forward_ofa_version_requests_total, version)"))
    # Where an installation keeps its runbook is its own matter.
    found.append(
        dashboard.TextBoxVariable("runbook")
        .label("Address of the runbook")
        .default_value(RUNBOOK)
        .hide(models.VariableHide.HIDE_VARIABLE)
    )
    return found


def _query(name: str, query: str, everything: str = ".*") -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel:
    levels = panel.levels or ((None, "green"),)
    thresholds = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    thresholds = thresholds.steps([models.Threshold(value, colour) for value, colour in levels])
    made: timeseries.Panel | stat.Panel
    made = _stat() if panel.kind == "stat" else _graph(panel)
    made = (
        made.title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(DATASOURCE)
        .thresholds(thresholds)
    )
    for index, expression in enumerate(panel.expressions()):
        query = prometheus.Dataquery().ref_id("ABCDEFGH"[index]).expr(expression)
        query = query.legend_format(panel.queries[index][1]).datasource(DATASOURCE)
        made = made.with_target(query)
    return made


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
    )


def _graph(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(25 if panel.stack else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .min(0)
    )
    if panel.stack:
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if panel.levels:
        style = common.GraphThresholdsStyleConfig()
        made = made.thresholds_style(style.mode(common_models.GraphThresholdsStyleMode.DASHED))
    return made
