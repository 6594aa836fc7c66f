"""Charts as SVG, drawn here: no script, readable in print, coloured by the style sheet.

Every chart says in words what it shows, and the page has its numbers in a table too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from markupsafe import Markup

WIDTH: Final = 640
HEIGHT: Final = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 8, 12, 32
_HOURS: Final = 48

# `format` of a Markup escapes what it is given.
_SVG: Final = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
_MARK: Final = Markup('<text class="mark" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_BAR: Final = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')


def bars(now: datetime, values: dict[datetime, float], label: str, name: Callable[[datetime, float], str]) -> Markup:
    """A bar for each of the last 48 hours. `label` says what the chart shows, `name` what one bar does."""
    hours = _hours(now)
    top, ticks = scale(max((values.get(hour, 0) for hour in hours), default=0), is_whole=True)
    width = (WIDTH - _LEFT - _RIGHT) / _HOURS
    drawn = []
    for number, hour in enumerate(hours):
        value = values.get(hour, 0)
        height = value / top * (HEIGHT - _TOP - _BOTTOM)
        shown = max(height, 1.5) if value else 0
        drawn.append(
            _BAR.format(_LEFT + number * width + 1, HEIGHT - _BOTTOM - shown, width - 2, shown, name(hour, value))
        )
    return _svg(label, [*_grid(ticks, top, lambda tick: f"{tick:,.0f}"), *drawn, *_hour_marks(hours)])


def lines(
    now: datetime, series: Sequence[tuple[str, dict[datetime, float]]], label: str, unit: Callable[[float], str]
) -> Markup:
    """A line for each series over the last 48 hours; hours without a value are gaps. Values are seconds."""
    hours = _hours(now)
    highest = max((value for _, values in series for value in values.values()), default=0)
    whole = next((span for span in (86_400, 3_600, 60) if highest > 2 * span), 1)
    top, ticks = scale(highest / whole)
    top, ticks = top * whole, [tick * whole for tick in ticks]
    step = (WIDTH - _LEFT - _RIGHT) / _HOURS
    drawn = []
    for number, (name, values) in enumerate(series, 1):
        for run in _runs(hours, values):
            points = [
                (_LEFT + (at + 0.5) * step, HEIGHT - _BOTTOM - values[hours[at]] / top * (HEIGHT - _TOP - _BOTTOM))
                for at in run
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            drawn.append(Markup('<polyline class="line line{}" points="{}"/>').format(number, path))
            drawn += [
                Markup('<circle class="dot line{}" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{}</title></circle>').format(
                    number, x, y, f"{name}: {unit(values[hours[at]])}, {hours[at]:%d %b %H}:00 UTC"
                )
                for at, (x, y) in zip(run, points, strict=True)
            ]
    return _svg(label, [*_grid(ticks, top, unit), *drawn, *_hour_marks(hours)])


def scale(highest: float, *, is_whole: bool = False) -> tuple[float, list[float]]:
    """The top of an axis, and the round numbers that are marked on it."""
    if highest <= 0:
        return 1.0, [0.0, 1.0]
    step = 10 ** math.floor(math.log10(highest / 4))
    step *= next(each for each in (1, 2, 2.5, 5, 10) if highest <= each * step * 4)
    if is_whole:
        step = max(1, math.ceil(step))
    count = math.ceil(highest / step - 1e-9)
    return count * step, [number * step for number in range(count + 1)]


def _hours(now: datetime) -> list[datetime]:
    last = now.replace(minute=0, second=0, microsecond=0, tzinfo=None)
    return [last - timedelta(hours=back) for back in reversed(range(_HOURS))]


def _runs(hours: Sequence[datetime], values: dict[datetime, float]) -> list[list[int]]:
    """The stretches of hours that have a value."""
    runs: list[list[int]] = [[]]
    for number, hour in enumerate(hours):
        if hour in values:
            runs[-1].append(number)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _grid(ticks: Sequence[float], top: float, unit: Callable[[float], str]) -> list[Markup]:
    drawn = []
    for tick in ticks:
        y = HEIGHT - _BOTTOM - tick / top * (HEIGHT - _TOP - _BOTTOM)
        drawn.append(
            Markup('<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                "axis" if tick == 0 else "grid", _LEFT, WIDTH - _RIGHT, y, y
            )
        )
        drawn.append(_MARK.format(_LEFT - 8, y + 4, "end", unit(tick)))
    return drawn


def _hour_marks(hours: Sequence[datetime]) -> list[Markup]:
    step = (WIDTH - _LEFT - _RIGHT) / _HOURS
    marks = []
    for number, hour in enumerate(hours):
        if hour.hour % 12 == 0 and 2 <= number <= _HOURS - 2:
            text = f"{hour.day} {hour:%b}" if hour.hour == 0 else "12:00"
            marks.append(_MARK.format(_LEFT + number * step, HEIGHT - 8, "middle", text))
    return marks


def _svg(label: str, drawn: Sequence[Markup]) -> Markup:
    return _SVG.format(WIDTH, HEIGHT, label, Markup().join(drawn))
