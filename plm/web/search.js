'use strict';
const $ = id => document.getElementById(id);
const PAGE = 200, MOST = 500; // photos asked for at a time; nearest ones
const KEYS = ['photo', 'upload', 'which', 'folder', 'from', 'to', 'name', 'far', 'view'];
const FILTERS = ['folder', 'from', 'to', 'name'];
const uploads = new Map(); // key in the address: a file. They live as long as the page
const lists = new Map(); // answers, by what was asked for
const known = new Map(); // photos, by their id
const wide = matchMedia('(min-width: 34.01rem)');
const grid = $('grid'), viewer = $('viewer'), tiles = new Map(); // number in the list: its <li>
let album = {searches: [], folders: [], upload: Infinity}, list = {total: 0, items: []};
let at = -1, turn = 0, painting = 0, resting = 0; // at: the photo that arrows start from

// What is shown stands in the address

const read = () => Object.fromEntries(KEYS.map(key => [key, new URLSearchParams(location.search).get(key) ?? '']));
const address = s => '/?' + new URLSearchParams(KEYS.filter(key => s[key]).map(key => [key, s[key]]));
const asking = () => state.photo || state.upload;
let state = read();

function go(change, {replace = false, byKey = false} = {}) {
  const opened = replace ? history.state?.opened : Boolean(change.view); // by a step that `back` can undo
  if (!replace) history.replaceState({...history.state, y: scrollY, at}, '');
  state = {...state, ...change};
  history[replace ? 'replaceState' : 'pushState']({opened}, '', address(state));
  show({y: 0, at: byKey ? 0 : -1, byKey});
}
addEventListener('popstate', e => { state = read(); show({y: 0, at: -1, ...e.state, byKey: true}); });
history.scrollRestoration = 'manual';

// Asking the server

async function ask(path, options) {
  let answer, body;
  try { answer = await fetch(path, options); }
  catch { throw Error('The server does not answer. Is plm serve still running?'); }
  try { body = await answer.json(); } catch { throw Error(`The server failed (${answer.status}): see its terminal.`); }
  if (!answer.ok) throw Error(body.error);
  const seen = Array.isArray(body.photos) ? body.photos : [];
  for (const photo of body.query ? [body.query, ...seen] : seen) known.set(photo.id, photo);
  return body;
}

function say(error) {
  $('error').textContent = error?.message ?? error;
  $('error').hidden = !error;
  if (error) $('error').scrollIntoView({block: 'nearest'});
}

const question = (s, more) => {
  const keys = [...FILTERS, ...s.photo || s.upload ? ['which'] : []].filter(key => s[key]);
  return new URLSearchParams([...keys.map(key => [key, s[key]]), ...Object.entries(more)]);
};

async function nearest(s) {
  const file = uploads.get(s.upload);
  if (s.upload && !file) throw Error('That picture was known to an earlier page only: please drop it again.');
  const path = '/api/similar?' + question(s, s.upload ? {k: MOST} : {id: s.photo, k: MOST});
  const ending = file?.name.match(/\.(\w+)$/)?.[1].toLowerCase() ?? 'unknown';
  const kind = file?.type.startsWith('image/') ? file.type : 'image/' + ending; // not every browser knows heic
  const post = file && {method: 'POST', body: file, headers: {'Content-Type': kind}};
  const {photos, query, version} = await ask(path, post);
  return {total: photos.length, items: photos, query: query ?? {name: file.name}, version};
}

async function some(offset, s = state) { // of all photos
  return ask('/api/photos?' + question(s, {offset, limit: PAGE}));
}

async function answerTo(s) {
  const key = s.upload + ' ' + question(s, {photo: s.photo});
  let found = lists.get(key);
  if (!found && (s.photo || s.upload)) found = await nearest(s);
  if (!found) {
    const {total, photos, version} = await some(0, s);
    found = {total, items: photos, pages: new Set([0]), version};
  }
  lists.delete(key); // the one asked for last comes last
  lists.set(key, found);
  if (lists.size > 40) lists.delete(lists.keys().next().value);
  return found;
}

async function fill(from, to) { // the photos of these numbers
  const asked = list;
  if (!asked.pages) return;
  for (let page = Math.floor(from/PAGE); page*PAGE < to; page++) {
    if (asked.pages.has(page)) continue;
    asked.pages.add(page);
    try {
      const {photos, version} = await some(page*PAGE);
      if (version !== album.version) return renew();
      photos.forEach((photo, j) => { asked.items[page*PAGE + j] = photo; });
    } catch (error) { asked.pages.delete(page); say(error); }
  }
  if (asked === list) repaint();
}

