'use strict';
const $ = id => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const {labels, names, planes, spaces, columns, size: [W, H]} = data;
const N = labels.length, K = spaces[0].neighbors.length/N;
const canvas = $('map'), pen = canvas.getContext('2d'), sprite = $('sprite');
const dark = matchMedia('(prefers-color-scheme: dark)'), still = matchMedia('(prefers-reduced-motion: reduce)');
const view = {k: 1, x: 0, y: 0}; // zoom, and where the map's middle lies: pixels from the canvas's middle
let space = 0, plane = 0, hovered = -1, chosen = -1;
let width = 1, height = 1, inked = sprite, colours = [], painting = 0, flight = 0;

// Where the points are

const goal = () => spaces[space].maps[planes[plane]].map(v => v/data.unit);
const at = Float32Array.from(goal());
const base = () => Math.min(width, height)/2 - 18;
const spot = i => [width/2 + view.x + at[2*i]*base()*view.k, height/2 + view.y - at[2*i + 1]*base()*view.k];
const side = () => Math.min(64, Math.min(40, Math.max(9, 2.3*base()/Math.sqrt(N)))*view.k**0.6);
const neighbors = i => i < 0 ? [] : spaces[space].neighbors.slice(i*K, i*K + K);
const breakable = name => name.replace(/[_/]/g, '$&\u200b'); // a long name may go on in the next line after these
const className = i => 'class ' + (names ? breakable(names[labels[i]]) : labels[i]);

