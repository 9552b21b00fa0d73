"""scripts/report.py and the figures and sentences it is made of."""

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lib import documents, page, plots, scores

SCRIPT = Path(__file__).parents[1] / "scripts" / "report.py"
NASTY = "<script>alert('x')</script> & <b>жирно</b>"
ARTEFACT = {"name": "pages-ru", "version": "1.2-1", "sha256": "ab" * 32, "bytes": 5}


def interval(value, low, high, **more):
    return {"value": value, "low": low, "high": high, **more}


def evaluation(name, russian, english=None, task=None, speed=None):
    bits = {"ru": interval(*russian, documents=8, bytes=900, tokens=300, perplexity_per_token=9.0)}
    if english:
        bits["en"] = interval(*english, documents=4, bytes=700, tokens=200, perplexity_per_token=9.0)
    words = {"tokens_per_word": 7.0 if name == "base" else 2.0, "bytes_per_token": 3.0, "characters_per_token": 2.0}
    results = {"checkpoint": name, "parameters": 1_500_000, "vocabulary": 1024, "bits_per_byte": bits}
    results |= {"fertility": dict.fromkeys(bits, words), "tasks": {}}
    if task:
        results["tasks"] = {"quiz": {"metric": "accuracy", **interval(*task), "items": 40, "chance": 0.25, "shots": 0}}
    if speed is not None:
        results["generation"] = {"characters_per_second": speed, "tokens_per_second": 9.0}
    return manifest(results, stage="eval")


def manifest(results, **more):
    """A manifest as lib/stage.py writes it."""
    return {
        "stage": "stage",
        "settings": {},
        "inputs": {},
        "results": results,
        "files": {"a": 2_000_000},
        "seconds": 30.0,
        "peak_memory_mb": 500,
        "finished": "2026-11-23T23:15:44+00:00",
        "commit": "abc123",
        "versions": {"python": "3.11.7"},
    } | more


def measured(spent, whole):
    """A tokenizer's row of fertility.json, the second Russian source harder."""
    rates = {"tokens_per_word": spent, "words_whole": whole, "bytes_per_token": 3.0, "characters_per_token": 2.0}
    harder = rates | {"tokens_per_word": spent + 1}
    sources = {"ru": {"pages": rates, "fortunes": harder}, "en": {"pages-en": rates | {"tokens_per_word": 1.5}}}
    return {"languages": {"ru": rates, "en": rates | {"tokens_per_word": 1.5}}, "sources": sources}


def write(folder, content, **files):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def removed(folder, rows, extra):
    import pyarrow as pa

    kinds = {"reason": pa.string(), "score": pa.float32(), "twin_id": pa.string(), "twin_text": pa.large_string()}
    kinds |= {"similarity": pa.float32(), "paragraph": pa.int32()}
    with documents.writing(folder / "removed", extra=[(name, kinds[name]) for name in extra]) as writer:
        for number, row in enumerate(rows):
            writer.write({"id": f"d{number}", "source": "pages", "language": "ru", **row})


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def page_text(tmp_path_factory):
    """The page of a run."""
    made = make_run(tmp_path_factory.mktemp("run"))
    assert made().returncode == 0
    return (made.data / "report" / "report.html").read_text(encoding="utf-8")


