'use strict';
// each photo is stored once, however often the page shows it
const photos = JSON.parse(document.getElementById('data').textContent);
for (const img of document.querySelectorAll('img[data-photo]')) img.src = photos[img.dataset.photo];
