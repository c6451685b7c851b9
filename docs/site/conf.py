"How Sphinx makes the site. What it is made of: make_site.py."
from docutils import nodes
from math_core import LatexToMathML

project, author, copyright = 'plm', 'The plm authors', '2026 onwards, The plm authors'
extensions = ['myst_nb']
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 6 # as on GitHub
nb_execution_mode = 'off' # notebooks are shown as they are committed
html_theme, html_title = 'furo', 'plm'
html_static_path, html_css_files = ['static'], ['site.css']
html_show_search_summary = False # it would fetch pages, which a browser refuses on the disk
html_copy_source = html_show_sphinx = False
html_math_renderer = 'mathml'
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = 'hide'
add_module_names = False


mathml = LatexToMathML().convert_with_local_state # an error for what it does not know


def inline(self, node):
    self.body.append(mathml(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def display(self, node):
    self.body.append(f'<div class="formula">{mathml(node.astext(), displaystyle=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    "Formulas are MathML, which browsers draw without a script and without a network."
    app.add_html_math_renderer('mathml', (inline, None), (display, None))
