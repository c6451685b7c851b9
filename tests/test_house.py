"The house rules of docs/design.md that a program can check."
import ast, fnmatch, json, os, re, subprocess, sys, tokenize, tomllib
from pathlib import Path
import nbformat, pytest, yaml
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'nbs/pipeline'))
import deps
from deps import imports, modules_of

NOTEBOOKS = {p.stem[3:]: p for p in sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))} # module -> notebook
NUMBER = {name: int(p.name[:2]) for name, p in NOTEBOOKS.items()}
ALL_NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
TOOLS = {'nbdev', 'execnb', 'fastcore', 'papermill', 'dvc', 'jupyter', 'jupytext', 'notebook', 'nbformat', 'nbclient',
         'IPython', 'ipykernel', 'pytest', 'hypothesis'}


def code_cells(notebook):
    return [c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']


def source(cell): return ''.join(cell['source'])


def test_imports_are_recognised():
    code = 'import torch\nfrom .a import x\ndef f():\n from plm.b import y\n from . import c\n import plm.d, plm.e'
    assert modules_of(code) == {'a', 'b', 'c', 'd', 'e'}


def test_every_module_has_its_notebook():
    assert sorted(NUMBER.values()) == list(range(len(NUMBER)))
    assert {p.stem for p in (ROOT/'plm').glob('*.py')} - {'__init__', '_modidx'} == set(NOTEBOOKS)
    assert {p.name for p in (ROOT/'plm').iterdir() if p.is_dir()} <= {'web', '__pycache__'}


def test_what_pages_are_made_of_is_used_and_installed():
    "Each file of plm/web, which has no notebook, is named by a module or by another file there, and is in the package."
    files = sorted((ROOT/'plm/web').glob('*'))
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())
    carried = project['tool']['setuptools'].get('package-data', {}).get('plm', [])
    text = '\n'.join(p.read_text() for p in [*(ROOT/'plm').glob('[a-z]*.py'), *files])
    assert [f.name for f in files if f.name not in text] == []
    assert [f.name for f in files if not any(fnmatch.fnmatch(f'web/{f.name}', c) for c in carried)] == []


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
    code = f"import sys, {', '.join(f'plm.{m}' for m in NOTEBOOKS)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(loaded.split()) & (TOOLS - {'IPython'}) == set()


def test_a_script_beside_a_clone_finds_the_package(tmp_path):
    "The clone's folder is named plm, too. It must not hide the package, which lies inside it."
    (tmp_path/'plm').symlink_to(ROOT)
    (tmp_path/'script.py').write_text('import plm\nfrom plm.core import one_of\nprint(plm.__file__)')
    done = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith('/plm/__init__.py\n'), f'{done.stdout}{done.stderr}\nmake env installs plm anew'


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_module_is_what_its_notebook_exports(name):
    cells = [source(c) for c in code_cells(NOTEBOOKS[name])]
    assert [c for c in cells if c.startswith('#| default_exp')] == [f'#| default_exp {name}']
    module = (ROOT/'plm'/f'{name}.py').read_text()
    exported = [re.sub(r'^#\|.*\n', '', c, flags=re.M).strip() for c in cells if re.match(r'(#\|.*\n)*#\| *export', c)]
    assert exported
    for cell in exported:
        body = re.sub(r'^(\s*from )plm\.', r'\1.', cell, flags=re.M).replace('from __future__ import annotations\n', '')
        found = body in re.sub(r'^(\s*from )plm\.', r'\1.', module, flags=re.M)
        assert found, f"run nbdev_export: plm/{name}.py lacks the cell that begins {cell[:60]!r}"


