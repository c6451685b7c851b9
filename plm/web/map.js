'use strict';
const $ = id => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const numbers = ([kind, text]) => {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return new globalThis[kind](bytes.buffer);
};
const {n: N, k: K, names, planes, files} = data, {size: [W, H], cell: [CW, CH], across, down} = data.sheet;
const labels = data.labels && numbers(data.labels), slots = numbers(data.slots), means = numbers(data.colours);
const spaces = data.spaces.map(s => ({...s, neighbors: numbers(s.neighbors),
  maps: Object.fromEntries(planes.map(plane => [plane, numbers(s.maps[plane])]))}));
const canvas = $('map'), pen = canvas.getContext('2d');
const dark = matchMedia('(prefers-color-scheme: dark)'), still = matchMedia('(prefers-reduced-motion: reduce)');
const FEW = N <= 3000; // so few are drawn as images from the start
const view = {k: 1, x: 0, y: 0}; // zoom, and where the map's middle lies: pixels from the canvas's middle
let space = spaces.length - 1, plane = 0, hovered = -1, chosen = -1;
let width = 1, height = 1, painting = 0, flight = 0, loading = 0;

// Words: what an image is called

const breakable = name => name.replace(/[_/]/g, '$&\u200b'); // a long name may go on in the next line after these
const folderOf = files && numbers(files.folder);
const fileOf = i => (files.folders[folderOf[i]] && files.folders[folderOf[i]] + '/') + files.names[i];
const labelName = c => c < 0 ? 'no class' : 'class ' + (names ? names[c] : c);
const wordsOf = i => [...labels ? [labelName(labels[i])] : [], files ? fileOf(i) : 'image ' + i];
const served = location.pathname === '/map', root = served ? '/named' : files && files.root; // by `plm serve`
const address = i => root + '/' + fileOf(i).split('/').map(part => // a byte that is no text came as \udc80-\udcff
  Array.from(part, c => /^[\udc80-\udcff]$/.test(c) ? '%' + (c.charCodeAt(0) & 255).toString(16) :
    encodeURIComponent(c)).join('')).join('/');

// Groups, which are what colours tell

const groupings = [];
if (labels) groupings.push({name: 'class', of: labels, title: c => names && c >= 0 ? names[c] : labelName(c)});
if (!data.ink) groupings.push({name: 'image', of: null});
if (files && files.folders.length > 1)
  groupings.push({name: 'folder', of: folderOf, title: f => files.folders[f] || '(not in a folder)'});
if (!groupings.length) groupings.push({name: 'none', of: null});
let groups = groupings[0];
const groupOf = i => i < 0 || !groups.of ? -1 : groups.of[i];
const colours = new Uint32Array(N); // as a canvas stores them: red in the lowest byte, alpha in the highest
let inks = 0; // how often colours have changed
const rgb = c => [c & 255, c >> 8 & 255, c >> 16 & 255];
const style = c => `rgb(${rgb(c).join()})`;

function tint() {
  const [saturation, lightness] = dark.matches ? [75, [62, 74, 68]] : [80, [34, 44, 27]], palette = new Map();
  const plain = dark.matches ? 0xff9ea2a8 : 0xff4e5357;
  const shade = g => {
    if (g < 0) return plain;
    pen.fillStyle = `hsl(${g*137.508 % 360} ${saturation}% ${lightness[g % 3]}%)`;
    const c = parseInt(pen.fillStyle.slice(1), 16); // #rrggbb
    return (0xff000000 | (c & 255) << 16 | c & 0xff00 | c >> 16) >>> 0;
  };
  groups.colour = g => palette.get(g) ?? (palette.set(g, shade(g)), palette.get(g));
  const [low, high] = dark.matches ? [90, 225] : [40, 165]; // a white photograph shows on white, a black one on black
  for (let i = 0; i < N; i++) {
    if (groups.name !== 'image') { colours[i] = groups.colour(groupOf(i)); continue; }
    const c = means.subarray(3*i, 3*i + 3), middle = (Math.max(...c) + Math.min(...c))/2;
    const part = v => Math.min(255, Math.max(0, low + (high - low)*middle/255 + 1.6*(v - middle)));
    colours[i] = (0xff000000 | part(c[2]) << 16 | part(c[1]) << 8 | part(c[0])) >>> 0;
  }
  inks++;
}

