"""Other deduplicators, as their own pages say to use them, for `bench_dedup.py`.

Each function is given paragraphs in normal form and says which of them it would remove (a bool for each). They compare the
same shingles at the same threshold with as many hash functions as ours; what they do on their own beyond that is left to them.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import datasketch
import numpy as np
import pyarrow as pa
import xxhash

PERMUTATIONS, THRESHOLD, SIZE = 128, 0.8, 5
BANDS, ROWS = 16, 8  # of peers that want to be told

Removed = Sequence[bool]


def character_shingles(text: str) -> list[str]:
    """All runs of SIZE characters."""
    return [text[start : start + SIZE] for start in range(len(text) - SIZE + 1)]


def word_shingles(text: str) -> list[str]:
    """All runs of SIZE words; a shorter text is its own only one."""
    words = text.split()
    return [" ".join(words[start : start + SIZE]) for start in range(max(1, len(words) - SIZE + 1))]


def datasketch_loop(texts: Sequence[str]) -> Removed:
    """The first example of datasketch's documentation: a call for each shingle."""
    return _streamed(_updated(texts))


def datasketch_bulk(texts: Sequence[str]) -> Removed:
    """Its fastest way: `MinHash.generator`, which hashes all shingles of a paragraph at once, with a fast hash function."""
    shingles = ([shingle.encode() for shingle in character_shingles(text)] for text in texts)
    return _streamed(datasketch.MinHash.generator(shingles, num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest))


def rensa(texts: Sequence[str]) -> Removed:
    """Its streaming deduplicator, fed in one call."""
    from rensa import RMinHashDeduplicator

    index = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True)
    keep = index.add_pairs((str(number), character_shingles(text)) for number, text in enumerate(texts))
    return [not stays for stays in keep]


def rensa_matrix(texts: Sequence[str]) -> Removed:
    """Its fastest way, which samples shingles and flags members of buckets."""
    from rensa import RMinHash, RMinHashLSH

    shingles = [character_shingles(text) for text in texts]
    matrix = RMinHash.digest_matrix_from_token_sets_rho(shingles, PERMUTATIONS, 42)
    index = RMinHashLSH(THRESHOLD, PERMUTATIONS, BANDS)
    return index.query_duplicate_flags_matrix_one_shot(matrix)


def dupekit(texts: Sequence[str]) -> Removed:
    """Marin's kernels; paragraphs of a bucket are joined as in its pipeline, for which numpy has to do here."""
    from dupekit import Transformation, transform

    batch = pa.record_batch({"text": pa.array(texts)})
    steps = [
        Transformation.MinHash("text", "signature", PERMUTATIONS, SIZE, 42),
        Transformation.MinHashLSH("signature", "buckets", BANDS),
        Transformation.SelectColumns(["buckets"]),
    ]
    return _seen_before(transform(batch, steps)["buckets"].values.to_numpy().reshape(len(texts), -1))


def gaoya(texts: Sequence[str]) -> Removed:
    """Its index of strings, filled and asked in bulk."""
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(32, THRESHOLD, BANDS, ROWS, None, "char", False, (SIZE, SIZE))
    index.par_bulk_insert_docs(list(range(len(texts))), list(texts))
    removed = [False] * len(texts)
    for number, near in enumerate(index.par_bulk_query(list(texts))):
        removed[number] = any(other < number and not removed[other] for other in near)
    return removed


def daft_words(texts: Sequence[str]) -> Removed:
    """Daft's MinHash of words; buckets as for dupekit."""
    import daft

    table = daft.from_arrow(pa.table({"text": pa.array(texts, pa.large_string())}))
    signed = table.select(daft.col("text").minhash(num_hashes=PERMUTATIONS, ngram_size=SIZE)).to_arrow()
    signatures = np.concatenate([chunk.flatten().to_numpy() for chunk in signed["text"].chunks])
    bands = np.ascontiguousarray(signatures.reshape(len(texts), BANDS, ROWS), np.uint32)
    return _seen_before(bands.view(f"V{4 * ROWS}")[..., 0])