@pytest.mark.parametrize('notebook', ALL_NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_small_and_without_errors(notebook):
    assert notebook.stat().st_size < 1.5*2**20
    errors = [o['ename'] for c in code_cells(notebook) for o in c['outputs'] if o['output_type'] == 'error']
    assert not errors


def shows(code):
    "Whether a cell surely has an output: it prints at its top level, or ends in a name, attribute, tuple or f-string."
    body = ast.parse(code).body
    values = [s.value if isinstance(s, ast.Expr) else None for s in body]
    prints = any(isinstance(v, ast.Call) and getattr(v.func, 'id', '') == 'print' for v in values)
    return prints or bool(values) and isinstance(values[-1], (ast.Name, ast.Attribute, ast.Tuple, ast.JoinedStr))


def hidden_by_semicolon(code): return code.rstrip().endswith(';')


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebooks_are_stored_with_their_outputs(name):
    code = {source(c): c['outputs'] for c in code_cells(NOTEBOOKS[name])}
    code = {s: o for s, o in code.items() if not re.match(r'(\s*#\|.*\n)*\s*#\| *(export|hide)', s)}
    assert any(code.values()), "store it with its outputs: make run"
    for s, outputs in code.items():
        if shows(s) and not hidden_by_semicolon(s): assert outputs, s[-80:]
        draws = re.search(r'\bplt\.(show|subplots|figure|plot|imshow)\(', s)
        if draws and not re.search(r'^def |plt\.close|savefig', s, flags=re.M):
            assert any('image/png' in o.get('data', {}) for o in outputs), s[:80]


def public(body):
    return [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]


def undocumented(code):
    """Public functions and classes without a docstring, and parameters without a comment on their line.

    Parameters of a class are those of its constructor and its call, and the fields of a dataclass or of `Constants`."""
    tokens = tokenize.generate_tokens(iter(code.splitlines(keepends=True)).__next__)
    commented = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    for node in public(ast.parse(code).body):
        if not ast.get_docstring(node): yield f'{node.name} has no docstring'
        wanted = []
        if isinstance(node, ast.FunctionDef): wanted = [(node.name, a) for a in parameters(node)]
        else:
            if {'dataclass', 'Constants'} & {n.id for d in (*node.decorator_list, *node.bases) for n in ast.walk(d)
                                             if isinstance(n, ast.Name)}:
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and not commented & {field.lineno, field.end_lineno}:
                        yield f'{node.name}.{field.target.id} has no comment'
            for f in node.body:
                if isinstance(f, ast.FunctionDef) and f.name in ('__init__', '__call__'):
                    wanted += [(f'{node.name}.{f.name}', a) for a in parameters(f)]
        for where, a in wanted:
            if a.end_lineno not in commented: yield f'{where}: {a.arg} has no comment'


def parameters(f):
    a = f.args
    found = (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg)
    return [p for p in found if p is not None and p.arg not in ('self', 'cls')]


def test_undocumented_finds_what_it_should():
    code = ('def f(\n x: int, # good\n y: int,\n):\n "Doc."\ndef g(): pass\n'
            '@dataclass\nclass A:\n "Doc."\n a: int # good\n b: int\n def __call__(self, c): pass\n'
            'class B(Constants):\n "Doc."\n a: int\n')
    assert list(undocumented(code)) == ['f: y has no comment', 'g has no docstring', 'A.b has no comment',
                                        'A.__call__: c has no comment', 'B.a has no comment']


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_public_names_are_documented(name):
    assert not list(undocumented((ROOT/'plm'/f'{name}.py').read_text()))


FOLDERS = '|'.join(['wo' + 'rk', 'ro' + 'ot', 'ho' + 'me', 'tm' + 'p'])
MACHINE = re.compile(rf'(?<![\w.:/*~-])/(?:{FOLDERS})(?:/|(?=[\s\'"`,;)]|$))', re.M)
HOSTS = re.compile('|'.join([
    'py' + r'pi\.org', 'python' + r'hosted\.org', 'ana' + r'conda\.(?:org|com)', 'conda' + r'\.io',
    'npm' + r'js\.(?:org|com)', 'download' + r'\.pytorch\.org', 'npm' + r'mirror\.com', 'art' + 'ifactory']))


def files_of_the_repository():
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT/f for f in listed.split('\0') if f and (ROOT/f).is_file() and not (ROOT/f).is_symlink()]


def text_of(path):
    "What a person wrote or printed: of a notebook the cells and the text outputs, without pictures (random letters)."
    if path.suffix != '.ipynb':
        data = path.read_bytes()
        return '' if b'\0' in data[:4096] else data.decode('utf8', 'replace')
    parts = []
    for cell in json.loads(path.read_text())['cells']:
        parts.append(source(cell))
        for o in cell.get('outputs', []):
            shown = {'text/': o.get('text', '')} | o.get('data', {})
            parts += [''.join(v) for k, v in shown.items() if k.startswith('text/')]
    return re.sub(r'base64,[A-Za-z0-9+/=]+', '', '\n'.join(parts))


def test_machine_names_are_recognised():
    for bad in ('cd /wo' + 'rk/main', '"/tm' + 'p/x"', "'/ro" + "ot'", '/ho' + 'me/me'): assert MACHINE.search(bad), bad
    for good in ('home/me', 'https://a.b/home' + '/c', 'a frame' + 'work/root', '../wo' + 'rk/x'):
        assert not MACHINE.search(good), good
    assert HOSTS.search('https://py' + 'pi.org/simple') and not HOSTS.search('https://github.com')


