"""`python -m deploy.monitoring.picture --prometheus URL`: draws the committed dashboards.

With the data that a Prometheus has, as one HTML page each (SVG, nothing from elsewhere), which
Chromium makes a PNG. No Grafana is needed: panels, places, units, thresholds and queries are
those of the JSON files.
"""

from __future__ import annotations

import argparse
import html
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from deploy.monitoring.queries import Drawn, QueryError, Series, boards, over_time, read_board

_CELL, _ROW, _GAP = 62, 34, 8
_COLOURS = ("#3274d9", "#e0752d", "#299c46", "#a352cc", "#d44a3a", "#17a2a2", "#b8860b", "#777777")
_STAT = {"green": "#299c46", "orange": "#e0752d", "red": "#d44a3a"}
_STYLE = (
    "body{margin:0;background:#f4f5f5;font:12px sans-serif;color:#333}"
    "h1{font-size:18px;margin:10px 14px 4px}.b{position:relative}"
    ".p{position:absolute;background:#fff;border:1px solid #ddd;border-radius:3px;overflow:hidden}"
    ".p b{display:block;padding:4px 8px;font-size:12px}.r{position:absolute;font-weight:bold;"
    "font-size:14px;padding:8px 4px}.v{font-size:28px;text-align:center;padding-top:12px}"
    ".l{padding:0 8px;font-size:10px;line-height:12px;height:26px;overflow:hidden}"
)
_SCALES = {
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "Bps": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1, "B/s")),
    "s": ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")),
    "short": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")),
}
_SUFFIX = {"reqps": " req/s", "cps": " /s", "ops": " /s", "percent": " %"}


class NoBrowser(Exception):
    """Chromium is absent, or did not draw."""


def said(value: float, unit: str) -> str:
    """A value as people read it."""
    if unit == "percentunit":
        return f"{100 * value:.4g} %"
    for size, name in _SCALES.get(unit, _SCALES["short"]):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}".strip() + _SUFFIX.get(unit, "")
    return f"{value:.3g}" + _SUFFIX.get(unit, "")