// Where the points are

const at = new Float32Array(2*N); // in the plane, -1 to 1
const goal = () => spaces[space].maps[planes[plane]];
const base = () => Math.min(width, height)/2 - 18;
const spotX = i => width/2 + view.x + at[2*i]*base()*view.k, spotY = i => height/2 + view.y - at[2*i + 1]*base()*view.k;
const spot = i => [spotX(i), spotY(i)];
const room = () => 2.3*base()/Math.sqrt(N); // pixels for an image, if all were spread evenly
const side = () => Math.min(64, FEW ? Math.min(40, Math.max(9, room()))*view.k**0.6 : Math.max(24, room()*view.k**0.6));
const furthest = Math.max(60, Math.sqrt(N)); // zoom
const neighbors = i => i < 0 ? [] : [...spaces[space].neighbors.subarray(i*K, i*K + K)];

// A grid over the plane: the points of cell c are order[first[c]] to order[first[c + 1] - 1]

const G = Math.max(1, Math.min(512, Math.round(Math.sqrt(N/16))));
const first = new Uint32Array(G*G + 1), order = new Uint32Array(N), cellOf = new Uint32Array(N);
const column = x => Math.min(G - 1, Math.max(0, Math.floor((x + 1)/2*G)));

function sort() {
  first.fill(0);
  for (let i = 0; i < N; i++) first[cellOf[i] = column(at[2*i + 1])*G + column(at[2*i])]++;
  for (let c = 0, sum = 0; c <= G*G; c++) first[c] = sum += first[c];
  for (let i = N - 1; i >= 0; i--) order[--first[cellOf[i]]] = i;
}

function* cells(left, top, right, bottom) { // that a box of pixels touches: [where they begin, where they end]
  const scale = base()*view.k, x = v => column((v - width/2 - view.x)/scale);
  const y = v => column((height/2 + view.y - v)/scale), west = x(left), east = x(right);
  for (let row = y(bottom); row <= y(top); row++) for (let c = row*G + west; c <= row*G + east; c++)
    if (first[c] < first[c + 1]) yield [first[c], first[c + 1]];
}

function nearestTo(x, y, reach) {
  let best = -1, least = reach*reach;
  for (const [a, b] of cells(x - reach, y - reach, x + reach, y + reach)) for (let j = a; j < b; j++) {
    const i = order[j], d = (spotX(i) - x)**2 + (spotY(i) - y)**2;
    if (lit[i] && d < least) { least = d; best = i; }
  }
  return best;
}

// What is asked for: the rest is pale

const lit = new Uint8Array(N).fill(1);
let query = '', only = null, failing = false, texts = null, shown = N; // only: a group

const firstKnown = i => { for (const j of neighbors(i)) if (labels[j] >= 0) return j; return -1; };
function failures() { // as R@1 counts them: who has a label, is not alone with it, and whose nearest has another one
  if (spaces[space].fails) return spaces[space].fails;
  const sizes = new Map();
  for (const c of labels) sizes.set(c, (sizes.get(c) ?? 0) + 1);
  return spaces[space].fails = Uint8Array.from(labels, (c, i) => {
    if (c < 0 || sizes.get(c) < 2) return 0;
    const j = firstKnown(i);
    return j >= 0 && labels[j] !== c;
  });
}

function sift() {
  texts ??= query && Array.from({length: N}, (_, i) => wordsOf(i).join('\n').toLowerCase()) || null;
  const fails = failing && failures(), matches = [];
  for (let i = shown = 0; i < N; i++) {
    lit[i] = (!query || texts[i].includes(query)) && (only === null || groups.of[i] === only) && (!fails || fails[i]);
    if (lit[i] && shown++ < 30) matches.push(i);
  }
  const asked = query || failing || only !== null;
  $('count').textContent = `${shown.toLocaleString('en')} of ${N.toLocaleString('en')} images` +
    (shown > matches.length ? `, the first ${matches.length}:` : shown ? ':' : '');
  $('found').replaceChildren(...(asked ? matches : []).map(j => entry(j)));
  for (const button of $('legend').querySelectorAll('button'))
    button.setAttribute('aria-pressed', +button.dataset.group === only);
  if (hovered >= 0 && !lit[hovered]) hover(-1);
  panels();
  repaint();
}