def test_no_machine_paths_and_no_registries():
    files = [f for f in files_of_the_repository() if f.name != '.gitignore'] # there a leading slash is the folder's own
    assert len(files) > 30
    texts = {str(f.relative_to(ROOT)): text_of(f) for f in files}
    assert [(name, m.group()) for name, t in texts.items() for r in (MACHINE, HOSTS) if (m := r.search(t))] == []


def parts_of(file):
    "Name, text and kind of what a person writes there: a notebook's cells, a program, a YAML file."
    name = str(file.relative_to(ROOT))
    if file.suffix == '.ipynb':
        for i, cell in enumerate(json.loads(file.read_text())['cells']):
            yield f'{name}[{i}]', source(cell), cell['cell_type']
    elif file.suffix in ('.py', '.yaml') or file.name == 'Makefile': yield name, file.read_text(), file.suffix


def too_long(text, kind):
    "Numbers of the lines of more than 120 characters; tables, links alone on a line and YAML's values may be longer."
    for at, line in enumerate(text.splitlines(), 1):
        if kind == 'markdown': fine = re.fullmatch(r'\s*(\|.*|([*-] )?(\S+|!?\[.*\]\(\S*\))\S?)', line)
        else: fine = kind == '.yaml' and not re.search(r'(^|\s)#', line)
        if len(line) > 120 and not fine: yield at


def test_too_long_finds_what_it_should():
    row, link, prose = '|' + ' x |'*99, f'[a](http://b/{"c"*120}).', 'words '*30
    assert list(too_long(f'{row}\n{link}\n{prose}\n', 'markdown')) == [3]
    assert list(too_long(f'cmd: {prose}\na: b # {prose}\n# {prose}', '.yaml')) == [2, 3]
    assert list(too_long('x'*120 + '\n' + 'x'*121, '.py')) == [2]


def test_lines_are_short():
    files = [f for f in files_of_the_repository() if f.parent != ROOT/'plm'] # plm holds the code of the cells once more
    found = [f'{name}:{at}' for f in files for name, text, kind in parts_of(f) for at in too_long(text, kind)]
    assert not found, f'{len(found)} lines of more than 120 characters:\n' + '\n'.join(found)


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_ends_with_an_exercise_whose_answer_is_a_cell(name):
    cells = json.loads(NOTEBOOKS[name].read_text())['cells']
    asked = [i for i, cell in enumerate(cells) if re.match('## Exercises?\n', source(cell) + '\n')]
    assert asked and all(cells[i + 1]['cell_type'] == 'code' for i in asked)


def test_free_modules_are_there(): assert deps.FREE.keys() <= NOTEBOOKS.keys()


def test_modules_are_followed_through_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(deps, 'ROOT', tmp_path)
    (tmp_path/'plm').mkdir()
    (tmp_path/'nbs').mkdir()
    modules = {'a': 'from .b import x', 'b': 'def f():\n from . import c', 'c': 'from .params import p',
               'd': 'from jinja2 import e', 'params': 'import plm.d'}
    for name, code in modules.items(): (tmp_path/f'plm/{name}.py').write_text(code)
    for name, code in {'one': 'from plm.a import x', 'two': 'import plm.d, plm.params'}.items():
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path/f'nbs/{name}.ipynb')
    text = """stages:
  one:
    cmd: start nbs/one.ipynb
      copy.ipynb
    deps: [nbs/old.ipynb, plm/old.py, runs/x,
           'runs/${y}'] # why
    outs: [z]
  two:
    cmd: start nbs/two.ipynb
    deps: []
"""
    new = deps.with_files(text)
    assert new == deps.with_files(new) == """stages:
  one:
    cmd: start nbs/one.ipynb
      copy.ipynb
    deps: [nbs/one.ipynb, plm/a.py, plm/b.py, plm/c.py,
           runs/x, 'runs/${y}'] # why
    outs: [z]
  two:
    cmd: start nbs/two.ipynb
    deps: [nbs/two.ipynb, plm/d.py, plm/web]
"""


