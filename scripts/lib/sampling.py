"""A sample of documents that stands for all of them: strata of source and length in equal parts, no near duplicates.

Who is drawn depends on a hash of each document and the seed, never on the order in which the documents come.
"""

import dataclasses
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH

from lib import paragraphs

SPARE = 2  # candidates kept for each document wanted, since near duplicates fall away
SHINGLE_CHARS = 5
PERMUTATIONS = 128


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A document's beginning, with the number that decides on its turn.

    Attributes:
        rank: 64 bits, uniform; the lowest are drawn first.
        length: the whole document's, in characters.
    """

    rank: int
    id: str
    text: str
    source: str
    language: str
    length: int

    @property
    def key(self) -> str:
        """A name for it, of its own as long as no two documents are equal."""
        return f"{self.rank:016x}"


def sample(
    documents: Iterable[dict], count: int, *, max_chars: int, length_bins: int, similarity: float, seed: int
) -> tuple[list[Candidate], dict[str, object]]:
    """(up to `count` documents in a random order, figures for the manifest); the parts are explained below."""
    found, seen = candidates(documents, SPARE * count, max_chars=max_chars, seed=seed)
    divided = strata(found, length_bins)
    drawn, repeats = draw(divided, count, similarity=similarity)
    chosen = {candidate.key for candidate in drawn}
    described = [
        {
            "source": source,
            "shortest": min(candidate.length for candidate in members),
            "longest": max(candidate.length for candidate in members),
            "sampled": sum(candidate.key in chosen for candidate in members),
        }
        for (source, _), members in divided.items()
    ]
    return drawn, {
        "documents_in": seen.total(),
        "documents_by_source": dict(sorted(seen.items())),
        "sampled": len(drawn),
        "near_duplicates": repeats,
        "strata": described,
    }


def spell(figures: Mapping[str, object]) -> str:
    """A sample's figures in one line."""
    return (
        f"sample: {figures['sampled']:,} of {figures['documents_in']:,} documents, sources: "
        f"{len(figures['documents_by_source'])}, near duplicates passed over: {figures['near_duplicates']:,}"
    )


def candidates(
    documents: Iterable[dict], count: int, *, max_chars: int, seed: int
) -> tuple[dict[str, list[Candidate]], Counter[str]]:
    """(up to `count` documents of each source, a uniform sample in order of rank; documents seen by source).

    Memory holds that many beginnings of up to `max_chars` characters for each source, however many documents there are.
    Documents of white space alone are not seen.
    """
    heaps: dict[str, list[tuple[int, int, Candidate]]] = {}
    seen: Counter[str] = Counter()
    number = itertools.count()  # decides between equal ranks, which only equal documents have
    for document in documents:
        if not document["text"].strip():
            continue
        source, text = document["source"], beginning(document["text"], max_chars)
        seen[source] += 1
        named = f"{seed}\0{source}\0{document['id']}\0{text}".encode()
        rank = int.from_bytes(hashlib.blake2b(named, digest_size=8).digest())
        heap = heaps.setdefault(source, [])
        if len(heap) == count and -heap[0][0] <= rank:
            continue
        candidate = Candidate(rank, document["id"], text, source, document["language"], len(document["text"]))
        (heapq.heappush if len(heap) < count else heapq.heapreplace)(heap, (-rank, next(number), candidate))
    return {
        source: sorted((entry[2] for entry in heaps[source]), key=lambda candidate: candidate.rank)
        for source in sorted(heaps)
    }, seen


def strata(by_source: dict[str, list[Candidate]], bins: int) -> dict[tuple[str, int], list[Candidate]]:
    """Each source's candidates divided by the quantiles of their length, shortest first; the order stays."""
    divided: dict[tuple[str, int], list[Candidate]] = {}
    for source, found in by_source.items():
        lengths = np.array([candidate.length for candidate in found])
        edges = np.quantile(lengths, np.arange(1, bins) / bins)
        for candidate, place in zip(found, np.searchsorted(edges, lengths), strict=True):
            divided.setdefault((source, int(place)), []).append(candidate)
    return dict(sorted(divided.items()))


def draw(
    divided: dict[tuple[str, int], Sequence[Candidate]], count: int, *, similarity: float
) -> tuple[list[Candidate], int]:
    """(up to `count` candidates in order of rank, how many near duplicates were passed over).

    The strata give one in turn, so that they have equal parts as far as they last. A candidate is passed over if the Jaccard
    similarity of its text's character n-grams to one drawn before reaches `similarity`; its stratum gives the next one.
    """
    drawn: list[Candidate] = []
    repeats = 0
    # Its candidates are verified, so that recall is what matters when it chooses its bands.
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, weights=(0.1, 0.9)) if similarity < 1 else {}
    queues: list[Iterator[Candidate]] = [iter(found) for found in divided.values()]
    while queues and len(drawn) < count:
        for queue in list(queues):
            for candidate in queue:
                if _is_new(candidate, index, drawn, similarity):
                    drawn.append(candidate)
                    break
                repeats += 1
            else:
                queues.remove(queue)
            if len(drawn) == count:
                break
    return sorted(drawn, key=lambda candidate: candidate.rank), repeats


def beginning(text: str, max_chars: int) -> str:
    """At most `max_chars` characters, up to the end of a word if there is one in the last half of them."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    cut = text[:max_chars]
    if not text[max_chars].isspace():
        whole = cut.rsplit(None, 1)[0]
        cut = whole if 2 * len(whole) >= max_chars else cut
    return cut.rstrip()


def _is_new(candidate: Candidate, index: MinHashLSH | dict, drawn: Sequence[Candidate], similarity: float) -> bool:
    """Whether nothing like it was drawn; if so it is noted as the next one that will be."""
    text = paragraphs.normalise(candidate.text)
    if isinstance(index, dict):  # only equal texts are similar enough
        return index.setdefault(text, len(drawn)) == len(drawn)
    mine = _shingles(text)
    signature = MinHash(num_perm=PERMUTATIONS)
    signature.update_batch([shingle.encode() for shingle in sorted(mine)])
    for number in index.query(signature):
        other = _shingles(paragraphs.normalise(drawn[number].text))
        if len(mine & other) >= similarity * len(mine | other):
            return False
    index.insert(len(drawn), signature)
    return True


def _shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE_CHARS] for start in range(max(1, len(text) - SHINGLE_CHARS + 1))}