// Images: a sheet is decoded when it is first needed

const sheets = Array.from(document.querySelectorAll('script.sheet'),
  element => ({element, picture: null, pixels: null, inked: null, inks: 0}));
const sheetOf = i => Math.floor(slots[i]/(across*down));
const cell = i => { const s = slots[i] % (across*down); return [s % across*CW, Math.floor(s/across)*CH]; };
const copy = source => {
  const c = document.createElement('canvas');
  c.width = source.width; c.height = source.height;
  c.getContext('2d').drawImage(source, 0, 0);
  return c;
};

function load(number) { // a promise
  const sheet = sheets[number];
  return sheet.ready ??= (async () => {
    loading++;
    const image = new Image();
    image.src = sheet.element.textContent;
    await image.decode();
    sheet.picture = copy(image); // the browser may forget what an <img> has decoded
    sheet.element.remove();
    loading--;
    repaint();
  })();
}

function picture(number) { // the sheet as it is drawn on the map; null: not there yet
  const sheet = sheets[number];
  if (!sheet.picture) { load(number); return null; }
  if (!data.ink) return sheet.picture;
  if (sheet.inks === inks) return sheet.inked;
  // images without colour: the strokes in the colour of the class, the ground transparent
  sheet.inked ??= copy(sheet.picture);
  sheet.inks = inks;
  const brush = sheet.inked.getContext('2d'), {width, height} = sheet.inked;
  sheet.pixels ??= brush.getImageData(0, 0, width, height).data;
  const raw = sheet.pixels, image = brush.createImageData(width, height), p = image.data;
  const start = number*across*down, end = Math.min(N, start + across*down);
  held ??= slots.reduce((of, s, i) => { of[s] = i; return of; }, new Uint32Array(N));
  for (let s = start; s < end; s++) {
    const [left, top] = cell(held[s]), colour = rgb(colours[held[s]]);
    for (let y = top; y < top + H; y++) for (let x = left; x < left + W; x++) {
      const o = 4*(y*width + x), v = data.ink === 'light' ? raw[o] : 255 - raw[o];
      [p[o], p[o + 1], p[o + 2]] = colour;
      p[o + 3] = 1.7*(v - 36); // the array clamps to 0..255; faint grounds vanish
    }
  }
  brush.putImageData(image, 0, 0);
  return sheet.inked;
}
let held = null; // the image of each slot

// Painting

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const edge = data.ink ? 0 : 1; // pixels that are left out: JPEG's colours and smoothing mix them with the next image

function stamp(i, s) {
  const x = spotX(i), y = spotY(i), w = s*W/Math.max(W, H), h = s*H/Math.max(W, H);
  if (x < -s || y < -s || x > width + s || y > height + s) return;
  const sheet = picture(sheetOf(i)), [left, top] = cell(i);
  if (!sheet || groups.of && !data.ink) { // a frame, and what stands for an image that is still to come
    pen.fillStyle = style(colours[i]);
    pen.fillRect(x - w/2 - 1.5, y - h/2 - 1.5, w + 3, h + 3);
  }
  if (sheet) pen.drawImage(sheet, left + edge, top + edge, W - 2*edge, H - 2*edge, x - w/2, y - h/2, w, h);
}

function frame(i, s, colour, dash, sign) {
  const [x, y] = spot(i);
  pen.fillStyle = css('--paper'); pen.fillRect(x - s/2 - 2, y - s/2 - 2, s + 4, s + 4);
  stamp(i, s);
  pen.strokeStyle = colour; pen.lineWidth = 2.5; pen.setLineDash(dash);
  pen.strokeRect(x - s/2 - 2, y - s/2 - 2, s + 4, s + 4);
  pen.setLineDash([]);
  if (!sign) return;
  pen.fillStyle = colour; pen.fillRect(x + s/2 - 5, y - s/2 - 8, 13, 13);
  pen.fillStyle = css('--paper');
  pen.font = 'bold 11px system-ui, sans-serif'; pen.textAlign = 'center'; pen.textBaseline = 'middle';
  pen.fillText(sign, x + s/2 + 1.5, y - s/2 - 1);
}

