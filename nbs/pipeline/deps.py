"""Writes into the `deps` of every DVC stage the modules of plm that its notebook uses.

These are the modules that the notebook imports, those that they import, and so on. `make nbs` runs this program, and
tests/test_house.py holds the dvc.yaml files to it. All other entries of `deps` stay as they are.
"""
import ast, json, re, textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT/'dvc.yaml', *sorted(ROOT.glob('pipelines/*/dvc.yaml'))]
BEGIN = '    deps: ['
FREE = { # no stage depends on these, because they decide no figure
    'params': 'it only reads the knobs, and DVC watches their values',
    'transfer': 'every file that it fetches is held to a checksum',
}


def imports(code):
    "Dotted names that the code imports, wherever in it; of plm always in full, as plm.MODULE.NAME or plm.MODULE."
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join((['plm'] if node.level else []) + ([node.module] if node.module else []))
            yield from (f'{base}.{a.name}' for a in node.names)


def modules_of(code): return {name.split('.')[1] for name in imports(code) if name.startswith('plm.')}


def code_of(notebook):
    cells = json.loads(notebook.read_text())['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')


def files_of(notebook):
    "The files of plm that decide what a stage's notebook does; the folder plm/web if one of them fills in templates."
    code = {}
    waiting = modules_of(code_of(notebook))
    while waiting := waiting - FREE.keys() - code.keys():
        code |= {name: (ROOT/'plm'/f'{name}.py').read_text() for name in waiting}
        waiting = set().union(*(modules_of(code[name]) for name in waiting))
    fills_in = any('jinja2' in {name.split('.')[0] for name in imports(c)} for c in code.values())
    return [f'plm/{name}.py' for name in sorted(code)] + ['plm/web']*fills_in


def with_files(text):
    "The text of a dvc.yaml with the notebook and the files of plm at the beginning of each stage's `deps: [...]`."
    wrapped = textwrap.TextWrapper(119 - len(BEGIN), break_long_words=False, break_on_hyphens=False)
    def stage(match):
        notebook = re.search(r'\S+\.ipynb', match['cmd'])[0]
        others = [d for d in re.split(r',\s*', match['deps']) if d and not d.startswith(('plm/', 'nbs/'))]
        groups = [[notebook, *files_of(ROOT/notebook)], others] # each begins a line
        lines = ',\n'.join(wrapped.fill(', '.join(g)) for g in groups if g)
        return match['cmd'] + BEGIN + lines.replace('\n', '\n' + ' '*len(BEGIN)) + ']'
    return re.sub(rf'(?s)(?P<cmd>    cmd: .*?\n){re.escape(BEGIN)}(?P<deps>.*?)\]', stage, text)


if __name__ == '__main__':
    for file in FILES:
        old = file.read_text()
        if (new := with_files(old)) != old:
            file.write_text(new)
            print(f'{file.relative_to(ROOT)}: the modules of its stages were written anew')
