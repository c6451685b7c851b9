"The plain form of plm.copies: one photo after the other, every leader looked at."
import numpy as np


def leaders(order, distance):
    "The leader of each row: the nearest of those before it, best first, that lead; none within reach: the row itself."
    leader, leads = {}, []
    for row in order:
        near = min(leads, key=lambda lead: distance(row, lead), default=None)
        if near is None or distance(row, near) == np.inf:
            leads.append(row)
            near = row
        leader[row] = near
    return leader


def near_duplicates(hashes, z, sizes, reach):
    "{kind: {row: its leader}} for all rows that are looked at."
    def bits(i, j): return (np.unpackbits(hashes[i]) != np.unpackbits(hashes[j])).sum()
    def apart(i, j): return np.linalg.norm(z[i].astype(float) - z[j])
    def as_copies(i, j):
        copy = bits(i, j) <= reach.alone or (
            z is not None and bits(i, j) <= reach.bits and apart(i, j) <= reach.copy)
        return bits(i, j) if copy else np.inf
    def as_scene(i, j): return apart(i, j) if apart(i, j) <= reach.scene else np.inf
    order = sorted(range(len(hashes)), key=lambda i: (-int(sizes[i][0])*int(sizes[i][1]), -int(sizes[i][2]), i))
    found = {'copy': leaders(order, as_copies)}
    if z is not None:
        found['same scene'] = leaders([i for i in order if found['copy'][i] == i], as_scene)
    return found
