"""The learned hash against its definition: histograms, mutual information, training, codes, the search; its comparison."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import transformers

import mihash_bench
from lib import conversion, mihash, models
from lib.errors import UserError

BITS = 16


def brute_force(codes, radius):
    bits = np.unpackbits(codes, axis=1)
    pairs = itertools.combinations(range(len(codes)), 2)
    return [[i, j] for i, j in pairs if (bits[i] != bits[j]).sum() <= radius]


def clusters(*, count, width=64, noise=0.2, seed=0, directions=8):
    """Pairs of near rows in noise: what tells pairs apart lies in a few directions, the noise in all."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((width, directions)))[0]
    centres = np.repeat(rng.standard_normal((count, directions)) @ basis.T, 2, axis=0)
    rows = centres + noise * rng.standard_normal(centres.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.arange(2 * count).reshape(-1, 2)


def hard_information(hash, features, pairs):
    """I(D; C) of the codes themselves, all pairs of rows counted."""
    codes = mihash.codes(hash, features)
    every = np.stack(np.triu_indices(len(codes), 1), axis=1)
    apart = mihash.distances(codes, every)
    near = np.isin(every @ [len(codes), 1], pairs @ [len(codes), 1])
    counts = [
        torch.tensor(np.bincount(apart[which], minlength=hash.bits + 1)[None].astype(float)) for which in (near, ~near)
    ]
    return mihash.mutual_information(*counts).item()


@pytest.mark.parametrize("bins", [BITS, BITS // 2])
def test_the_histogram_of_binary_codes_is_a_count(bins):
    signs = torch.tensor(np.random.default_rng(0).choice([-1.0, 1.0], size=(40, BITS)))
    distances = (BITS - signs @ signs.T) / 2
    members = (torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    found = mihash.histogram(distances, members, bits=BITS, bins=bins)
    width = BITS // bins
    for anchor in range(40):
        expected = [0.0] * (bins + 1)
        for distance, member in zip(distances[anchor].tolist(), members[anchor].tolist(), strict=True):
            for centre in range(bins + 1):
                expected[centre] += member * max(0.0, 1 - abs(distance - centre * width) / width)
        assert found[anchor].tolist() == pytest.approx(expected)
    if bins == BITS:
        assert found[0].tolist() == np.bincount(distances[0].int(), members[0], minlength=BITS + 1).tolist()


def test_the_gradient_of_the_histogram_by_hand():
    distances = torch.tensor([[2.25, 6.0, 9.75]], requires_grad=True)
    found = mihash.histogram(distances, torch.tensor([[1.0, 0.0, 2.0]]), bits=16, bins=8)  # centres 0, 2, 4, ...
    assert found[0].tolist() == [0, 0.875, 0.125, 0, 0.25, 1.75, 0, 0, 0]
    slopes = [torch.autograd.grad(found[0, centre], distances, retain_graph=True)[0][0].tolist() for centre in range(6)]
    assert slopes == [[0, 0, 0], [-0.5, 0, 0], [0.5, 0, 0], [0, 0, 0], [0, 0, -1], [0, 0, 1]]


def test_the_gradient_of_the_information_by_finite_differences():
    generator = torch.Generator().manual_seed(3)
    phi = torch.tanh(torch.randn(12, BITS, generator=generator, dtype=torch.double)).requires_grad_()
    neighbours = torch.zeros(12, 12, dtype=torch.double)
    for left, right in ((0, 1), (2, 3), (2, 4), (3, 4)):
        neighbours[left, right] = neighbours[right, left] = 1
    assert torch.autograd.gradcheck(lambda x: mihash.batch_information(x, neighbours, bins=8), phi, eps=1e-7, atol=1e-5)


def test_information_by_hand():
    # Two distances, two classes, four of each: H(D) = 1 bit, H(D | C) = H(1/4).
    found = mihash.mutual_information(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    assert found.item() == pytest.approx(1 - (0.25 * math.log2(4) + 0.75 * math.log2(4 / 3)), abs=1e-6)


def test_information_is_nothing_when_independent_and_all_of_the_class_when_separable():
    one = torch.tensor([[1.0, 2.0, 5.0]])
    assert mihash.mutual_information(one, 3 * one).item() == pytest.approx(0, abs=1e-6)
    found = mihash.mutual_information(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 5.0]]))
    assert found.item() == pytest.approx(0.25 * math.log2(4) + 0.75 * math.log2(4 / 3), abs=1e-6)  # H(C), 2 of 8


def test_only_texts_with_a_neighbour_are_anchors_and_none_is_its_own():
    signs = torch.tensor([[1.0] * 8, [1.0] * 8, [-1.0] * 8, [-1.0] * 8])
    neighbours = torch.zeros(4, 4)
    neighbours[0, 1] = neighbours[1, 0] = 1
    # Both anchors see one neighbour at 0 and two others at 8: I = H(C) = H(1/3).
    expected = math.log2(3) / 3 + math.log2(1.5) * 2 / 3
    assert mihash.batch_information(signs, neighbours, bins=8).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("hidden", [0, 32])
def test_training_raises_the_information_of_unseen_clusters(hidden):
    features, pairs = clusters(count=300)
    fresh, fresh_pairs = clusters(count=200, seed=7)
    trained = mihash.train(features, pairs, bits=32, epochs=20, hidden=hidden, batch=256, learning_rate=0.02)
    random = mihash.random_hash(features, bits=32)
    before, after = (hard_information(hash, fresh, fresh_pairs) for hash in (random, trained))
    assert after > 1.4 * before


def test_training_depends_on_its_seed_alone():
    features, pairs = clusters(count=40)
    first, second, other = (mihash.train(features, pairs, bits=8, epochs=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.layers[0][0], second.layers[0][0])
    assert not np.array_equal(first.layers[0][0], other.layers[0][0])


def test_hard_negatives_are_the_listed_ones_and_near_strangers_but_no_neighbours():
    rows = np.array([[1, 0, 0], [1, 0.01, 0], [0.9, 0.1, 0], [-1, 0, 0], [-1, 0.01, 0]], dtype=np.float32)
    pairs = np.array([[0, 1]])
    hash = mihash.Hash(((np.eye(3, 8, dtype=np.float32), np.zeros(8, dtype=np.float32)),))
    adjacent = mihash._adjacency(pairs, 5)
    found = mihash._hard_negatives(hash, rows, pairs, np.array([[0, 3]]), adjacent, np.random.default_rng(0))
    assert set(found) == {0, 1, 3}
    assert found[0][0] == 3
    assert 2 in found[0]
    assert 0 not in found[0]
    assert 1 not in found[0]
    assert found[3] == [0]


@pytest.mark.parametrize(("arguments", "error"), [({"bits": 12}, ValueError), ({}, UserError)])
def test_a_hash_of_half_a_byte_or_of_no_pairs_is_refused(arguments, error):
    features, pairs = clusters(count=4)
    with pytest.raises(error, match=r"bits=12|no pair of near duplicates"):
        mihash.train(features, pairs if arguments else pairs[:0], **arguments)


def test_codes_pack_signs_with_the_first_bit_highest():
    weight = np.array([[1, -1, 1, -1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1, 1]], dtype=np.float32)
    hash = mihash.Hash(((weight, np.zeros(16, dtype=np.float32)),))
    found = mihash.codes(hash, np.array([[1.0], [-2.0]], dtype=np.float32))
    assert found.tolist() == [[0b10101110, 0b00000001], [0b01010001, 0b11111110]]
    shifted = mihash.Hash(((weight, np.full(16, 3, dtype=np.float32)),))
    assert mihash.codes(shifted, np.array([[1.0]], dtype=np.float32)).tolist() == [[255, 255]]


def test_codes_in_blocks_of_sparse_and_dense_features_are_those_of_one(monkeypatch):
    texts = [f"Абзац номер {number}, в котором сказано то же самое" for number in range(50)]
    features = mihash.features(texts, size=5, width=256)
    hash = mihash.train(features, np.array([[0, 1], [2, 3]]), bits=16, epochs=1, hidden=4)
    whole = mihash.codes(hash, features)
    monkeypatch.setattr(mihash, "BLOCK_TEXTS", 7)
    np.testing.assert_array_equal(mihash.codes(hash, features), whole)
    np.testing.assert_array_equal(mihash.codes(hash, features.toarray()), whole)


def test_a_hash_survives_its_file(tmp_path):
    features, pairs = clusters(count=10)
    hash = mihash.train(features, pairs, bits=8, epochs=1, hidden=4)
    mihash.save(hash, tmp_path / "hash.npz")
    back = mihash.load(tmp_path / "hash.npz")
    assert len(back.layers) == 2
    for ours, theirs in zip(hash.layers, back.layers, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.fixture
def some_codes():
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, size=(60, 8), dtype=np.uint8)
    flips = rng.random((600, 64)) < rng.uniform(0, 0.2, size=(600, 1))
    return np.repeat(centres, 10, axis=0) ^ np.packbits(flips, axis=1)


@pytest.mark.parametrize("radius", [0, 3, 10])
def test_candidates_are_those_of_brute_force(some_codes, monkeypatch, radius):
    monkeypatch.setattr(mihash, "QUERIES", 130)
    expected = brute_force(some_codes, radius)
    assert expected
    assert mihash.candidates(some_codes, radius).tolist() == expected


@pytest.mark.parametrize("radius", [0, 3, 10])
def test_a_multi_index_hash_finds_all_too(some_codes, monkeypatch, radius):
    monkeypatch.setattr(mihash, "QUERIES", 130)
    index = mihash._index(some_codes, 64, radius, flat=100)
    assert type(index).__name__ == "IndexBinaryMultiHash"
    assert mihash.candidates(some_codes, radius, flat=100).tolist() == brute_force(some_codes, radius)


def test_an_inverted_file_finds_most_and_nothing_else(some_codes, monkeypatch):
    monkeypatch.setattr(mihash, "MULTI_HASH_FLIPS", -1)
    assert type(mihash._index(some_codes, 64, 10, flat=100)).__name__ == "IndexBinaryIVF"
    expected = {tuple(pair) for pair in brute_force(some_codes, 10)}
    found = {tuple(pair) for pair in mihash.candidates(some_codes, 10, flat=100).tolist()}
    assert found <= expected
    assert len(found) > 0.5 * len(expected)


def test_no_codes_no_candidates_and_too_many_are_refused(some_codes):
    assert mihash.candidates(some_codes[:0], 5).shape == (0, 2)
    with pytest.raises(UserError, match="more than 1,000 pairs"):
        mihash.candidates(some_codes, 60, most=1000)


def test_the_radius_holds_the_share_of_pairs_asked_for():
    hash = mihash.Hash(((np.eye(16, dtype=np.float32), np.zeros(16, dtype=np.float32)),))
    rows = np.tril(np.full((16, 16), 2.0), -1).astype(np.float32) - 1  # row i has i bits set
    pairs = np.array([[0, distance] for distance in range(1, 11)])
    assert [mihash.radius(hash, rows, pairs, recall=recall) for recall in (0.0, 0.5, 0.9, 1.0)] == [1, 6, 10, 10]


def test_features_have_the_inner_products_of_the_sets():
    texts = ["the cat sat on the mat", "the cat sat on a mat", "совсем другое, о чём-то своём", "ab"]
    found = mihash.features(texts, size=3, width=1 << 20)
    grams = [{text[i : i + 3] for i in range(len(text) - 2)} for text in texts]
    for i, j in itertools.product(range(3), repeat=2):
        expected = len(grams[i] & grams[j]) / math.sqrt(len(grams[i]) * len(grams[j]))
        assert (found[i] @ found[j].T).toarray().item() == pytest.approx(expected, abs=1e-5)
    assert found[3].nnz == 0  # shorter than an n-gram
    assert found.dtype == np.float32
    assert set(np.sign(found.data)) == {-1.0, 1.0}


def test_features_do_not_depend_on_the_blocks(monkeypatch):
    texts = ["первый абзац", "", "второй абзац подлиннее", "abc", "третий"] * 3
    whole = mihash.features(texts, size=4, width=64)
    monkeypatch.setattr(mihash, "BLOCK_CHARACTERS", 20)
    blocks = mihash.features(texts, size=4, width=64)
    assert (whole != blocks).nnz == 0
    assert mihash.features([], size=4, width=64).shape == (0, 64)
    with pytest.raises(ValueError, match="width=100"):
        mihash.features(texts, size=4, width=100)


def test_narrow_features_keep_inner_products_on_average():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("абвгдежз"), size=6)) for _ in range(400)]
    texts = [" ".join(rng.choice(words, size=30)) for _ in range(200)]
    wide, narrow = (mihash.features(texts, size=5, width=width) for width in (1 << 20, 64))
    gaps = ((narrow @ narrow.T) - (wide @ wide.T)).toarray()[np.triu_indices(200, 1)]
    assert abs(gaps.mean()) < 0.02  # without signs, collisions alone would add more than 0.5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    conversion.random_bert(["Короткий текст и текст подлиннее.", "Some English words too."] * 20, folder)
    return folder


