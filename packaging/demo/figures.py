"""How a figure is written for a person."""

from __future__ import annotations

from typing import Any


def number(value: float | None) -> str:
    """Three digits, or that it is undefined."""
    return "undefined" if value is None else f"{value:.3f}"


def interval(value: dict[str, Any]) -> str:
    """A value with its interval, or why it is undefined."""
    if value["value"] is None:
        return f"undefined: {value.get('reason', '')}"
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
