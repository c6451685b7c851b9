"""The documentation site: notebooks, docs/*.md and API pages, to be opened from the disk: _site/html/index.html.

    python docs/site/make_site.py [FOLDER]"""
import json, os, re, shutil, sys
from pathlib import Path
from sphinx.cmd.build import build_main
from api import api_pages

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
NOTEBOOKS, STAGES = sorted(ROOT.glob('nbs/[0-9]*.ipynb')), sorted(ROOT.glob('nbs/pipeline/*.ipynb'))
DOCUMENTS = [*sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('C*.md'))] # contributing and changelog last


def lay(path, text):
    "Write a source; one that says the same already stays, since Sphinx makes anew what is younger than its page."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text: path.write_text(text)


def follow(text, page, pages, to):
    "Bring the files that a page links to. README is the first page; a link to what has no page, as a folder, is words."
    def link(m):
        target = Path(os.path.normpath(page.parent/m[3]))
        if target == ROOT/'README.md': return f"{m[1]}[{m[2]}]({m[3].replace('README', 'index')}{m[4] or ''})"
        if target in pages: return m[0]
        if target.is_dir() or target.suffix in ('.ipynb', '.md'): return m[2]
        if target.is_file():
            copy = to/target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target, copy)
        return m[0]
    return re.sub(r'(!?)\[([^\]]*)\]\(([^):#]+)(#[^)]*)?\)', link, text)


def notebook(page, pages, to):
    "A notebook as a reader wants it: without what only nbdev needs, and with a link to its API."
    nb = json.loads(page.read_text())
    nb['cells'] = [c for c in nb['cells'] if not re.match(r'#\| *(default_exp|hide)', ''.join(c['source']))]
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        code = cell['cell_type'] == 'code'
        cell['source'] = re.sub(r'(?m)^#\|.*\n', '', text) if code else follow(text, page, pages, to)
    module = page.stem[3:]
    if page in NOTEBOOKS: nb['cells'][0]['source'] += f'\n\nAll names: [plm.{module}](../api/{module}.md)'
    return json.dumps(nb)


def name(page): return page.relative_to(ROOT).with_suffix('').as_posix()


def toctree(caption, *entries):
    return '\n'.join(['', '```{toctree}', f':caption: {caption}', ':hidden:', '', *entries, '```', ''])


def build(
    to: Path, # gets the pages in html, and beside them what they are made from
    notebooks: list[Path] = NOTEBOOKS, # modules: a page for the notebook, a page for its API
    stages: list[Path] = STAGES, # notebooks of the pipelines
) -> int: # 0, or what Sphinx ended with; a link that leads nowhere is an error
    "Lay out the sources and run Sphinx; what has not changed is not made again."
    source, pages = to/'source', {*notebooks, *stages, *DOCUMENTS}
    for page in pages:
        text = notebook(page, pages, source) if page in notebooks + stages else \
            follow(page.read_text(), page, pages, source)
        lay(source/page.relative_to(ROOT), text)
    for module, text in api_pages(notebooks): lay(source/f'api/{module}.md', text)
    first = follow((ROOT/'README.md').read_text(), ROOT/'README.md', pages, source)
    first += toctree('Documents', *map(name, DOCUMENTS))
    first += toctree('Notebooks', *(f'{p.stem[:2]} {p.stem[3:]} <{name(p)}>' for p in notebooks))
    first += toctree('Stages of the pipelines', *(f'{p.stem} <{name(p)}>' for p in stages))
    first += toctree('API', *(f'api/{p.stem[3:]}' for p in notebooks))
    lay(source/'index.md', first)
    options = '-q', '-W', '--keep-going', '-c', HERE, '-d', to/'doctrees'
    return build_main([str(a) for a in (*options, source, to/'html')])


if __name__ == '__main__': sys.exit(build(Path(sys.argv[1]) if sys.argv[1:] else ROOT/'_site'))