def test_the_encoders_features_are_means_over_the_texts_own_tokens(encoder):
    texts = ["Короткий.", "Текст подлиннее, который в своём пакете не дополняется ничем.", "a b"]
    found = mihash.encoder_features(texts, encoder, batch_tokens=1000)
    model, tokenizer = transformers.AutoModel.from_pretrained(encoder).eval(), models.load_tokenizer(encoder)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer("query: " + text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (hidden / hidden.norm()).numpy(), atol=1e-5)
    cut = mihash.encoder_features([texts[1], texts[1] + " И ещё."], encoder, max_tokens=6)
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        mihash.encoder_features(["a"], tmp_path)


# The comparison.


def test_similar_paragraphs_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(12):
        letters = rng.choice(list("абвгд "), size=60)
        for changed in range(6):
            copy = letters.copy()
            copy[rng.permutation(60)[:changed]] = "ж"
            texts.append("".join(copy))
    texts = list(dict.fromkeys(texts))
    grams = [{text[i : i + 5] for i in range(len(text) - 4)} for text in texts]
    expected = {}
    for i, j in itertools.combinations(range(len(texts)), 2):
        similarity = len(grams[i] & grams[j]) / len(grams[i] | grams[j])
        if similarity >= mihash_bench.LIKE:
            expected[i, j] = pytest.approx(similarity)
    pairs, similarities = mihash_bench._similar(texts)
    assert len(expected) > 20
    assert dict(zip(map(tuple, pairs.tolist()), similarities.tolist(), strict=True)) == expected


