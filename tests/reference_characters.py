"Slow twins of plm.characters: one pixel and one drawing at a time, in exact fractions."
import io, zipfile
from fractions import Fraction
from math import floor
from PIL import Image


def shrink_slowly(image, size):
    "Area average of one square image (a list of rows of ints): overlap by overlap, rounded half up."
    side = len(image)
    def overlap(new, old): # of two pixels along one axis, as a share of the image's side
        start = max(Fraction(new, size), Fraction(old, side))
        end = min(Fraction(new + 1, size), Fraction(old + 1, side))
        return max(Fraction(0), end - start)
    def ink(row, column):
        return sum(overlap(row, i)*overlap(column, k)*image[i][k] for i in range(side) for k in range(side))
    return [[floor(ink(r, c)*size**2 + Fraction(1, 2)) for c in range(size)] for r in range(size)]


def read_slowly(path):
    "Every drawing of an archive as {member name: rows of 0 or 255}, ink 255."
    found = {}
    with zipfile.ZipFile(path) as z:
        for member in z.namelist():
            if not member.endswith('.png'): continue
            picture = Image.open(io.BytesIO(z.read(member))).convert('L')
            found[member] = [[255 - picture.getpixel((x, y)) for x in range(picture.width)]
                             for y in range(picture.height)]
    return found
