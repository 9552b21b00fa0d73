"""Compare MIHash with MinHash, random hyperplanes and plain cosines: which tells near duplicates from others?

    python scripts/mihash_bench.py --corpus=data/raw/manpages-ru,data/raw/manpages-dev-en \
        --encoder=checkpoints/models/e5-small [--versions=docs.jsonl.gz] [--headlines=pairs.jsonl]

Reads:  corpus: documents, whose paragraphs with a Jaccard similarity of at least 0.8 are the pairs to find; versions: texts
        of whose `group` there are several versions (id, text, group); headlines: pairs with a label (text_1, text_2,
        label: 1 says the same); the encoder.
Prints: a table, and as the last line one JSON object. Writes nothing.

Hashes are trained on half of the groups (of versions, of headlines joined by pairs, of paragraphs joined by similarity)
and everything is measured on the other half, for several random halves. Intervals are 95% bootstraps over groups.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasketch
import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from lib import cli, documents, mihash, paragraphs, progress
from lib.errors import UserError

SIZE = 5  # characters in an n-gram
PERMUTATIONS = 128
MINHASH = f"MinHash {PERMUTATIONS}"
BANDS = ((9, 13), (16, 8))  # datasketch's choice for 0.8 with equal weights, and one that favours recall
THRESHOLD = 0.8
LIKE = 0.6  # from here to the threshold a pair of paragraphs is a hard negative
RECALL = 0.99  # of held-out pairs, which a radius is chosen to reach
PRECISION = 0.99
# Wide enough to see the whole curve: bands, a cosine, and a share of the bits as a radius.
WIDE_BANDS = (42, 3)
LEAST_COSINE = 0.6
WIDEST = 0.3
BATCH = 512
HIDDEN = 512
DRAWS = 200
ENCODER_TOKENS = {"versions": 512, "headlines": 64}


class Task(NamedTuple):
    """Texts, the group of each, pairs to be told apart, and which of these are duplicates."""

    texts: list[str]
    groups: np.ndarray
    pairs: np.ndarray
    true: np.ndarray


def main(
    *,
    corpus: list[Path],
    encoder: Path | None = None,
    versions: Path | None = None,
    headlines: Path | None = None,
    bits: list[int] = [64, 128, 256],  # noqa: B006
    num_paragraphs: int = 20_000,
    width: int = 2048,
    steps: int = 150,
    seeds: int = 3,
) -> None:
    """Train hashes and measure what each way of comparing finds.

    Args:
        corpus: files or folders of documents.
        encoder: Hugging Face folder of the multilingual encoder; without it only n-gram features are compared.
        versions: JSON Lines of documents with a `group`.
        headlines: JSON Lines of labelled pairs.
        bits: lengths of codes.
        num_paragraphs: taken from documents of the corpus in random order.
        width: of the hashed n-gram features.
        steps: of training, at least.
        seeds: random halves.
    """
    if any(length < 8 or length % 8 for length in bits):
        raise UserError(f"--bits={','.join(map(str, bits))}: multiples of 8")
    if seeds < 1:
        raise UserError(f"--seeds={seeds}: has to be 1 or more")
    tasks = {"versions": (versions, _versions), "headlines": (headlines, _headlines)}
    table: dict[str, dict[str, dict]] = {}
    for name, (file, read) in tasks.items():
        if file is not None:
            table[name] = _compare(read(file), name, encoder, bits, width, steps, seeds)
    table["paragraphs"] = _compare_paragraphs(_paragraphs(corpus, num_paragraphs), bits, width, steps, seeds)
    for name, rows in table.items():
        print(f"\n{name}\n{_text(rows)}")
    print(json.dumps({"bench": "mihash", "precision": PRECISION, "seeds": seeds, "steps": steps, **table}))


def _versions(file: Path) -> Task:
    """Every pair of documents; those of a group are duplicates."""
    found = [record for _, record in documents.read_json_lines(file)]
    groups = np.unique([record["group"] for record in found], return_inverse=True)[1]
    pairs = np.stack(np.triu_indices(len(found), 1), axis=1)
    return Task([record["text"] for record in found], groups, pairs, groups[pairs[:, 0]] == groups[pairs[:, 1]])


def _headlines(file: Path) -> Task:
    """The labelled pairs; groups are what pairs of any label connect."""
    found = [record for _, record in documents.read_json_lines(file)]
    numbers: dict[str, int] = {}
    pairs = np.array([[numbers.setdefault(record[f"text_{end}"], len(numbers)) for end in "12"] for record in found])
    true = np.array([int(record["label"]) == 1 for record in found])
    distinct = pairs[:, 0] != pairs[:, 1]
    return Task(list(numbers), _connected(pairs, len(numbers)), pairs[distinct], true[distinct])


def _paragraphs(corpus: list[Path], limit: int) -> Task:
    """Distinct normalised paragraphs with their similar pairs, found exhaustively; `true` are those above the threshold."""
    rng = np.random.default_rng(0)
    found = [document["text"] for path in corpus for document in documents.read(path, language="und")]
    texts: dict[str, None] = {}
    for place in rng.permutation(len(found)):
        forms = map(paragraphs.normalise, paragraphs.split(found[place])[0])
        texts |= dict.fromkeys(form for form in forms if len(form) >= 40)
        if len(texts) >= limit:
            break
    pairs, similarities = _similar(list(texts))
    true = similarities >= THRESHOLD
    if true.sum() < 20:
        raise UserError(
            f"{len(texts):,} paragraphs have {true.sum()} similar pairs, too few to compare; give more text"
        )
    return Task(list(texts), _connected(pairs[true], len(texts)), pairs, true)


def _similar(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i < j) with an exact Jaccard similarity of at least `LIKE`, and the similarities.

    Two sets so similar share one of the (1 - LIKE) n + 1 rarest members of each, so joining on those loses none.
    """
    sets = _sets(texts)
    sizes = sets.getnnz(1)
    rarity = np.argsort(np.argsort(sets.getnnz(0), kind="stable"))
    rare = sets.copy()
    rare.data = np.concatenate(
        [
            np.argsort(np.argsort(rarity[sets.indices[begin:end]]))
            <= (end - begin) - np.ceil(LIKE * (end - begin) - 1e-9)
            for begin, end in zip(sets.indptr, sets.indptr[1:], strict=False)
        ]
    ).astype(np.float32)
    rare.eliminate_zeros()
    pairs, similarities = [], []
    for begin in progress.bar(range(0, len(texts), 1000), title="similar", unit="thousand"):
        joined = (rare[begin : begin + 1000] @ rare.T).tocoo()
        left, right = joined.row + begin, joined.col
        fits = (left < right) & (np.minimum(sizes[left], sizes[right]) >= LIKE * np.maximum(sizes[left], sizes[right]))
        for part in np.array_split(np.flatnonzero(fits), fits.sum() // 20_000 + 1):
            one, other = left[part], right[part]
            shared = np.asarray(sets[one].multiply(sets[other]).sum(1)).ravel()
            found = shared / (sizes[one] + sizes[other] - shared)
            pairs.append(np.stack([one, other], axis=1)[found >= LIKE])
            similarities.append(found[found >= LIKE])
    pairs, similarities = np.concatenate(pairs), np.concatenate(similarities)
    order = np.lexsort(pairs.T)  # training depends on it, and a sparse product's order on that of a set
    return pairs[order], similarities[order]


def _sets(texts: list[str]) -> scipy.sparse.csr_matrix:
    """float32 [texts, distinct n-grams] of zeros and ones, the n-grams themselves and no hashes."""
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(gram, len(numbers)) for gram in _grams(text)] for text in texts]
    edges = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((number for row in rows for number in row), dtype=np.int64, count=edges[-1])
    return scipy.sparse.csr_matrix((np.ones(len(columns), dtype=np.float32), columns, edges), (len(rows), len(numbers)))