def page(title: str, panels: list[tuple[Drawn, Series]], start: float, end: float) -> str:
    """The HTML of a board."""
    parts = [f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><h1>{title}</h1>"]
    parts.append("<div class=b>")
    for panel, series in panels:
        x, y, width, height = panel.grid
        box = (
            f"left:{x * _CELL + _GAP}px;top:{y * _ROW}px;width:{width * _CELL - _GAP}px;"
            f"height:{height * _ROW - _GAP}px"
        )
        name = html.escape(panel.title)
        if panel.kind == "row":
            parts.append(f'<div class=r style="{box}">{name}</div>')
            continue
        inner = _stat(panel, series) if panel.kind == "stat" else _graph(panel, series, start, end)
        parts.append(f'<div class=p style="{box}"><b>{name}</b>{inner}</div>')
    return "".join(parts) + "</div>"


def size(panels: list[Drawn]) -> tuple[int, int]:
    """Of a board's page, in pixels."""
    bottom = max(panel.grid[1] + panel.grid[3] for panel in panels)
    return 24 * _CELL + 2 * _GAP, bottom * _ROW + 46


def _stat(panel: Drawn, series: Series) -> str:
    if not series:
        return "<div class=v>no data</div>"
    value = next(iter(series.values()))[-1][1]
    colour = "#333"
    for level, name in panel.levels:
        if level is None or value >= level:
            colour = _STAT.get(name, colour)
    return f'<div class=v style="color:{colour}">{html.escape(said(value, panel.unit))}</div>'


def _graph(panel: Drawn, series: Series, start: float, end: float) -> str:
    shown = _stacked(series) if panel.stacked else series
    plot = _Plot(panel, shown, start, end)
    drawn = [f'<svg width={plot.width} height={plot.height} font-size=10 fill="#666">']
    drawn += plot.axes(panel.unit)
    for level, name in panel.levels:
        if level is not None and level <= plot.top:
            drawn.append(plot.across(level, _STAT.get(name, "#999"), "stroke-dasharray=5,4"))
    legend = []
    for index, (name, points) in enumerate(shown.items()):
        path = " ".join(plot.at(*point) for point in points)
        colour = _COLOURS[index % len(_COLOURS)]
        drawn.append(f'<polyline points="{path}" fill=none stroke="{colour}" stroke-width=1.5 />')
        legend.append(f'<span style="color:{colour}">&#9632;</span> {html.escape(name)}')
    drawn.append("</svg>")
    return "".join(drawn) + f"<div class=l>{' '.join(legend) or 'no data'}</div>"


class _Plot:
    """Where a point of a graph lies. top: the value at the upper edge."""

    def __init__(self, panel: Drawn, series: Series, start: float, end: float) -> None:
        self.width = panel.grid[2] * _CELL - _GAP - 2
        self.height = panel.grid[3] * _ROW - _GAP - 60
        self._start, self._seconds = start, end - start
        self._left, self._bottom = 70, self.height - 16
        values = [value for points in series.values() for _, value in points]
        self._most = max(values, default=0.0) or 1.0
        # A threshold that is far away would press all lines to the ground.
        levels = [level for level, _ in panel.levels if level is not None]
        near = [level * 1.05 for level in levels if level < 3 * self._most]
        self.top = max([self._most * 1.08, *near])

    def at(self, moment: float, value: float) -> str:
        share = (moment - self._start) / self._seconds
        return f"{self._left + share * (self.width - self._left - 8):.1f},{self._y(value):.1f}"

    def across(self, value: float, colour: str, more: str = "") -> str:
        """A line at a value."""
        y = f"{self._y(value):.1f}"
        return (
            f'<line x1={self._left} x2={self.width - 8} y1={y} y2={y} stroke="{colour}" {more} />'
        )

    def axes(self, unit: str) -> list[str]:
        """Lines with values, and the time below."""
        drawn = []
        for share in (0, 0.25, 0.5, 0.75, 1):
            value = share * self._most
            label = html.escape(said(value, unit)) if share else "0"
            drawn.append(self.across(value, "#eee"))
            y = self._y(value) + 3
            drawn.append(f"<text x={self._left - 4} y={y:.1f} text-anchor=end>{label}</text>")
        for share in (0.04, 0.34, 0.64, 0.94):
            moment = self._start + share * self._seconds
            clock = time.strftime("%H:%M:%S", time.gmtime(moment))
            x = self.at(moment, 0).partition(",")[0]
            drawn.append(f"<text x={x} y={self.height - 3} text-anchor=middle>{clock}</text>")
        return drawn

    def _y(self, value: float) -> float:
        return self._bottom - value / self.top * (self._bottom - 6)


def _stacked(series: Series) -> Series:
    """Each on the sum of those before it; points that a series lacks count as 0."""
    below: dict[float, float] = {}
    result: Series = {}
    for name, points in series.items():
        for moment, value in points:
            below[moment] = below.get(moment, 0.0) + value
        result[name] = [(moment, below[moment]) for moment, _ in points]
    return result


def draw_all(prometheus: str, start: float, end: float, out: Path) -> Iterator[Path]:
    """A PNG of each committed dashboard. Raises QueryError, NoBrowser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise NoBrowser("no chromium: install it with deploy/check/install-tools")
    out.mkdir(parents=True, exist_ok=True)
    for path in boards():
        title, panels = read_board(path)
        drawn = [(panel, _merged(prometheus, panel, start, end)) for panel in panels]
        yield _shoot(
            browser, page(title, drawn, start, end), size(panels), out / f"{path.stem}.png"
        )


def _merged(prometheus: str, panel: Drawn, start: float, end: float) -> Series:
    merged: Series = {}
    for query in panel.queries:
        merged |= over_time(prometheus, query, start, end)
    return merged


def _shoot(browser: str, text: str, window: tuple[int, int], picture: Path) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "board.html", Path(folder) / "board.png"
        source.write_text(text)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={window[0]},{window[1]}"]
        done = subprocess.run(
            [*command, f"--screenshot={shot}", source.as_uri()],
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode or not shot.exists():
            raise NoBrowser(f"chromium did not draw: {done.stderr.decode()[-500:]}")
        # Few colours are enough for lines, and a third of the bytes.
        with Image.open(shot) as image:
            image.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(picture, optimize=True)
    return picture


def main() -> int:
    """Pictures of the last minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its URL")
    parser.add_argument("--minutes", type=float, default=15, help="how far back")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    a = parser.parse_args()
    if not (a.minutes > 0 and math.isfinite(a.minutes)):
        parser.error("--minutes must be above 0")
    now = time.time()
    try:
        for path in draw_all(a.prometheus, now - 60 * a.minutes, now, a.out):
            print(path)
    except (QueryError, NoBrowser, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
