"""Packing: every token once and in order, documents apart, and the loss of a packed batch that of its documents."""

import collections
import random
import re
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_model import LINES
from tiny_model import model as tiny_model
from tiny_model import save as save_tiny
from tiny_model import tokenizer as tiny_tokenizer
from transformers import modeling_flash_attention_utils as flash

import pack
from lib import documents, losses, objective, packing, stage
from lib.attention import NAME as BY_DOCUMENT
from lib.errors import UserError

IGNORED = losses.IGNORED


def write_rows(folder, given, length, vocabulary=100, most=None):
    writer = packing.ShardWriter(folder, length, vocabulary, most)
    for document in given:
        writer.add(document)
    return writer, packing.SourceRows(folder, length, vocabulary)


def test_rows_by_hand(tmp_path):
    writer, rows = write_rows(tmp_path, [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]], length=4)
    assert [row["input_ids"].tolist() for row in rows] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [row["position_ids"].tolist() for row in rows] == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert [row["labels"].tolist() for row in rows] == [[IGNORED, 2, 3, IGNORED], [IGNORED, 6, 7, 8]]
    assert (len(rows), writer.rows, writer.documents) == (2, 2, 2)


@pytest.mark.parametrize("rows_per_shard", [1, 2, 100])
def test_nothing_is_lost_but_the_last_rest(tmp_path, monkeypatch, rows_per_shard):
    monkeypatch.setattr(packing, "ROWS_PER_SHARD", rows_per_shard)
    given = [list(range(begin, begin + size)) for begin, size in ((0, 5), (5, 11), (16, 1), (17, 9))]
    _, rows = write_rows(tmp_path, given, length=4)
    assert torch.cat([row["input_ids"] for row in rows]).tolist() == list(range(24))
    assert np.concatenate([rows.tokens(index) for index in range(6)]).tolist() == list(range(24))
    assert len(list(tmp_path.glob("tokens-*.bin"))) == len(list(tmp_path.glob("positions-*.bin")))
    assert len(list(tmp_path.glob("tokens-*.bin"))) == -(-6 // rows_per_shard)
    with pytest.raises(IndexError):
        rows[6]


def test_a_full_writer_passes_over_the_rest(tmp_path):
    writer, rows = write_rows(tmp_path, [[1, 2, 3], list(range(20)), [9]], length=4, most=2)
    assert writer.full
    assert (len(rows), writer.documents) == (2, 2)
    writer, _ = write_rows(tmp_path / "none", [[1, 2, 3, 4]], length=4, most=0)
    assert writer.full
    assert not (tmp_path / "none").exists()


def test_wide_ids_are_read_back(tmp_path):
    _, rows = write_rows(tmp_path, [[69_999, 2, 3, 4]], length=4, vocabulary=70_000)
    assert rows[0]["input_ids"].tolist() == [69_999, 2, 3, 4]


def test_folder_names():
    assert packing.folder_name("manpages-ru_2.txt") == "manpages-ru_2.txt"
    strange = ["Wiki", "wiki?", "a/b", "..", ".", "", "../../etc", "вики", "x" * 300, "a\0b", "CON:", "wiki "]
    found = [packing.folder_name(name) for name in strange]
    assert len({name.lower() for name in found}) == len(strange)
    for name in found:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")
        assert 0 < len(name) < 80
        assert not name.startswith(".")


@pytest.mark.parametrize(("vocabulary", "kind"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_token_type(vocabulary, kind):
    assert packing.token_type(vocabulary) is kind


def alone(model, ids, labels=None):
    """The summed loss of one document that nothing is packed with, by transformers' plain forward pass."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels or ids)[1:], reduction="sum")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def same_loss_and_gradients(model, batch, documents):
    """Asserts that a packed batch's mean loss and its gradients are those of its documents one by one."""
    count = (batch["labels"][:, 1:] != IGNORED).sum()
    one_by_one = sum(alone(model, *document) for document in documents) / count
    expected = gradients(model, one_by_one)
    objective.attach_loss(model, torch.ones(60, dtype=torch.long), objective.Objective(chunk=5))
    packed = model(**batch).loss
    assert packed.item() == pytest.approx(one_by_one.item(), rel=1e-5)
    for name, gradient in gradients(model, packed).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


# flash_attention_2 takes the flattened layout, which torch's own attention has to understand as well.
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager", BY_DOCUMENT])
def test_a_packed_batch_has_the_loss_of_its_documents_one_by_one(tmp_path, attention, flatten):
    model = tiny_model(60)
    model.set_attn_implementation(attention)
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 60, size).tolist() for size in (7, 1, 4, 15, 9, 12)]
    _, rows = write_rows(tmp_path, given, length=12)
    assert [row["position_ids"].tolist().count(0) for row in rows] == [3, 1, 2, 1]
    # The fourth is cut by a row's end and goes on as a document of its own.
    pieces = [*given[:3], given[3][:12], given[3][12:], given[4], given[5]]
    batch = packing.collate(list(rows), flatten=flatten)
    assert batch["input_ids"].shape == ((1, 48) if flatten else (4, 12))
    same_loss_and_gradients(model, batch, [(piece,) for piece in pieces if len(piece) > 1])


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager", BY_DOCUMENT])
def test_packed_dialogues_have_the_loss_of_each_one_alone(attention, flatten):
    model = tiny_model(60)
    model.set_attn_implementation(attention)
    rng = np.random.default_rng(1)
    dialogues = []
    for size in (9, 6, 5, 3):
        ids = rng.integers(0, 60, size).tolist()
        dialogues.append((ids, [IGNORED] * (size // 2) + ids[size // 2 :]))
    rows = packing.pack_dialogues(dialogues, length=12, filler=7)
    assert [row["tokens"] for row in rows] == [12, 11]
    same_loss_and_gradients(model, packing.collate(rows, flatten=flatten), dialogues)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_would_let_packed_documents_see_each_other(attention):
    """The three facts that packing stands on; if transformers changes one of them, this is the test to tell."""
    model = tiny_model(60)
    model.set_attn_implementation(attention)
    ids = torch.randint(60, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, :6] = (ids[0, :6] + 1) % 60
    positions = torch.arange(6).repeat(2)[None]

    def second(ids, **more):
        return model(input_ids=ids, **more).logits[0, 6:]

    apart = {"position_ids": positions, "use_cache": False}
    torch.testing.assert_close(second(ids, **apart), second(changed, **apart))
    torch.testing.assert_close(second(ids, **apart), model(input_ids=ids[:, 6:]).logits[0], rtol=1e-4, atol=1e-5)
    for leak in ({"attention_mask": torch.ones_like(ids)}, {"use_cache": True}, {"position_ids": None}):
        assert not torch.allclose(second(ids, **apart | leak), second(changed, **apart | leak), atol=1e-2)


def test_flash_attention_is_told_the_documents_of_a_flattened_batch(tmp_path):
    _, rows = write_rows(tmp_path, [[1] * 5, [2] * 9, [3] * 2], length=8)
    flat = packing.collate(list(rows), flatten=True)["position_ids"]
    assert flash._is_packed_sequence(flat, batch_size=1)
    (begins, _), (longest, _) = flash.prepare_fa_kwargs_from_position_ids(flat)
    assert begins.tolist() == [0, 5, 8, 14, 16]
    assert longest == 6
    stacked = packing.collate(list(rows), flatten=False)["position_ids"]
    assert not flash._is_packed_sequence(stacked, batch_size=2), "so a batch of rows has to be flattened"


def test_dialogues_are_packed_whole_and_fillers_count_for_nothing():
    dialogues = [([n] * size, [n] * size) for n, size in ((1, 3), (2, 6), (3, 4), (4, 2))]
    rows = packing.pack_dialogues(dialogues, length=8, filler=0)
    assert [row["input_ids"].tolist() for row in rows] == [[2] * 6 + [4] * 2, [3] * 4 + [1] * 3 + [0]]
    assert rows[1]["labels"].tolist() == [IGNORED, 3, 3, 3, IGNORED, 1, 1, IGNORED]
    assert rows[1]["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert [row["tokens"] for row in rows] == [8, 7]


def best_fit_plainly(sizes, length):
    rows, room = [], []
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        fitting = [row for row in range(len(rows)) if room[row] >= sizes[number]]
        chosen = min(fitting, key=lambda row: (room[row], row), default=len(rows))
        if chosen == len(rows):
            rows.append([])
            room.append(length)
        rows[chosen].append(number)
        room[chosen] -= sizes[number]
    return rows


def test_the_fast_best_fit_is_the_plain_one():
    rng = random.Random(0)
    for _ in range(300):
        length = rng.choice([5, 12, 40])
        sizes = [rng.randint(1, length) for _ in range(rng.randint(0, 60))]
        assert packing.best_fit(sizes, length) == best_fit_plainly(sizes, length)


def test_twenty_thousand_dialogues_are_fitted_in_a_moment():
    rng = random.Random(0)
    sizes = [min(1024, int(rng.lognormvariate(5.5, 0.8)) + 2) for _ in range(20_000)]
    begun = time.process_time()
    rows = packing.best_fit(sizes, 1024)
    assert (
        time.process_time() - begun < 0.5
    )  # 0.03 here; a search through all rows takes 2.5, and grows with the square
    assert sorted(number for row in rows for number in row) == list(range(20_000))
    assert all(sum(sizes[number] for number in row) <= 1024 for row in rows)
    assert sum(sizes) / (1024 * len(rows)) > 0.99


def test_a_dialogue_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="9 tokens do not fit into a row of 8"):
        packing.best_fit([3, 9], 8)


def test_a_lot_is_even_and_depends_on_seed_and_id_alone():
    lots = [packing.lot(str(number), 0) for number in range(4000)]
    assert np.histogram(lots, bins=4, range=(0, 1))[0].min() > 900
    assert lots[7] == packing.lot("7", 0) != packing.lot("7", 1)


def test_a_limit_is_shared_by_size():
    sources = {("a", "ru"): packing.Surveyed(9, 600.0), ("b", "ru"): packing.Surveyed(9, 300.0),
               ("c", "ru"): packing.Surveyed(1, 100.0)}  # fmt: skip
    assert [tuple(part) for part in packing.allot(sources, 505, 10).values()] == [
        (pytest.approx(0.53025), 30), (pytest.approx(0.53025), 15), (pytest.approx(0.53025), 5)
    ]  # fmt: skip
    assert sum(part.rows for part in packing.allot(sources, 77, 10).values()) == 7
    assert {part.share for part in packing.allot(sources, 5000, 10).values()} == {1.0}
    assert set(packing.allot(sources, None, 10).values()) == {(1.0, None)}
    assert set(packing.allot(sources, 0, 10).values()) == {(0.0, 0)}
    assert packing.allot({}, 100, 10) == {}


def test_a_survey_counts_documents_and_estimates_tokens():
    tok = tiny_tokenizer()
    texts = {("news", "ru"): LINES[0], ("news", "en"): LINES[3], ("wiki", "ru"): LINES[1]}
    given = [
        {"id": str(number), "text": text * (number % 3 + 1), "source": source, "language": language}
        for (source, language), text in texts.items()
        for number in range(100)
    ]
    found = packing.survey(given, tok, seed=0)
    assert list(found) == sorted(texts)
    for key, facts in found.items():
        encoded = [len(tok(d["text"])["input_ids"]) + 2 for d in given if (d["source"], d["language"]) == key]
        assert facts.documents == 100
        assert facts.tokens == pytest.approx(sum(encoded), rel=0.02)
    assert packing.names(found) == {
        ("news", "ru"): "news.ru", ("news", "en"): "news.en", ("wiki", "ru"): "wiki"
    }  # fmt: skip


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    """300 documents of three sources, one of them in two languages, every tenth held out; and a tokenizer."""
    folder = tmp_path_factory.mktemp("pack")
    with documents.writing(folder / "filter" / "documents", extra=[("split", pa.string())]) as writer:
        for number in range(300):
            source, language = (("Вики", "ru"), ("web", "ru"), ("web", "en"))[number % 3]
            text = (LINES[3] if language == "en" else LINES[number % 2]) * 3 + f" No. {number}."
            split = "held_out" if number // 3 % 10 == 9 else "train"
            writer.write({"id": f"d{number}", "text": text, "source": source, "language": language, "split": split})
    save_tiny(folder / "model")
    return folder


def packed(filtered, out, **settings):
    paths = {"documents": filtered / "filter", "tokenizer": filtered / "model", "out": out}
    pack.main(**paths, sequence_length=16, **settings)
    return stage.read_manifest(out)


def test_pack_writes_a_folder_of_shards_per_source(filtered, tmp_path, capsys):
    manifest = packed(filtered, tmp_path / "out")
    results = manifest["results"]
    assert set(results["sources"]) == {"Вики", "web.ru", "web.en"}
    folder = packing.folder_name("Вики")
    assert set(manifest["files"]) == {
        f"train/{source}/{name}-00000.bin" for source in (folder, "web.ru", "web.en") for name in ("tokens", "positions")
    } | {"held_out/documents/00000.parquet"}  # fmt: skip
    assert results["sources"]["Вики"]["folder"] == folder
    for name, language in {"Вики": "ru", "web.ru": "ru", "web.en": "en"}.items():
        facts = results["sources"][name]
        assert (facts["language"], facts["documents"], facts["documents_in"]) == (language, 90, 90)
        rows = packing.SourceRows(tmp_path / "out" / "train" / facts["folder"], 16, results["vocabulary"])
        assert (len(rows), facts["tokens"]) == (facts["rows"], 16 * facts["rows"])
    assert results["rows"] == sum(facts["rows"] for facts in results["sources"].values())
    assert results["tokens"] == 16 * results["rows"]
    assert {name: facts["documents"] for name, facts in results["held_out"].items()} == {"ru": 20, "en": 10}
    assert "from 3 sources: ru " in capsys.readouterr().out

    tok = tiny_tokenizer()
    ids = [tok.bos_token_id, *tok(LINES[0] * 3 + " No. 0.")["input_ids"], tok.eos_token_id]
    rows = packing.SourceRows(tmp_path / "out" / "train" / folder, 16, len(tok))
    assert torch.cat([row["input_ids"] for row in rows])[: len(ids)].tolist() == ids, "the first document of the source"


def test_limits_of_pack_take_the_same_share_of_each_source(filtered, tmp_path):
    everything = packed(filtered, tmp_path / "all")["results"]["sources"]
    some = packed(filtered, tmp_path / "some", max_train_tokens=4000, max_replay_tokens=500)["results"]["sources"]
    sizes = collections.Counter()
    for facts in some.values():
        sizes[facts["language"]] += facts["tokens"]
    assert 3200 < sizes["ru"] <= 4000
    assert 350 < sizes["en"] <= 500
    shares = [some[name]["rows"] / everything[name]["rows"] for name in ("Вики", "web.ru")]
    assert shares[0] == pytest.approx(shares[1], rel=0.2)
    facts = some["Вики"]
    rows = packing.SourceRows(tmp_path / "some" / "train" / facts["folder"], 16, len(tiny_tokenizer()))
    text = tiny_tokenizer().decode(torch.cat([row["input_ids"] for row in rows]))
    numbers = [int(number) for number in re.findall(r"No\. (\d+)\.", text)]
    assert facts["documents"] - 1 <= len(numbers) <= facts["documents"] < 0.6 * facts["documents_in"]
    assert max(numbers) > 200, "not just the first: they are drawn from all of the source's"
    none = packed(filtered, tmp_path / "none", max_replay_tokens=0)["results"]["sources"]
    assert set(none) == {"Вики", "web.ru"}
    assert none["Вики"] == everything["Вики"]


def test_held_out_text_is_limited_by_language(filtered, tmp_path):
    results = packed(filtered, tmp_path / "out", held_out_characters=400)["results"]
    size = len(LINES[0]) * 3
    assert {name: facts["documents"] for name, facts in results["held_out"].items()} == {
        "ru": -(-400 // (size + 9)), "en": -(-400 // (3 * len(LINES[3]) + 9))
    }  # fmt: skip
    assert len(list(documents.read(tmp_path / "out" / "held_out" / "documents"))) == 3 + 4


def test_pack_refuses_too_little_text_and_odd_lengths(filtered, tmp_path):
    with pytest.raises(UserError, match="not one row of 16 tokens: too little text in the target language"):
        packed(filtered, tmp_path / "out", max_train_tokens=15)
    with pytest.raises(UserError, match="sequence_length: 1 is not from 2 to 65,536"):
        pack.main(documents=filtered, tokenizer=filtered, out=tmp_path / "out", sequence_length=1)
    assert not (tmp_path / "out").exists()
