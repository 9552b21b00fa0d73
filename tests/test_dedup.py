"""dedup: its kernel against plain Python and brute force, and the script on planted duplicates."""

import itertools
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib import documents, duplicates, kernels, minhash, paragraphs

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


# Everything that the kernel's table of code points has to leave to Python, or to get right itself.
ODD = [
    "е\u0308лка",
    "за\u0301мок",
    "г\u0301 к\u0301 e\u0301 а\u00ad\u0301",
    "и\u0306од",
    "№ 5… ½ ﬁn ™ ㎏",
    "ΣΊΣΥΦΟΣ ς",
    "İstanbul ǅ ẞ",
    "각 각 한",
    "が ｶﾞ",
    "क़ क़",
    "a\u0315\u0300b",
    "\u0301а",
    " \u200b\ufeffтак\u2060 \u3000 \x1c\u0085 да",
    "ﷺ ¨ ˘",
    "😀👩‍👩‍👧 𝔄𝕭 𐐀",
    "Ё ё Й й Ў ў Ѓ Ќ",
    "",
    " ",
    "\x00a",
]


def folded(text):
    """The normal form by the kernel, or None where it has to be Python's."""
    table, expansions = minhash.folding()
    data = np.frombuffer(text.encode(), np.uint8)
    codes = np.empty(2 * len(data) + 1, np.uint32)
    count = kernels.fold(data, 0, len(data), table, expansions, codes)
    return None if count < 0 else "".join(map(chr, codes[:count]))


@pytest.mark.parametrize("text", ODD)
def test_the_kernels_normal_form_is_pythons(text):
    assert folded(text) in (None, paragraphs.normalise(text))


def test_the_kernels_normal_form_of_every_character_beside_others():
    rng = random.Random(0)
    everything = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    letters = [c for c in everything if unicodedata.decomposition(c) or unicodedata.combining(c) or c.isspace()]
    hard = 0
    for start in range(0, len(everything), 400):  # each between two of the characters that change something
        text = "".join(c + rng.choice(letters) * rng.randint(0, 1) for c in everything[start : start + 400])
        pieces = [text[place : place + 3] for place in range(0, len(text), 3)]
        for piece in pieces:
            found = folded(piece)
            hard += found is None
            assert found in (None, paragraphs.normalise(piece)), ascii(piece)
    assert folded("Обычный текст — «с ёлкой», в котором № 5…") is not None
    assert hard


def test_the_table_leaves_little_room_to_spare():
    table, expansions = minhash.folding()
    for code in np.flatnonzero((table >= kernels.EXPANDS) & (table < kernels.DROPPED)).tolist():
        assert table[code] & 31 <= 2 * len(chr(code).encode())  # as kernels.room_for promises
    assert len(expansions)


def test_paragraphs_are_split_as_in_python():
    rng = random.Random(1)
    pieces = ["\n", "\n\n", " ", "кот", "a", "\u3000", "\u200b", "\r\n", "\x85", "😀", "\x00"]
    texts = ["".join(rng.choices(pieces, k=rng.randint(0, 12))) for _ in range(500)]
    array = pa.array(["выброшен", *texts], pa.large_string()).slice(1)
    document, paragraph, starts, ends = minhash.split(array)
    raw = minhash.buffers(array)[1].tobytes()
    found = [(d, p, raw[s:e].decode()) for d, p, s, e in zip(document, paragraph, starts, ends, strict=True)]
    assert found == [(d, p, q) for d, text in enumerate(texts) for p, q in enumerate(paragraphs.split(text)[0])]
    assert minhash.paragraph_counts(array).tolist() == [len(paragraphs.split(text)[0]) for text in texts]


def test_signatures_do_not_depend_on_what_stands_around():
    how = minhash.scheme(0.8, 128, 5, False, 5)
    texts = ["машинное обучение", "Изменяет мир…\n\nи е\u0308лку", "x" * 300, "Заметьте: " * 40, "о\u0301на ΣΑΣ идёт"]
    together = minhash.sign(pa.array(texts, pa.large_string()), how)
    assert together.paragraph.tolist() == [0, 0, 1, 0, 0, 0]
    apart = [minhash.sign(pa.array([text], pa.large_string()), how) for text in texts]
    for name, axis in (("keys", 1), ("sketch", 0), ("digest", 0)):
        parts = np.concatenate([getattr(signed, name) for signed in apart], axis=axis)
        assert np.array_equal(getattr(together, name), parts)
    normal = [paragraphs.normalise(p) for text in texts for p in paragraphs.split(text)[0]]
    again = minhash.sign(pa.array(normal, pa.large_string()), how)
    assert np.array_equal(again.digest, together.digest)
    assert np.array_equal(again.keys, together.keys)
    assert len(np.unique(together.digest[:, 0])) == 6


