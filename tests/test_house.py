"The house rules of docs/design.md that a program can check."
import ast, json, re, subprocess, sys, tokenize
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {p.stem[3:]: p for p in sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))} # module -> notebook
NUMBER = {name: int(p.name[:2]) for name, p in NOTEBOOKS.items()}
ALL_NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
TOOLS = {'nbdev', 'execnb', 'fastcore', 'papermill', 'dvc', 'jupyter', 'jupytext', 'notebook', 'nbformat', 'nbclient', 'IPython', 'ipykernel', 'pytest', 'hypothesis'}


def code_cells(notebook):
    return [c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']


def source(cell): return ''.join(cell['source'])


def imports(code):
    "Dotted names that the code imports, wherever in it; inside plm, `.core` and `from plm import core` count as plm.core."
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ('plm' + ('.' + node.module if node.module else '')) if node.level else node.module
            if base == 'plm': yield from (f'plm.{a.name}' for a in node.names)
            else: yield base


def modules_of(code): return {name.split('.')[1] for name in imports(code) if name.startswith('plm.')}


def test_imports_are_recognised():
    code = 'import torch\nfrom .core import a\ndef f():\n from plm.data import b\n from . import glyphs\n import plm.losses'
    assert modules_of(code) == {'core', 'data', 'glyphs', 'losses'}


def test_every_module_has_its_notebook():
    assert sorted(NUMBER.values()) == list(range(len(NUMBER)))
    assert {p.stem for p in (ROOT/'plm').glob('*.py')} - {'__init__', '_modidx'} == set(NOTEBOOKS)


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_module_imports_only_those_before_it(name):
    later = {m for m in modules_of((ROOT/'plm'/f'{name}.py').read_text()) if NUMBER[m] >= NUMBER[name]}
    assert not later, f"plm.{name} imports {sorted(later)}, which come after it"


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_demonstrates_with_what_was_learnt_before(name):
    for cell in code_cells(NOTEBOOKS[name]):
        later = {m for m in modules_of(source(cell)) if NUMBER[m] > NUMBER[name]}
        assert not later, f"{NOTEBOOKS[name].name} imports {sorted(later)}, which come after it"


def test_plm_runs_without_the_tools_around_it():
    for file in (ROOT/'plm').glob('*.py'):
        used = {name.split('.')[0] for name in imports(file.read_text())} & TOOLS
        assert not used, f"{file.name} imports {used}"
    code = f"import sys, {', '.join(f'plm.{m}' for m in NOTEBOOKS)}; print(sorted({{m.split('.')[0] for m in sys.modules}} & {TOOLS - {'IPython'}!r}))"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == '[]\n'


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_module_is_what_its_notebook_exports(name):
    cells = [source(c) for c in code_cells(NOTEBOOKS[name])]
    assert [c for c in cells if c.startswith('#| default_exp')] == [f'#| default_exp {name}']
    module = (ROOT/'plm'/f'{name}.py').read_text()
    exported = [re.sub(r'^#\|.*\n', '', c, flags=re.M).strip() for c in cells if re.match(r'(#\|.*\n)*#\| *export', c)]
    assert exported
    for cell in exported:
        body = re.sub(r'^(\s*from )plm\.', r'\1.', cell, flags=re.M).replace('from __future__ import annotations\n', '')
        assert body in re.sub(r'^(\s*from )plm\.', r'\1.', module, flags=re.M), f"run nbdev_export: plm/{name}.py lacks the cell that begins {cell[:60]!r}"


@pytest.mark.parametrize('notebook', ALL_NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_small_and_without_errors(notebook):
    assert notebook.stat().st_size < 1.5*2**20
    errors = [o['ename'] for c in code_cells(notebook) for o in c['outputs'] if o['output_type'] == 'error']
    assert not errors


def shows(code):
    "Whether a cell surely has an output: it prints at its top level, or ends in a bare name, attribute, tuple or string."
    body = ast.parse(code).body
    prints = any(isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) and getattr(s.value.func, 'id', '') == 'print' for s in body)
    return prints or bool(body) and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, (ast.Name, ast.Attribute, ast.Tuple, ast.JoinedStr))


def hidden_by_semicolon(code): return code.rstrip().endswith(';')


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebooks_are_stored_with_their_outputs(name):
    cells = [c for c in code_cells(NOTEBOOKS[name]) if not re.match(r'(\s*#\|.*\n)*\s*#\| *(export|hide)', source(c))]
    expected = [c for c in cells if shows(source(c)) and not hidden_by_semicolon(source(c))]
    assert any(c['outputs'] for c in cells), "run it, and store it with its outputs"
    assert all(c['outputs'] for c in expected), [source(c)[-80:] for c in expected if not c['outputs']]
    drawing = [c for c in cells if re.search(r'\bplt\.(show|subplots|figure|plot|imshow)\(', source(c)) and not re.search(r'^def |plt\.close|savefig', source(c), flags=re.M)]
    for c in drawing: assert any('image/png' in o.get('data', {}) for o in c['outputs']), source(c)[:80]


def public(body):
    return [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]


