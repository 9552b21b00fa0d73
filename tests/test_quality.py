"""The filter's model: ordinal heads, the short forward pass, baselines, calibration, targets."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lib import encoder, judging, processor, quality, scoring, targets
from lib.errors import UserError
from lib.quality import Example


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    cuts = [[-3.0, -1.0, 0.5, 3.0 + head] for head in range(6)]
    made = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=6, cuts=cuts, **shape)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return scoring.pad([rng.integers(0, 50, size=length).tolist() for length in (3, 9, 9, 1)])


def exact(model, batch):
    ids, mask = map(torch.from_numpy, batch)
    with torch.inference_mode():
        return encoder.expected(model(ids, mask.long()).logits, torch.tensor(model.config.cuts)).numpy()


def test_targets_of_whole_scores_are_ordinal_and_of_others_have_the_right_expectation():
    steps = quality.steps_above(np.array([[1, 3, 5, 3.4]]))[0]
    assert steps.tolist()[:3] == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert steps[3] == pytest.approx([1, 1, 0.4, 0])
    assert 1 + steps.sum(axis=1) == pytest.approx([1, 3, 5, 3.4])


def test_ordinal_loss_by_hand():
    latent, cuts = torch.tensor([[0.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    assert quality.ordinal_loss(latent, cuts, torch.tensor([[[1.0, 1, 0, 0]]])).item() == pytest.approx(4 * np.log(2))
    far, spread = torch.tensor([[10.0]]), torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    assert quality.ordinal_loss(far, spread, torch.tensor([[[1.0, 1, 0, 0]]])).item() < 1e-3
    assert encoder.expected(far, spread).item() == pytest.approx(3, abs=1e-3)


def test_the_short_forward_pass_is_the_models_own(model, batch):
    words = model.bert.embeddings.word_embeddings(torch.from_numpy(batch[0]))
    with torch.inference_mode():
        scores = encoder.Scores(model).eval()(words, torch.from_numpy(batch[1])).numpy()
    assert np.ptp(scores) > 1
    assert scores == pytest.approx(exact(model, batch), abs=1e-5)


def test_padding_does_not_change_a_score(model):
    alone = exact(model, scoring.pad([[5, 6, 7]]))
    assert exact(model, scoring.pad([[5, 6, 7], list(range(30))]))[0] == pytest.approx(alone[0], abs=1e-5)


def test_cooling_is_what_it_says(model, batch):
    copy = BertForSequenceClassification(model.config).eval()
    copy.load_state_dict(model.state_dict())
    cuts = np.array(model.config.cuts, dtype=np.float32)
    ids, mask = map(torch.from_numpy, batch)
    temperatures = [1, 2, 0.5, 1, 1, 4]
    with torch.inference_mode():
        before = model(ids, mask.long()).logits.numpy()
        copy.config.cuts = cuts.tolist()
        quality.cool(copy, temperatures)
        after = copy(ids, mask.long()).logits.numpy()
    divided = before / np.array(temperatures), cuts / np.array(temperatures)[:, None]
    found = quality.expected(after, np.array(copy.config.cuts, dtype=np.float32))
    assert found == pytest.approx(quality.expected(*(part.astype(np.float32) for part in divided)), abs=1e-4)


def test_batches_hold_equally_long_texts_and_pads_mask_the_rest():
    assert list(scoring.batches([5, 1, 4, 1, 9], 10)) == [[1, 3], [2, 0], [4]]
    ids, mask = scoring.pad([[7], [8, 9]])
    assert ids.tolist() == [[7, 0], [8, 9]]
    assert mask.tolist() == [[True, False], [True, True]]


def test_word_embeddings_are_read_where_they_lie(model, tmp_path):
    model.save_pretrained(tmp_path)
    mapped = scoring.mapped_tensor(tmp_path / "model.safetensors", scoring.WORDS)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, model.bert.embeddings.word_embeddings.weight.detach().numpy())


def test_auto_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(processor, "flags", lambda: {"avx2", "avx512_bf16"})
    assert scoring.choose("auto", "cpu") == "bf16"
    monkeypatch.setattr(processor, "flags", lambda: {"avx2"})
    assert scoring.choose("auto", "cpu") == "fp32"
    assert scoring.choose("auto", "cuda:1") == "bf16"
    assert scoring.choose("int8", "cpu") == "int8"


def test_auc_by_hand():
    assert judging.auc(np.array([3, 2]), np.array([1, 2])) == pytest.approx(3.5 / 4)
    assert np.isnan(judging.auc(np.array([]), np.array([1])))


def test_rank_correlation_by_hand():
    assert judging.spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 40, 30])) == pytest.approx(0.8)
    assert np.isnan(judging.spearman(np.array([1, 1, 1]), np.array([1, 2, 3])))


def test_f1_by_hand():
    assert judging._f1(np.array([True, True, False]), np.array([True, False, True])) == pytest.approx(0.5)
    assert np.isnan(judging._f1(np.array([False]), np.array([False])))


def test_precision_and_recall_by_hand():
    points = judging.precision_recall(np.array([1.0, 2, 3, 4]), np.array([False, True, False, True]))
    assert points == [
        {"threshold": 1, "precision": 0.5, "recall": 1, "kept": 1},
        {"threshold": 2, "precision": 0.6667, "recall": 1, "kept": 0.75},
        {"threshold": 3, "precision": 0.5, "recall": 0.5, "kept": 0.5},
        {"threshold": 4, "precision": 1, "recall": 0.5, "kept": 0.25},
    ]


def test_temperatures_undo_overconfidence():
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 2, size=(4000, 6)).astype(np.float32)
    cuts = np.tile([-2.0, -0.5, 0.5, 2.0], (6, 1)).astype(np.float32)
    # One draw for all four steps of a text keeps them in order.
    drawn = rng.logistic(size=(4000, 6, 1))
    labels = 1 + (latent[..., None] - cuts + drawn > 0).sum(-1)
    hot = latent * 3, cuts * 3
    assert judging.temperatures(*hot, labels) == pytest.approx([3] * 6, rel=0.1)
    assert judging.calibration_error(latent, cuts, labels) < 0.01
    assert judging.calibration_error(*hot, labels) > 0.05


def test_baselines_learn_what_they_can_see():
    rng = np.random.default_rng(0)

    def examples(count):
        for group in range(count):
            bad = bool(rng.integers(2))
            words = [*rng.choice(["кот", "дом", "лес", "река"], size=20), *(["скидка"] if bad else ["гора"])]
            yield Example(" ".join(rng.permutation(words)), [2.0 if bad else 5.0] * 5, not bad, group)

    training, held_out = list(examples(200)), list(examples(100))
    found = judging.baselines(training, held_out)
    good = np.array([example.good for example in held_out])
    words, length = (found[name][:, judging.OVERALL] for name in ("bag_of_words", "length"))
    assert judging.auc(words[good], words[~good]) > 0.99
    assert 1 <= words.min() < 3 < words.max() <= 5
    # «скидка» is two letters longer than «гора», which is little beside the other words.
    assert judging.auc(length[good], length[~good]) < 0.85
    evaluation = judging.evaluate(training, held_out, np.tile(found["bag_of_words"][:, :1], 6), seed=0)
    low, high = evaluation["criteria"]["grammar"]["spearman_interval"]
    assert low <= evaluation["criteria"]["grammar"]["spearman"] <= high
    assert evaluation["criteria"]["grammar"]["length"]["spearman"] < low
    assert evaluation["criteria"]["grammar"]["bag_of_words"]["f1"] > 0.95
    assert set(evaluation["precision_recall_by_source"]) == {"unknown"}


def test_thresholds_reach_their_targets():
    calibration = {"scores": [1, 2, 3, 4, 5], "good": [False, True, False, True, True]}

    def threshold(target):
        return targets.threshold(target, calibration, lambda share: share * 10)

    assert threshold("score=2.5") == 2.5
    assert threshold("keep_share=0.4") == 4
    assert threshold("precision=0.6") == 1
    assert threshold("precision=0.75") == 2
    assert threshold("precision=1") == 4
    assert threshold("lose_good=0") == 2
    assert threshold("lose_good=0.34") == 4
    assert threshold("lose_good=1") == 5


@pytest.mark.parametrize(
    "target", ["3", "score=", "score=x", "recall=0.5", "precision=1.1", "lose_good=-1", "score=nan"]
)
def test_a_target_is_refused_before_any_work(target):
    with pytest.raises(UserError, match="--target="):
        targets.parse(target)