async function renew() { // the album has changed, or the page begins
  album = await ask('/api/album');
  lists.clear();
  const folders = album.folders.map(([name, n]) => new Option(`${name} (${n.toLocaleString('en')})`, name));
  $('folder').replaceChildren(new Option('all', ''), ...folders);
  for (const id of ['from', 'to']) [$(id).min, $(id).max] = [album.first, album.last];
  $('map').hidden = !album.map;
  $('about').textContent = `${album.photos.toLocaleString('en')} photos of ${album.folder}`;
  $('which').replaceChildren($('which').querySelector('legend'), ...album.searches.map(name => {
    const input = make('input', {type: 'radio', name: 'which', value: name});
    input.onchange = () => go({which: name});
    return make('label', {}, input, make('span', {textContent: name + ' PLM'}));
  }));
  $('which').hidden = album.searches.length < 2;
  await show();
  if (album.searches.length > 1) recall();
}

async function recall() {
  const rows = await ask('/api/recall').catch(() => []), words = rows.filter(row => row.embedding !== 'backbone')
    .map(row => `${row.embedding} ${(100*row['R@1']).toFixed(1)} %`);
  $('recall').textContent = words.length ? `The nearest has the same label (R@1): ${words.join(', ')}.` : '';
}

// Showing

function make(tag, values, ...children) {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
}

async function show(where = {}) {
  const mine = ++turn;
  document.body.classList.add('busy');
  try {
    const found = await answerTo(state);
    if (mine !== turn) return;
    if (found.version !== album.version) return renew();
    const same = found === list;
    list = found;
    say();
    controls();
    if (!same) { clearGrid(); at = where.at ?? -1; }
    paint();
    if (!same || where.byKey) scrollTo(0, where.y ?? scrollY);
    if (!same && where.byKey && at >= 0) focus(at);
    await view();
  } catch (error) {
    if (mine !== turn) return;
    list = {total: 0, items: []};
    clearGrid();
    controls();
    paint();
    say(error);
    $('error').append(' ', make('a', {href: '/', textContent: 'All photos'}));
  } finally {
    if (mine === turn) { document.body.classList.remove('busy'); document.body.dataset.shown = turn; }
  }
}

const facts = photo => [photo.taken?.slice(0, 16), photo.width && `${photo.width} × ${photo.height} pixels`]
  .filter(Boolean).join(', ');
const picture = id => id === state.upload ? url(id) : '/photo/' + id;
function url(id) { return uploads.get(id).url ??= URL.createObjectURL(uploads.get(id)); }

function controls() {
  for (const id of FILTERS) if ($(id) !== document.activeElement) $(id).value = state[id];
  $('clear').hidden = !FILTERS.some(id => state[id]);
  $('query').hidden = !asking() || !list.query;
  $('hint').hidden = Boolean(asking());
  if (wide.matches || !$('clear').hidden) $('sieve').open = true; // on a phone it is folded
  document.title = [list.query?.name ?? state.name, 'Search your photos'].filter(Boolean).join(' – ');
  if ($('query').hidden) return;
  if ($('asked').dataset.of !== asking()) {
    $('asked').className = '';
    $('asked').src = picture(asking());
    $('asked').dataset.of = asking();
  }
  $('asked').alt = $('title').textContent = list.query.name;
  $('facts').textContent = facts(list.query) || 'your picture; it is not kept';
  for (const input of $('which').querySelectorAll('input'))
    input.checked = input.value === (state.which || album.searches.at(-1));
  $('far').value = state.far || $('far').max;
}
$('asked').onerror = () => { $('asked').className = 'broken'; }; // such as HEIC, which few browsers show

function shown() { // how many; the slider cuts the nearest
  if (!asking() || !state.far) return list.total;
  const end = list.items.findIndex(photo => photo.distance > +state.far);
  return end < 0 ? list.total : end;
}

function count() {
  const n = shown(), words = n => n.toLocaleString('en') + (n === 1 ? ' photo' : ' photos');
  const filtered = FILTERS.some(id => state[id]) ? ' that pass the filter' : '';
  $('reach').textContent = state.far ? `up to ${(+state.far).toFixed(2)}` : 'any distance';
  $('count').textContent = !asking() ? words(n) + filtered + ', the newest first' : !list.query ? '' :
    (state.far ? `${words(n)} within ${(+state.far).toFixed(2)}` : `the ${words(n)} most like it`) + filtered;
}

const columns = () => getComputedStyle(grid).gridTemplateColumns.split(' ').length;
const rowHeight = () => (grid.firstElementChild?.offsetHeight ?? 180) + parseFloat(getComputedStyle(grid).rowGap);