def datatrove_words(texts: Sequence[str]) -> Removed:
    """Its three steps, in which words are split at spaces as everywhere here, and text stays as it is."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger
    from datatrove.utils.text import TextNormConfig

    class Words:
        """For a tokenizer of its own it wants spaCy."""

        word_tokenize = staticmethod(str.split)

    logger.remove()
    minhash.load_word_tokenizer = lambda language: Words()
    untouched = TextNormConfig(False, False, False, False, False)
    sha1 = HashConfig(hash_fc="sha1")  # its default, xxhash, fails with version 4 of that
    config = minhash.MinhashConfig(SIZE, BANDS, ROWS, norm_config=untouched, hash_config=sha1)
    with tempfile.TemporaryDirectory() as folder:
        signatures, buckets, found = (f"{folder}/{name}" for name in ("signatures", "buckets", "found"))
        documents = (Document(text, str(number)) for number, text in enumerate(texts))
        minhash.MinhashDedupSignature(signatures, config).run(documents)
        for bucket in range(BANDS):
            step = minhash.MinhashDedupBuckets(signatures, buckets, config=config)
            step.run(rank=bucket, world_size=BANDS)
        minhash.MinhashDedupCluster(buckets, found, config).run()
        removed = np.zeros(len(texts), bool)
        written = Path(found) / "000000.remove"
        if written.exists():
            removed[np.fromfile(written, np.uint32)] = True
    return removed


def text_dedup_words(texts: Sequence[str]) -> Removed:
    """Its command `python -m text_dedup.minhash`, which splits at whatever is no letter or digit."""
    import datasets
    from text_dedup import logger, minhash
    from text_dedup.utils import IOArgs, MetaArgs, MinHashArgs

    logger.setLevel("ERROR")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        given, written = f"{folder}/given", f"{folder}/written"
        rows = {"text": list(texts), "number": list(range(len(texts)))}
        datasets.Dataset.from_dict(rows).save_to_disk(given)
        minhash.main.callback(
            **vars(IOArgs(path=given, local=True, output=written, num_proc=1)),
            **vars(MetaArgs(column="text", batch_size=10_000)),
            **vars(MinHashArgs(ngram=SIZE, min_length=1, num_perm=PERMUTATIONS, threshold=THRESHOLD)),
        )
        removed = np.ones(len(texts), bool)
        removed[datasets.load_from_disk(written)["number"]] = False
    return removed


CHARACTERS = {
    "datasketch loop": datasketch_loop,
    "datasketch bulk": datasketch_bulk,
    "rensa": rensa,
    "rensa matrix": rensa_matrix,
    "dupekit": dupekit,
    "gaoya": gaoya,
}
WORDS = {"daft": daft_words, "datatrove": datatrove_words, "text-dedup": text_dedup_words}


def installed(peer: str) -> bool:
    """Whether a peer can be imported."""
    module = peer.split()[0].replace("-", "_")
    return importlib.util.find_spec(module) is not None


def _updated(texts: Iterable[str]) -> Iterable[datasketch.MinHash]:
    for text in texts:
        sketch = datasketch.MinHash(num_perm=PERMUTATIONS)
        for shingle in character_shingles(text):
            sketch.update(shingle.encode())
        yield sketch


def _streamed(sketches: Iterable[datasketch.MinHash]) -> Removed:
    """Each is removed that the index finds similar to one before it, and goes into the index otherwise."""
    index = datasketch.MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    removed = []
    for number, sketch in enumerate(sketches):
        removed.append(bool(index.query(sketch)))
        if not removed[-1]:
            index.insert(number, sketch, check_duplication=False)
    return removed


def _seen_before(buckets: np.ndarray) -> Removed:
    """Which rows of [n, bands] share a bucket with an earlier one."""
    removed = np.zeros(len(buckets), bool)
    for band in buckets.T:
        _, first, which = np.unique(band, return_index=True, return_inverse=True)
        removed |= first[which] < np.arange(len(band))
    return removed


Peer = Callable[[Sequence[str]], Removed]
