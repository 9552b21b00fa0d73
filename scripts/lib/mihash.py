"""MIHash: a learned Hamming hash (Cakir, He, Bargal, Sclaroff, "MIHash: Online Hashing with Mutual Information", ICCV 2017).

A text becomes a vector, the vector a code of `bits` signs, and near duplicates are looked for among the codes within a
Hamming radius. The hash is trained to maximise, for each anchor, the mutual information between the Hamming distance D
to another text and the indicator C of its being a neighbour: I(D; C) = H(D) - H(D | C). Signs are relaxed by tanh, which
makes distances real numbers; a histogram whose bins are triangles is differentiable in them. Ours beside the paper: an
offset for each bit, Adam, and hard negatives found in training.
Candidates are only candidates: the caller verifies them by exact Jaccard similarity, as it does those of MinHash.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import scipy.sparse
import torch
import transformers

from lib import models, progress
from lib.errors import UserError

Features = scipy.sparse.csr_matrix | np.ndarray

BLOCK_CHARACTERS = 1 << 20  # hashed at once
BLOCK_TEXTS = 1 << 14
HASH_BITS = 40  # of an n-gram's hash that tell n-grams of a block apart; the other 24 bits of a key number the texts
PREFIX = "query: "  # multilingual-e5 was trained with it for symmetric tasks
FLAT = 200_000  # codes up to which every pair is compared: 13 s of one core at 128 bits
QUERIES = 1024  # codes searched at once
MULTI_HASH_FLIPS = 2  # more bit flips in a table than this cost more than they save
LISTS_PER_ROOT = 4  # inverted lists of a large index: this times the root of the number of codes
PROBED = 1 / 16  # share of the lists that is searched
NEAREST = 8  # codes looked at in search of a hard negative
SHARPNESS = 1.0  # of tanh, for projections of standard deviation 1 at the start
TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Hash:
    """Layers of (weight [inputs, outputs], offset [outputs]), tanh between them; a bit is the last one's sign."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def bits(self) -> int:
        """The length of a code."""
        return self.layers[-1][0].shape[1]


def features(texts: Sequence[str], *, size: int, width: int) -> scipy.sparse.csr_matrix:
    """float32 [texts, width]: the set of a text's character n-grams by signed feature hashing, of norm 1.

    Weinberger et al. 2009: an n-gram's hash gives its column and its sign, so inner products are right on average. A text
    shorter than `size` is a row of zeros.

    Args:
        texts: normalised texts.
        size: characters in an n-gram.
        width: columns, a power of two of at most 2^32.
    """
    if width < 1 or width & (width - 1) or width > 1 << 32:
        raise ValueError(f"width={width}: not a power of two of at most 2^32")
    rows = [_hashed(block, size, width) for block in _blocks(texts)]
    return scipy.sparse.vstack(rows, format="csr") if rows else scipy.sparse.csr_matrix((0, width), dtype=np.float32)