function clearGrid() { tiles.clear(); grid.replaceChildren(); }

function paint() { // only what is in sight, and a little more, is in the page
  painting = 0;
  count();
  const n = shown(), across = columns(), rows = Math.ceil(n/across);
  if (!tiles.size && n) put(0, Math.min(n, across)); // to be measured
  const height = rowHeight(), top = grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.min(rows, Math.floor(-top/height) - 3));
  const last = Math.max(0, Math.min(rows, Math.ceil((innerHeight - top)/height) + 3));
  put(first*across, Math.min(n, last*across));
  grid.style.paddingTop = first*height + 'px';
  grid.style.paddingBottom = Math.max(0, rows - last)*height + 'px';
  clearTimeout(resting);
  resting = setTimeout(() => fill(first*across, Math.min(n, last*across)), 60); // not while it flies past
}
function repaint() { painting ||= requestAnimationFrame(paint); }

function put(from, to) {
  for (const [i, tile] of tiles) if (i < from || i >= to || !tile.photo && list.items[i]) {
    tile.querySelector('img')?.removeAttribute('src'); // nothing need be loaded any more
    tile.remove();
    tiles.delete(i);
  }
  let next = grid.firstChild;
  for (let i = from; i < to; i++) {
    const there = tiles.get(i);
    if (there) { next = there.nextSibling; continue; }
    tiles.set(i, tile(i));
    grid.insertBefore(tiles.get(i), next);
  }
}

function tile(i) {
  const photo = list.items[i], li = make('li', {photo});
  li.setAttribute('aria-setsize', shown());
  li.setAttribute('aria-posinset', i + 1);
  if (!photo) { li.append(make('a', {}), make('p', {textContent: '…'})); return li; }
  const near = photo.distance?.toFixed(2), name = photo.name.split('/').at(-1);
  const link = make('a', {href: address({...state, photo: photo.id, upload: '', view: ''}), draggable: false,
    title: photo.name, tabIndex: i === Math.max(0, at) ? 0 : -1},
    make('img', {src: '/thumb/' + photo.id, alt: '', draggable: false, decoding: 'async'}));
  link.ariaLabel = photo.name + (near ? ', distance ' + near : ', ' + photo.taken.slice(0, 10));
  link.dataset.id = photo.id;
  const button = make('button', {type: 'button', textContent: '⤢', title: 'full size (f)', tabIndex: -1});
  button.ariaLabel = 'full size: ' + photo.name;
  li.append(link, button, make('p', {title: photo.name}, ...near ? [make('b', {textContent: near})] : [],
    make('bdi', {textContent: name})));
  return li;
}

function focus(i) { // scrolls as little as shows it
  at = Math.min(shown() - 1, Math.max(0, i));
  if (at < 0) return;
  const height = rowHeight(), top = grid.getBoundingClientRect().top + Math.floor(at/columns())*height;
  const sticky = document.querySelector('header').offsetHeight + 8;
  if (top < sticky) scrollBy(0, top - sticky);
  else if (top + height > innerHeight) scrollBy(0, top + height - innerHeight);
  paint();
  for (const a of grid.querySelectorAll('a[tabindex="0"]')) a.tabIndex = -1;
  const link = tiles.get(at)?.querySelector('a');
  if (link) { link.tabIndex = 0; link.focus({preventScroll: true}); }
}

// Full size

async function view() {
  if (!state.view) return viewer.close();
  const id = state.view, i = list.items.findIndex(photo => photo?.id === id);
  if (id !== state.upload && !known.has(id)) await ask(`/api/similar?id=${encodeURIComponent(id)}&k=1`);
  const photo = list.items[i] ?? known.get(id) ?? list.query;
  if ($('whole').dataset.of !== id) {
    $('whole').removeAttribute('src'); // the last one must not stand under this one's name
    $('whole').src = picture(id);
    $('whole').dataset.of = id;
  }
  $('whole').alt = photo.name;
  $('caption').textContent = photo.name;
  const near = photo.distance === undefined ? '' : 'distance ' + photo.distance.toFixed(2);
  $('more').textContent = [facts(photo), near].filter(Boolean).join(', ');
  $('previous').disabled = i < 1;
  $('next').disabled = i < 0 || i + 1 >= shown();
  $('like').hidden = id === asking();
  if (!viewer.open) viewer.showModal();
  if (i >= 0) at = i;
}

async function step(d) {
  const i = list.items.findIndex(photo => photo?.id === state.view) + d;
  if (i === d - 1 || i < 0 || i >= shown()) return;
  await fill(i, i + 1);
  if (list.items[i]) go({view: list.items[i].id}, {replace: true});
}