def signed(texts, how):
    return minhash.sign(pa.array(texts, pa.large_string()), how)


@pytest.mark.parametrize("num_perm", [64, 128, 512])
def test_sketches_estimate_the_similarity(num_perm):
    """Mean and spread of 400 estimates at a similarity of about 0.8 are what theory says."""
    rng = random.Random(2)
    how = minhash.scheme(0.8, num_perm, 5, False, 5)
    registers = minhash.SKETCH_BITS // how.sketch_bits
    errors = []
    for size in (60, 150, 900):
        for _ in range(130):
            left = "".join(rng.choices("абвгдежзиклмнопрст ", k=size)).replace(" ", "-")
            cut = size // 10
            right = left[: size - cut] + "".join(rng.choices("уфхцчшщы", k=cut))
            both = signed([left, right], how)
            agreed = kernels.agreement(both.sketch, np.array([0]), np.array([1]))[0]
            estimate = 1 - 2 * (minhash.SKETCH_BITS - agreed) / minhash.SKETCH_BITS
            sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in (left, right)]
            errors.append(estimate - len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    spread = np.sqrt((0.2 * (how.sketch_bits + 1) / how.sketch_bits - 0.04) / registers)
    assert abs(np.mean(errors)) < 4 * spread / np.sqrt(len(errors))
    assert 0.7 * spread < np.std(errors) < 1.2 * spread


@pytest.mark.parametrize("words", [False, True])
def test_exact_similarity_is_that_of_sets(words):
    rng = random.Random(3)
    vocabulary = ["вода", "слово", "и", "берег", "ёж", "№"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 60))) for _ in range(60)] + ["a", "ab", ""]
    how = minhash.scheme(0.8, 128, 3, words, 3)
    data = "".join(texts).encode()
    ends = np.cumsum([len(text.encode()) for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    given = minhash.Texts(np.frombuffer(data, np.uint8), starts, ends, np.zeros(len(texts), bool))

    def grams(text):
        units = paragraphs.normalise(text)
        units = units.split(" ") if words else units
        return {tuple(units[i : i + 3]) for i in range(max(1, len(units) - 2))}

    pairs = np.array(list(itertools.combinations(range(len(texts)), 2)))
    found = minhash.similarities(given, pairs[:, 0].copy(), pairs[:, 1].copy(), how)
    sets = [grams(text) for text in texts]
    truth = [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs]
    assert np.allclose(found, truth, atol=1e-6)


def test_bands_find_pairs_at_the_threshold():
    how = minhash.scheme(0.8, 128, 5, False, 40)
    assert how.bands * how.rows <= 128
    assert 1 - (1 - 0.8**how.rows) ** how.bands > 0.98


def spoilt_texts():
    """Paragraphs and copies with typing errors, other words and lost ends: similarities on both sides of the threshold."""
    rng = random.Random(0)
    base = [json.loads(line)["text"] for line in (TEXT / "ru.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [p for text in base for p in paragraphs.split(text)[0] if len(paragraphs.normalise(p)) >= 40]
    for text in texts[:]:
        words = text.split()
        for place in rng.sample(range(len(words)), k=min(len(words), rng.randint(1, 4))):
            words[place] = rng.choice(["вода", "слово", "и", "берег", words[place] + "а"])
        texts.append(" ".join(words))
        texts.append(text[: -rng.randint(1, 12)])
    return texts


def indexed(texts, how, folder, **flags):
    path = folder / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts)), encoding="utf-8"
    )

    def batches(file, skipped):
        return documents.read_batches(file, skipped=skipped, language="ru")

    index = duplicates.sign([path], batches, how, folder / "work", [])
    return duplicates.find(index, batches, how, keep=flags.get("keep", "first"), memory_gb=flags.get("memory_gb", 4))


def test_duplicates_against_brute_force(tmp_path):
    how = minhash.scheme(0.8, 128, 5, False, 40)
    texts = spoilt_texts()
    normal = [paragraphs.normalise(text) for text in texts]
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in normal]
    long = [n for n, text in enumerate(normal) if len(text) >= 40]
    truth = {}
    for i, j in itertools.combinations(long, 2):
        shared = len(sets[i] & sets[j])
        similarity = shared / (len(sets[i]) + len(sets[j]) - shared)
        if similarity >= 0.8:
            truth[i, j] = similarity
    found = indexed(texts, how, tmp_path)
    numbers = np.array(long)
    removed = numbers[found.removed]
    twins = numbers[found.nodes.numbers[found.twins]]
    assert len(truth) > 200
    assert not set(removed) & set(twins)  # whatever stands for another stays
    for gone, twin, similarity in zip(removed.tolist(), twins.tolist(), found.similarity.tolist(), strict=True):
        assert truth[twin, gone] == pytest.approx(similarity, abs=1e-6)  # precision 1
    redundant = {j for _, j in truth}
    assert len(set(removed.tolist()) & redundant) >= 0.99 * len(set(removed.tolist()))
    assert len(removed) + found.figures["spared"] >= 0.97 * len(redundant)