let raster = null; // points are written into it, pixel by pixel: fifty thousand rectangles would take ten times as long
const pale = new Uint32Array(N), dots = new Uint32Array(N), tiles = new Uint32Array(N); // numbers of images in sight

function look(s) { // sort what is in sight by how it is drawn: how many of each kind
  const space = (2*base()*view.k/G)**2, fits = FEW ? N : view.k < 2 ? 0 : 2.5*space/s**2; // images a cell has room for
  let a = 0, b = 0, c = 0;
  for (const [from, to] of cells(-s, -s, width + s, height + s)) for (let j = from; j < to; j++) {
    const i = order[j];
    if (!lit[i]) pale[a++] = i; else if (to - from > fits) dots[b++] = i; else tiles[c++] = i;
  }
  return [pale.subarray(0, a), dots.subarray(0, b), tiles.subarray(0, c)];
}

function scatter(list, radius, alpha) { // discs
  const ratio = devicePixelRatio || 1, r = radius*ratio, reach = Math.ceil(r), {width: w, height: h} = raster;
  const pixels = new Uint32Array(raster.data.buffer), disc = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++)
    if (x*x + y*y <= r*r + 0.5*r) disc.push(y*w + x);
  const scale = base()*view.k*ratio, left = (width/2 + view.x)*ratio, top = (height/2 + view.y)*ratio;
  const veil = (Math.round(255*alpha) << 24 | 0xffffff) >>> 0;
  for (const i of list) {
    const x = Math.round(left + at[2*i]*scale), y = Math.round(top - at[2*i + 1]*scale);
    if (x < reach || y < reach || x >= w - reach || y >= h - reach) continue; // half a point at the edge is none
    const colour = colours[i] & veil, place = y*w + x;
    for (const step of disc) pixels[place + step] = colour;
  }
}

function paint() {
  painting = 0;
  const ratio = devicePixelRatio || 1, s = side(), near = neighbors(chosen), big = Math.max(22, 1.25*s);
  const [pale, dots, tiles] = look(s), radius = Math.max(1.2, Math.min(4, 0.3*room()*view.k**0.6));
  const kin = groupOf(chosen >= 0 ? chosen : hovered), alien = i => kin < 0 || groups.of[i] !== kin;
  const dim = chosen >= 0 ? 0.22 : 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (pale.length + dots.length) {
    raster.data.fill(0);
    scatter(pale, radius, 0.2);
    scatter(dots.filter(alien), radius, dim);
    scatter(dots.filter(i => !alien(i)), radius + 1, 1);
    pen.putImageData(raster, 0, 0);
  } else pen.clearRect(0, 0, width, height);
  pen.globalAlpha = dim;
  for (const i of tiles) if (alien(i)) stamp(i, s);
  for (const i of tiles) if (!alien(i)) { // the rest of the class: on top, on a disc of its colour
    pen.globalAlpha = 0.22; pen.fillStyle = style(colours[i]);
    pen.beginPath(); pen.arc(...spot(i), 0.75*s, 0, 7); pen.fill();
    pen.globalAlpha = 1; stamp(i, s);
  }
  pen.globalAlpha = 1;
  const verdicts = near.map(j => verdict(chosen, j));
  near.forEach((j, rank) => {
    const {colour, dash} = verdicts[rank];
    pen.strokeStyle = css(colour); pen.lineWidth = 1.5; pen.setLineDash(dash);
    pen.beginPath(); pen.moveTo(...spot(chosen)); pen.lineTo(...spot(j)); pen.stroke();
  });
  pen.setLineDash([]);
  for (let rank = near.length - 1; rank >= 0; rank--) {
    const {colour, dash, sign} = verdicts[rank];
    frame(near[rank], big, css(colour), dash, sign);
  }
  if (chosen >= 0) frame(chosen, 1.2*big, css('--ink'), [], '');
  if (hovered >= 0 && hovered !== chosen) frame(hovered, big, css('--on'), [], '');
  placeTip();
}

function repaint() { painting = painting || requestAnimationFrame(paint); }

// The words beside the map