def make_run(tmp_path):
    """The folders of a small finished run, and a call of the script on them."""
    raw, data, models = tmp_path / "raw", tmp_path / "data" / "tiny", tmp_path / "models"
    text = {"source": "pages", "licence": "GPL <3>", "language": "ru", "artefacts": [ARTEFACT]}
    text |= {"documents": 9, "characters": 900, "bytes": 1700, "skipped_records": {}}
    write(raw / "pages", manifest(text, settings={"type": "apt", "format": "man"}, stage="fetch"))
    gone = {"source": "gone", "licence": "MIT", "language": "ru", "documents": 0, "characters": 0, "bytes": 0}
    gone["skipped"] = "apt-get is not installed"
    write(raw / "gone", manifest(gone, settings={"type": "apt", "format": "man"}, stage="fetch"))
    model = {"source": "little", "licence": "Apache-2.0", "language": None, "artefacts": [ARTEFACT], "bytes": 9}
    write(models / "little", manifest(model, settings={"type": "pypi", "format": "model_gguf"}, stage="fetch"))
    copy = {"text": f"старый {NASTY}", "twin_id": "k", "twin_text": f"новый {NASTY}", "paragraph": 0}
    removed(
        data / "dedup",
        [copy | {"reason": "near_duplicate", "similarity": 0.9}, {"text": "осталось", "reason": "too_short"}],
        ["paragraph", "reason", "twin_id", "twin_text", "similarity"],
    )
    counts = {"exact_duplicate": 0, "near_duplicate": 1, "too_short": 2}
    figures = {"documents_in": 9, "documents_kept": 8, "paragraphs_in": 20, "paragraphs_kept": 17}
    figures |= {"paragraphs_removed": counts, "characters": {"in": 900, "kept": 800}}
    write(data / "dedup", manifest(figures, settings={"shingle_chars": 5, "min_document_chars": 80}))
    poor = [{"text": NASTY, "reason": "low_quality", "score": 1.5}, {"text": "abc", "reason": "low_cyrillic"}]
    removed(data / "filter", poor, ["reason", "score"])
    scored = {"spearman": 0.5, "f1": None}
    judged = {"examples": 16, "good": 8, "criteria": {"grammar": scored}, "auc": 0.9, "auc_of_length": 0.3}
    judged |= {"auc_by_kind": {"spam": None}, "thresholds": [{"threshold": 2.5, "good_lost": 0.0, "bad_found": 0.5}]}
    figures = {"documents_in": 8, "documents_kept": 6, "documents_removed": {"low_quality": 1, "low_cyrillic": 1}}
    figures |= {"characters": {"train": 500, "held_out": 200, "removed": 100}, "labels": "weak", "evaluation": judged}
    figures |= {"criteria": {"grammar": 3.5}, "by_source": {"pages": {"kept": 6, "low_quality": 1, "low_cyrillic": 1}}}
    write(data / "filter", manifest(figures, settings={"threshold": 2.5, "limits": {"low_script": 0.5}}))
    fertility = {
        "new": {"vocabulary": 1024, **measured(2.0, 0.625), "example": [" Ма", "ши", "на"]},
        "little": {"vocabulary": 600, **measured(7.0, 0.125), "example": ["�", "<b>"]},
        "absent": {"skipped": "npm is not installed"},
    }
    counted = {"documents": 2, "characters": 300, "words": 50}
    text = {"en": {"pages-en": counted}, "ru": {"pages": counted, "fortunes": counted | {"words": 70}}}
    spm = manifest({"vocab_size": 1024, "train_characters": 500}, settings={"language": "ru", "compare": []})
    write(data / "tokenizer", spm)
    (data / "tokenizer" / "fertility.json").write_text(
        json.dumps({"example": "Машина", "text": text, "tokenizers": fertility})
    )
    rows = {"copied": 238, "byte": 256, "special": 3, "averaged": 527, "global_mean": 0, "padded": 0}
    made = {"rows": 1024, "tied": True, "parameters": 9, "rows_by_rule": rows, "strangest": {"▁<i>": 21}}
    write(data / "init", manifest(made, inputs={"base": {"path": "models/little", "sha256": "cd" * 32}}))
    write(data / "pack", manifest({"rows": 10, "tokens": 640, "english_rows": 2}))
    trained = {"steps": 2, "tokens": 640, "train_seconds": 30.0, "tokens_per_second": 21.0, "parameters": 1_500_000}
    trained |= {"processes": 1, "precision": "fp32", "held_out_first": {"ru": 2.0}, "held_out_last": {"ru": 1.5}}
    logged = [{"step": 0, "tokens": 0, "held_out": {"ru": 2.0}}]
    logged += [{"step": 1, "tokens": 320, "loss": 6.1, "ce": 6.0, "kl": 0.1, "lr": 1e-3, "grad_norm": None}]
    logged += [{"step": 2, "tokens": 640, "loss": 5.2, "ce": 5.0, "kl": 0.2, "lr": 0.0, "grad_norm": 1.0}]
    audit = {
        "step": 1,
        "new_rows": 783,
        "never_occurred": 41,
        "no_gradient": {"input": 40},
        "norm_outside": {"input": 2},
    }
    write(data / "cpt", manifest(trained | {"audit": audit}), metrics=logged)
    nothing = {"held_out_first": None, "held_out_last": None, "dialogues": {"kept": 18, "too_long": 2}}
    write(data / "sft", manifest(trained | nothing), metrics=[])
    base = evaluation("base", (2.0, 1.9, 2.1), (1.0, 0.9, 1.1), (0.3, 0.2, 0.4), 0.0)
    answer = {"id": "p1", "category": "talk", "prompt": f"Кто? {NASTY}", "tokens": 4, "finished": False}
    write(data / "eval" / "base", base, generations=[answer | {"completion": ""}])
    tuned = evaluation("sft", (1.5, 1.4, 1.6), None, (0.5, 0.41, 0.6), 250.0)
    write(data / "eval" / "sft", tuned, generations=[answer | {"completion": f"```{NASTY}", "finished": True}])

    def call(*flags, fetched=f"{raw / 'pages'},{raw / 'gone'},{raw / 'never'},{models / 'little'}"):
        names = ("dedup", "filter", "tokenizer", "init", "pack", "cpt", "sft")
        given = [f"--{name}={data / name}" for name in names]
        given += [f"--fetched={fetched}", f"--evaluations={data / 'eval' / 'base'},{data / 'eval' / 'sft'}"]
        return subprocess.run(
            [sys.executable, str(SCRIPT), *given, f"--out={data / 'report'}", *flags],
            capture_output=True,
            text=True,
            timeout=120,
        )

    call.data = data
    return call


