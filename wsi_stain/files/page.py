"""Self-contained HTML pages from jinja2 templates: every value is escaped, and nothing is loaded from elsewhere.

A room that writes pages has a folder `templates`. Its templates extend `page.html.jinja` of this room.
"""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template


def template(room: str, name: str) -> Template:
    """A template of a room.

    Args:
        room: name of the package with the folder `templates`, for example `wsi_stain.cohort`.
        name: file name of the template.
    """
    loader = ChoiceLoader([PackageLoader(room, "templates"), PackageLoader("wsi_stain.files", "templates")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
