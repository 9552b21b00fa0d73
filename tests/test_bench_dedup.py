"""bench_dedup: what it measures with, on texts whose answers are known."""

import random

import numpy as np
import pyarrow as pa
import pytest

import bench_dedup
from lib import dedup_peers, paragraphs

TEXTS = [
    "Это достаточно длинный абзац о море, чтобы его сравнивали с другими абзацами: первый раз.",
    "Совсем другой абзац: в нём идёт речь о горах и о том, как на них взбираются по утрам.",
    "Это достаточно длинный абзац о море, чтобы его сравнивали с другими абзацами: второй раз.",
    "Это достаточно длинный абзац о море, чтобы его сравнивали с другими абзацами: первый раз.",
]
NORMAL = [paragraphs.normalise(text) for text in TEXTS]


@pytest.mark.parametrize("words", [False, True])
def test_brute_force_is_jaccards_definition(words):
    rng = random.Random(0)
    drawn = [" ".join(rng.choices(NORMAL[0].split()[:2], k=9)) for _ in range(60)]
    shingles = dedup_peers.word_shingles if words else dedup_peers.character_shingles
    sets = [set(shingles(text)) for text in drawn]
    expected = {}
    for right in range(60):
        for left in range(right):
            similarity = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
            if similarity >= 0.8:
                expected[left, right] = similarity
    assert expected
    assert bench_dedup.similar_pairs(drawn, words) == pytest.approx(expected)


def test_redundant_is_what_resembles_one_that_stays():
    assert bench_dedup.redundant([(0, 1), (1, 2), (2, 3)], 5).tolist() == [False, True, False, True, False]


def test_removals_are_judged():
    pairs = [(0, 1), (1, 2), (3, 4)]
    judged = lambda *gone: bench_dedup.judged(np.isin(np.arange(6), gone), pairs)  # noqa: E731
    assert judged(1, 4) == {"removed": 2, "recall": 1.0, "precision": 1.0, "clusters_without_a_copy": 0}
    assert judged(1, 3)["precision"] == 1.0  # it does not matter which one stays
    assert judged(1)["recall"] == 0.5
    everything = judged(3, 4, 5)
    assert everything["precision"] == 0
    assert everything["clusters_without_a_copy"] == 1


def test_ours_finds_the_planted():
    found = bench_dedup.ours(pa.chunked_array([pa.array(TEXTS, pa.large_string())]), False)
    assert found["count"] == 4
    assert found["removed"].tolist() == [2, 3]
    assert found["twins"].tolist() == [0, 0]
    assert found["pairs"].tolist() == [[0, 2]]


def test_datasketch_peers_agree():
    texts = [*NORMAL[:2], f"{NORMAL[0]}!", NORMAL[1]]
    assert list(dedup_peers.datasketch_loop(texts)) == [False, False, True, True]
    assert list(dedup_peers.datasketch_bulk(texts)) == [False, False, True, True]


def test_buckets_keep_their_first_member():
    buckets = np.array([[1, 2], [3, 2], [1, 5], [7, 8], [9, 5]])
    assert dedup_peers._seen_before(buckets).tolist() == [False, True, True, False, True]


def test_text_is_enlarged_as_far_as_asked():
    made, pieces = bench_dedup.enlarged(["\n".join(TEXTS), "коротко"], 30, random.Random(3))
    assert len(pieces) >= 30
    assert made[:2] == ["\n".join(TEXTS), "коротко"]
    assert pieces == bench_dedup._compared(made)
    assert made == bench_dedup.enlarged(["\n".join(TEXTS), "коротко"], 30, random.Random(3))[0]
    assert len(set(pieces)) > 20
    spoilt = bench_dedup.planted(TEXTS, 8, random.Random(3))
    assert len(spoilt) > 8
    assert set(TEXTS) < set(spoilt)
