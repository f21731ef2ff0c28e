"""The documentation site: Markdown by MyST, the reference from the code itself. `make docs` builds it; a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import reference_pages  # noqa: E402

import vicc_ray  # noqa: E402

project = "vicc_ray"
copyright = "the vicc_ray authors, Apache-2.0"
version = release = vicc_ray.__version__
html_title = "vicc_ray"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build", "README.md"]
templates_path: list[str] = []
language = "en"
default_role = "code"  # `name` in a docstring
smartquotes = False  # they make a dash of --set

# Markdown: links by headings as GitHub has them, so that the same pages are read there.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# The notebook shows what `make tutorial` kept in it; a test runs it.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_extra_path = [str(HERE / "_build" / "extra")]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp"
linkcheck_anchors = False


def setup(app: Any) -> None:
    """Write the pages that are made from the code, before Sphinx looks for files."""
    reference_pages.write(HERE)