class Tags(html.parser.HTMLParser):
    """All tags with their attributes; every opened one has to be closed."""

    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_script_writes_one_page_and_a_card(run):
    done = run()
    assert done.returncode == 0, done.stderr
    out = run.data / "report"
    assert sorted(path.name for path in out.iterdir()) == ["MODEL_CARD.md", "manifest.json", "report.html"]
    lines = done.stdout.splitlines()
    assert lines[-1] == f"report: {out / 'report.html'}"
    assert [line.split() for line in lines[1:4]] == [
        [
            "bits/byte",
            "ru",
            "bits/byte",
            "en",
            "tokens/word",
            "ru",
            "tokens/word",
            "en",
            "characters/s",
            "vocabulary",
            "parameters,",
            "M",
        ],
        ["base", "2.000", "1.000", "7.00", "7.00", "0", "1,024", "1.5"],
        ["sft", "1.500", "-", "2.00", "-", "250", "1,024", "1.5"],
    ]
    recorded = json.loads((out / "manifest.json").read_text())
    assert recorded["results"]["seconds_of_all_stages"] == 12 * 30.0
    cells = recorded["results"]["scores"]["rows"][1]["cells"]
    assert cells["bits_per_byte.ru"] == {"value": 1.5, "low": 1.4, "high": 1.6, "against_base": "better"}
    assert cells["bits_per_byte.en"] is None
    assert "never" not in "".join(recorded["inputs"][name]["path"] for name in recorded["inputs"])


def test_the_page_is_whole_safe_and_loads_nothing(page_text):
    text = page_text
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in {tag for tag, _ in tags.seen}
    assert not re.search(r"<(b|i)>(жирно|</)|url\((?!#)|@import|https?:", text)
    links = [value for _, attributes in tags.seen for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith("#") for link in links)
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert text.count("&lt;script&gt;alert(&#39;x&#39;)") + text.count("&lt;script&gt;alert(&#x27;x&#x27;)") >= 5


@pytest.mark.parametrize(
    "said",
    [
        "6 min 0 s of work",
        "skipped: apt-get is not installed",
        "no manifest: it was not fetched",
        "npm is not installed",
        "Tokens per word, Russian",
        '<tr class="all"><td>Russian</td><td class="n">120</td>',
        "<td>fortunes</td>",
        '<span class="better">62.5%</span>',
        "(nothing)",
        "GPL &lt;3&gt;",
        "less than 50% of its letters are of its language&#39;s script",
        "below 2.5 of 5",
        "documents with fewer than 80 characters left",
        "Its labels are weak",
        "(the length of the text alone: 0.700)",
        "<mark>старый</mark> ",
        "▲ 1.500",
        "guessing 25.0%",
        "abab",
        "Row audit after step 1: of 783 new rows\n40 of the input had no gradient yet",
        "the tokens of 41 had not occurred; 2 rows of the input",
        "tiny/sft/metrics.jsonl",
        "fetch, 3 times",
        "1 min 30 s",
    ],
)
def test_the_page_says(page_text, said):
    assert said in page_text


