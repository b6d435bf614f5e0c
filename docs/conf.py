"""The site: `make docs`. Pages that follow from declarations are written by docs/generated.py before Sphinx reads them."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generated  # noqa: E402

from fastwi.version import __version__  # noqa: E402

generated.write_pages(HERE / "reference")

project = "fastwi"
author = "the fastwi developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fastwi {release}"
html_static_path = ["_static"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