def test_shares_of_a_band_find_the_same(tmp_path):
    how = minhash.scheme(0.8, 128, 5, False, 40)
    (tmp_path / "whole").mkdir()
    (tmp_path / "shares").mkdir()
    whole = indexed(spoilt_texts(), how, tmp_path / "whole")
    shares = indexed(spoilt_texts(), how, tmp_path / "shares", memory_gb=2e-6)  # about forty keys at a time
    assert np.array_equal(whole.removed, shares.removed)
    assert np.array_equal(whole.twins, shares.twins)
    assert whole.figures == shares.figures


@pytest.mark.parametrize("size", [1, 2, 3, 199, 200, 201, 500])
def test_pairs_of_a_bucket(size):
    rng = np.random.default_rng(4)
    keys = np.concatenate([np.full(size, 7), rng.integers(1 << 40, size=2000)]).astype(np.uint64)
    order = rng.permutation(len(keys))
    numbers = np.arange(len(keys)) * 3
    codes = duplicates.pairs_of_buckets(keys[order], numbers, 10_000)
    members = numbers[np.flatnonzero(order < size)].tolist()
    expected = {(a, b) for a, b in itertools.combinations(members[: kernels.FULL_BUCKET], 2)}
    for place in range(kernels.FULL_BUCKET, size):  # later ones with the first and the one before
        expected |= {(members[0], members[place]), (members[place - 1], members[place])}
    assert sorted(expected) == sorted(zip(*(part.tolist() for part in np.divmod(codes, 10_000)), strict=True))


def test_pairs_of_nothing():
    assert len(duplicates.pairs_of_buckets(np.empty(0, np.uint64), np.empty(0, np.int64), 0)) == 0


def test_only_what_resembles_a_kept_text_goes(tmp_path):
    how = minhash.scheme(0.6, 128, 5, False, 5)
    chain = ["abcdefghijklmnop", "abcdefghijklmnXY", "abcdefghijklXYZW", "abcdefghijklmnXY"]
    data = np.frombuffer("".join(chain).encode(), np.uint8)
    starts = np.arange(0, 64, 16)
    texts = minhash.Texts(data, starts, starts + 16, np.zeros(4, bool))
    nodes = duplicates.Nodes(np.arange(4), starts, starts + 16, texts, pa.table({}))
    left, right = np.array([0, 1, 1]), np.array([1, 2, 3])  # 2 resembles only 1, which goes; 3 resembles 0 through 1
    similarity = minhash.similarities(texts, left, right, how)
    instead, alike, spared = duplicates.chosen(nodes, left, right, similarity, np.arange(4), how)
    assert (instead.tolist(), spared) == ([-1, 0, -1, 0], 1)
    assert alike.tolist() == pytest.approx([1, 10 / 14, 1, 10 / 14])
    instead, _, spared = duplicates.chosen(nodes, left, right, similarity, np.array([3, 2, 1, 0]), how)
    assert (instead.tolist(), spared) == ([3, 3, -1, -1], 0)


def test_prompts_are_compared_as_wholes():
    how = minhash.scheme(0.8, 128, 5, False, 1)
    prompts = ["Привет", "Напиши стихотворение\nо море и о том, кто его любит.", "привет", "Как дела?", ""]
    prompts += [prompts[1].replace("\n", " ").replace("любит", "любил"), "Напиши стихотворение"]
    found = duplicates.among(prompts, how)
    assert {gone: twin for gone, (twin, _) in found.items()} == {2: 0, 5: 1}
    assert 0.8 < found[5][1] < found[2][1] == 1
    assert {
        gone: twin for gone, (twin, _) in duplicates.among([*prompts, prompts[5] + " Да."], how, keep="longest").items()
    } == {2: 0, 1: 7, 5: 7}