def _grams(text: str) -> set[str]:
    return {text[place : place + SIZE] for place in range(max(1, len(text) - SIZE + 1))}


def _connected(pairs: np.ndarray, count: int) -> np.ndarray:
    graph = scipy.sparse.csr_matrix((np.ones(len(pairs)), tuple(pairs.T)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _halves(task: Task, seeds: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(seed, rows to train on, rows to test on): a random half of the groups each."""
    count = task.groups.max() + 1
    for seed in range(seeds):
        chosen = np.isin(task.groups, np.random.default_rng(seed).permutation(count)[: count // 2])
        yield seed, np.flatnonzero(chosen), np.flatnonzero(~chosen)


def _within(task: Task, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs of which both ends are among the rows, numbered as they are there; which of them are true)."""
    places = np.full(len(task.texts), -1)
    places[rows] = np.arange(len(rows))
    pairs = places[task.pairs]
    inside = (pairs >= 0).all(1)
    return pairs[inside], task.true[inside]


def _true_pairs(task: Task, rows: np.ndarray) -> np.ndarray:
    pairs, true = _within(task, rows)
    return pairs[true]


def _compare(
    task: Task, name: str, encoder: Path | None, bits: list[int], width: int, steps: int, seeds: int
) -> dict[str, dict]:
    """{method: recall at the precision, average precision}, every pair scored by every method."""
    forms = [paragraphs.normalise(text) for text in task.texts]
    kinds: dict[str, mihash.Features] = {"n-grams": mihash.features(forms, size=SIZE, width=width)}
    if encoder is not None:
        kinds["encoder"] = mihash.encoder_features(task.texts, encoder, max_tokens=ENCODER_TOKENS[name])
    exact = {"exact Jaccard": (_jaccard, _sets(forms)), MINHASH: (_agreement, _signatures(forms))}
    exact |= {f"cosine, {kind}": (_cosine, features) for kind, features in kinds.items()}
    draws = _draws(task.groups)
    measured: dict[str, list[np.ndarray]] = {}
    for seed, train_rows, rows in _halves(task, seeds):
        pairs, true = _within(task, rows)
        scores = {method: _by_pairs(compare, values[rows], pairs) for method, (compare, values) in exact.items()}
        for kind, features in kinds.items():
            for method, hash in _hashes(features[train_rows], *_within(task, train_rows), bits, steps, seed):
                codes = mihash.codes(hash, features[rows])
                scores[f"{method}, {kind}"] = -mihash.distances(codes, pairs)
        weights = _weights(draws, task.groups[rows], pairs)
        for method, found in scores.items():
            measured.setdefault(method, []).append(_curve(found, true, weights))
    return _summary(measured, ("recall", "average_precision"), MINHASH)


def _compare_paragraphs(task: Task, bits: list[int], width: int, steps: int, seeds: int) -> dict[str, dict]:
    """{method: the share of true pairs among its candidates, candidates for a true pair, and the curve's two figures}.

    The curve orders what a wider search finds; a true pair which that misses counts as never found.
    """
    draws = _draws(task.groups)
    measured: dict[str, list[np.ndarray]] = {}
    for seed, train_rows, rows in _halves(task, seeds):
        wanted, groups = _true_pairs(task, rows), task.groups[rows]
        of_wanted = _weights(draws, groups, wanted)
        for method, found, wide, scores in _searched(task, train_rows, rows, bits, width, steps, seed):
            caught = of_wanted[:, _among(wanted, found)].sum(1) / of_wanted.sum(1)
            cost = _weights(draws, groups, found).sum(1) / of_wanted.sum(1)
            every = np.concatenate([wide, wanted[~_among(wanted, wide)]])
            padded = np.concatenate([scores, np.full(len(every) - len(wide), -np.inf)])
            curve = _curve(padded, _among(every, wanted), _weights(draws, groups, every))
            measured.setdefault(method, []).append(np.concatenate([[caught, cost], curve]))
    names = ("candidate_recall", "candidates_per_pair", "recall", "average_precision")
    return _summary(measured, names, "MinHash {} x {}".format(*BANDS[-1]))


def _searched(
    task: Task, train_rows: np.ndarray, rows: np.ndarray, bits: list[int], width: int, steps: int, seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(method, its candidates, pairs found by a wider search, their scores) among the rows to test on."""
    texts = [task.texts[row] for row in rows]
    signed = _signatures(texts)
    wide = _banded(signed, *WIDE_BANDS)
    for bands, length in BANDS:
        yield f"MinHash {bands} x {length}", _banded(signed, bands, length), wide, _by_pairs(_agreement, signed, wide)
    features = mihash.features(task.texts, size=SIZE, width=width)
    # A fifth of the groups that have pairs is for the radius alone.
    paired = np.unique(task.groups[train_rows][_true_pairs(task, train_rows)])
    chosen = np.random.default_rng(seed).permutation(paired)[: -(-len(paired) // 5)]
    held_rows, fit_rows = (train_rows[np.isin(task.groups[train_rows], chosen) == held] for held in (True, False))
    close, cosines = _closest(features[rows])
    held_pairs = _true_pairs(task, held_rows)
    least = np.quantile(_by_pairs(_cosine, features[held_rows], held_pairs), 1 - RECALL, method="lower")
    yield "cosine, n-grams", close[cosines >= least], close, cosines
    for method, hash in _hashes(features[fit_rows], *_within(task, fit_rows), bits, steps, seed):
        codes = mihash.codes(hash, features[rows])
        radius = mihash.radius(hash, features[held_rows], held_pairs, recall=RECALL)
        wide = mihash.candidates(codes, max(radius, int(WIDEST * hash.bits)))
        apart = mihash.distances(codes, wide)
        yield f"{method}, n-grams", wide[apart <= radius], wide, -apart


def _closest(features: scipy.sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """(pairs (i < j) with a cosine of at least `LEAST_COSINE`, their cosines)."""
    pairs, cosines = [], []
    for begin in range(0, features.shape[0], 1000):
        found = (features[begin : begin + 1000] @ features.T).toarray()
        left, right = np.nonzero(np.triu(found >= LEAST_COSINE, begin + 1))
        pairs.append(np.stack([begin + left, right], axis=1))
        cosines.append(found[left, right])
    return np.concatenate(pairs), np.concatenate(cosines)


def _hashes(
    features: mihash.Features, pairs: np.ndarray, true: np.ndarray, bits: list[int], steps: int, seed: int
) -> Iterator[tuple[str, mihash.Hash]]:
    """Random hyperplanes and trained hashes of every length, and a trained one with a hidden layer."""
    positive, negative = pairs[true], pairs[~true]
    if len(negative) > 20 * len(positive):  # all pairs there are: training finds the hard ones among them itself
        negative = None
    more = {"epochs": -(-steps // max(-(-len(positive) // (BATCH // 4)), 1)), "batch": BATCH, "seed": seed}
    for length in bits:
        yield f"hyperplanes {length}", mihash.random_hash(features, bits=length, seed=seed)
        yield f"MIHash {length}", mihash.train(features, positive, negative, bits=length, **more)
    middle = sorted(bits)[len(bits) // 2]
    yield f"MIHash {middle} nonlinear", mihash.train(features, positive, negative, bits=middle, hidden=HIDDEN, **more)


def _signatures(texts: list[str]) -> np.ndarray:
    """[texts, PERMUTATIONS]: datasketch's MinHash of the n-grams."""
    found = []
    for text in progress.bar(texts, title="minhash", unit="texts"):
        signed = datasketch.MinHash(num_perm=PERMUTATIONS)
        signed.update_batch([gram.encode() for gram in _grams(text)])
        found.append(signed.hashvalues)
    return np.stack(found)


def _banded(signed: np.ndarray, bands: int, length: int) -> np.ndarray:
    """int64 [pairs, 2]: sorted pairs (i < j) that agree on all of a band."""
    found = []
    for band in range(bands):
        keys = np.unique(signed[:, band * length : (band + 1) * length], axis=0, return_inverse=True)[1]
        members = scipy.sparse.csr_matrix((np.ones(len(keys), dtype=np.int32), (np.arange(len(keys)), keys)))
        found.append(np.stack(scipy.sparse.triu(members @ members.T, 1).nonzero(), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _by_pairs(compare: Callable, values: np.ndarray | scipy.sparse.csr_matrix, pairs: np.ndarray) -> np.ndarray:
    """[pairs]: `compare` of the two rows of each pair, some thousand at a time."""
    parts = np.array_split(pairs, len(pairs) // 2000 + 1)
    return np.concatenate([compare(values[part[:, 0]], values[part[:, 1]]) for part in parts])


def _jaccard(left: scipy.sparse.csr_matrix, right: scipy.sparse.csr_matrix) -> np.ndarray:
    shared = np.asarray(left.multiply(right).sum(1)).ravel()
    return shared / (left.getnnz(1) + right.getnnz(1) - shared)


def _agreement(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left == right).mean(1)


def _cosine(left: mihash.Features, right: mihash.Features) -> np.ndarray:
    product = left.multiply(right) if scipy.sparse.issparse(left) else left * right
    return np.asarray(product.sum(1)).ravel()


def _among(pairs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[pairs]: whether each is one of the others."""
    return np.isin(*(both[:, 0].astype(np.int64) << 32 | both[:, 1] for both in (pairs, others)))


def _draws(groups: np.ndarray) -> np.ndarray:
    """float32 [1 + DRAWS, groups]: ones, then how often each group is drawn by a bootstrap."""
    count = groups.max() + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float32)


def _weights(draws: np.ndarray, groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """float32 [1 + DRAWS, pairs]: how often a pair is there if its groups are drawn so often."""
    left, right = groups[pairs].T
    return np.where(left == right, draws[:, left], draws[:, left] * draws[:, right])


def _curve(scores: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[2, 1 + DRAWS]: the highest recall at `PRECISION` or more, and the average precision, pairs of equal score together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(weights[:, order] * true[order], axis=1, dtype=np.float64)
    total = hits[:, -1:]
    seen = np.cumsum(weights[:, order], axis=1, dtype=np.float64)[:, ends]
    finite = np.isfinite(scores[order][ends])
    hits, seen = hits[:, ends][:, finite], seen[:, finite]
    precision, recall = hits / np.maximum(seen, 1), hits / np.maximum(total, 1)
    best = np.where((precision >= PRECISION) & (seen > 0), recall, 0).max(1)
    return np.stack([best, (np.diff(recall, axis=1, prepend=0) * precision).sum(1)])


def _summary(measured: dict[str, list[np.ndarray]], names: tuple[str, ...], minhash: str) -> dict[str, dict[str, dict]]:
    """{method: {figure: value, low, high}}: means over the halves with 95% intervals.

    Draws are the same in all halves and for all methods, so differences are paired: `over_minhash` and, for a trained
    hash, `over_hyperplanes` are those of the last figure, the average precision.
    """
    means = {method: np.mean(found, axis=0) for method, found in measured.items()}
    rows = {}
    for method, figures in means.items():
        rows[method] = {name: _interval(figure) for name, figure in zip(names, figures, strict=True)}
        for other, name in ((minhash, "over_minhash"), (method.replace("MIHash", "hyperplanes"), "over_hyperplanes")):
            if other in means and other != method and method.startswith(("MIHash", "hyperplanes")):
                rows[method][name] = _interval(figures[-1] - means[other][-1])
    return rows


def _interval(figure: np.ndarray) -> dict[str, float]:
    """Of [1 + DRAWS]: the measured value first."""
    low, high = np.percentile(figure[1:], [2.5, 97.5])
    return {"value": round(float(figure[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _text(rows: dict[str, dict[str, dict]]) -> str:
    """A line a method; its figures with their intervals."""
    names = max(rows.values(), key=len)
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name.replace('_', ' '):>28}" for name in names)]
    for method, figures in rows.items():
        cells = [f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})" for cell in figures.values()]
        lines.append(f"{method:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
