"Slow twins of plm.map, each formula as it is written down, and what its page holds."
import base64, io, json, math, re
import numpy as np
from PIL import Image


def pca(z):
    """The two eigenvectors of the covariance with the largest eigenvalues: distances of the projected points, and the
    share of variance of each."""
    z = z - z.mean(0)
    values, vectors = np.linalg.eigh(z.T @ z)
    return distances(z @ vectors[:, :-3:-1]), values[:-3:-1]/values.sum()


def distances(x):
    return np.array([[math.dist(a, b) for b in x] for a in x])


def trustworthiness(z, xy, k):
    """1 − 2/(n k (2n − 3k − 1)) Σ_i Σ over the k neighbours j on the map of max(0, rank of j in truth − k)
    (Venna and Kaski 2001)."""
    n, total = len(z), 0
    true, shown = distances(z), distances(xy)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        rank = {j: r + 1 for r, j in enumerate(sorted(others, key=lambda j: true[i, j]))}
        total += sum(max(0, rank[j] - k) for j in sorted(others, key=lambda j: shown[i, j])[:k])
    return 1 - 2*total/(n*k*(2*n - 3*k - 1))


def nearest_is_right(xy, labels):
    d = distances(xy) + np.diag([math.inf]*len(xy))
    return sum(labels[i] == labels[d[i].argmin()] for i in range(len(xy)))/len(xy)


def best_turn(xy, to, steps=3600):
    "The least sum of squares over all turns, mirrored or not, of two centred maps."
    least = math.inf
    for mirror in (1, -1):
        for angle in np.arange(steps)*2*math.pi/steps:
            c, s = math.cos(angle), math.sin(angle)
            least = min(least, ((xy*[1, mirror] @ np.array([[c, s], [-s, c]]) - to)**2).sum())
    return least


def content(page):
    html = page.read_text(encoding='utf-8')
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S).group(1))


def numbers(packed): # of a typed array
    return np.frombuffer(base64.b64decode(packed[1]), packed[0].removesuffix('Array').lower())


def cells(page):
    "Each image as the page has it, in a sheet."
    data, html = content(page), page.read_text(encoding='utf-8')
    (w, h), (cw, ch), across, down = (data['sheet'][k] for k in ('size', 'cell', 'across', 'down'))
    urls = re.findall(r'<script type="text/plain" class="sheet">data:image/(\w+);base64,([^<]+)<', html)
    sheets = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for _, text in urls]
    def cut(slot):
        place = slot % (across*down)
        y, x = place//across*ch, place % across*cw
        return sheets[slot//(across*down)][y:y + h, x:x + w]
    return urls[0][0], [cut(slot) for slot in numbers(data['slots']).tolist()]