def test_the_curve_by_hand():
    scores = np.array([5.0, 4.0, 4.0, 3.0, 2.0, -np.inf])
    true = np.array([True, True, False, True, False, True])
    # The third row draws the false pair at 4 no times, and the last true one, which no search found, twice.
    weights = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 2]], dtype=np.float32)
    recall, average = mihash_bench._curve(scores, true, weights)
    # Equal scores come together: precision 1 at recall 1/4, 2/3 at 2/4, 3/4 at 3/4.
    assert recall.tolist() == pytest.approx([1 / 4, 0, 3 / 5])
    assert average.tolist() == pytest.approx([1 / 4 * 1 + 1 / 4 * 2 / 3 + 1 / 4 * 3 / 4, 0, 3 / 5])


def test_a_pair_of_two_groups_weighs_the_product_of_both():
    draws = np.array([[1, 1, 1], [3, 2, 0]], dtype=np.float32)
    pairs = np.array([[0, 1], [0, 2], [2, 3]])
    assert mihash_bench._weights(draws, np.array([0, 0, 1, 2]), pairs).tolist() == [[1, 1, 1], [3, 6, 0]]


def test_differences_are_paired():
    better = np.array([[[0.5, 0.4, 0.6]], [[0.7, 0.6, 0.8]]])
    measured = {"MinHash": list(better), "hyperplanes 8": list(better - 0.3), "MIHash 8": list(better - 0.1)}
    rows = mihash_bench._summary(measured, ("average_precision",), "MinHash")
    assert rows["MinHash"] == {"average_precision": {"value": 0.6, "low": 0.505, "high": 0.695}}
    assert rows["MIHash 8"]["over_minhash"] == {"value": -0.1, "low": -0.1, "high": -0.1}
    assert rows["MIHash 8"]["over_hyperplanes"] == {"value": 0.2, "low": 0.2, "high": 0.2}
    assert list(rows["hyperplanes 8"]) == ["average_precision", "over_minhash"]