def test_the_card_holds_scores_licence_and_an_answer_that_stays_in_its_fence(run):
    assert run().returncode == 0
    text = (run.data / "report" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlanguage:\n- en\n- ru\nlicense: apache-2.0\nbase_model: little\n")
    assert "| sft | 1.500 [1.400, 1.600] | – | 2.00 | – | 50.0% [41.0%, 60.0%] | 250 | 1,024 | 1.5 |" in text
    assert f"\n````text\nКто? {NASTY}\n\n```{NASTY}\n````\n" in text
    assert "GPL &lt;3&gt;" in text
    assert "18 dialogues" in text


def test_a_stage_that_did_not_finish_is_named(run):
    (run.data / "cpt" / "manifest.json").unlink()
    done = run()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {run.data / 'cpt'}: no manifest.json, so no stage finished")
    assert not (run.data / "report").exists()


def test_negative_samples_are_refused(run):
    done = run("--samples=-1")
    assert done.returncode == 2
    assert "error: --samples=-1, --prompts=40: no negative numbers" in done.stderr


@pytest.mark.parametrize(
    ("cell", "better", "expected"),
    [
        ((1.0, 0.9, 1.1), "lower", "better"),
        ((1.0, 0.9, 1.1), "higher", "worse"),
        ((3.0, 2.6, 3.4), "lower", "worse"),
        ((3.0, 2.6, 3.4), "higher", "better"),
        ((1.6, 1.4, 1.8), "lower", "overlaps"),
        ((1.3, 1.1, 1.5), "lower", "overlaps"),  # touching is not apart
        ((2.7, 2.5, 2.9), "lower", "overlaps"),
    ],
)
def test_better_is_only_what_lies_apart(cell, better, expected):
    assert scores.against(interval(*cell), interval(2.0, 1.5, 2.5), better) == expected


def test_the_headline_is_honest_both_ways():
    evaluations = [
        evaluation("base", (2.0, 1.9, 2.1), (1.0, 0.9, 1.1), (0.3, 0.2, 0.4)),
        evaluation("cpt", (1.5, 1.4, 1.6), (1.05, 0.95, 1.15)),
        evaluation("sft", (1.6, 1.5, 1.7), (1.3, 1.2, 1.4), (0.35, 0.24, 0.46)),
    ]
    table = scores.score_table(evaluations, "ru")
    rates = [{"languages": {"ru": {"tokens_per_word": value}}} for value in (2.0, 7.0)]
    assert scores.headline(table, {"new": rates[0], "little": rates[1]}, "ru") == [
        "The new tokenizer spends 2.00 tokens on a Russian word where the base's spends 7.00: 3.5 times fewer.",
        "Continued pre-training brings the model to 1.500 bits per byte of held-out Russian text against the base's 2.000 "
        "(25.0% better, beyond both 95% intervals) and to 1.050 bits per byte of held-out English text against the base's "
        "1.000 (5.0% worse, but the 95% intervals overlap: not shown to differ).",
        "Against the base, the instruction-tuned model is not shown to differ on quiz. "
        "Its accuracy can't be told from guessing on any task.",
    ]
    assert scores.headline(table, {"new": rates[1], "little": rates[0]}, "ru")[0].endswith(": 3.5 times more.")


def test_a_table_without_a_base_or_tasks_still_stands():
    table = scores.score_table([evaluation("cpt", (1.5, 1.4, 1.6))], "ru")
    assert table["rows"][0]["cells"]["bits_per_byte.ru"] == {"value": 1.5, "low": 1.4, "high": 1.6}
    assert scores.headline(table, {}, "ru") == []
    assert scores.text_table(table).splitlines() == [
        "     bits/byte ru  tokens/word ru  vocabulary  parameters, M",
        "cpt         1.500            2.00       1,024            1.5",
    ]


def test_differing_words_are_marked_and_markup_is_escaped():
    assert page.mark("раз <два> три", "раз <пять> три") == "раз &lt;<mark>два</mark>&gt; три"
    assert page.mark("раз", "раз") == "раз"


def test_samples_of_each_reason_are_drawn_by_the_seed(tmp_path):
    rows = [{"text": f"t{number}", "reason": "a" if number % 10 else "b"} for number in range(100)]
    removed(tmp_path, rows, ["reason"])
    drawn = page.removed(tmp_path, {"b": 10, "a": 90, "c": 0}, 3, seed=1)
    assert {reason: len(found) for reason, found in drawn.items()} == {"a": 3, "b": 3}
    assert list(drawn) == ["a", "b"]
    assert all(row["reason"] == reason for reason, found in drawn.items() for row in found)
    assert page.removed(tmp_path, {"a": 90, "b": 10}, 3, seed=1) == drawn
    assert page.removed(tmp_path, {"a": 90, "b": 10}, 3, seed=2) != drawn
    assert page.removed(tmp_path, {"a": 0}, 3, seed=1) == {}


def test_a_filter_no_better_than_length_is_called_that():
    judged = {"labels": "annotations", "evaluation": {"examples": 9, "auc": 0.6, "auc_of_length": 0.7}}
    assert page.filter_verdict(judged) == [
        "On 9 held-out examples a good one outscores a bad one with probability 0.600 (the length of the text alone: "
        "0.700); 0.5 is guessing.",
        "So it tells no more than the length does.",
    ]
    judged["evaluation"]["auc"] = 0.8
    assert len(page.filter_verdict(judged)) == 1


def test_fertility_by_source_names_the_target_first_and_marks_the_best():
    counted = {"ru": {"few": {"words": 5}, "many": {"words": 9}}, "en": {"old": {"words": 3}}}

    def row(spent, whole):
        rates = {"tokens_per_word": spent, "words_whole": whole}
        half = {"tokens_per_word": spent / 2, "words_whole": whole / 2}
        languages = {"ru": rates, "en": half}
        return {"languages": languages, "sources": {"ru": {"few": half, "many": rates}, "en": {"old": half}}}

    rows = {"new": row(2.001, 0.5), "base": row(2.004, 0.25), "dear": row(12.0, 0.06), "gone": {"skipped": "no"}}
    found = page.fertility_rows({"text": dict(reversed(counted.items())), "tokenizers": rows}, "ru")
    assert [(part["name"], part["words"], part.get("sources")) for part in found] == [
        ("Russian", 14, 2),
        ("many", 9, None),
        ("few", 5, None),
        ("English", 3, 1),
        ("old", 3, None),
    ]
    assert found[0]["spent"] == {"new": "2.00", "base": "2.00", "dear": "12.00"}
    assert found[0]["whole"] == {"new": "50.0%", "base": "25.0%", "dear": "6.0%"}
    assert [(part["fewest"], part["most"]) for part in found] == [
        ("2.00", "50.0%"),
        ("2.00", "50.0%"),
        ("1.00", "25.0%"),
        ("1.00", "25.0%"),
        ("1.00", "25.0%"),
    ]


def test_units():
    assert [page.duration(value) for value in (4.2, 185, 4320)] == ["4.2 s", "3 min 5 s", "1 h 12 min"]
    assert [page.memory(value) for value in (0.003, 546, 2100)] == ["3 kB", "546 MB", "2.1 GB"]
    assert page.fence("a ```` b") == "`````"
    assert page.setting({"a": [1, 2], "b": None, "c": True}) == "a: 1, 2, b: none, c: true"
    assert page.cut("x" * 701) == "x" * 700 + " … (701 characters in all)"
    assert "license: other\nlicense_name: GPL-3+ and others" in page.front_matter("b", "GPL-3+ and others", ["ru"])


def test_a_plot_belongs_to_the_page():
    svg = plots.bars("Tokens <b>", {"new": 2.0, "a & b $x$": 7.0}, unit="tokens", highlighted=["new"])
    assert svg.startswith("<figure><figcaption>Tokens &lt;b&gt;</figcaption><svg viewBox=")
    assert "a &amp; b $x$" in svg
    assert not re.search(r"http|<style|<metadata|font-family|#0000", svg)
    assert {"var(--ink)", "var(--series-1)", "var(--muted)"} <= set(re.findall(r"var\([^)]+\)", svg))
    assert svg == plots.bars("Tokens <b>", {"new": 2.0, "a & b $x$": 7.0}, unit="tokens", highlighted=["new"])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.fertility_picture({"Russian": {"new": 2.0, "a & b": 7.0}, "English": {"new": 1.5}}, "a & b"),
        lambda: plots.vocabulary_sizes({"Russian": {768: 2.5, 1024: 2.0}}, {"Russian": 7.0}, {768: 9e6, 1024: 12e6}),
    ],
    ids=["fertility", "sizes"],
)
def test_a_picture_stands_alone(draw):
    svg = draw()
    assert svg.startswith("<?xml")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("Tokens per word, Russian" in text for text in texts)
    assert "7.00" in texts or "2.50" in texts
    first = next(root.iter("{http://www.w3.org/2000/svg}path"))
    assert first.get("style") == "fill: #ffffff"
    assert not re.search(r"#0000|var\(|DejaVu|<dc:date>", svg)
    assert {"#1d1f21", "#63676b", "#2b6cb0", "#c05621"} <= set(re.findall(r"#[0-9a-f]{6}", svg))
    assert svg == draw()


def test_tokens_per_word_are_those_of_tokenizers_that_were_measured():
    measured = {"tokenizers": {"new": {"languages": {"ru": {"tokens_per_word": 2.0}}}, "gone": {"skipped": "no"}}}
    assert plots.tokens_per_word(measured) == {"ru": {"new": 2.0}}


def test_plots_of_training_leave_out_what_was_not_measured():
    records = [{"step": 1, "tokens": 5, "ce": 6.0, "kl": 0.0, "lr": 1e-3}]
    assert len(plots.training("t", records)) == 2
    assert len(plots.training("t", [*records, {"step": 1, "tokens": 5, "held_out": {"ru": 2.0}}])) == 3
    assert plots.training("t", []) == []