function nearestTo(x, y, reach) {
  let best = -1, least = reach*reach;
  for (let i = 0; i < N; i++) {
    const [a, b] = spot(i), d = (a - x)**2 + (b - y)**2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}

// Painting

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const cell = i => [i % columns*W, Math.floor(i/columns)*H];

function ink() { // images without colour: the strokes in the colour of the class, the ground transparent
  const last = Math.max(...labels);
  const [saturation, lightness] = dark.matches ? [75, [62, 74, 68]] : [80, [34, 44, 27]];
  colours = Array.from({length: last + 1}, (_, c) => {
    pen.fillStyle = `hsl(${c*137.508 % 360} ${saturation}% ${lightness[c % 3]}%)`;
    return pen.fillStyle; // as #rrggbb
  });
  if (!data.ink) return;
  inked = document.createElement('canvas');
  inked.width = sprite.naturalWidth; inked.height = sprite.naturalHeight;
  const brush = inked.getContext('2d');
  brush.drawImage(sprite, 0, 0);
  const picture = brush.getImageData(0, 0, inked.width, inked.height), p = picture.data;
  for (let i = 0; i < N; i++) {
    const [left, top] = cell(i), rgb = [1, 3, 5].map(j => parseInt(colours[labels[i]].slice(j, j + 2), 16));
    for (let y = top; y < top + H; y++) for (let x = left; x < left + W; x++) {
      const o = 4*(y*inked.width + x), v = data.ink === 'light' ? p[o] : 255 - p[o];
      [p[o], p[o + 1], p[o + 2]] = rgb;
      p[o + 3] = 1.7*(v - 36); // the array clamps to 0..255; faint grounds vanish
    }
  }
  brush.putImageData(picture, 0, 0);
}

function stamp(i, s) {
  const [x, y] = spot(i), w = s*W/Math.max(W, H), h = s*H/Math.max(W, H);
  if (x < -s || y < -s || x > width + s || y > height + s) return;
  pen.drawImage(inked, ...cell(i), W, H, x - w/2, y - h/2, w, h);
  if (!data.ink) { pen.strokeStyle = colours[labels[i]]; pen.lineWidth = 1.5; pen.strokeRect(x - w/2, y - h/2, w, h); }
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

function paint() {
  painting = 0;
  const ratio = devicePixelRatio || 1, s = side(), near = neighbors(chosen), big = Math.max(22, 1.25*s);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const kin = chosen >= 0 ? labels[chosen] : hovered >= 0 ? labels[hovered] : -1;
  pen.globalAlpha = chosen >= 0 ? 0.22 : 1;
  for (let i = 0; i < N; i++) if (labels[i] !== kin) stamp(i, s);
  for (let i = 0; i < N; i++) if (labels[i] === kin) { // the rest of the class: on top, on a disc of its colour
    const [x, y] = spot(i);
    pen.globalAlpha = 0.22; pen.fillStyle = colours[kin];
    pen.beginPath(); pen.arc(x, y, 0.75*s, 0, 7); pen.fill();
    pen.globalAlpha = 1; stamp(i, s);
  }
  pen.globalAlpha = 1;
  for (const j of near) {
    const right = labels[j] === labels[chosen];
    pen.strokeStyle = css(right ? '--right' : '--wrong'); pen.lineWidth = 1.5; pen.setLineDash(right ? [] : [5, 4]);
    pen.beginPath(); pen.moveTo(...spot(chosen)); pen.lineTo(...spot(j)); pen.stroke();
  }
  pen.setLineDash([]);
  for (const j of [...near].reverse()) {
    const right = labels[j] === labels[chosen];
    frame(j, big, css(right ? '--right' : '--wrong'), right ? [] : [5, 3], right ? '✓' : '✗');
  }
  if (chosen >= 0) frame(chosen, 1.2*big, css('--ink'), [], '');
  if (hovered >= 0 && hovered !== chosen) frame(hovered, big, css('--on'), [], '');
  placeTip();
}

function repaint() { painting = painting || requestAnimationFrame(paint); }

// The words beside the map

function tile(i, pixels) {
  const c = document.createElement('canvas');
  c.className = data.ink ? 'tile' : 'tile photo'; c.width = W*pixels; c.height = H*pixels;
  c.setAttribute('role', 'img'); c.setAttribute('aria-label', 'image ' + i);
  const brush = c.getContext('2d');
  brush.imageSmoothingEnabled = !data.ink; // strokes stay crisp, photographs smooth
  brush.drawImage(sprite, ...cell(i), W, H, 0, 0, c.width, c.height);
  return c;
}

function element(tag, text, ...children) {
  const e = document.createElement(tag);
  if (text) e.textContent = text;
  e.append(...children);
  return e;
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
  tip.style.left = Math.min(Math.max(0, x + gap + w <= width ? x + gap : x - gap - w), Math.max(0, width - w)) + 'px';
  tip.style.top = Math.min(Math.max(0, y - h/2), Math.max(0, height - h)) + 'px';
}

function hover(i) {
  if (i === hovered) return;
  hovered = i;
  if (i >= 0) $('tip').replaceChildren(tile(i, 4), element('strong', className(i)), element('div', 'image ' + i));
  repaint();
}

function choose(i) {
  chosen = i;
  const near = neighbors(i), right = near.filter(j => labels[j] === labels[i]).length;
  $('help').hidden = i >= 0;
  $('answer').hidden = i < 0;
  if (i >= 0) {
    $('query').replaceChildren(tile(i, 4), element('div', '', element('strong', className(i)),
      element('div', 'image ' + i), element('div', `${right} of the ${K} nearest are of its class`)));
    $('near').replaceChildren(...near.map((j, rank) => {
      const good = labels[j] === labels[i];
      const button = element('button', '', tile(j, 3), element('b', good ? '✓ ' : '✗ '), element('span', className(j)));
      button.type = 'button'; button.className = good ? 'right' : 'wrong'; button.dataset.image = j;
      button.setAttribute('aria-label',
        `neighbour ${rank + 1}: ${good ? 'right' : 'wrong'}, ${className(j)}, image ${j}`);
      button.onclick = e => { // by key (no click count), the next press goes on from there
        hover(-1); choose(j);
        if (!e.detail) $('near').querySelector('button').focus();
      };
      button.onmouseenter = button.onfocus = () => hover(j);
      button.onmouseleave = button.onblur = () => hover(-1);
      return element('li', '', button);
    }));
  }
  repaint();
}

function words() {
  const {name, full, recall} = spaces[space];
  $('now').textContent = `R@1: ${full} in the full embedding, ${recall[planes[plane]]} in this plane`;
  $('where').textContent = `Its nearest in the embedding ${name}`;
  for (const td of document.querySelectorAll('td[data-space]'))
    td.classList.toggle('now', +td.dataset.space === space && +td.dataset.plane === plane);
}

// What the reader does

function fly() {
  const from = at.slice(), to = goal(), start = performance.now(), time = still.matches ? 0 : 900;
  cancelAnimationFrame(flight);
  const step = now => {
    const t = time ? Math.min(1, Math.max(0, (now - start)/time)) : 1, e = t*t*(3 - 2*t);
    for (let j = 0; j < at.length; j++) at[j] = from[j] + e*(to[j] - from[j]);
    flight = t < 1 ? requestAnimationFrame(step) : 0;
    paint();
  };
  flight = requestAnimationFrame(step);
}

function zoom(factor, x = width/2, y = height/2) {
  const k = Math.min(60, Math.max(1, view.k*factor)), f = k/view.k;
  move((x - width/2 - view.x)*(1 - f), (y - height/2 - view.y)*(1 - f), k);
}

function move(dx, dy, k = view.k) {
  view.k = k;
  const limit = base()*k;
  view.x = Math.min(limit, Math.max(-limit, view.x + dx));
  view.y = Math.min(limit, Math.max(-limit, view.y + dy));
  repaint();
}

function fit() { view.x = view.y = 0; view.k = 1; repaint(); }

function clear() {
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
    if (i === from) continue;
    const [a, b] = spot(i), along = (a - x)*dx + (b - y)*dy, across = Math.abs((a - x)*dy) + Math.abs((b - y)*dx);
    if (from >= 0 && along <= across) continue;
    const d = Math.hypot(along, 2*across);
    if (d < least) { least = d; best = i; }
  }
  if (best < 0) return;
  hover(best);
  const [a, b] = spot(best), edge = 40;
  move(Math.min(0, width - edge - a) + Math.max(0, edge - a), Math.min(0, height - edge - b) + Math.max(0, edge - b));
}

canvas.onkeydown = e => {
  const act = {
    ArrowLeft: () => walk(-1, 0), ArrowRight: () => walk(1, 0), ArrowUp: () => walk(0, -1), ArrowDown: () => walk(0, 1),
    Enter: () => choose(hovered), ' ': () => choose(hovered),
    '+': () => zoom(1.5), '=': () => zoom(1.5), '-': () => zoom(1/1.5), '0': fit}[e.key];
  if (!act || e.ctrlKey || e.altKey || e.metaKey) return;
  e.preventDefault();
  act();
};
document.addEventListener('keydown', e => { if (e.key === 'Escape') clear(); });
for (const input of document.querySelectorAll('#controls input')) input.onchange = () => {
  if (input.name === 'space') space = +input.value; else plane = +input.value;
  words();
  choose(chosen); // another embedding, other neighbours
  fly();
};
$('in').onclick = () => zoom(1.5);
$('out').onclick = () => zoom(1/1.5);
$('fit').onclick = fit;
$('clear').onclick = clear;

sprite.decode().then(() => {
  ink();
  dark.onchange = () => { ink(); repaint(); };
  new ResizeObserver(() => {
    const ratio = devicePixelRatio || 1;
    width = canvas.clientWidth; height = canvas.clientHeight;
    canvas.width = Math.round(width*ratio); canvas.height = Math.round(height*ratio);
    paint(); // at once: a resized canvas is empty
  }).observe(canvas);
  words();
  choose(-1);
  document.body.dataset.ready = 'yes';
});