@pytest.mark.parametrize('file', deps.FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_stages_depend_on_the_modules_they_use(file):
    for name, stage in yaml.safe_load(file.read_text())['stages'].items():
        notebook = re.search(r'\S+\.ipynb', stage['cmd'])[0]
        written = [d for d in stage['deps'] if d.startswith(('nbs/', 'plm/'))]
        assert written == [notebook, *deps.files_of(ROOT/notebook)], f'run make nbs: {name} depends on other modules'
    assert file.read_text() == deps.with_files(file.read_text()), 'run make nbs: it writes the modules of the stages'


def start(folder, *cells, parameters=()):
    "A notebook of these cells started in a folder as the stages start theirs; what the command said, and the copy."
    folder.mkdir()
    cells = [new_code_cell(code, id=f'cell-{i}') for i, code in enumerate(cells)]
    cells[0].metadata.tags = ['parameters']
    kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    nbformat.write(new_notebook(cells=cells, metadata={'kernelspec': kernel}), folder/'stage.ipynb')
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    command = [sys.executable, ROOT/'nbs/pipeline/start.py', 'stage.ipynb', 'out/copy.ipynb', *parameters]
    done = subprocess.run(command, cwd=folder, env=os.environ | {'PATH': path}, capture_output=True, text=True)
    return done, folder/'out/copy.ipynb'


def test_executed_copies_are_the_same_in_another_folder(tmp_path):
    cells = ['x = 1', "import os, sys, time\nprint('one', x, flush=True)\ntime.sleep(0.5)\nprint('two')\n"
             "print(os.getcwd(), time.time(), file=sys.stderr)\n[object(), 'three']"]
    (one, copy), (two, other) = [start(tmp_path/f, *cells, parameters=['-p', 'x', '4']) for f in ('here', 'there')]
    assert (one.returncode, two.returncode, one.stdout) == (0, 0, '') and copy.read_bytes() == other.read_bytes()
    outputs = nbformat.read(copy, 4).cells[-1].outputs
    assert [o.get('text') or o.data['text/plain'] for o in outputs] == ['one 4\ntwo\n', "[<object>, 'three']"]
    assert os.listdir(copy.parent) == ['copy.ipynb']


def test_the_copy_of_a_failed_stage_has_the_traceback(tmp_path):
    done, copy = start(tmp_path/'here', 'x = 0', "import sys\nprint('noise', file=sys.stderr)\n1/x", 'print(x)')
    assert done.returncode == 1
    assert done.stderr.endswith('ZeroDivisionError: division by zero\n(the traceback is in out/copy.ipynb)\n')
    outputs = [o for cell in nbformat.read(copy, 4).cells if cell.cell_type == 'code' for o in cell.outputs]
    assert [o.ename for o in outputs] == ['ZeroDivisionError'] and '1' in ''.join(outputs[0].traceback)
    assert 'start_time' not in copy.read_text()


def test_the_citation_is_of_this_software():
    cited = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    version = re.search(r"__version__ = ['\"](.*)['\"]", (ROOT/'plm/__init__.py').read_text())[1]
    assert (cited['cff-version'], cited['version'], cited['license']) == ('1.2.0', version, 'Apache-2.0')
    paper = cited['preferred-citation'] # as README cites it
    readme = (ROOT/'README.md').read_text()
    assert f"title     = {{{paper['title']}}}" in readme and f"year      = {{{paper['year']}}}" in readme
    assert all(f"{a['family-names']}, {a['given-names']}" in readme for a in paper['authors'])


def test_contributing_fits_on_a_screen_and_names_what_is_there():
    text = (ROOT/'CONTRIBUTING.md').read_text()
    assert len(text.splitlines()) <= 50
    targets = re.findall(r'^([a-z]+):', (ROOT/'Makefile').read_text(), re.M)
    assert set(re.findall(r'(?:^|`)make ([a-z]+)', text, re.M)) <= set(targets)
    for test, word in re.findall(r'(tests/test_\w+\.py)(?: -k (\w+))?', text):
        assert re.search(rf'def test_\w*{word}', (ROOT/test).read_text()), (test, word)


def test_issue_templates_say_what_they_are_for():
    templates = sorted((ROOT/'.github/ISSUE_TEMPLATE').glob('*.md'))
    assert len(templates) == 3
    for file in templates:
        _, head, body = file.read_text().split('---\n', 2)
        assert set(yaml.safe_load(head)) == {'name', 'about'} and '**' in body


def test_a_parameter_that_the_stage_does_not_have_is_refused(tmp_path):
    done, copy = start(tmp_path/'here', 'seed = 0\nmethod = "plm"', 'print(seed)', parameters=['-p', 'sed', '3'])
    assert done.returncode == 1 and done.stderr.endswith('has no parameter sed. It has: seed, method.\n')
    assert not copy.exists()
    done, copy = start(tmp_path/'there', 'seed = 0\nmethod = "plm"', 'print(seed, method)',
                       parameters=['-p', 'seed', '3', '-p', 'method', 'é"\'\\'])
    assert not done.returncode and nbformat.read(copy, 4).cells[-1].outputs[0].text == '3 é"\'\\\n'
