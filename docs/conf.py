"""The site: `make docs`. Pages that follow from declarations are written by docs/generated.py first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fastwi.version import __version__

project = "fastwi"
author = "the fastwi developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build"]
default_role = "code"  # as docstrings use single backticks
html_theme = "furo"
html_title = f"fastwi {release}"
html_static_path = ["_static"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
