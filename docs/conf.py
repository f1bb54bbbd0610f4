"""Settings of the documentation site (`make docs`): Sphinx with MyST, autodoc and furo.

The source folder of the site is the root of the checkout, because relative links between
documents, for example from `docs/` to `README.md`, then work on a forge and in the site alike.
Nothing is downloaded during the build: there is no intersphinx, and furo has no web fonts.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dglpipe

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "dglpipe"
author = "dglpipe developers"
version = release = dglpipe.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "folder_links"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md", "tools/**.md"]
exclude_patterns = [".*", "build", "conf", "dist", "examples", "launch", "runs", "src", "tests"]

nitpicky = True
nitpick_ignore_regex = [
    # Other packages have their own documentation, whose inventories would have to be downloaded.
    ("py:.*", r"(collections|fractions|os|pathlib|torch|typing)\..*|Path"),
    # The annotations of methods name classes that are internal and have no page.
    ("py:class", r"dglpipe\.(data|methods|models|monitoring|partition|pipeline)\..*"),
]

myst_heading_anchors = 4
default_role = "code"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
toc_object_entries = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"dglpipe {release}"
html_extra_path = ["_extra"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False

HIDDEN = "\ue000"
"""A character that no docstring has."""


def before_napoleon(
    app: Sphinx, what: str, name: str, item: object, options: Any, lines: list[str]
) -> None:
    """Protects what napoleon and reStructuredText would misread.

    Napoleon takes the text before the first colon for the type of an attribute. A single letter
    with a full stop, `stages: K.`, begins a numbered list.
    """
    if what in ("attribute", "property"):
        lines[:] = [line.replace(":", HIDDEN) for line in lines]
    lines[:] = [re.sub(r"^( +\w+: )(\w\.)$", r"\1\\\2", line) for line in lines]


def after_napoleon(
    app: Sphinx, what: str, name: str, item: object, options: Any, lines: list[str]
) -> None:
    """Restores the colons that `before_napoleon` replaced."""
    lines[:] = [line.replace(HIDDEN, ":") for line in lines]


def show_factories(
    app: Sphinx, what: str, name: str, item: object, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Shows the default of a field with a factory as `...`, which Python can parse."""
    if not dataclasses.is_dataclass(item) or not signature:
        return None
    return signature.replace("<factory>", "..."), returns


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("autodoc-process-signature", show_factories)