function leave() {
  if (history.state?.opened) history.back(); else go({view: ''}, {replace: true});
}
viewer.onclose = () => { // a browser may close it, whatever we say
  if (state.view) leave(); else if (at >= 0) focus(at);
};

viewer.oncancel = e => { e.preventDefault(); leave(); };
$('close').onclick = leave;
$('previous').onclick = () => step(-1);
$('next').onclick = () => step(1);
$('like').onclick = () => go({photo: state.view, upload: '', view: ''});
$('large').onclick = () => go({view: asking()});

async function copy(button, from) {
  try { await navigator.clipboard.writeText(from.textContent); } // only on this machine, or by https
  catch { getSelection().selectAllChildren(from); document.execCommand('copy'); }
  const text = button.textContent;
  button.textContent = 'copied';
  setTimeout(() => { button.textContent = text; }, 1200);
}
$('copy').onclick = () => copy($('copy'), $('title'));
$('copied').onclick = () => copy($('copied'), $('caption'));

// What the reader does

grid.onclick = e => {
  const photo = e.target.closest('li')?.photo, plain = !(e.ctrlKey || e.metaKey || e.shiftKey || e.altKey);
  if (!photo || !plain) return; // another tab is the browser's affair
  if (e.target.closest('a')) { e.preventDefault(); go({photo: photo.id, upload: ''}, {byKey: !e.detail}); }
  else if (e.target.closest('button')) go({view: photo.id});
};
grid.onfocusin = e => { const i = [...tiles].find(([, li]) => li.contains(e.target))?.[0]; if (i >= 0) at = i; };

const showAll = () => go({photo: '', upload: '', far: '', view: ''});
const noFilter = () => go({folder: '', from: '', to: '', name: ''});
for (const id of ['folder', 'from', 'to']) $(id).onchange = () => go({[id]: $(id).value});
let typing = 0;
$('name').oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(() => go({name: $('name').value.trim()}, {replace: Boolean(state.name)}), 200);
};
$('filters').onsubmit = e => { e.preventDefault(); focus(0); };
$('clear').onclick = noFilter;
$('all').onclick = showAll;
$('home').onclick = e => { e.preventDefault(); go(Object.fromEntries(KEYS.map(key => [key, '']))); };
$('far').oninput = () => {
  state.far = $('far').value === $('far').max ? '' : $('far').value;
  repaint();
};
$('far').onchange = () => history.replaceState(history.state, '', address(state));

document.addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const typed = e.target.closest?.('input, select'), open = viewer.open, across = open ? 0 : columns();
  const keys = open ? {ArrowLeft: () => step(-1), ArrowRight: () => step(1), f: leave} : {
    ArrowLeft: () => focus(at - 1), ArrowRight: () => focus(at + 1), ArrowDown: () => focus(at < 0 ? 0 : at + across),
    ArrowUp: () => focus(at - across >= 0 ? at - across : at),
    '/': () => { $('sieve').open = true; $('name').focus(); },
    f: () => { const id = list.items[at]?.id ?? asking(); if (id) go({view: id}); },
    Escape: () => asking() ? showAll() : FILTERS.some(id => state[id]) && noFilter()};
  if (typed) { if (e.key === 'Escape') typed.blur(); return; }
  if (!Object.hasOwn(keys, e.key)) return;
  e.preventDefault();
  keys[e.key]();
});

async function search(files) {
  const file = [...files].find(f => f.type.startsWith('image/')) ?? files[0];
  if (!file) return say('That was no file: drop a picture from a folder, or copy it and paste it here.');
  if (file.size > album.upload)
    return say(`${file.name} is larger than ${album.upload/1e6} MB: make it smaller first.`);
  const key = Date.now().toString(36), next = {...state, photo: '', upload: key, view: ''};
  uploads.set(key, file);
  document.body.classList.add('busy');
  try { await answerTo(next); go(next); }
  catch (error) { document.body.classList.remove('busy'); say(error); }
}
$('file').onchange = () => { search($('file').files); $('file').value = ''; };
addEventListener('paste', e => {
  const {files} = e.clipboardData;
  if (files.length) { e.preventDefault(); search(files); }
});
addEventListener('dragover', e => { e.preventDefault(); $('drop').hidden = false; });
addEventListener('dragleave', e => { if (!e.relatedTarget) $('drop').hidden = true; });
addEventListener('drop', e => { e.preventDefault(); $('drop').hidden = true; search(e.dataTransfer.files); });
wide.onchange = controls;
addEventListener('scroll', repaint, {passive: true});
new ResizeObserver(() => { if (list.total) repaint(); }).observe(document.body);
renew().catch(say);
