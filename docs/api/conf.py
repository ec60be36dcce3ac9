"""How sphinx makes the reference from the docstrings: `make docs`."""

import xtree

project = "xtree"
author = "xtree maintainers"
version = release = xtree.__version__
extensions = ["sphinx.ext.autodoc"]
default_role = "code"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
ALIASES = ("AnyPath", "ArrayLike", "Boxes", "Floats", "Ids", "Predicate", "Progress")
autodoc_type_aliases = {name: name for name in ALIASES}
python_maximum_signature_line_length = 100
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!xtree\.[A-Z]).*")]  # types in signatures; public names are checked
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "show_powered_by": "false"}
html_copy_source = False
