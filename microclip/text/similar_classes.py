"""Classes whose descriptions say nearly the same, by the words they use or by their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse

from microclip.text.prompts import readable
from microclip.text.sentences import words


@dataclass(frozen=True)
class Pair:
    """Two classes, and the cosine of what stands for their descriptions."""

    first: str
    second: str
    cosine: float


def word_cosines(
    sentences: Mapping[str, Sequence[str]],
) -> Float[np.ndarray, "classes classes"]:
    """Return the cosines of classes by their words, each weighted by how few classes use it.

    A class's own name is left out of its words: sentences made by one pattern for many names would
    otherwise look different. Weights: count times log(1 + classes / classes that use the word).
    """
    # By hand: scikit-learn's TfidfTransformer knows log(n / users) + 1 and its smoothed form only,
    # and reports of earlier runs hold cosines of this weight.
    names = list(sentences)
    numbers: dict[str, int] = {}
    rows, columns = [], []
    for row, name in enumerate(names):
        own = set(words(readable(name)))
        for word in (w for sentence in sentences[name] for w in words(sentence)):
            if word not in own:
                rows.append(row)
                columns.append(numbers.setdefault(word, len(numbers)))
    shape = (len(names), max(len(numbers), 1))
    counts = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
    users = np.maximum((counts > 0).sum(axis=0).A1, 1)
    weighted = counts.multiply(np.log1p(len(names) / users)[None, :]).tocsr()
    lengths = np.sqrt(weighted.multiply(weighted).sum(axis=1).A1)
    unit = sparse.diags(1 / np.where(lengths == 0, 1, lengths)) @ weighted
    cosines: Float[np.ndarray, "classes classes"] = (unit @ unit.T).toarray()
    return cosines


def pairs_above(
    cosines: Float[np.ndarray, "classes classes"], names: Sequence[str], least: float
) -> list[Pair]:
    """Return the pairs of classes at least so similar, the most similar first."""
    above = np.argwhere(np.triu(cosines >= least, k=1))
    found = [Pair(names[i], names[j], float(cosines[i, j])) for i, j in above]
    return sorted(found, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def most_similar(cosines: Float[np.ndarray, "classes classes"], names: Sequence[str]) -> Pair:
    """Return the most similar pair of two classes or more."""
    upper = np.where(np.triu(np.ones_like(cosines, dtype=bool), k=1), cosines, -np.inf)
    i, j = divmod(int(np.argmax(upper)), len(names))
    return Pair(names[i], names[j], float(cosines[i, j]))