function verdict(i, j) { // of a neighbour j of i
  if (!labels || labels[i] < 0 || labels[j] < 0) return {kind: '', sign: '', colour: '--soft', dash: []};
  return labels[i] === labels[j] ? {kind: 'right', sign: '✓', colour: '--right', dash: []} :
    {kind: 'wrong', sign: '✗', colour: '--wrong', dash: [5, 4]};
}

function tile(i, pixels) {
  const c = document.createElement('canvas'), number = sheetOf(i), [left, top] = cell(i);
  c.className = data.ink ? 'tile' : 'tile photo'; c.width = W*pixels; c.height = H*pixels;
  c.setAttribute('role', 'img'); c.setAttribute('aria-label', files ? fileOf(i) : 'image ' + i);
  const brush = c.getContext('2d'), draw = () => brush.drawImage(sheets[number].picture,
    left + edge, top + edge, W - 2*edge, H - 2*edge, 0, 0, c.width, c.height);
  brush.imageSmoothingEnabled = !data.ink; // strokes stay crisp, photographs smooth
  if (sheets[number].picture) draw(); else load(number).then(draw);
  return c;
}

function element(tag, text, ...children) {
  const e = document.createElement(tag);
  if (text) e.textContent = text;
  e.append(...children);
  return e;
}

function entry(j, rank = 0) { // an image to press; rank: among the neighbours of the chosen one
  const {kind, sign} = rank ? verdict(chosen, j) : {kind: '', sign: ''}, [title, ...more] = wordsOf(j);
  const text = rank ? title : [title, ...more].join(', ');
  const button = element('button', '', tile(j, 3), ...sign ? [element('b', sign + ' ')] : [],
    element('span', breakable(text)));
  button.type = 'button'; button.className = kind; button.dataset.image = j;
  button.title = [title, ...more].join(', ');
  button.setAttribute('aria-label', [...rank ? [`neighbour ${rank}` + (kind && ': ' + kind)] : [], title,
    ...more].join(', '));
  button.onclick = e => { // by key (no click count), the next press goes on from there
    hover(-1); choose(j); reveal(j);
    if (!e.detail) $('near').querySelector('button').focus();
  };
  button.onmouseenter = button.onfocus = () => hover(j);
  button.onmouseleave = button.onblur = () => hover(-1);
  return element('li', '', button);
}

function placeTip() {
  const tip = $('tip');
  tip.hidden = hovered < 0;
  if (tip.hidden) return;
  const [x, y] = spot(hovered), gap = side()/2 + 14, w = tip.offsetWidth, h = tip.offsetHeight;
  if (hovered === chosen) { // its lines may lead anywhere: out of their way, into the farther upper corner
    tip.style.left = (x < width/2 ? width - w - 8 : 8) + 'px';
    tip.style.top = '8px';
    return;
  }
  const left = x + gap + w <= width ? x + gap : x - gap - w;
  tip.style.left = Math.min(Math.max(0, left), Math.max(0, width - w)) + 'px';
  tip.style.top = Math.min(Math.max(0, y - h/2), Math.max(0, height - h)) + 'px';
}

function hover(i) {
  if (i === hovered) return;
  hovered = i;
  if (i >= 0) $('tip').replaceChildren(tile(i, 4), ...described(i));
  repaint();
}

function described(i) {
  const [title, ...more] = wordsOf(i).map(breakable);
  return [element('strong', title), ...more.map(text => element('div', text))];
}

function choose(i) {
  chosen = i;
  if (i >= 0) {
    const near = neighbors(i), right = near.filter(j => verdict(i, j).kind === 'right').length, lines = described(i);
    if (labels && labels[i] >= 0) lines.push(element('div', `${right} of the ${K} nearest are of its class`));
    if (files && files.root !== null) {
      const link = element('a', served ? 'search from here' : 'open the image');
      link.href = address(i); link.target = served ? '' : '_blank'; link.rel = 'noopener';
      lines.push(element('div', '', link));
    }
    $('query').replaceChildren(tile(i, 4), element('div', '', ...lines));
    $('near').replaceChildren(...near.map((j, rank) => entry(j, rank + 1)));
  }
  panels();
  repaint();
}

function panels() { // which of them stand beside the map
  const asked = query || failing || only !== null;
  $('answer').hidden = chosen < 0;
  $('matches').hidden = chosen >= 0 || !asked;
  $('groups').hidden = chosen >= 0 || !groups.of;
  $('help').hidden = chosen >= 0 || asked;
}

