"""Rows for a new vocabulary: each method against its formula, by hand or by a peer, and the script's receipt."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import OrthogonalMatchingPursuit
from tiny_model import model as tiny_model
from tiny_model import tokenizer as byte_level_tokenizer

from lib import embeddings, models
from lib.errors import UserError

OLD = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 0.0], [0.0, 8.0]])
SURFACES = [b"a", b"bcd", b" ", b"e"]
PIECES = [[1], [0, 1], [0, 0, 2], [2, 1, 3]]
NEW = [1, 2, 3]


def rows(method, *, tied=False, **more):
    pair = embeddings.combinations(method, PIECES, NEW, SURFACES, tied=tied, **more)
    return [embeddings.apply(weights, OLD, rows=6).tolist() for weights in pair]


def test_mean_by_hand():
    expected = [[3, 6], [2, 4], [7 / 3, 4 / 3], [8 / 3, 14 / 3], [0, 0], [0, 0]]
    for found in rows("mean"):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weighted_mean_by_hand():
    # "a" counts 1 byte, "bcd" 3, the space half a one.
    expected = [[3, 6], [2.5, 5], [(1 + 1 + 2.5) / 2.5, 4 / 2.5], [(2.5 + 9 + 0) / 4.5, (0 + 18 + 8) / 4.5]]
    for found in rows("mean_weighted"):
        np.testing.assert_allclose(found[:4], expected, rtol=1e-6)


def test_first_and_last_by_hand():
    read, predicted = rows("first_last")
    assert read[:4] == [[3, 6], [3, 6], [5, 0], [0, 8]]
    assert predicted[:4] == [[3, 6], [1, 2], [1, 2], [5, 0]]
    assert rows("first_last", tied=True)[0][:4] == [[3, 6], [2, 4], [3, 1], [2.5, 4]]


def test_focus_takes_the_shared_tokens_that_are_used_alike():
    unit = {angle: np.array([np.cos(angle), np.sin(angle)], dtype=np.float32) for angle in (0.0, 0.2, 1.2)}
    # New token 1 points where the copy (token 0, old row 1) and another copy (token 4) point; token 3 has no vector.
    pieces = [*PIECES, [3]]
    pair = embeddings.combinations(
        "focus",
        pieces,
        NEW,
        SURFACES,
        tied=True,
        shared={0: 1, 4: 3},
        vectors={0: unit[0.0], 4: unit[1.2], 1: unit[0.2]},
    )
    scores = [np.cos(0.2), np.cos(1.0)]
    # Sparsemax of two scores by hand: the difference decides.
    first = min(1.0, (1 + scores[0] - scores[1]) / 2)
    found = embeddings.apply(pair[0], OLD, rows=5)
    np.testing.assert_allclose(found[1], first * OLD[1] + (1 - first) * OLD[3], rtol=1e-5)
    np.testing.assert_allclose(found[3], OLD[[2, 1, 3]].mean(0), rtol=1e-6)


def test_sparsemax_projects_onto_the_simplex():
    torch.manual_seed(0)
    scores = torch.randn(50, 30)
    found = embeddings.sparsemax(scores)
    torch.testing.assert_close(found.sum(1), torch.ones(50))
    assert (found == 0).any(1).all()
    # The projection's optimality: on the support all values are shifted alike, off it the score is below the shift.
    for row, score in zip(found, scores, strict=True):
        shift = (score - row)[row > 0]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift))
        assert (score[row == 0] <= shift[0] + 1e-6).all()


def test_matching_pursuit_equals_sklearns():
    torch.manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(200, 40), dim=1)
    targets = torch.randn(20, 40)
    places, coefficients = embeddings.matching_pursuit(targets, atoms, 6)
    for target, place, values in zip(targets, places, coefficients, strict=True):
        peer = OrthogonalMatchingPursuit(n_nonzero_coefs=6, fit_intercept=False).fit(atoms.T.numpy(), target.numpy())
        dense = torch.zeros(200).scatter(0, place, values)
        np.testing.assert_allclose(dense, peer.coef_, atol=1e-4)


def test_omp_of_a_token_used_just_as_a_shared_one_is_its_row():
    torch.manual_seed(0)
    vectors = {
        token: vector.numpy() for token, vector in enumerate(torch.nn.functional.normalize(torch.randn(5, 8), dim=1))
    }
    vectors[1] = vectors[4]
    pair = embeddings.combinations(
        "omp", [*PIECES, [3]], [1], SURFACES, tied=True, shared={0: 1, 4: 3}, vectors=vectors
    )
    np.testing.assert_allclose(embeddings.apply(pair[0], OLD, rows=5)[1], OLD[3], atol=1e-4)


def test_nothing_to_compare_with_is_refused():
    with pytest.raises(UserError, match="take method mean"):
        rows("omp", shared={0: 1}, vectors={1: np.ones(2, dtype=np.float32)})


def test_a_wide_bfloat16_matrix_in_slices_equals_a_loop():
    torch.manual_seed(0)
    old = torch.randn(300, 1100).bfloat16()
    pieces = [torch.randint(0, 300, (n % 8 + 1,)).tolist() for n in range(900)]
    weights, _ = embeddings.combinations("mean", pieces, range(900), [b"x"] * 300, tied=True)
    expected = torch.stack([old[found].float().mean(0) for found in pieces]).bfloat16()
    torch.testing.assert_close(embeddings.apply(weights, old, rows=960)[:900], expected, rtol=1e-2, atol=1e-2)


def test_norms_are_matched_to_the_pieces():
    matrix = embeddings.apply(embeddings.combinations("mean", PIECES, NEW, SURFACES, tied=True)[0], OLD, rows=4)
    before = matrix.clone()
    embeddings.match_norms(matrix, NEW, PIECES, OLD)
    norms = OLD.norm(dim=1)
    np.testing.assert_allclose(matrix[1].norm(), (norms[0] + norms[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(matrix[3].norm(), (norms[2] + norms[1] + norms[3]) / 3, rtol=1e-6)
    np.testing.assert_allclose(matrix[3] / matrix[3].norm(), before[3] / before[3].norm(), rtol=1e-5)
    assert torch.equal(matrix[0], before[0])


def test_random_rows_have_the_old_rows_spread_and_are_repeatable():
    torch.manual_seed(0)
    old = torch.randn(4000, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 2.0, -1.0])
    drawn = []
    for _ in range(2):
        matrix = torch.zeros(5000, 3)
        embeddings.random_rows(matrix, range(1, 5000), old, seed=3)
        drawn.append(matrix)
    assert torch.equal(*drawn)
    assert not drawn[0][0].any()
    torch.testing.assert_close(drawn[0][1:].mean(0), old.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(drawn[0][1:].std(0), old.std(0), rtol=0.1, atol=0)


def test_token_vectors_put_tokens_used_alike_together():
    made = byte_level_tokenizer()
    lines = [f"{subject} {verb}." for subject in ("Поезд", "поле", "письма") for verb in ("Да", "Нет", "Так")] * 60
    first, second = (embeddings.token_vectors(made, lines, threads=1, seed=1) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[token], second[token]) for token in first)
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in first.values())
    with pytest.raises(UserError, match="too little to train vectors on"):
        embeddings.token_vectors(made, ["Поезд"], threads=1, seed=1)


def test_script_needs_text_for_methods_that_compare(tmp_path, script):
    old = byte_level_tokenizer()
    models.save(tiny_model(len(old)), old, tmp_path / "base")
    models.save_tokenizer(old, tmp_path / "tokenizer")
    flags = [f"--base={tmp_path / 'base'}", f"--tokenizer={tmp_path / 'tokenizer'}", f"--out={tmp_path / 'o'}"]
    done = script("init_embeddings", *flags, "--method=focus")
    assert done.returncode == 2
    assert "give the text with --documents" in done.stderr
    done = script("init_embeddings", *flags, "--method=average")
    assert done.returncode == 2
    assert "--method" in done.stderr
    assert not (tmp_path / "o").exists()
