"""dedup: its mathematics against datasketch and brute force, and the script on planted duplicates."""

import itertools
import json
import random
from pathlib import Path

import datasketch
import numpy as np
import pyarrow.parquet as pq
import pytest

from lib import minhash, paragraphs

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "data" / "builtin" / "text"
LONG = "Это достаточно длинный абзац о море, чтобы его сравнивали с другими абзацами: номер {}, слово {}."


def write(path, *texts, **fields):
    lines = [json.dumps({"id": f"{path.stem}-{n}", "text": t, "language": "ru"} | fields) for n, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(folder):
    return pq.read_table(folder).to_pylist()


@pytest.mark.parametrize(
    "text",
    ["", "a", "a\nb", "a\n\nb\n", "\n\n a\n \t\n b \r\n\r\nc\n\n\n", "\n", " ", "a\u2028b\n\x0bc", "кот\n\nпёс\n"],
)
def test_splitting_loses_nothing(text):
    pieces, gaps = paragraphs.split(text)
    assert len(gaps) == len(pieces) + 1
    assert all(piece.strip() and "\n" not in piece for piece in pieces)
    if pieces:
        assert paragraphs.join(pieces, gaps, [True] * len(pieces)) == text


def test_joining_keeps_the_wider_gap():
    pieces, gaps = paragraphs.split("one\n\ntwo\nthree\n\nfour\n")
    assert paragraphs.join(pieces, gaps, [True, False, True, True]) == "one\n\nthree\n\nfour\n"
    assert paragraphs.join(pieces, gaps, [True, True, False, True]) == "one\n\ntwo\n\nfour\n"
    assert paragraphs.join(pieces, gaps, [False, True, True, False]) == "two\nthree\n"
    assert paragraphs.join(pieces, gaps, [False] * 4) == ""


def test_normal_form():
    assert paragraphs.normalise("  Ёлка\u00a0\t и\u0306 ЙОД\u00ad 12 ") == "елка й йод 12"
    assert paragraphs.normalise("за\u0301мок") == "замок"
    assert paragraphs.normalise("мой") != paragraphs.normalise("мои")
    assert paragraphs.normalise("том 1") != paragraphs.normalise("том 2")


def test_signatures_are_datasketchs():
    texts = ["машинное обучение", "abcde", "изменяет мир, изменяет мир, 😀", "x" * 300, "Заметьте: " * 40]
    hashed = {}
    for text in texts:
        hashes = minhash.shingle_hashes(text, 5)
        hashed[text] = [int(h) for h in hashes]
        assert len(hashes) == len(text) - 4
    expected = [
        datasketch.MinHash.bulk([hashed[text]], num_perm=64, seed=1, scheme="affine32", hashfunc=lambda h: h)[
            0
        ].digest()
        for text in texts
    ]
    found = minhash.signatures(texts, 5, minhash.permutations(64))
    assert np.array_equal(found, np.stack(expected))
    assert np.array_equal(found, np.concatenate([minhash.signatures([t], 5, minhash.permutations(64)) for t in texts]))


def test_equal_shingles_hash_equally_wherever_they_are():
    assert minhash.shingle_hashes("xxкошка", 5)[-1] == minhash.shingle_hashes("кошка", 5)[0]
    assert minhash.shingle_hashes("кошка", 5)[0] != minhash.shingle_hashes("акшок", 5)[0]


def test_jaccard_by_hand():
    left, right = minhash.shingles("abcdef", 5), minhash.shingles("abcdeg", 5)  # abcde bcdef | abcde bcdeg
    assert minhash.jaccard(left, right) == pytest.approx(1 / 3)
    assert minhash.shingles("ab", 5) == {"ab"}


def test_bands_find_pairs_at_the_threshold():
    bands, rows_in_band = minhash.bands(0.8, 128)
    assert bands * rows_in_band <= 128
    assert 1 - (1 - 0.8**rows_in_band) ** bands > 0.98


def test_near_duplicates_against_brute_force():
    rng = random.Random(0)
    base = [json.loads(line)["text"] for line in (TEXT / "ru.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [paragraphs.normalise(p) for text in base for p in paragraphs.split(text)[0]]
    texts = [text for text in texts if len(text) >= 40][:150]
    for text in texts[:120]:  # one to nine words replaced: similarities on both sides of the threshold
        words = text.split()
        for place in rng.sample(range(len(words)), k=min(len(words), rng.randint(1, 9))):
            words[place] = rng.choice(["вода", "слово", "и", "берег"])
        texts.append(" ".join(words))
    sets = [minhash.shingles(text, 5) for text in texts]
    truth = {
        (i, j) for i, j in itertools.combinations(range(len(texts)), 2) if minhash.jaccard(sets[i], sets[j]) >= 0.8
    }
    signed = minhash.signatures(texts, 5, minhash.permutations(128))
    candidates = minhash.candidates(signed, *minhash.bands(0.8, 128))
    found = {(i, j): s for i, j, s in minhash.verified(texts, signed, candidates, size=5, threshold=0.8)}
    assert len(truth) > 30
    assert found.keys() <= truth  # precision 1
    assert len(found) >= 0.9 * len(truth)
    assert all(s == minhash.jaccard(sets[i], sets[j]) for (i, j), s in found.items())


def test_a_large_bucket_is_compared_sparsely():
    signed = np.zeros((500, 14), dtype=np.uint32)
    pairs = minhash.candidates(signed, 2, 7)
    assert {(0, n) for n in range(1, 500)} | {(n, n + 1) for n in range(499)} == set(map(tuple, pairs.tolist()))


def test_only_what_resembles_a_kept_text_goes():
    texts = ["abcdefghijklmnop", "abcdefghijklmnXY", "abcdefghijklXYZW", "abcdefghijklmnXY"]
    pairs = [(0, 1), (1, 2), (1, 3)]  # a chain: 2 resembles only 1, which goes; 3 resembles 0 through 1
    instead, spared = minhash.twins(texts, pairs, size=5, threshold=0.6)
    assert (instead, spared) == ({1: 0, 3: 0}, 1)


def test_planted_duplicates_are_found(script, tmp_path):
    out = tmp_path / "dedup"
    done = script(
        "dedup",
        f"--config={ROOT}/configs/test/dedup.yaml",
        f"--corpus={TEXT}/ru.jsonl",
        "--language=ru",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["documents", "manifest.json", "removed"]
    planted = json.loads((TEXT / "planted.json").read_text(encoding="utf-8"))
    found = {(r["id"], r["paragraph"], r["twin_id"], r["reason"]) for r in rows(out / "removed") if r["twin_id"]}
    assert found == {(p["id"], p["paragraph"], p["twin_id"], f"{p['kind']}_duplicate") for p in planted}
    results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert results["paragraphs_in"] == results["paragraphs_kept"] + sum(results["paragraphs_removed"].values())
    assert "kept" in done.stdout


def test_script_exactly(script, tmp_path):
    first = LONG.format(1, "вода")
    near = LONG.format(1, "воды")
    other = "Совершенно другой абзац, в котором говорится о горах, снеге, лавинах и о тех, кто их изучает зимой."
    a = write(tmp_path / "a.jsonl", f"Заголовок\n\n{first}\n\n{other}\n", "Короткий", "")
    b = write(tmp_path / "b.jsonl", f"Заголовок\n\n{near}\n\n{'Новое и нужное. ' * 5}", f"{first.upper()}\n\nОстаток")
    out = tmp_path / "out"
    flags = ["--min_chars=40", "--min_document_chars=30", f"--out={out}"]
    done = script("dedup", f"--corpus={a},{b}", *flags)
    assert done.returncode == 0, done.stderr
    kept = {r["id"]: r["text"] for r in rows(out / "documents")}
    assert kept == {
        "a-0": f"Заголовок\n\n{first}\n\n{other}\n",
        "a-1": "Короткий",
        "b-0": f"Заголовок\n\n{'Новое и нужное. ' * 5}",
    }
    removed = [
        (r["id"], r["paragraph"], r["text"], r["source"], r["reason"], r["twin_id"]) for r in rows(out / "removed")
    ]
    assert removed == [
        ("b-0", 1, near, "b", "near_duplicate", "a-0"),
        ("b-1", 0, first.upper(), "b", "exact_duplicate", "a-0"),
        ("b-1", None, "Остаток", "b", "too_short", None),
    ]
    assert [r["twin_text"] for r in rows(out / "removed")] == [first, first, None]
    similarities = [r["similarity"] for r in rows(out / "removed")]
    assert 0.8 <= similarities[0] < 1
    assert similarities[1:] == [1.0, None]
    results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert (results["documents_in"], results["documents_kept"], results["documents_dropped"]) == (5, 3, 2)
    assert results["paragraphs_removed"] == {"exact_duplicate": 1, "near_duplicate": 1, "too_short": 1}
    assert results["duplicates_by_sources"] == {"b ~ a": 2}
    assert results["clusters_by_size"] == {"3": 1}


def test_a_document_with_a_twin_of_another_stays(script, tmp_path):
    first, second = (
        LONG.format(1, "вода"),
        "Лес стоял тихо, и только где-то далеко стучал по сухой сосне упрямый дятел.",
    )
    source = write(
        tmp_path / "a.jsonl", first, f"{second}\n\n{first}", second + "\n\n" + "Ещё одно предложение здесь. " * 4
    )
    out = tmp_path / "out"
    assert script("dedup", f"--corpus={source}", "--min_document_chars=90", f"--out={out}").returncode == 0
    assert [r["text"] for r in rows(out / "documents")] == [first, second, ("Ещё одно предложение здесь. " * 4)]


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ([], [], "no paragraph of text in the whole corpus"),
        (['{"text": ""}'], [], "no paragraph of text in the whole corpus"),
        (['{"text": "так"}', "{"], [], "a.jsonl:2: not valid JSON"),
        (['{"text": "так"}'], ["--treshold=0.7"], "unknown setting 'treshold', did you mean 'threshold'?"),
        (['{"text": "так"}'], ["--threshold=1.5"], "--threshold=1.5"),
        (['{"text": "так"}'], ["--shingle_chars=50"], "--shingle_chars=50: from 1 to --min_chars=40"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(script, tmp_path, lines, flags, message):
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    done = script("dedup", f"--corpus={source}", "--language=ru", f"--out={tmp_path / 'out'}", *flags)
    assert done.returncode == 2
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_corrupt_line_is_skipped_on_request(script, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "так"}\n{\n{"text": "эдак"}\n', encoding="utf-8")
    done = script("dedup", f"--corpus={source}", "--language=ru", "--on_error=skip", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert [r["text"] for r in rows(tmp_path / "out" / "documents")] == ["так", "эдак"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["results"]["skipped"] == {"invalid_json": 1}


def test_an_empty_source_beside_a_full_one(script, tmp_path):
    (tmp_path / "skipped" / "documents").mkdir(parents=True)
    full = write(tmp_path / "full.jsonl", LONG.format(1, "вода"))
    done = script("dedup", f"--corpus={tmp_path / 'skipped' / 'documents'},{full}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "out" / "documents")) == 1