function words() {
  const {name, full, recall} = spaces[space];
  if (labels) $('now').textContent = `R@1: ${full} in the full embedding, ${recall[planes[plane]]} in this plane`;
  $('where').textContent = `Its nearest in the embedding ${name}`;
  for (const td of document.querySelectorAll('td[data-space]'))
    td.classList.toggle('now', +td.dataset.space === space && +td.dataset.plane === plane);
}

function legend() { // the groups, the largest first; pressed, a group stands alone
  const sizes = new Map(), most = 300;
  if (groups.of) for (const g of groups.of) sizes.set(g, (sizes.get(g) ?? 0) + 1);
  const sorted = [...sizes].sort(([g, a], [h, b]) => b - a || g - h);
  $('grouped').textContent = `Colours: ${groups.name}` +
    (sorted.length > most ? `, the largest ${most} of ${sorted.length.toLocaleString('en')}` : '');
  $('legend').replaceChildren(...sorted.slice(0, most).map(([g, size]) => {
    const swatch = element('i'), button = element('button', '', swatch, element('span', breakable(groups.title(g))),
      element('span', size.toLocaleString('en')));
    swatch.style.background = style(groups.colour(g));
    button.type = 'button'; button.dataset.group = g;
    button.onclick = () => { only = only === g ? null : g; sift(); };
    return element('li', '', button);
  }));
}

// What the reader does

function go(places, e = 1, from = at) { // a share e of the way
  for (let j = 0; j < at.length; j++) at[j] = from[j] + e*(places[j]/data.unit - from[j]);
  sort();
}

function fly() {
  const from = at.slice(), to = goal(), start = performance.now(), time = still.matches ? 0 : 900;
  cancelAnimationFrame(flight);
  const step = now => {
    const t = time ? Math.min(1, Math.max(0, (now - start)/time)) : 1;
    go(to, t*t*(3 - 2*t), from);
    flight = t < 1 ? requestAnimationFrame(step) : 0;
    paint();
  };
  flight = requestAnimationFrame(step);
}

function zoom(factor, x = width/2, y = height/2) {
  const k = Math.min(furthest, Math.max(1, view.k*factor)), f = k/view.k;
  move((x - width/2 - view.x)*(1 - f), (y - height/2 - view.y)*(1 - f), k);
}

function move(dx, dy, k = view.k) {
  view.k = k;
  const limit = base()*k;
  view.x = Math.min(limit, Math.max(-limit, view.x + dx));
  view.y = Math.min(limit, Math.max(-limit, view.y + dy));
  repaint();
}

function reveal(i) { // as little as brings it into sight
  const [x, y] = spot(i), edge = 40;
  move(Math.min(0, width - edge - x) + Math.max(0, edge - x), Math.min(0, height - edge - y) + Math.max(0, edge - y));
}

function fit() { view.x = view.y = 0; view.k = 1; repaint(); }

function showAll() {
  query = $('find').value = '';
  only = null; failing = false;
  if ($('failures')) $('failures').checked = false;
  sift();
}

function clear() { // first what is chosen, then what is asked for
  if (chosen < 0 && hovered < 0) return showAll();
  if ($('answer').contains(document.activeElement)) canvas.focus({preventScroll: true}); // its buttons go
  hover(-1);
  choose(-1);
}

const pointers = new Map();
let travelled = 0, reachOf = e => Math.max(0.7*side(), e.pointerType === 'touch' ? 24 : 14);
const place = e => { const box = canvas.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };

canvas.onpointerdown = e => {
  if (!pointers.size) travelled = 0;
  pointers.set(e.pointerId, place(e));
  canvas.setPointerCapture(e.pointerId);
};
canvas.onpointermove = e => {
  const [x, y] = place(e), before = pointers.get(e.pointerId);
  if (!before) return hover(nearestTo(x, y, reachOf(e)));
  travelled += Math.hypot(x - before[0], y - before[1]);
  const other = [...pointers].find(([id]) => id !== e.pointerId);
  pointers.set(e.pointerId, [x, y]);
  if (other) { // two fingers: their middle moves the map, their distance zooms it
    const [ox, oy] = other[1];
    move((x - before[0])/2, (y - before[1])/2);
    zoom(Math.hypot(x - ox, y - oy)/Math.max(1, Math.hypot(before[0] - ox, before[1] - oy)), (x + ox)/2, (y + oy)/2);
  } else if (travelled > 5) { hover(-1); move(x - before[0], y - before[1]); }
};
canvas.onpointerup = e => {
  const alone = pointers.size === 1;
  pointers.delete(e.pointerId);
  if (!alone || travelled > 5) return;
  const i = nearestTo(...place(e), reachOf(e));
  choose(i);
  hover(i);
};
canvas.onpointercancel = e => pointers.delete(e.pointerId);
canvas.onpointerleave = e => { if (e.pointerType === 'mouse') hover(-1); };
canvas.onblur = () => hover(-1);
canvas.addEventListener('wheel', e => {
  e.preventDefault();
  const speed = (e.deltaMode ? 16 : 1)*(e.ctrlKey ? 5 : 1); // deltaMode: lines, not pixels; ctrlKey: a pinch
  zoom(Math.exp(-0.0015*e.deltaY*speed), ...place(e));
}, {passive: false});

function walk(dx, dy) { // to the nearest point in that direction
  const from = hovered >= 0 ? hovered : chosen;
  const [x, y] = from < 0 ? [width/2, height/2] : spot(from);
  let best = -1, least = Infinity;
  for (let i = 0; i < N; i++) {
    if (i === from || !lit[i]) continue;
    const a = spotX(i) - x, b = spotY(i) - y, along = a*dx + b*dy, across = Math.abs(a*dy) + Math.abs(b*dx);
    if (from >= 0 && along <= across) continue;
    const d = Math.hypot(along, 2*across);
    if (d < least) { least = d; best = i; }
  }
  if (best < 0) return;
  hover(best);
  reveal(best);
}

canvas.onkeydown = e => {
  const act = {
    ArrowLeft: () => walk(-1, 0), ArrowRight: () => walk(1, 0), ArrowUp: () => walk(0, -1), ArrowDown: () => walk(0, 1),
    Enter: () => choose(hovered), ' ': () => choose(hovered), '/': () => $('find').focus(),
    '+': () => zoom(1.5), '=': () => zoom(1.5), '-': () => zoom(1/1.5), '0': fit}[e.key];
  if (!act || e.ctrlKey || e.altKey || e.metaKey) return;
  e.preventDefault();
  act();
};
document.addEventListener('keydown', e => { if (e.key === 'Escape') clear(); });
for (const input of document.querySelectorAll('#controls input[type=radio]')) input.onchange = () => {
  if (input.name === 'space') space = +input.value; else plane = +input.value;
  words();
  choose(chosen); // another embedding, other neighbours
  if (failing) sift(); // and other failures
  fly();
};
$('find').oninput = () => { query = $('find').value.trim().toLowerCase(); choose(-1); sift(); };
$('find').onkeydown = e => {
  if (e.key !== 'Enter') return;
  e.preventDefault(); // or it would press what has the focus then
  $('found').querySelector('button')?.click();
};
if (labels) $('failures').onchange = () => { failing = $('failures').checked; choose(-1); sift(); };
$('tint').replaceChildren(...groupings.map((g, i) => new Option(g.of ? `by ${g.name}` : 'of the images', i)));
$('tinting').hidden = groupings.length < 2;
$('tint').onchange = () => {
  groups = groupings[$('tint').value];
  only = null;
  tint();
  legend();
  sift();
};
$('in').onclick = () => zoom(1.5);
$('out').onclick = () => zoom(1/1.5);
$('fit').onclick = fit;
$('clear').onclick = clear;
$('all').onclick = showAll;

go(goal());
tint();
dark.onchange = () => { tint(); legend(); repaint(); };
legend();
words();
panels();
new ResizeObserver(() => {
  const ratio = devicePixelRatio || 1;
  width = canvas.clientWidth; height = canvas.clientHeight;
  canvas.width = Math.round(width*ratio); canvas.height = Math.round(height*ratio);
  raster = pen.createImageData(canvas.width, canvas.height);
  paint(); // at once: a resized canvas is empty
  document.body.dataset.ready = 'yes';
}).observe(canvas);
