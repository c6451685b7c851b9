"Decoding and writing of photos in the plainest way: the filter as sums over pixels, all pairs for duplicates."
import numpy as np


def resize_slowly(image, side):
    """(h, w, 3) to (3, side, side), float64: the central square, each new pixel the mean of old ones under a triangle.

    The triangle is two new pixels wide, but never narrower than two old ones."""
    h, w = image.shape[:2]
    square = min(h, w)
    scale = square/side # old pixels per new pixel

    def weights(length):
        rows = np.zeros((side, length))
        for new in range(side):
            centre = (length - square)/2 + (new + 0.5)*scale
            for old in range(length):
                rows[new, old] = max(0, 1 - abs(old + 0.5 - centre)/max(scale, 1))
            rows[new] /= rows[new].sum()
        return rows

    down, across = weights(h), weights(w)
    return np.stack([down @ image[:, :, c].astype(np.float64) @ across.T for c in range(3)])


def unique_slowly(images):
    "Indices of the images that no earlier one equals; None stands for a skipped file."
    kept = []
    for i, image in enumerate(images):
        if image is not None and not any(np.array_equal(image, images[j]) for j in kept): kept.append(i)
    return kept
