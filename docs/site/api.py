"The API pages of the site: signatures, docstrings, and the comments behind parameters as tables."
import ast, importlib, inspect, json, re, tokenize
from dataclasses import is_dataclass
from pathlib import Path
from fastcore.docments import docments
from myst_parser.slugs import github_slugify

def known(x): return '' if x is inspect.Parameter.empty else x


def default_of(value):
    "A default in a few words; a function or an object by its name."
    return getattr(value, '__name__', None) or re.sub(r' at 0x\w+', '', repr(value)) if known(value) != '' else ''


def parameters_of(f):
    """As docments reads them: (name, type, default, comment) of each parameter; (type, comment) of what is returned;
    and the comment behind a `def` of one line, which may be about either."""
    signature, found = inspect.signature(f).parameters, docments(f, full=True, args_kwargs=True)
    rows = [(str(p).partition(':')[0].partition('=')[0], known(p.annotation), default_of(p.default),
             found[name].docment or '') for name, p in signature.items() if name not in ('self', 'cls')]
    kind, comment = known(found['return'].anno), found['return'].docment or ''
    return (rows, (kind, ''), comment) if rows and not any(row[3] for row in rows) else (rows, (kind, comment), '')


def fields_of(cls):
    "The same of the fields of a dataclass, a named tuple or `Constants`, whose constructor docments cannot read."
    code = inspect.getsource(cls)
    tokens = tokenize.generate_tokens(iter(code.splitlines(keepends=True)).__next__)
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
    for n in (n for n in ast.parse(code).body[0].body if isinstance(n, ast.AnnAssign)):
        default, comment = ast.unparse(n.value) if n.value else '', comments.get(n.lineno) or comments.get(n.end_lineno)
        if default.startswith('Field('): default, comment = '', f'{comment}; `{default[6:-1]}`' # a range is no default
        yield n.target.id, ast.unparse(n.annotation), default, comment or ''


def prose(text):
    "A comment or docstring as Markdown that shows it as it stands: only `code` is markup."
    parts = re.split(r'(`[^`\n]+`)', text)
    return ''.join(p if p.startswith('`') else re.sub(r'([\\*_<>$\[\]{}|#~])', r'\\\1', p) for p in parts)


def doc_of(x): return prose(inspect.cleandoc(x.__doc__ or ''))

def table(rows, returns=('', '')):
    "Parameters as a Markdown table without empty columns; '' if nothing is said of any."
    def code(text): return f"`{text}`".replace('|', r'\|') if text else ''
    cells = [(code(name), code(kind), code(default), prose(comment)) for name, kind, default, comment in rows]
    if set(returns) - {'', 'None'}: cells.append(('**returns**', code(returns[0]), '', prose(returns[1])))
    head = [('name', 'type', 'default', 'meaning'), ('---',)*4]
    filled = [i for i in range(4) if any(row[i] for row in cells)]
    return '\n'.join(f"| {' | '.join(row[i] for i in filled)} |" for row in [*head, *cells]*(3 in filled))


def signature(name, rows, returns='', where={}):
    "As Sphinx reads it; names of this package lead to their place."
    def full(kind): return re.sub(r'\b[A-Z]\w+\b', lambda m: where.get(m[0], m[0]), kind)
    parts = [n + (kind and f': {full(kind)}') + (default and f' = {default}') for n, kind, default, _ in rows]
    return f"{name}({', '.join(parts)})" + (returns and f' -> {full(returns)}')


def block(kind, head, *parts, fence=4):
    "A directive of Sphinx's Python domain."
    return '\n\n'.join(filter(None, [f"{':'*fence}{{py:{kind}}} {head}", *parts, ':'*fence]))


def function(kind, name, f, where, source=''):
    rows, returns, note = parameters_of(f)
    return block(kind, signature(name, rows, returns[0], where), doc_of(f), prose(note), table(rows, returns), source)


def method(name, f, where):
    if isinstance(f, property): return block('property', name, doc_of(f))
    kind = {classmethod: 'classmethod', staticmethod: 'staticmethod'}.get(type(f), 'method')
    return function(kind, name, getattr(f, '__func__', f), where)


def entry(name, x, where, source, comment):
    "What is shown of one public name."
    if inspect.isfunction(x): return function('function', name, x, where, source)
    if not inspect.isclass(x): # a constant
        value = repr(x) if len(repr(x)) < 80 and ' at 0x' not in repr(x) else ''
        return block('data', f'{name}\n:value: {value}' if value else name, prose(comment), source)
    own, doc, rows = vars(x), doc_of(x), list(fields_of(x))
    if '__init__' in own and not is_dataclass(x):
        rows, doc = parameters_of(x.__init__)[0], f"{doc}\n\n{doc_of(own['__init__'])}"
    methods = [method(n, f, where) for n, f in own.items() if (n == '__call__' or n[0] != '_') and
               (inspect.isfunction(f) or isinstance(f, (property, classmethod, staticmethod)))]
    head = signature(name, [('*', '', '', ''), *rows] if hasattr(x, 'model_fields') else rows, '', where) # pydantic's
    return block('class', head, doc, table(rows), source, *methods, fence=6)


def defined(notebook):
    "Under which heading of a notebook each name is exported, and the comment behind it, if it is a constant."
    heading, found = '', {}
    for cell in json.loads(notebook.read_text())['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': heading = ([heading] + re.findall(r'^#+ (.*)$', text, re.M))[-1]
        elif text.startswith('#| export'):
            for node in ast.parse(text).body:
                nodes = [node] if hasattr(node, 'name') else ast.walk(node)
                comment = re.search(r'(?:# (.*))?$', text.splitlines()[node.end_lineno - 1])[1] or ''
                found = {getattr(n, 'name', getattr(n, 'id', '')): (heading, comment) for n in nodes} | found
    return found


def api_pages(
    notebooks: list[Path], # numbered notebooks, whose modules get a page
):
    "(module, page as Markdown) of each; pages lie beside the folder nbs."
    modules = {p: importlib.import_module(f'plm.{p.stem[3:]}') for p in notebooks}
    where = {n: f'{m.__name__}.{n}' for m in modules.values() for n in m.__all__ if inspect.isclass(getattr(m, n))}
    for notebook, module in modules.items():
        places, title = defined(notebook), module.__name__
        parts = [f'# {title}', '> ' + prose(module.__doc__), f'```{{py:module}} {title}\n```']
        for name in module.__all__:
            at, comment = places[name]
            source = f'Defined in notebook {notebook.name[:2]}: [{at}](../nbs/{notebook.name}#{github_slugify(at)}).'
            parts.append(entry(name, getattr(module, name), where, source, comment))
        yield notebook.stem[3:], '\n\n'.join(parts)
