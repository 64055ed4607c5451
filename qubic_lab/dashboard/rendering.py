"""Views as HTML, in the language used now: templates whose values are escaped, and how ages are written."""

from functools import cache
from typing import Any

import jinja2

from qubic_lab.dashboard.consensus_view import VoteView
from qubic_lab.dashboard.oracle_view import missing, price_text
from qubic_lab.runs.language import translated, translated_text


def render(template: str, /, **content: Any) -> str:
    """Return a template of this package with its content."""
    return _environment().get_template(f"{template}.html").render(**content)


def vote_html(view: VoteView) -> str:
    """Return a vote with what each voter said."""
    return render("vote", vote=view)


def age_text(age_s: float | None) -> str:
    """Return how old something is."""
    if age_s is None:
        return translated("not known yet")
    if age_s < 120:
        return translated("{n:.0f} s ago", n=max(0.0, age_s))
    if age_s < 2 * 3_600:
        return translated("{n:.0f} min ago", n=age_s / 60)
    if age_s < 2 * 86_400:
        return translated("{n:.0f} h ago", n=age_s / 3_600)
    return translated("{n:.0f} d ago", n=age_s / 86_400)


def moment_text(at: str | None) -> str:
    """Return an instant of the interface (ISO 8601, UTC) for people, to the minute."""
    return f"{at[:16].replace('T', ' ')} UTC" if at else "–"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qubic_lab.dashboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(age=age_text, moment=moment_text, price=price_text)
    environment.globals.update(_=translated, text=translated_text, missing=missing)
    return environment