def test_clusters_join_whatever_is_connected():
    assert minhash.clusters(6, np.array([4, 1, 2]), np.array([5, 2, 4])).tolist() == [0, 1, 1, 3, 1, 1]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--keep=first"], "first"),
        (["--keep=longest"], "longer"),
        (["--keep=source", "--source_priority=good,other"], "good"),
    ],
)
def test_what_is_kept_of_similar_ones(script, tmp_path, flags, kept):
    """Similar and equal ones alike: of the two equal texts the 'good' source's stays, where sources are ranked."""
    text = LONG.format(1, "вода")
    entries = [("first", text, "x"), ("again", text, "y"), ("longer", text + " Да.", "y"), ("good", text, "good")]
    lines = [json.dumps({"id": i, "text": t, "source": s, "language": "ru"}) for i, t, s in entries]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = script(
        "dedup", f"--corpus={tmp_path / 'a.jsonl'}", "--min_document_chars=10", f"--out={tmp_path / 'o'}", *flags
    )
    assert done.returncode == 0, done.stderr
    assert [r["id"] for r in rows(tmp_path / "o" / "documents")] == [kept]
    assert {r["twin_id"] for r in rows(tmp_path / "o" / "removed")} == {kept}


def test_a_learned_hash_finds_nearly_the_same(script, tmp_path):
    """Whatever it proposes is checked exactly, so it can only find fewer."""
    source = write(tmp_path / "a.jsonl", *spoilt_texts())
    removed = {}
    for method in ("minhash", "mihash"):
        flags = [f"--corpus={source}", "--min_document_chars=1", f"--method={method}", f"--out={tmp_path / method}"]
        done = script("dedup", *flags, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        removed[method] = {(r["id"], r["twin_id"]) for r in rows(tmp_path / method / "removed")}
    assert "pairs to learn from, radius" in done.stderr
    assert len(removed["minhash"]) > 200
    assert len(removed["mihash"] & removed["minhash"]) > 0.8 * len(removed["minhash"])
    assert min(r["similarity"] for r in rows(tmp_path / "mihash" / "removed")) >= 0.8


def test_a_killed_run_goes_on(script, tmp_path):
    """Whatever of the working folder is complete is used, and the result is that of an undisturbed run."""
    flags = [f"--config={ROOT}/configs/test/dedup.yaml", f"--corpus={TEXT}/ru.jsonl", "--language=ru"]
    assert script("dedup", *flags, f"--out={tmp_path / 'whole'}").returncode == 0
    for stop in ("verified", "gather"):
        out = tmp_path / stop
        program = (
            f"import sys, os; sys.path.insert(0, {str(ROOT / 'scripts')!r}); sys.argv[0] = 'dedup.py'\n"
            f"from lib import cli, duplicates; import dedup\n"
            f"duplicates.{stop} = lambda *_: os.kill(os.getpid(), 9)\n"
            "cli.run(dedup.main)\n"
        )
        killed = subprocess.run([sys.executable, "-c", program, *flags, f"--out={out}"], capture_output=True)
        assert killed.returncode == -9
        work = tmp_path / f"{stop}.partial" / "work"
        assert (work / "candidates.npz").exists()
        times = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
        refused = script("dedup", *flags, f"--out={out}", "--threshold=0.9")
        assert refused.returncode == 2
        assert "threshold: 0.8 then, 0.9 now" in refused.stderr
        assert {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")} == times
        assert script("dedup", *flags, f"--out={out}").returncode == 0
        assert not (out / "work").exists()
        for part in ("documents", "removed"):
            assert rows(out / part) == rows(tmp_path / "whole" / part)


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
        (['{"text": "так"}'], ["--bits=100"], "--bits=100: a multiple of 8 from 64 to 256"),
        (['{"text": "так"}'], ["--keep=source"], "--keep=source wants --source_priority"),
        (['{"text": "так"}'], ["--method=mihash"], "0 clusters of similar paragraphs are too few to learn from"),
        (['{"text": "так"}'], ["--method=mihash", "--memory_gb=0.1"], "--memory_gb=0.1: above 0.5"),
        (['{"text": "так"}'], ["--shingle_size=50"], "--shingle_size=50: from 1 to --min_chars=40"),
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
