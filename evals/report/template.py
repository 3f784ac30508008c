"""The HTML templates of reports: values escaped by default, numbers through the same filters, one style sheet."""

from __future__ import annotations

from importlib.resources import files

from evals.items import Fields
from evals.report import plain_text, words


def text_of(name: str) -> str:
    """A file of the templates folder."""
    return (files("evals.report") / "templates" / name).read_text(encoding="utf-8")


def render(name: str, values: Fields) -> str:
    """The template `name` filled with `values`; only `svg` (figures, escaped where they are drawn) passes as it is."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, loader=jinja2.FunctionLoader(text_of)
    )
    environment.filters |= {
        "num": words.num,
        "signed": words.signed,
        "interval": words.interval,
        "percent": words.percent,
        "p_value": words.p_value,
        "share": words.share,
        "points": words.points,
        "amount": words.amount,
        "duration": words.duration,
        "weights": words.weights,
        "reason": words.reason,
        "shown": plain_text.shown,
        "svg": Markup,
    }
    return environment.get_template(name).render({**values, "style": Markup(text_of("style.css"))})