@torch.no_grad()
def encoder_features(
    texts: Sequence[str], encoder: Path, *, max_tokens: int = 128, batch_tokens: int = 4096
) -> np.ndarray:
    """float32 [texts, hidden]: mean-pooled last hidden states of a BERT encoder, of norm 1.

    Args:
        texts: texts as they are, not normalised.
        encoder: a Hugging Face folder (multilingual-e5, whose prefix "query: " each text gets).
        max_tokens: tokens at the beginning of a text that are read.
        batch_tokens: tokens, padding included, in one forward pass (at least one text).

    Raises:
        UserError: the folder holds no such encoder.
    """
    tokenizer = models.load_tokenizer(encoder)
    try:
        model = transformers.AutoModel.from_pretrained(encoder, use_safetensors=True, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{encoder}: not an encoder that transformers can load ({str(error).splitlines()[0]})"
        ) from None
    limit = min(max_tokens, model.config.max_position_embeddings)
    prefixed = [PREFIX + text for text in texts]
    ids = tokenizer(prefixed, truncation=True, max_length=limit)["input_ids"] if prefixed else []
    order = sorted(range(len(ids)), key=lambda text: -len(ids[text]))
    found = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    with progress.bar(total=len(ids), title="encode", unit="texts") as bar:
        begin = 0
        while begin < len(order):
            longest = len(ids[order[begin]])
            rows = order[begin : begin + max(batch_tokens // longest, 1)]
            fed = torch.zeros(len(rows), longest, dtype=torch.long)
            for place, row in enumerate(rows):
                fed[place, : len(ids[row])] = torch.tensor(ids[row])
            mask = torch.arange(longest) < torch.tensor([len(ids[row]) for row in rows])[:, None]
            hidden = model(input_ids=fed, attention_mask=mask.long()).last_hidden_state * mask[:, :, None]
            found[rows] = torch.nn.functional.normalize(hidden.sum(1), dim=1).float().numpy()
            begin += len(rows)
            bar.update(len(rows))
    return found


def histogram(distances: torch.Tensor, members: torch.Tensor, *, bits: int, bins: int) -> torch.Tensor:
    """[anchors, bins + 1]: for each anchor, how much of its `members` lies at the centres 0, bits / bins, ..., bits.

    A distance is shared between the two centres around it in proportion to its nearness, which is the paper's triangular
    kernel; with bins = bits and whole distances these are plain counts. Differentiable in `distances`.

    Args:
        distances: [anchors, others], from 0 to bits.
        members: [anchors, others], what each distance counts (0 or 1).
        bits: the largest distance.
        bins: intervals between the centres.
    """
    places = distances * (bins / bits)
    lower = places.detach().floor().clamp(0, bins - 1).long()
    nearness = places - lower
    counts = distances.new_zeros(len(distances), bins + 1)
    counts = counts.scatter_add(1, lower, members * (1 - nearness))
    return counts.scatter_add(1, lower + 1, members * nearness)


def mutual_information(neighbours: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[anchors]: I(D; C) in bits, from histograms [anchors, bins + 1] of distances to neighbours and to the others."""
    total = (neighbours + others).sum(1).clamp_min(TINY)
    share = neighbours.sum(1) / total
    conditional = share * _entropy(neighbours) + (1 - share) * _entropy(others)
    return _entropy(neighbours + others) - conditional


def train(
    features: Features,
    pairs: np.ndarray,
    negatives: np.ndarray | None = None,
    *,
    bits: int = 128,
    epochs: int = 10,
    seed: int = 0,
    hidden: int = 0,
    bins: int = 32,
    batch: int = 512,
    learning_rate: float = 0.005,
) -> Hash:
    """A hash whose Hamming distances tell neighbours from others, by Adam on minibatches.

    A batch holds pairs (half of it), a hard negative for each of their ends (a quarter: one of `negatives`, or the nearest
    code of a text that is no neighbour, under the hash as it is at the beginning of the epoch), and texts at random. Each
    text with a neighbour in the batch is an anchor. The first hash is random hyperplanes through the features' mean.

    Args:
        features: [texts, width].
        pairs: int [pairs, 2]: rows that are neighbours. Any two that are not listed count as none.
        negatives: int [negatives, 2]: rows that are no neighbours but look it; more are found in training.
        bits: length of a code, a multiple of 8.
        epochs: passes over the pairs.
        seed: of the first hash and the batches.
        hidden: units of a hidden layer; 0 for a linear hash.
        bins: of the histograms, at most bits. Fewer than bits make the histograms of small batches smoother.
        batch: texts in a batch.
        learning_rate: at the start; it falls to 0 linearly. Weights are of size 1.
    """
    if bits < 8 or bits % 8:
        raise ValueError(f"bits={bits}: not a multiple of 8")
    if not len(pairs):
        raise UserError("no pair of near duplicates to train a hash on; use --method=minhash")
    rng = np.random.default_rng(seed)
    layers = _random_layers(features, bits, hidden, rng)
    parameters = [torch.tensor(part, requires_grad=True) for layer in layers for part in layer]
    adjacent = _adjacency(pairs, features.shape[0])
    steps = epochs * -(-len(pairs) // (batch // 4))
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with progress.bar(total=steps, title="mihash", unit="steps") as bar:
        for _ in range(epochs):
            hard = _hard_negatives(_hash_of(parameters), features, pairs, negatives, adjacent, rng)
            for chosen in _split(rng.permutation(pairs), batch // 4):
                rows = _batch(chosen, hard, features.shape[0], batch, rng)
                neighbours = torch.from_numpy(adjacent[rows][:, rows].toarray().astype(np.float32))
                phi = torch.tanh(SHARPNESS * _project(parameters, _dense(features, rows)))
                information = batch_information(phi, neighbours, bins=min(bins, bits))
                optimizer.zero_grad()
                (-information).backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix_str(f"I(D;C) {information.item():.4f} bits", refresh=False)
                bar.update()
    return _hash_of(parameters)


def batch_information(phi: torch.Tensor, neighbours: torch.Tensor, *, bins: int) -> torch.Tensor:
    """The mean of I(D; C) in bits over the anchors of a batch: texts that have a neighbour in it.

    Args:
        phi: [texts, bits], relaxed codes between -1 and 1.
        neighbours: [texts, texts], 1 where two are neighbours, with a diagonal of zeros.
        bins: of the histograms.
    """
    bits = phi.shape[1]
    anchors = neighbours.any(1)
    distances = ((bits - phi[anchors] @ phi.T) / 2).clamp(0, bits)
    near = neighbours[anchors]
    others = 1 - near - torch.eye(len(phi), dtype=phi.dtype)[anchors]
    counts = [histogram(distances, members, bits=bits, bins=bins) for members in (near, others)]
    return mutual_information(*counts).mean()


def codes(hash: Hash, features: Features) -> np.ndarray:
    """uint8 [texts, bits / 8]: the signs of the last layer, eight to a byte, the first bit highest."""
    found = np.empty((features.shape[0], hash.bits // 8), dtype=np.uint8)
    for begin in range(0, len(found), BLOCK_TEXTS):
        values = features[begin : begin + BLOCK_TEXTS]
        for number, (weight, offset) in enumerate(hash.layers):
            values = (np.tanh(values) if number else values) @ weight + offset
        found[begin : begin + BLOCK_TEXTS] = np.packbits(values > 0, axis=1)
    return found


def distances(codes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """int64 [pairs]: the Hamming distances of pairs of codes."""
    found = np.empty(len(pairs), dtype=np.int64)
    for begin in range(0, len(pairs), BLOCK_TEXTS):
        left, right = pairs[begin : begin + BLOCK_TEXTS].T
        found[begin : begin + BLOCK_TEXTS] = np.bitwise_count(codes[left] ^ codes[right]).sum(1)
    return found


def radius(hash: Hash, features: Features, pairs: np.ndarray, *, recall: float) -> int:
    """The smallest Hamming radius that holds a share `recall` of the pairs, which the hash was not trained on."""
    return int(np.quantile(distances(codes(hash, features), pairs), recall, method="higher"))


def candidates(codes: np.ndarray, radius: int, *, most: int = 200_000_000, flat: int = FLAT) -> np.ndarray:
    """int64 [pairs, 2]: pairs (i < j) of codes at most `radius` bits apart, sorted.

    Up to `flat` codes every pair is compared. Above, a multi-index hash finds all pairs too as long as no table needs
    more than `MULTI_HASH_FLIPS` flips; for a larger radius an inverted file finds most of them. Blocks of codes are
    searched for among those before them and their own, so memory is the index, the pairs found, and a block's neighbours.

    Args:
        codes: uint8 [texts, bits / 8].
        radius: the largest Hamming distance.
        most: pairs that may be held (16 bytes each).
        flat: codes up to which the search is exhaustive.

    Raises:
        UserError: there are more pairs than `most`.
    """
    count, bits = len(codes), 8 * codes.shape[1]
    index = _index(codes, bits, radius, flat)
    found, held = [np.empty((0, 2), dtype=np.int64)], 0
    for begin in progress.bar(range(0, count, QUERIES), title="hamming", unit="blocks"):
        block = np.ascontiguousarray(codes[begin : begin + QUERIES])
        index.add(block)
        limits, _, labels = index.range_search(block, radius + 1)  # faiss searches for distances below its radius
        right = begin + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        earlier = labels < right
        found.append(np.unique(np.stack([labels[earlier], right[earlier]], axis=1), axis=0))
        held += len(found[-1])
        if held > most:
            raise UserError(
                f"a Hamming radius of {radius} of {bits} bits lets more than {most:,} pairs through by text"
                f" {begin + len(block):,} of {count:,}: use more bits, a lower recall target, or --method=minhash"
            )
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def save(hash: Hash, file: Path) -> None:
    """The layers as .npz: weight0, offset0, ..."""
    named = {}
    for number, (weight, offset) in enumerate(hash.layers):
        named |= {f"weight{number}": weight, f"offset{number}": offset}
    np.savez(file, **named)


def load(file: Path) -> Hash:
    """What `save` wrote."""
    with np.load(file) as parts:
        return Hash(tuple((parts[f"weight{i}"], parts[f"offset{i}"]) for i in range(len(parts.files) // 2)))


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    begin = characters = 0
    for place, text in enumerate(texts):
        if characters and (characters + len(text) > BLOCK_CHARACTERS or place - begin >= BLOCK_TEXTS):
            yield texts[begin:place]
            begin, characters = place, 0
        characters += len(text)
    if begin < len(texts):
        yield texts[begin:]


def _hashed(texts: Sequence[str], size: int, width: int) -> scipy.sparse.csr_matrix:
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = max(len(characters) - size + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(size):  # a polynomial in an odd base modulo 2^64, then MurmurHash3's 64-bit finaliser
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + characters[offset : offset + count] + np.uint64(1)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    hashes ^= hashes >> np.uint64(33)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)[:count]
    room = np.repeat(np.cumsum(lengths), lengths)[:count] - np.arange(count)  # characters left in the n-gram's text
    keys = (owners << np.uint64(HASH_BITS)) | (hashes >> np.uint64(64 - HASH_BITS))
    keys = np.unique(keys[room >= size])
    rows = (keys >> np.uint64(HASH_BITS)).astype(np.int64)
    hashes = keys & np.uint64((1 << HASH_BITS) - 1)
    columns = (hashes & np.uint64(width - 1)).astype(np.int64)
    signs = np.where(hashes >> np.uint64(HASH_BITS - 1), np.float32(1), np.float32(-1))
    found = scipy.sparse.csr_matrix((signs, (rows, columns)), shape=(len(texts), width), dtype=np.float32)
    found.sum_duplicates()
    norms = np.sqrt(np.asarray(found.multiply(found).sum(1)).ravel())
    found.data /= np.repeat(np.maximum(norms, TINY), np.diff(found.indptr)).astype(np.float32)
    return found


def _entropy(counts: torch.Tensor) -> torch.Tensor:
    """In bits, of each row of counts; 0 for a row of zeros."""
    shares = counts / counts.sum(1, keepdim=True).clamp_min(TINY)
    return -(shares * shares.clamp_min(TINY).log2()).sum(1)


def _random_layers(
    features: Features, bits: int, hidden: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gaussian weights, scaled so that a layer's inputs of the observed spread give outputs of deviation 1, around 0."""
    mean = np.asarray(features.mean(axis=0), dtype=np.float32).ravel()
    spread = np.sqrt(max(1 - float(mean @ mean), TINY))  # rows have norm 1
    sizes = [features.shape[1], hidden, bits] if hidden else [features.shape[1], bits]
    weights = [rng.standard_normal(shape, dtype=np.float32) for shape in itertools.pairwise(sizes)]
    weights[0] /= np.float32(spread)
    layers = [(weights[0], -mean @ weights[0])]
    if hidden:  # tanh of a standard normal has deviation 0.63
        layers.append((weights[1] / np.float32(0.63 * np.sqrt(hidden)), np.zeros(bits, dtype=np.float32)))
    return layers


def random_hash(features: Features, *, bits: int, seed: int = 0) -> Hash:
    """Random hyperplanes through the features' mean (SimHash, Charikar 2002), where training starts."""
    return Hash(tuple(_random_layers(features, bits, 0, np.random.default_rng(seed))))


def _adjacency(pairs: np.ndarray, count: int) -> scipy.sparse.csr_matrix:
    both = np.concatenate([pairs, pairs[:, ::-1]])
    adjacent = scipy.sparse.csr_matrix((np.ones(len(both), dtype=bool), (both[:, 0], both[:, 1])), shape=(count, count))
    adjacent.setdiag(False)
    adjacent.eliminate_zeros()
    return adjacent


def _hash_of(parameters: list[torch.Tensor]) -> Hash:
    parts = [part.detach().numpy().copy() for part in parameters]
    return Hash(tuple(zip(parts[::2], parts[1::2], strict=True)))


def _project(parameters: list[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    for number in range(0, len(parameters), 2):
        values = (torch.tanh(values) if number else values) @ parameters[number] + parameters[number + 1]
    return values


def _dense(features: Features, rows: np.ndarray) -> torch.Tensor:
    chosen = features[rows]
    return torch.from_numpy(chosen.toarray() if scipy.sparse.issparse(chosen) else chosen)


def _split(pairs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (pairs[begin : begin + size] for begin in range(0, len(pairs), size))


def _batch(
    chosen: np.ndarray, hard: dict[int, list[int]], count: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Sorted rows: both ends of the pairs, a hard negative for every other end, and texts at random."""
    ends = np.unique(chosen)
    anchors = rng.permutation(ends)[: size // 4]
    difficult = [rng.choice(hard[end]) for end in anchors.tolist() if hard.get(end)]
    rest = rng.integers(0, count, size=max(size - len(ends) - len(difficult), 0))
    return np.unique(np.concatenate([ends, np.array(difficult, dtype=np.int64), rest]))


def _hard_negatives(
    hash: Hash,
    features: Features,
    pairs: np.ndarray,
    negatives: np.ndarray | None,
    adjacent: scipy.sparse.csr_matrix,
    rng: np.random.Generator,
) -> dict[int, list[int]]:
    """{row: rows that are no neighbours of it but listed as looking it, or near it under the hash}."""
    hard: dict[int, list[int]] = {}
    for left, right in [] if negatives is None else negatives.tolist():
        hard.setdefault(left, []).append(right)
        hard.setdefault(right, []).append(left)
    pool = np.sort(
        rng.permutation(features.shape[0])[: 4 * BLOCK_TEXTS]
    )  # searching all of a large corpus takes too long
    ends = np.unique(pairs)
    index = faiss.IndexBinaryFlat(hash.bits)
    index.add(codes(hash, features[pool]))
    for block in _split(ends, QUERIES):
        nearest = pool[index.search(codes(hash, features[block]), min(NEAREST, len(pool)))[1]]
        for row, others in zip(block.tolist(), nearest.tolist(), strict=True):
            known = {row, *adjacent.indices[adjacent.indptr[row] : adjacent.indptr[row + 1]].tolist()}
            hard.setdefault(row, []).extend(other for other in others if other not in known)
    return hard


def _index(codes: np.ndarray, bits: int, radius: int, flat: int) -> faiss.IndexBinary:
    """An empty index, fit for so many codes."""
    if len(codes) <= flat:
        return faiss.IndexBinaryFlat(bits)
    # A pair within the radius agrees up to radius // tables flips in one of the tables, so all are found.
    table_bits = int(np.log2(len(codes)))
    tables = bits // table_bits
    if radius // tables <= MULTI_HASH_FLIPS:
        index = faiss.IndexBinaryMultiHash(bits, tables, table_bits)
        index.nflip = radius // tables
        return index
    lists = int(LISTS_PER_ROOT * np.sqrt(len(codes)))
    quantizer = faiss.IndexBinaryFlat(bits)
    index = faiss.IndexBinaryIVF(quantizer, bits, lists)
    index.own_fields = True
    quantizer.this.disown()
    sample = np.random.default_rng(0).permutation(len(codes))[: 64 * lists]
    index.train(np.ascontiguousarray(codes[np.sort(sample)]))
    index.nprobe = max(int(PROBED * lists), 1)
    return index