def test_no_group_is_on_both_sides():
    task = mihash_bench.Task(["x"] * 40, np.arange(40) // 4, np.zeros((0, 2), dtype=int), np.zeros(0, dtype=bool))
    halves = list(mihash_bench._halves(task, 3))
    assert len({tuple(train) for _, train, _ in halves}) == 3
    for _, train, test in halves:
        assert sorted([*train, *test]) == list(range(40))
        assert not set(task.groups[train]) & set(task.groups[test])


def test_the_script_compares_all_ways(script, encoder, tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("абвгдежзик"), size=7)) for _ in range(500)]

    def versions(number):
        first = rng.choice(words, size=14)
        second = first.copy()
        second[number % 14] = words[number]
        return " ".join(first), " ".join(second)

    made = [versions(number) for number in range(80)]
    records = {
        "corpus": [{"text": "\n".join(pair), "language": "ru"} for pair in made],
        "versions": [{"text": text, "group": number} for number, pair in enumerate(made) for text in pair],
        "headlines": [
            {"text_1": one, "text_2": made[place ^ shift][1], "label": int(not shift)}
            for place, (one, _) in enumerate(made)
            for shift in (0, 1 + place % 3)
        ],
    }
    flags = [f"--encoder={encoder}", "--bits=32,64", "--steps=4", "--seeds=2", "--width=512"]
    for name, lines in records.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        flags.append(f"--{name}={file}")
    done = script("mihash_bench", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    hashes = [f"{kind} {bits}" for bits in (32, 64) for kind in ("hyperplanes", "MIHash")] + ["MIHash 64 nonlinear"]
    grams, encoded = ([f"{name}, {kind}" for name in ("cosine", *hashes)] for kind in ("n-grams", "encoder"))
    for task in ("versions", "headlines"):
        assert list(result[task]) == [
            "exact Jaccard",
            "MinHash 128",
            "cosine, n-grams",
            "cosine, encoder",
            *grams[1:],
            *encoded[1:],
        ]
    assert list(result["paragraphs"]) == ["MinHash 9 x 13", "MinHash 16 x 8", *grams]
    assert result["versions"]["exact Jaccard"]["average_precision"]["value"] == 1
    for rows in (result["versions"], result["headlines"], result["paragraphs"]):
        for figures in rows.values():
            assert all(0 <= figures["recall"][key] <= 1 for key in ("low", "value", "high"))
    found = result["paragraphs"]["MinHash 16 x 8"]
    assert found["candidate_recall"]["value"] > 0.9
    assert found["candidates_per_pair"]["value"] >= found["candidate_recall"]["value"]
    assert "MinHash 16 x 8" in done.stdout.splitlines()[-3 - len(hashes)]


def test_a_corpus_without_similar_paragraphs_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("Один-единственный абзац, который ни на что здесь не похож.", encoding="utf-8")
    with pytest.raises(UserError, match="1 paragraphs have 0 similar pairs"):
        mihash_bench.main(corpus=[tmp_path / "a.txt"])
