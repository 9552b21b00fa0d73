"""Rows for a new vocabulary out of an old model's: every method is a sparse matrix of weights, new tokens x old tokens.

The rows are that matrix times the old embedding (or LM head). Tokens that both vocabularies have keep their row under every
method; the methods differ in what a token that is new is made of.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from transformers import PreTrainedTokenizerFast

from lib import progress, vocabulary
from lib.errors import UserError

Method = Literal["mean", "mean_weighted", "first_last", "focus", "omp", "random"]
BY_SIMILARITY = ("focus", "omp")

SPACE_WEIGHT = 0.5  # bytes that a piece of white space counts for in mean_weighted: it says little, but not nothing
ATOMS = 16  # shared tokens that omp combines; its authors take 64 in spaces of thousands of dimensions, ours has 300
DIMENSIONS = 300  # of the auxiliary vectors, fastText's and FOCUS's choice
EPOCHS = 3  # FOCUS's
SEEN_ENOUGH = 10  # occurrences from which an auxiliary vector says something; FOCUS's minimum count
_AT_ONCE = 1024  # tokens compared with all shared ones at a time
_COLUMNS = 512  # of the old matrix in single precision at a time


def combinations(
    method: Method,
    pieces: Sequence[Sequence[int]],
    new: Sequence[int],
    old_surfaces: Sequence[bytes | None],
    *,
    tied: bool,
    shared: dict[int, int] | None = None,
    vectors: dict[int, np.ndarray] | None = None,
) -> tuple[csr_array, csr_array]:
    """Weights of the old rows in each new one, (new tokens x old tokens), for the input embedding and for the LM head.

    `mean`: all pieces alike (the paper's section 3.2; Hewitt 2021). `mean_weighted`: by their bytes, white space hardly at all.
    `first_last`: a token is read as its last piece, where a causal model knows it all, and predicted as its first, which is
    what the old head predicts; a tied matrix, which has to be both, gets their mean. `focus` (Dobler and de Melo 2023): shared
    tokens by sparsemax of their cosine similarity. `omp` (Goddard and Fernandes Neto 2025): orthogonal matching pursuit of
    shared tokens. These two look in the space of `vectors`, and take the mean where a token has no vector.

    Args:
        method: `random` is given the mean's weights; `random_rows` goes over them.
        pieces: old ids of each new token, in its order.
        new: the new tokens that the method is for; the others are the mean of their pieces (one piece: a copy).
        old_surfaces: bytes of the old tokens.
        tied: whether one matrix is both.
        shared: for focus and omp, the old id of each new token that is a copy.
        vectors: for focus and omp, auxiliary vectors by new token.
    """
    size = len(old_surfaces)
    average = _rows({token: _even(found) for token, found in enumerate(pieces)}, len(pieces), size)
    if method == "first_last":
        last = {token: {pieces[token][-1]: 1.0} for token in new}
        first = {token: {pieces[token][0]: 1.0} for token in new}
        ends = [_replaced(average, chosen, size) for chosen in (last, first)]
        return ((ends[0] + ends[1]) * 0.5,) * 2 if tied else tuple(ends)
    if method == "mean_weighted":
        chosen = {token: _by_length(pieces[token], old_surfaces) for token in new}
    elif method in BY_SIMILARITY:
        chosen = _by_similarity(method, [token for token in new if token in vectors], shared, vectors)
    else:
        chosen = {}
    return (_replaced(average, chosen, size),) * 2


def apply(weights: csr_array, old: torch.Tensor, rows: int) -> torch.Tensor:
    """The new matrix (rows x hidden, of the old one's type): `weights` times the old rows, then rows of zeros as padding.

    Sums are taken in single precision, a few hundred columns at a time, so little more than the result is held.
    """
    new = torch.zeros(rows, old.shape[1], dtype=old.dtype)
    for begin in range(0, old.shape[1], _COLUMNS):
        columns = slice(begin, begin + _COLUMNS)
        product = weights @ old[: weights.shape[1], columns].float().numpy()
        new[: weights.shape[0], columns] = torch.from_numpy(product).to(old.dtype)
    return new


def random_rows(matrix: torch.Tensor, new: Sequence[int], old: torch.Tensor, seed: int) -> None:
    """Overwrite rows by draws from a normal distribution with the old rows' mean and deviation in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    reference = old.float()
    drawn = torch.randn(len(new), old.shape[1], generator=generator) * reference.std(0) + reference.mean(0)
    matrix[list(new)] = drawn.to(matrix.dtype)


def match_norms(matrix: torch.Tensor, new: Sequence[int], pieces: Sequence[Sequence[int]], old: torch.Tensor) -> None:
    """Give each row the mean norm of its pieces' old rows: a mean of rows that point apart is shorter than they are."""
    norms = row_norms(old)
    wanted = torch.stack([norms[list(pieces[token])].mean() for token in new])
    places = list(new)
    found = matrix[places].float()
    matrix[places] = (found * (wanted / found.norm(dim=1).clamp_min(1e-12))[:, None]).to(matrix.dtype)


def row_norms(matrix: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each row, single precision, without a copy of the matrix in it."""
    return torch.cat([part.float().norm(dim=1) for part in matrix.split(8192)])


def token_vectors(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, threads: int, seed: int
) -> dict[int, np.ndarray]:
    """Skip-gram vectors with subwords (fastText; unit length) of the tokens that occur often enough, by id, as FOCUS has them.

    One thread gives the same vectors every time; several are faster.

    Raises:
        UserError: no token occurs often enough.
    """
    from gensim.models import FastText  # here: it takes a second to import, and two methods need it

    surfaces = vocabulary.surfaces(tokenizer)
    names = [
        f"<{token}>" if surface is None else surface.decode(errors="replace").replace(" ", vocabulary.SPACE)
        for token, surface in enumerate(surfaces)
    ]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    sentences = []
    for begin in range(0, len(lines), 10_000):
        encoded = tokenizer(lines[begin : begin + 10_000], add_special_tokens=False)["input_ids"]
        sentences += [[names[token] for token in ids] for ids in encoded]
    progress.say(f"init: training vectors on {sum(map(len, sentences)):,} tokens, {EPOCHS} epochs")
    try:
        model = FastText(
            sentences,
            vector_size=DIMENSIONS,
            sg=1,
            epochs=EPOCHS,
            min_count=SEEN_ENOUGH,
            bucket=100_000,
            workers=threads,
            seed=seed,
        )
    except RuntimeError:
        raise UserError(f"no token occurs {SEEN_ENOUGH} times in the text: too little to train vectors on") from None
    known = model.wv.key_to_index
    counted = {token: model.wv[name] for token, name in enumerate(names) if name in known and "\ufffd" not in name}
    return {token: vector / np.linalg.norm(vector) for token, vector in counted.items()}


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """Rows projected onto the probability simplex (Martins and Astudillo 2016): like softmax, most weights exactly 0.

    Args:
        scores: (rows x choices).
    """
    ordered = scores.sort(dim=1, descending=True).values
    sums = ordered.cumsum(1)
    ranks = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
    support = (1 + ranks * ordered > sums).sum(1, keepdim=True)
    threshold = (sums.gather(1, support - 1) - 1) / support
    return (scores - threshold).clamp_min(0)


def matching_pursuit(targets: torch.Tensor, atoms: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthogonal matching pursuit (Pati et al. 1993), many targets at once.

    Each step takes the atom that the residual has most in common with, and solves for the coefficients of all taken anew.

    Args:
        targets: (targets x dimensions).
        atoms: (atoms x dimensions), of unit length.
        count: atoms to take, at most as many as dimensions.

    Returns:
        Places of the atoms and their coefficients, both (targets x count).
    """
    count = min(count, *atoms.shape)
    residual = targets
    chosen = torch.empty(len(targets), 0, dtype=torch.long)
    coefficients = torch.empty(len(targets), 0)
    for _ in range(count):
        alike = (residual @ atoms.T).abs()
        chosen = torch.cat([chosen, alike.scatter(1, chosen, -1.0).argmax(1, keepdim=True)], dim=1)
        basis = atoms[chosen]  # targets x taken x dimensions
        gram = basis @ basis.mT + 1e-6 * torch.eye(chosen.shape[1])
        coefficients = torch.linalg.solve(gram, (basis @ targets[:, :, None]))[:, :, 0]
        residual = targets - (coefficients[:, None] @ basis)[:, 0]
    return chosen, coefficients


def _by_similarity(
    method: Method, wanted: list[int], shared: dict[int, int], vectors: dict[int, np.ndarray]
) -> dict[int, dict[int, float]]:
    known = [token for token in shared if token in vectors]
    if not known:
        raise UserError("no shared token occurs often enough in the text to compare new ones with; take method mean")
    atoms = torch.from_numpy(np.stack([vectors[token] for token in known]))
    old = np.array([shared[token] for token in known])
    chosen: dict[int, dict[int, float]] = {}
    bar = progress.bar(total=len(wanted), title=f"init: {method}", unit="token")
    for begin in range(0, len(wanted), _AT_ONCE):
        batch = wanted[begin : begin + _AT_ONCE]
        targets = torch.from_numpy(np.stack([vectors[token] for token in batch]))
        if method == "focus":
            weights = sparsemax(targets @ atoms.T).numpy()
            for token, row in zip(batch, weights, strict=True):
                support = row.nonzero()[0]
                chosen[token] = dict(zip(old[support].tolist(), row[support].tolist(), strict=True))
        else:
            places, coefficients = matching_pursuit(targets, atoms, ATOMS)
            for token, row, values in zip(batch, old[places.numpy()].tolist(), coefficients.tolist(), strict=True):
                chosen[token] = dict(zip(row, values, strict=True))
        bar.update(len(batch))
    bar.close()
    return chosen


def _even(found: Sequence[int]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for piece in found:
        weights[piece] = weights.get(piece, 0.0) + 1 / len(found)
    return weights


def _by_length(found: Sequence[int], surfaces: Sequence[bytes | None]) -> dict[int, float]:
    lengths = [len((surfaces[piece] or b"").strip()) or SPACE_WEIGHT for piece in found]
    weights: dict[int, float] = {}
    for piece, length in zip(found, lengths, strict=True):
        weights[piece] = weights.get(piece, 0.0) + length / sum(lengths)
    return weights


def _rows(weights: dict[int, dict[int, float]], rows: int, columns: int) -> csr_array:
    """A sparse matrix from a {column: value} for each row."""
    counts = np.zeros(rows + 1, dtype=np.int64)
    for row, found in weights.items():
        counts[row + 1] = len(found)
    order = sorted(weights)
    places = np.fromiter((column for row in order for column in weights[row]), dtype=np.int64)
    values = np.fromiter((value for row in order for value in weights[row].values()), dtype=np.float32)
    return csr_array((values, places, counts.cumsum()), shape=(rows, columns))


def _replaced(average: csr_array, chosen: dict[int, dict[int, float]], columns: int) -> csr_array:
    """`average` with the rows of `chosen` in place of its own."""
    if not chosen:
        return average
    keep = np.ones(average.shape[0], dtype=np.float32)
    keep[list(chosen)] = 0
    kept = average.multiply(keep[:, None]).tocsr()
    kept.eliminate_zeros()
    return kept + _rows(chosen, average.shape[0], columns)