def undocumented(code):
    "Public functions and classes without a docstring, and parameters (of classes: the constructor's, and dataclass fields) without a comment on their line."
    commented = {t.start[0] for t in tokenize.generate_tokens(iter(code.splitlines(keepends=True)).__next__) if t.type == tokenize.COMMENT}
    for node in public(ast.parse(code).body):
        if not ast.get_docstring(node): yield f'{node.name} has no docstring'
        wanted = []
        if isinstance(node, ast.FunctionDef): wanted = [(node.name, a) for a in parameters(node)]
        else:
            if any('dataclass' in ast.unparse(d) for d in node.decorator_list):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and field.lineno not in commented: yield f'{node.name}.{field.target.id} has no comment'
            for f in node.body:
                if isinstance(f, ast.FunctionDef) and f.name in ('__init__', '__call__'):
                    wanted += [(f'{node.name}.{f.name}', a) for a in parameters(f)]
        for where, a in wanted:
            if a.end_lineno not in commented: yield f'{where}: {a.arg} has no comment'


def parameters(f):
    a = f.args
    return [p for p in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if p is not None and p.arg not in ('self', 'cls')]


def test_undocumented_finds_what_it_should():
    code = 'def f(\n x: int, # good\n y: int,\n):\n "Doc."\ndef g(): pass\n@dataclass\nclass A:\n "Doc."\n a: int # good\n b: int\n def __call__(self, c): pass\n'
    assert list(undocumented(code)) == ['f: y has no comment', 'g has no docstring', 'A.b has no comment', 'A.__call__: c has no comment']


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_public_names_are_documented(name):
    assert not list(undocumented((ROOT/'plm'/f'{name}.py').read_text()))


MACHINE = re.compile(r'(?<![\w.:/*~-])/(?:' + '|'.join(['wo' + 'rk', 'ro' + 'ot', 'ho' + 'me', 'tm' + 'p']) + r')(?:/|(?=[\s\'"`,;)]|$))', re.M)
HOSTS = re.compile('|'.join(['py' + r'pi\.org', 'python' + r'hosted\.org', 'ana' + r'conda\.(?:org|com)', 'conda' + r'\.io', 'npm' + r'js\.(?:org|com)',
                             'download' + r'\.pytorch\.org', 'npm' + r'mirror\.com', 'art' + 'ifactory']))


def text_of(path):
    "What a person wrote or printed: of a notebook the cells and the text outputs, without pictures (random letters)."
    if path.suffix != '.ipynb':
        data = path.read_bytes()
        return '' if b'\0' in data[:4096] else data.decode('utf8', 'replace')
    parts = []
    for cell in json.loads(path.read_text())['cells']:
        parts.append(source(cell))
        for o in cell.get('outputs', []):
            parts += [''.join(o.get('text', '')), *(''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text/'))]
    return re.sub(r'base64,[A-Za-z0-9+/=]+', '', '\n'.join(parts))


def test_machine_names_are_recognised():
    for bad in ('cd /wo' + 'rk/main', '"/tm' + 'p/x"', "'/ro" + "ot'", '/ho' + 'me/me'): assert MACHINE.search(bad), bad
    for good in ('home/me', 'https://a.b/home' + '/c', 'a frame' + 'work/root', '../wo' + 'rk/x'): assert not MACHINE.search(good), good
    assert HOSTS.search('https://py' + 'pi.org/simple') and not HOSTS.search('https://github.com')


def test_no_machine_paths_and_no_registries():
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT/f for f in listed.split('\0') if f and (ROOT/f).is_file() and not (ROOT/f).is_symlink()]
    assert len(files) > 30
    files = [f for f in files if f.name != '.gitignore'] # there a leading slash is the folder's own
    found = [f'{f.relative_to(ROOT)}: {m.group()!r}' for f in files for r in (MACHINE, HOSTS) if (m := r.search(text_of(f)))]
    assert not found


def test_a_stage_depends_on_what_its_notebook_imports():
    "All modules of plm but `params` (DVC watches the values) and, where nothing else of it is used, `training` for `write_log` and `plots` for what is drawn and not kept."
    stages = {f'{file}:{name}': stage for file in ('dvc.yaml', 'pipelines/ablations/dvc.yaml', 'pipelines/namr/dvc.yaml', 'pipelines/photos/dvc.yaml') for name, stage in yaml.safe_load((ROOT/file).read_text())['stages'].items()}
    for name, stage in stages.items():
        notebook, = (dep for dep in stage['deps'] if dep.endswith('.ipynb'))
        source = ''.join(''.join(cell['source']) + '\n' for cell in json.loads((ROOT/notebook).read_text())['cells'])
        imported = dict(re.findall(r'^from plm\.(\w+) import (.*)$', source, re.M))
        free = {'params', *({'training'} if imported.get('training') == 'write_log' else ()), *({'plots'} if not any('report.html' in str(out) for out in stage['outs']) else ())}
        missing = {f'plm/{m}.py' for m in imported.keys() - free} - set(stage['deps'])
        assert not missing, f'{name} imports {missing}'
