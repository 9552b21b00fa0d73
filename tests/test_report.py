"""scripts/report.py and the figures and sentences it is made of."""

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import lxml.html
import pytest
from huggingface_hub import ModelCard

from lib import cards, documents, flaws, lineage, page, plots, receipts, rules, scores, targets

SCRIPT = Path(__file__).parents[1] / "scripts" / "report.py"
NASTY = "<script>alert('x')</script> & <b>жирно</b>"
ARTEFACT = {"name": "pages-ru", "version": "1.2-1", "sha256": "ab" * 32, "bytes": 5}


DEDUP_SETTINGS = {"threshold": 0.8, "shingles": "characters", "shingle_size": 5, "min_document_chars": 80}
DEDUP_SETTINGS |= {"keep": "first", "source_priority": [], "method": "minhash", "bits": 128}


def agreement(value, low, high):
    """Spearman's and F1's figures of one system, as the filter stage records them."""
    edges = [low, high] if low is not None else None
    return {"spearman": value, "spearman_interval": edges, "f1": None, "f1_interval": None}


def curve(*points):
    return [dict(zip(("threshold", "precision", "recall", "kept"), point, strict=True)) for point in points]


BASELINES = {"length": agreement(0.1, 0.0, 0.2), "bag_of_words": agreement(0.4, 0.3, 0.5)}
EVALUATION = {
    "examples": 16,
    "good": 8,
    "criteria": {"grammar": agreement(0.75, 0.625, 0.875) | BASELINES},
    "overall": agreement(0.45, 0.35, 0.55) | BASELINES,
    "auc": 0.9,
    "auc_interval": [0.85, 0.95],
    "auc_by_kind": {"spam": None},
    "auc_of_length": 0.3,
    "auc_of_bag_of_words": 0.8,
    "auc_of_bag_of_words_interval": [0.75, 0.875],
    "thresholds": [{"threshold": 2.5, "good_lost": 0.0, "bad_found": 0.5}],
    "precision_recall": curve((1.5, 0.5, 1.0, 1.0), (2.6, 0.75, 0.875, 0.625), (4.0, 1.0, 0.5, 0.25)),
    "precision_recall_by_source": {"pages": curve((1.5, 0.5, 1.0, 1.0), (3.0, 1.0, 0.5, 0.25))},
    "calibration": {"examples": 12, "temperatures": {"grammar": 1.4, "overall": 1.2}} | {"error_before": 0.056}
    | {"error_after": 0.034},
}  # fmt: skip
KAPPA = {"kappa": 0.7209, "interval": [0.622, 0.7947], "equal": 0.6495, "within_one": 1.0, "second_higher_by": -0.0412}
ANNOTATED = {
    "documents_in": 30,
    "sampled": 12,
    "near_duplicates": 0,
    "annotated": 10,
    "failed": {"invalid_answer": 2},
    "histograms": {"fortunes": {"grammar": [1, 0, 0, 0, 1]}, "pages": {"grammar": [0, 0, 0, 6, 2]}},
    "estimate": {"requests": 14, "prompt_tokens": 15_000, "answer_tokens": 1400, "cost": 0.5},
    "usage": {"model": "judge-1", "replies": 15, "prompt_tokens": 14_000, "completion_tokens": 210, "cost": 0.1987},
    "agreement": {"documents": 2, "criteria": {"grammar": KAPPA}},
}


BITS = {"key": "bits_per_byte.ru", "title": "bits/byte ru", "group": "bits_per_byte", "style": "bits"}
ABLATED = {
    "about": "Which <vocabulary>?",
    "columns": [BITS],
    "base": {"bits_per_byte.ru": {"value": 2.0, "low": 1.9, "high": 2.1}},
    "variants": {
        "large": {
            "summary": {"bits_per_byte.ru": {"mean": 1.75, "low": 1.7, "high": 1.8}},
            "seeds": {"0": {"bits_per_byte.ru": {"value": 1.7}}, "1": {"bits_per_byte.ru": {"value": 1.8}}},
            "training": {"0": {"steps": 1040}, "1": {"steps": 1040}},
        }
    },
    "paper": {"large": {"bits/byte ru": 1.25}},
}


PARTS = {"prompt": 20, "generation": 1}


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
        rates = {
            part: {"characters_per_second": speed * times, "tokens_per_second": 9.0} for part, times in PARTS.items()
        }
        results["speed"] = {
            "device": "a CPU",
            "threads": 2,
            "dtype": "float32",
            "repeats": 5,
            "languages": {"ru": rates, "en": rates},
        }
        answered = interval(*russian, documents=6, bytes=90, tokens=30, perplexity_per_token=44.0)
        results |= {
            "instructions": {"ru": answered},
            "context": {"tokens": 2048, "characters": {"en": 9000, "ru": 4096}},
        }
        far = (0.0, 0.0, 0.0) if name == "base" else (0.125, 0.1, 0.15)
        results["kl_to_base"] = {"language": "en", **interval(*far), "documents": 4, "positions": 90, "compared": 0.9}
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


def reads(**folders):
    """Inputs of a manifest."""
    return {"inputs": {name: {"path": path.as_posix(), "sha256": "cd" * 32} for name, path in folders.items()}}


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


def write_dedup(folder, **corpora):
    """What deduplication leaves, with more near duplicates than are shown."""
    copy = {"text": f"старый {NASTY}", "twin_id": "k", "twin_text": f"новый {NASTY}", "paragraph": 0}
    removed(
        folder,
        [copy | {"reason": "near_duplicate", "similarity": 0.9}] * 25 + [{"text": "осталось", "reason": "too_short"}],
        ["paragraph", "reason", "twin_id", "twin_text", "similarity"],
    )
    figures = {"documents_in": 11, "documents_kept": 8, "documents_dropped": 3}
    figures |= {"documents_removed": {"empty": 0, "too_short": 2, "all_duplicates": 1}}
    figures |= {"paragraphs_in": 60, "paragraphs_kept": 33}
    figures["paragraphs_removed"] = {"exact_duplicate": 0, "near_duplicate": 25, "too_short": 2}
    figures["duplicates_by_sources"] = {"pages ~ pages": 20, "pages ~ fortunes": 5}
    figures |= {"characters": {"in": 900, "kept": 800}, "bands": 18, "rows": 7, "candidates": 1400, "verified": 31}
    figures |= {"spared": 4, "clusters_by_size": {"2": 7, "6": 1, "8": 1, "120": 1}, "skipped": {"not_json": 6}}
    sweep = ((0.8, 20, 4), (0.85, 9, 0), (0.9, 5, 0))
    figures["thresholds"] = [dict(zip(("threshold", "removed", "spared"), row, strict=True)) for row in sweep]
    write(folder, manifest(figures, settings=DEDUP_SETTINGS, inputs=corpora["inputs"]))


def write_filter(folder):
    """What the filter leaves; one of its reasons is only in the receipts."""
    poor = [{"text": NASTY, "reason": "low_quality", "score": 1.5}, {"text": "abc", "reason": "low_cyrillic"}]
    removed(folder, poor, ["reason", "score"])
    counts = {"kept": 6, "low_quality": 2, "low_cyrillic": 1, "blocked": 1}
    figures = {"documents_in": 15, "documents_kept": 11, "by_source": {"fortunes": {"kept": 5}, "pages": counts}}
    figures |= {"documents_removed": {name: counts[name] for name in list(counts)[1:]}, "held_out": {"ru": 2}}
    figures |= {"characters": {"train": 500, "held_out": 200, "removed": 100}, "masked": {"e_mail": 3}, "skipped": {}}
    figures |= {"labels": "weak", "training": {"examples": 50, "loss_by_epoch": [1.5]}, "evaluation": EVALUATION}
    figures["precision"] = {"name": "int8", "largest_difference_from_fp32": 0.0049, "mean_difference_from_fp32": 0.001}
    figures |= {"threshold": 2.5, "criteria": {"grammar": 3.5}}
    figures["score_percentiles"] = {f"p{p}": 1.0 + p / 25 for p in (0, 1, 5, 25, 50, 75, 95, 100)}
    limits = {"low_script": 0.5, "blocked": 1.0}
    read = reads(documents=folder.parent / "dedup" / "documents")
    write(folder, manifest(figures, settings={"target": "lose_good=0.03", "limits": limits, "model": None}, **read))
    blocked = {"id": "d9", "text": "запрещено", "source": "pages", "language": "ru", "score": None}
    steps = ((1.0, 1.0), (2.0, 1.0), (3.0, 0.5), (4.0, 0.0), (5.0, 0.0))
    curve = [{"threshold": at, "documents": share, "characters": share} for at, share in steps]
    receipts = {"removed": {"blocked": [blocked]}, "kept_shares": {"fortunes": curve, "pages": curve}}
    (folder / "receipts.json").write_text(json.dumps(receipts), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def page_text(tmp_path_factory):
    """The page of a run."""
    made = make_run(tmp_path_factory.mktemp("run"))
    assert made().returncode == 0
    return (made.data / "report" / "report.html").read_text(encoding="utf-8")


INSTRUCTED = {
    "instructions_in": 30, "instructions_kept": 21, "removed": {"near_duplicate": 7, "contaminated": 2},
    "sources": [
        {"source": "saiga", "languages": {"ru": 15, "en": 5}, "dialogues": 20, "removed": {"near_duplicate": 4}, "kept": 16,
         "answers": 20, "characters": 3000},
        {"source": "nectar", "languages": {"en": 10}, "dialogues": 10, "removed": {"near_duplicate": 3, "contaminated": 2}, "kept": 5,
         "answers": 5, "characters": 900},
    ],
    "contamination": {
        "ru_mmlu": {"items": 160, "too_short": 3, "dialogues": 2}, "ruxnli": {"items": 9, "too_short": 0, "dialogues": 0},
    },
}  # fmt: skip
REWARDED = {
    "pairs": {"training": 150, "calibration": 10, "held_out": 40},
    "evaluation": {
        "ru": {
            "pairs": 40, "accuracy": {"value": 0.8, "low": 0.75, "high": 0.85}, "longer_wins": {"value": 0.7, "low": 0.65, "high": 0.75},
            "gain": {"value": 0.1, "low": 0.02, "high": 0.18}, "accuracy_where_the_shorter_is_better": None, "length_correlation": -0.1,
            "calibration": {"error": 0.03, "bins": []},
        },
    },
}  # fmt: skip


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
    read = {
        "inputs": {
            f"corpus[{n}]": reads(path=raw / name / "documents")["inputs"]["path"]
            for n, name in enumerate(("pages", "gone"))
        }
    }
    write_dedup(data / "dedup", **read)
    write_filter(data / "filter")
    write(data / "annotations", manifest(ANNOTATED, stage="annotate"))
    fertility = {
        "new": {"vocabulary": 1024, **measured(2.0, 0.625), "example": [" Ма", "ши", "на"]},
        "little": {"vocabulary": 600, **measured(7.0, 0.125), "example": ["�", "<b>"]},
        "absent": {"skipped": "npm is not installed"},
    }
    counted = {"documents": 2, "characters": 300, "words": 50}
    text = {"en": {"pages-en": counted}, "ru": {"pages": counted, "fortunes": counted | {"words": 70}}}
    read = reads(documents=data / "filter", base=models / "little")
    spm = manifest({"vocab_size": 1024, "train_characters": 500}, settings={"language": "ru", "compare": []}, **read)
    write(data / "tokenizer", spm)
    (data / "tokenizer" / "fertility.json").write_text(
        json.dumps({"example": "Машина", "text": text, "tokenizers": fertility})
    )
    rows = {"copied": 238, "byte": 256, "special": 3, "averaged": 527, "global_mean": 0, "padded": 0}
    made = {"rows": 1024, "tied": True, "parameters": 9, "rows_by_rule": rows, "strangest": {"▁<i>": 21}}
    write(data / "init", manifest(made, **reads(base=models / "little", tokenizer=data / "tokenizer")))
    languages = {"pages": ("ru", 7), "fortunes": ("ru", 1), "pages-en": ("en", 2)}
    sources = {name: {"language": code, "rows": rows, "tokens": 64 * rows} for name, (code, rows) in languages.items()}
    read = reads(documents=data / "filter", tokenizer=data / "tokenizer")
    write(
        data / "pack",
        manifest({"rows": 10, "tokens": 640, "sources": sources}, settings={"sequence_length": 64}, **read),
    )
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
    reading = {"pages": {"rows": 8, "passes": 1.0}}
    read = reads(model=data / "init", pack=data / "pack", base=models / "little")
    write(data / "cpt", manifest(trained | {"audit": audit, "reading": reading}, **read), metrics=logged)
    write(data / "instruct", manifest(INSTRUCTED, **reads(reward=data / "reward")))
    write(data / "reward", manifest(REWARDED))
    write(data / "ablations" / "vocab", manifest(ABLATED, stage="ablate"))
    nothing = {"held_out_first": None, "held_out_last": None, "dialogues": {"kept": 18, "too_long": 2}}
    read = reads(model=data / "cpt", **{"instructions[0]": data / "instruct"})
    write(data / "sft", manifest(trained | nothing, **read), metrics=[])
    base = evaluation("base", (2.0, 1.9, 2.1), (1.0, 0.9, 1.1), (0.3, 0.2, 0.4), 0.0)
    answer = {"id": "p1", "category": "talk", "prompt": f"Кто? {NASTY}", "tokens": 4, "finished": False}
    write(data / "eval" / "base", base, generations=[answer | {"completion": ""}])
    tuned = evaluation("sft", (1.5, 1.4, 1.6), None, (0.5, 0.41, 0.6), 250.0)
    write(data / "eval" / "sft", tuned, generations=[answer | {"completion": f"```{NASTY}", "finished": True}])

    def call(
        *flags,
        annotations=True,
        reward=True,
        ablations=True,
        evaluated=("base", "sft"),
        fetched=f"{raw / 'pages'},{raw / 'gone'},{raw / 'never'},{models / 'little'}",
    ):
        names = ("dedup", "filter", "tokenizer", "init", "pack", "cpt", "instruct", "sft")
        given = [f"--{name}={data / name}" for name in names]
        given += [f"--annotations={data / 'annotations'}"] if annotations else []
        given += [f"--reward={data / 'reward'}"] if reward else []
        given += [f"--ablations={data / 'ablations' / 'vocab'}"] if ablations else []
        given += [f"--fetched={fetched}", "--evaluations=" + ",".join(str(data / "eval" / name) for name in evaluated)]
        return subprocess.run(
            [sys.executable, str(SCRIPT), *given, f"--out={data / 'report'}", *flags],
            capture_output=True,
            text=True,
            timeout=120,
        )

    call.data, call.raw, call.models = data, raw, models
    return call


MERGED = {
    "tensors": {"slerp": 20, "lerp, parallel": 3}, "bytes": 9_000, "tied": True, "dtype": "float32",
    "degrees": {"median": 1.5, "largest": 12.25, "largest_in": "model.embed_tokens.weight"},
}  # fmt: skip


def with_merge(run):
    """The same run with MERGE=yes: tuned from what init and cpt were merged to, which is scored too."""
    data = run.data
    write(data / "merge", manifest(MERGED, settings={"t": 0.85}, **reads(model=data / "init", other=data / "cpt")))
    content = json.loads((data / "sft" / "manifest.json").read_text())
    content["inputs"]["model"]["path"] = (data / "merge").as_posix()
    write(data / "sft", content)
    merged = evaluation("merge", (1.75, 1.7, 1.8), None, (0.4, 0.3, 0.5), 240.0)
    write(data / "eval" / "merge", merged, generations=[])


def with_details(run):
    """The same run with evaluations as eval.py writes them: text by text, item by item, with flags."""
    said = {
        "base": "Сначала смешайте the творог with сахаром и добавьте cоль, затем 2 яйца, и перемешайте до",
        "sft": "Смешайте творог с яйцом и сахаром, добавьте муку и обжарьте сырники на слабом огне с двух сторон.",
    }
    flags = {"base": ["english_words", "mixed_script", "unfinished"], "sft": []}
    for name, bits, right in (("base", 20.0, 12), ("sft", 15.0, 20)):
        folder = run.data / "eval" / name
        content = json.loads((folder / "manifest.json").read_text())
        # Separate intervals overlap, so that only pairs can tell.
        content["results"]["bits_per_byte"]["ru"] |= {"low": 1.0, "high": 3.0}
        content["results"]["tasks"]["quiz"] |= {"low": 0.2, "high": 0.6}
        flawed = len(flags[name]) and 1.0
        rates = {flag: interval(flawed if flag in flags["base"] else 0.0, 0.0, 1.0, items=8) for flag in flaws.FLAGS}
        content["results"]["flaws"] = rates
        answers = [
            {"id": f"p{n}", "category": "recipes", "prompt": f"Как приготовить сырники, вариант {n}?", "language": "ru"}
            | {"completion": said[name], "tokens": 48, "finished": name == "sft", "flags": flags[name]}
            for n in range(8)
        ]  # fmt: skip
        documents_ = [{"language": "ru", "id": f"d{n}", "bits": bits + n, "bytes": 10, "tokens": 3} for n in range(8)]
        write(folder, content, generations=answers, documents=documents_, dialogues=documents_[:6])
        (folder / "samples").mkdir()
        leaked = {"task": "quiz", "id": "0", "words": "а б в г д", "document": "d1", "source": "pages"}
        counted = {"documents": 700, "tasks": {"quiz": {"items": 40, "too_short": 2, "found": 1}}}
        write(run.data / "leaks", manifest(counted, settings={"ngram": 8}), leaks=[leaked])
        items = [{"id": str(n), "prediction": 0, "target": 0, "correct": n < right} for n in range(40)]
        (folder / "samples" / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in items))


def test_pairs_decide_and_flaws_are_shown(run):
    with_details(run)
    done = run(f"--leaks={run.data / 'leaks'}")
    assert done.returncode == 0, done.stderr
    assert "9 comparisons with the base, all paired; no correction for their number" in done.stdout
    text = (run.data / "report" / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    recorded = json.loads((run.data / "report" / "manifest.json").read_text())["results"]
    cells = recorded["scores"]["rows"][1]["cells"]
    verdicts = {key: cell["against_base"] for key, cell in cells.items() if cell and "against_base" in cell}
    assert verdicts == {
        "bits_per_byte.ru": "better",
        "instructions.ru": "better",
        "tasks.quiz": "better",
        "flaws.empty": "overlaps",
        "flaws.wrong_language": "overlaps",
        "flaws.english_words": "better",
        "flaws.mixed_script": "better",
        "flaws.repetition": "overlaps",
        "flaws.unfinished": "better",
    }
    assert "text by text the difference is from -0.500 to -0.500" in recorded["headline"][1]
    assert "9 comparisons with the base, all paired" in text
    assert text.count('title="English words in the prose">english words</span>') == 8
    assert '<td class="n"><span class="better ">▲ 0.0%</span>' in text
    assert "sft · 97 characters</h4>" in text
    assert "base · 88 characters, cut after 48 tokens</h4>" in text
    assert "<small>8 answers</small>" in text
    assert "occurs in the 700 documents of continued pre-training" in text
    assert '<td class="n">48.7%<small>33.9% – 63.8%</small><small>all: 50.0%</small></td>' in text  # 19 of 39, 20 of 40
    card = (run.data / "report" / "cards/sft/README.md").read_text(encoding="utf-8")
    assert "english words" not in card  # the tuned model has none of them


def test_the_card_tells_the_flaws_of_the_tuned_model(run):
    with_details(run)
    path = run.data / "eval" / "sft" / "manifest.json"
    content = json.loads(path.read_text())
    content["results"]["flaws"]["repetition"]["value"] = 0.125
    path.write_text(json.dumps(content))
    assert run().returncode == 0
    card = (run.data / "report" / "cards/sft/README.md").read_text(encoding="utf-8")
    assert "Flaws that a rule can see in its 8 answers: repetition 12.5%." in card


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
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "cards/cpt/README.md",
        "cards/sft/README.md",
        "manifest.json",
        "report.html",
    ]
    lines = done.stdout.splitlines()
    assert lines[-1] == f"report: {out / 'report.html'}"
    assert [re.split(" {2,}", line) for line in lines[1:4]] == [
        ["", "bits/byte ru", "bits/byte en", "bits/byte answers ru", "perplexity answers ru", "KL to base en, nats"],
        ["base", "2.000", "1.000", "2.000", "44.00", "0.000"],
        ["sft", "1.500", "-", "1.500", "44.00", "0.125"],
    ]
    assert [re.split(" {2,}", line) for line in lines[9:12]] == [
        [
            "",
            "tokens/word ru",
            "tokens/word en",
            "context ru, characters",
            "reads ru, characters/s",
            "writes ru, characters/s",
            "vocabulary",
            "parameters, M",
        ],
        ["base", "7.00", "7.00", "4,096", "0", "0", "1,024", "1.5"],
        ["sft", "2.00", "-", "4,096", "5,000", "250", "1,024", "1.5"],
    ]
    recorded = json.loads((out / "manifest.json").read_text())
    assert recorded["results"]["seconds_of_all_stages"] == 16 * 30.0
    cells = recorded["results"]["scores"]["rows"][1]["cells"]
    assert cells["bits_per_byte.ru"] == {"value": 1.5, "low": 1.4, "high": 1.6, "against_base": "better"}
    assert cells["bits_per_byte.en"] is None
    assert cells["instructions.ru"]["against_base"] == "better"
    # What can't be better or worse is not called so.
    assert cells["perplexity.ru"] == {"value": 44.0}
    assert cells["kl_to_base"] == {"value": 0.125, "low": 0.1, "high": 0.15}
    assert recorded["inputs"]["annotations"]["path"].endswith("annotations")
    assert "annotations" not in recorded["settings"]
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
        "8 min 0 s of work",
        "skipped: apt-get is not installed",
        "no manifest: it was not fetched",
        "npm is not installed",
        "Tokens per word, Russian",
        '<tr class="all"><td>Russian</td><td class="n">120</td>',
        "<td>fortunes</td>",
        '<tr class="all"><td>Russian</td>\n<td class="n">62.5%</td><td class="n">12.5%</td></tr>',
        "(nothing)",
        "GPL &lt;3&gt;",
        "less than 50% of its letters are of its language&#39;s script",
        "below 2.50 of 5",
        "documents with fewer than 80 characters left",
        "Its labels are weak",
        "with probability 0.900 [0.850, 0.950]; a bag of words learnt from the same examples: 0.800 [0.750, 0.875]; the "
        "length of the text alone: 0.700",
        "The two intervals overlap",
        "sets of 5-character runs (Jaccard). MinHash found 1,400 candidate pairs (18 bands of 7 rows",
        "31 of them reach 0.80. Of duplicates the first in the corpus is kept.",
        "2 too_short (documents with fewer than 80 characters left), 1 all_duplicates (documents of which every",
        "Broken input, passed over: not_json 6.",
        '<td class="n">5–9</td><td class="n">2</td><td class="n">14</td>',
        '<td class="n">100+</td><td class="n">1</td><td class="n">120</td>',
        '<td class="n">0.85</td><td class="n">9</td><td class="n">0</td><td class="bar"><span style="width: 45.00%">',
        "At 0.80, 20 near duplicates go",
        '<td>pages</td><td>fortunes</td><td class="n">5</td>',
        '<td>pages</td><td><span class="none">the same</span></td><td class="n">20</td>',
        '<td>pages</td><td class="n">10</td><td class="n">60.0%</td><td class="n ">2</td><td class="n ">1</td>',
        '<td><b>all</b></td><td class="n"><b>15</b></td><td class="n"><b>73.3%</b></td><td class="n"><b>2</b></td>',
        "blocked: 1 document",
        "запрещено",
        "Masked in what is kept: e mail 3.",
        '<span class="better">▲ 0.75</span>\n<small>0.62 – 0.88</small>',
        '<span class="">0.45</span>',
        "temperatures of 1.20 to 1.40, fitted on 12 examples",
        "from 0.056 to 0.034. ",
        "2.50 of 5, is the highest that loses no more than 3% of the good, among 12 labelled examples",
        "it keeps about 88% of the good ones, and 75% of what it keeps is good",
        "<figcaption>pages, 75.0%</figcaption>",
        "judge-1 scored 10 of 12 sampled documents from 1 to 5; the others failed:\ninvalid_answer 2.",
        "$0.1987 (estimated for the longest answers allowed: $0.5000)",
        '<tr><td>grammar</td><td class="n">1</td><td class="n">0</td><td class="n">0</td><td class="n">6</td><td class="n">3</td>'
        '<td class="n">4.00</td></tr>',
        '<tr><td>fortunes</td><td class="n">2</td><td class="n">3.00</td></tr>',
        '<td class="n">0.72<small>0.62 – 0.79</small></td><td class="n">65.0%</td><td class="n">100.0%</td>'
        '<td class="n">−0.04</td>',
        "<mark>старый</mark> ",
        "▲ 1.500",
        "<small>6 dialogues</small>",
        '<td class="n"><span class=" ">0.125</span>\n<small>0.100 – 0.150</small></td>',
        "(medians of 5 on a CPU, 2 threads, float32)",
        "guessing 25.0%",
        "abab",
        "30 dialogues were read, 21 are left",
        '<td>saiga</td><td>ru, en</td><td class="n">20</td>\n<td class="n">4</td><td class="n">0</td><td class="n">16</td>',
        "ru_mmlu in 2 dialogues (160 items, 3 too short to be looked for), \nruxnli in 0 dialogues (9 items). These were left out.",
        "Learnt from 150 pairs",
        '<td class="n">80.0%<small>75.0% – 85.0%</small></td><td class="n">70.0%<small>65.0% – 75.0%</small></td>',
        '<td class="n">–</td>\n<td class="n">−0.10</td><td class="n">0.03</td>',
        "640 tokens were packed in 10 rows:\n128 en, 512 ru.",
        "Row audit after step 1: of 783 new rows\n40 of the input had no gradient yet",
        "the tokens of 41 had not occurred; 2 rows of the input",
        "tiny/sft/metrics.jsonl",
        "<h3>Which &lt;vocabulary&gt;?</h3>",
        '<tr><td>large<small>2 seeds</small></td>\n<td class="n">1.750<small>1.700 – 1.800</small></td><td class="n">1,040</td></tr>',
        '<tr><td>the paper&#39;s large</td>\n<td class="n">1.250</td><td class="n">–</td></tr>',
        "fetch, 3 times",
        "1 min 30 s",
    ],
)
def test_the_page_says(page_text, said):
    assert said in page_text


def test_the_card_holds_scores_licence_and_an_answer_that_stays_in_its_fence(run):
    assert run().returncode == 0
    text = (run.data / "report" / "cards/sft/README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlanguage:\n- ru\n- en\nlibrary_name: transformers\nlicense: apache-2.0\n")
    assert "\n| | base | sft (this) |\n|---|---:|---:|\n" in text
    assert "\n| bits/byte ru, lower is better | 2.000 [1.900, 2.100] | ▲ 1.500 [1.400, 1.600] |\n" in text
    assert "\n| bits/byte en, lower is better | 1.000 [0.900, 1.100] | – |\n" in text
    assert (
        "\n| quiz, higher is better, guessing 25.0%, 40 items | 30.0% [20.0%, 40.0%] | ▲ 50.0% [41.0%, 60.0%] |\n"
        in text
    )
    assert f"\n````text\nКто? {NASTY}\n\n```{NASTY}\n````\n" in text
    assert "| pages | text to train on | GPL &lt;3&gt; | 8 | apt: pages-ru 1.2-1 (sha256 abab" in text
    assert "| little | base model | Apache-2.0 | – |" in text
    assert "18 dialogues" in text
    assert f"| sft | 640 tokens in 2 steps, fp32 | 30.0 s | `{run.data / 'sft'}/manifest.json` | abc123 |" in text
    assert "<details><summary>Settings of pack</summary>\n\n```yaml\nsequence_length: 64\n```\n\n</details>" in text
    assert "base_model" not in text  # the base is from a package, and nobody said what it is on the hub


def test_the_hub_s_own_library_reads_back_the_card_s_metadata(run):
    assert run("--base_model=owner/Little").returncode == 0
    card = ModelCard.load(run.data / "report" / "cards/sft/README.md")
    assert card.data.base_model == "owner/Little"
    assert card.data.base_model_relation == "finetune"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.metrics == ["accuracy"]
    assert card.data.model_name == "little-ru-sft"
    assert [(each.dataset_type, each.metric_type, each.metric_value) for each in card.data.eval_results] == [
        ("held-out-text", "bits_per_byte", 1.5),
        ("quiz", "accuracy", 0.5),
    ]
    assert card.data.eval_results[1].metric_name == "accuracy, 0-shot, 95% interval 0.4100 to 0.6000"
    # What was only continued is no chat model, and has no score here.
    card = ModelCard.load(run.data / "report" / "cards/cpt/README.md")
    assert card.data.eval_results is None
    assert "conversational" not in card.data.tags
    assert "apply_chat_template" not in card.text
    assert "It was not tuned to follow instructions" in card.text
    assert "dialogues" not in card.text
    assert "\n| sft |" not in card.text


def test_a_run_with_a_merge_scores_and_describes_the_merged_model(run):
    with_merge(run)
    done = run(f"--merge={run.data / 'merge'}", evaluated=("base", "merge", "sft"))
    assert done.returncode == 0, done.stderr
    out = run.data / "report"
    recorded = json.loads((out / "manifest.json").read_text())
    assert [row["checkpoint"] for row in recorded["results"]["scores"]["rows"]] == ["base", "merge", "sft"]
    assert recorded["results"]["headline"][1].startswith("Merged with init, the model comes to 1.750 bits per byte")
    assert recorded["inputs"]["merge"]["path"].endswith("tiny/merge")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "t = 0.85 (0 is init, 1 is cpt).\n20 by slerp, 3 by lerp, parallel; the two differ by 1.50 degrees" in text
    assert "<small>init and cpt interpolated</small>" in text
    cards_ = {name: (out / cards.path_of(name)).read_text(encoding="utf-8") for name in ("cpt", "merge", "sft")}
    made = {name: re.findall(r"^\| (\w+) \|.*abc123 \|$", card, re.MULTILINE) for name, card in cards_.items()}
    shared = ["dedup", "filter", "tokenizer", "init", "pack", "cpt"]
    assert made == {
        "cpt": shared, "merge": [*shared, "merge"], "sft": [*shared, "merge", "reward", "instruct", "sft"],
    }  # fmt: skip
    assert "| merge | init and cpt interpolated on the sphere, t = 0.85 | 30.0 s |" in cards_["sft"]
    assert "- merge\n- slerp\n" in cards_["merge"]
    assert "| base | merge (this) | sft |" in cards_["merge"]


def test_only_what_is_on_the_hub_is_named_in_the_metadata(run):
    """Its data sets and its base, by what each was used for; a source that was only compared with is in no checkpoint."""
    for name, settings in (
        ("pages", {"type": "hub", "package": "owner/pages", "format": "documents"}),
        ("talk", {"type": "hub", "package": "owner/talk", "format": "instructions"}),
        ("pairs", {"type": "hub", "package": "owner/pairs", "format": "preferences"}),
    ):
        write(
            run.raw / name,
            manifest({"source": name, "licence": "MIT", "artefacts": []}, settings=settings, stage="fetch"),
        )
    base = manifest(
        {"source": "little", "licence": "Llama 2 community licence"},
        settings={"type": "hub", "package": "owner/Little"},
        stage="fetch",
    )
    write(run.models / "little", base)
    write(run.models / "rival", manifest({"source": "rival"}, settings={"format": "tokenizer"}, stage="fetch"))
    for stage, given in (
        ("instruct", {"instructions[0]": run.raw / "talk"}),
        ("reward", {"preferences[0]": run.raw / "pairs"}),
        ("tokenizer", {"compare[0]": run.models / "rival"}),
    ):
        content = json.loads((run.data / stage / "manifest.json").read_text())
        content["inputs"] |= reads(**given)["inputs"]
        write(run.data / stage, content)
    fetched = [run.raw / name for name in ("pages", "talk", "pairs")] + [run.models / "little", run.models / "rival"]
    done = run(fetched=",".join(map(str, fetched)))
    assert done.returncode == 0, done.stderr
    loaded = {name: ModelCard.load(run.data / "report" / cards.path_of(name)) for name in ("cpt", "sft")}
    assert loaded["cpt"].data.datasets == ["owner/pages"]
    assert loaded["sft"].data.datasets == ["owner/pages", "owner/talk"]
    assert loaded["sft"].data.base_model == "owner/Little"
    assert loaded["sft"].data.license == "llama2"
    assert "| pairs | preferences, for the reward model | MIT |" in loaded["sft"].text
    assert "| pairs |" not in loaded["cpt"].text
    assert "rival" not in loaded["sft"].text.split("## Data and licences")[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MIT", {"license": "mit"}),
        (None, {"license": "unknown"}),
        ("GPL-2+", {"license": "other", "license_name": "gpl-2"}),
        ("GPL-3+ and others", {"license": "other", "license_name": "gpl-3-and-others"}),
    ],
)
def test_a_licence_is_one_of_the_hub_s_identifiers_or_other(name, expected):
    assert cards.licence(name) == expected


def test_ancestors_are_found_through_inputs_that_may_be_parts_of_outputs(tmp_path):
    folders = {name: tmp_path / name for name in ("fetch a", "filter", "init", "cpt", "sft")}
    inputs = {
        "fetch a": {}, "filter": {"documents[0]": tmp_path / "fetch a" / "documents"}, "init": {"base": tmp_path / "elsewhere"},
        "cpt": {"model": tmp_path / "init", "pack": tmp_path / "filter" / "x"}, "sft": {"model": tmp_path / "cpt"},
    }  # fmt: skip
    manifests = {name: manifest({}, **reads(**read)) for name, read in inputs.items()}
    assert lineage.ancestors("cpt", folders, manifests) == ["fetch a", "filter", "init", "cpt"]
    assert lineage.ancestors("init", folders, manifests) == ["init"]
    assert lineage.uses(folders, manifests)["fetch a"] == {"filter": ["documents"]}
    assert lineage.uses(folders, manifests)["sft"] == {}


def test_every_table_and_figure_names_manifests_that_are_there(run):
    """Between each of them and the next heading: the files, which exist, with a link to the stage's row and its commit."""
    with_details(run)
    with_merge(run)
    flags = (f"--leaks={run.data / 'leaks'}", f"--merge={run.data / 'merge'}")
    assert run(*flags, evaluated=("base", "merge", "sft")).returncode == 0
    found = lxml.html.parse(run.data / "report" / "report.html")
    unexplained, since = [], []
    for element in found.iter("h2", "h3", "table", "figure", "p"):
        kind = "p" if element.tag == "p" else element.tag
        if kind in ("h2", "h3"):
            unexplained, since = unexplained + since, []
        elif kind in ("table", "figure"):
            since.append(" ".join(element.text_content().split())[:60])
        elif element.get("class") == "from":
            since = []
    # The table of stages is itself the list of manifests.
    assert [text[:5] for text in unexplained + since] == ["stage", "stage"]
    ids = {element.get("id") for element in found.iter() if element.get("id")}
    for told in found.iterfind(".//p[@class='from']"):
        named = [code.text for code in told.iter("code")]
        assert all(Path(name).exists() for name in named if "/" in name), named
        assert {link.get("href").removeprefix("#") for link in told.iter("a")} <= ids
        assert "abc123" in named or "all that was fetched" in told.text_content()
    rows = {element.get("id"): element.text_content() for element in found.iter("tr") if element.get("id")}
    assert len(rows) == 19
    assert all("abc123" in text and "manifest.json" in text for text in rows.values())


def test_a_stage_that_did_not_finish_is_named(run):
    (run.data / "cpt" / "manifest.json").unlink()
    done = run()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {run.data / 'cpt'}: no manifest.json, so no stage finished")
    assert not (run.data / "report").exists()


def test_negative_samples_are_refused(run):
    done = run("--samples=-1")
    assert done.returncode == 2
    assert "error: --samples=-1: no negative numbers" in done.stderr


def test_curves_are_drawn_at_the_threshold_that_was_found(page_text):
    for panel in plots.precision_recall(EVALUATION, 2.5):
        assert panel in page_text
    assert plots.precision_recall(EVALUATION, 3.5)[0] not in page_text
    assert 'id="kept-1-' in page_text


def test_twenty_near_duplicates_are_shown_three_of_them_at_once(page_text):
    opened, behind = page_text.split("<summary>17 more</summary>")
    assert opened.count("similarity 0.90") == 3
    assert behind.count("similarity 0.90") == 17


def test_what_is_not_there_is_left_out(run):
    """No annotations, a filter that was given, and outputs from before receipts were kept."""
    (run.data / "filter" / "receipts.json").unlink()
    for stage, forgotten in (
        (
            "dedup",
            ("bands", "rows", "candidates", "verified", "clusters_by_size", "thresholds", "duplicates_by_sources"),
        ),
        ("filter", ("masked", "threshold", "score_percentiles", "precision")),
    ):
        path = run.data / stage / "manifest.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in forgotten:
            del content["results"][name]
        if stage == "filter":
            content["settings"] = {"limits": {}, "model": "given/model"}
            evaluation = content["results"]["evaluation"]
            for name in ("overall", "calibration", "precision_recall", "precision_recall_by_source", "auc_interval"):
                del evaluation[name]
            del evaluation["auc_of_bag_of_words"], evaluation["auc_of_bag_of_words_interval"]
        path.write_text(json.dumps(content), encoding="utf-8")
    done = run(annotations=False, reward=False, ablations=False)
    assert done.returncode == 0, done.stderr
    text = (run.data / "report" / "report.html").read_text(encoding="utf-8")
    assert "It was trained in another run (given/model)" in text
    for absent in (
        "Annotated by",
        "Clusters of",
        "other thresholds",
        "Where the removed stood",
        "The reward model",
        "Undefined",
    ):
        assert absent not in text
    recorded = json.loads((run.data / "report" / "manifest.json").read_text())
    assert "annotations" not in recorded["inputs"]
    assert "annotate" not in text


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
        "     bits/byte ru",
        "cpt         1.500",
        "",
        "     tokens/word ru  vocabulary  parameters, M",
        "cpt            2.00       1,024            1.5",
    ]


def test_differing_words_are_marked_and_markup_is_escaped():
    assert receipts.mark("раз <два> три", "раз <пять> три") == "раз &lt;<mark>два</mark>&gt; три"
    assert receipts.mark("раз", "раз") == "раз"


def test_samples_of_each_reason_are_drawn_by_the_seed(tmp_path):
    rows = [{"text": f"t{number}", "reason": "a" if number % 10 else "b"} for number in range(100)]
    removed(tmp_path, rows, ["reason"])
    drawn = receipts.removed(tmp_path, {"b": 10, "a": 90, "c": 0}, 3, seed=1)
    assert {reason: len(found) for reason, found in drawn.items()} == {"a": 3, "b": 3}
    assert list(drawn) == ["a", "b"]
    assert all(row["reason"] == reason for reason, found in drawn.items() for row in found)
    assert receipts.removed(tmp_path, {"a": 90, "b": 10}, 3, seed=1) == drawn
    assert receipts.removed(tmp_path, {"a": 90, "b": 10}, 3, seed=2) != drawn
    assert receipts.removed(tmp_path, {"a": 0}, 3, seed=1) == {}


def test_some_reasons_get_more_samples(tmp_path):
    rows = [{"text": f"t{number}", "reason": "a" if number % 2 else "b"} for number in range(100)]
    removed(tmp_path, rows, ["reason"])
    drawn = receipts.removed(tmp_path, {"b": 50, "a": 50}, 3, seed=1, more={"a": 20, "c": 9})
    assert {reason: len(found) for reason, found in drawn.items()} == {"a": 20, "b": 3}
    assert receipts.removed(tmp_path, {"b": 50, "a": 50}, 0, seed=1) == {}


def test_every_reason_has_its_meaning_with_its_limit():
    limits = dict.fromkeys(rules.RULES, 0.25) | {"too_short": 100, "too_long": 1e6, "blocked": 1}
    meant = {rule: receipts.meaning(rule, {"limits": limits}) for rule in rules.RULES if rule != "low_script"}
    meant["low_cyrillic"] = receipts.meaning("low_cyrillic", {"limits": limits})
    expected = {"too_short": "100 characters", "too_long": "1,000,000 characters", "blocked": "more than 1 different"}
    for rule, said in meant.items():
        assert expected.get(rule, "25%") in said, rule
    assert len(set(meant.values())) == len(rules.RULES)
    for reason in ("exact_duplicate", "near_duplicate", "all_duplicates", "empty"):
        assert receipts.meaning(reason, DEDUP_SETTINGS)
    assert receipts.meaning("low_quality", {}, 3.456) == "the trained filter scores it below 3.46 of 5"
    assert (
        receipts.meaning("low_quality", {}) == receipts.meaning("list", {}) == receipts.meaning("unheard_of", {}) == ""
    )


def test_the_way_of_comparing_is_said_as_it_was_set():
    figures = {"candidates": 1400, "verified": 31, "bands": 18, "rows": 7}
    other = {"shingles": "words", "shingle_size": 3, "method": "mihash", "bits": 64}
    other |= {"keep": "source", "source_priority": ["books", "web"]}
    (said,) = receipts.how_compared(DEDUP_SETTINGS | other, figures)
    assert "sets of 3-word runs" in said
    assert "A learned hash of 64 bits (MIHash) found 1,400 candidate pairs; measured" in said
    assert said.endswith("the sources named are, best first, books, web.")
    (said,) = receipts.how_compared(DEDUP_SETTINGS | {"keep": "longest"}, figures)
    assert said.endswith("the longest is kept.")


def test_clusters_are_counted_by_size():
    sizes = {"2": 5, "4": 1, "9": 2, "10": 1, "99": 1, "100": 1, "250": 1}
    assert [tuple(row.values()) for row in receipts.cluster_rows(sizes)] == [
        ("2", 5, 10),
        ("4", 1, 4),
        ("5–9", 2, 18),
        ("10–99", 2, 109),
        ("100+", 2, 350),
    ]
    assert receipts.cluster_rows({}) == []


def test_pairs_of_sources_beyond_the_largest_are_summed():
    counts = {f"a{number} ~ b": number for number in range(1, 15)}
    rows = receipts.source_pairs(counts)
    assert rows[0] == {"removed": "a14", "kept": "b", "number": 14}
    assert rows[11:] == [
        {"removed": "a3", "kept": "b", "number": 3},
        {"removed": "2 other pairs", "kept": None, "number": 3},
    ]


def test_a_sweep_is_told_in_words():
    rows = [{"threshold": 0.8, "removed": 2000, "spared": 12}, {"threshold": 0.95, "removed": 500, "spared": 0}]
    assert receipts.sweep(rows) == [
        "At 0.80, 2,000 near duplicates go, not counting exact copies of them.",
        "At 0.95, it would be 500 (25% of these).",
        "12 more are spared: similar only to paragraphs that go themselves, and to none that stays.",
    ]
    assert len(receipts.sweep([rows[1]])) == 1
    assert len(receipts.sweep([rows[0] | {"removed": 0}, rows[1] | {"removed": 0}])) == 2
    assert receipts.sweep([]) == []


def test_the_funnel_counts_each_reason_by_source():
    found = receipts.funnel({"a": {"kept": 5, "list": 1}, "b": {"kept": 0, "code": 2, "list": 2}, "c": {"code": 3}})
    assert list(found["reasons"].items()) == [("code", 5), ("list", 3)]
    assert found["rows"] == [
        {"name": "a", "documents": 6, "kept": 5, "removed": {"code": 0, "list": 1}},
        {"name": "b", "documents": 4, "kept": 0, "removed": {"code": 2, "list": 2}},
        {"name": "c", "documents": 3, "kept": 0, "removed": {"code": 3, "list": 0}},
    ]
    shares = receipts.kept_of_scored({"a": {"kept": 3, "low_quality": 1, "list": 9}, "b": {"list": 2}})
    assert shares == {"a": 0.75}


@pytest.mark.parametrize(
    ("ours", "apart"),
    [
        ((0.7, 0.51, 0.9), "better"),
        ((0.7, 0.5, 0.9), None),  # touching is not apart
        ((0.3, 0.2, 0.35), None),
        ((0.2, 0.1, 0.29), "worse"),  # than the bag of words, though no worse than the length
        ((None, None, None), None),
    ],
)
def test_the_filter_is_better_than_the_baselines_only_apart_from_both(ours, apart):
    evaluation = {"criteria": {"style": agreement(*ours) | BASELINES}}
    (row,) = receipts.criteria_rows({"evaluation": evaluation, "criteria": {"style": 3.5}})
    assert (row["name"], row["mean"]) == ("style", 3.5)
    assert row["spearman"]["filter"] == {"value": ours[0], "low": ours[1], "high": ours[2], "apart": apart}
    assert row["spearman"]["bag_of_words"] == {"value": 0.4, "low": 0.3, "high": 0.5}
    assert row["f1"]["length"] == {"value": None, "low": None, "high": None}


def test_an_undefined_baseline_is_no_rival():
    scored = agreement(0.7, 0.51, 0.9) | BASELINES | {"length": agreement(None, None, None)}
    (row,) = receipts.criteria_rows({"evaluation": {"criteria": {"style": scored}}, "criteria": {"style": 3.5}})
    assert row["spearman"]["filter"]["apart"] == "better"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_target_is_spelt_out(name):
    results = {"threshold": 2.5, "evaluation": EVALUATION}
    said = receipts.filter_threshold(f"{name}=0.625", results)
    expected = {
        "score": "was given (",
        "keep_share": "keeps 62% of all characters",
        "precision": "makes 62% of the kept good",
        "lose_good": "no more than 62% of the good",
    }
    assert expected[name] in said[0]
    assert f"(target: {name}=0.625)" in said[0]
    assert ("12 labelled examples" in said[0]) == (name in ("precision", "lose_good"))
    assert said[1].startswith("On the held-out examples it keeps about 88%")


def test_a_bag_of_words_that_tells_more_is_called_that():
    judged = {"labels": "annotations", "evaluation": EVALUATION | {"auc_interval": [0.6, 0.7], "auc": 0.65}}
    assert receipts.filter_verdict(judged)[1:] == [
        "So it tells no more than the length does.",
        "So a bag of words tells more.",
    ]
    judged["evaluation"] |= {"auc": 0.95, "auc_interval": [0.9, 0.97]}
    assert len(receipts.filter_verdict(judged)) == 1


def test_annotations_are_added_up_over_sources():
    assert receipts.annotation_rows(ANNOTATED) == [
        {"name": "grammar", "counts": [1, 0, 0, 6, 3], "mean": 4.0, "agreement": KAPPA}
    ]
    once = {"histograms": {"a": {"style": [0, 2, 0, 0, 0]}}}
    assert receipts.annotation_rows(once) == [
        {"name": "style", "counts": [0, 2, 0, 0, 0], "mean": 2.0, "agreement": None}
    ]
    assert receipts.mean_score([0, 0, 0, 0, 0]) == 0


def test_curves_of_all_and_of_each_source():
    panels = plots.precision_recall(EVALUATION, 2.5)
    assert [re.search("<figcaption>(.*?)</figcaption>", panel)[1] for panel in panels] == ["all", "pages"]
    assert "var(--muted)" not in re.findall(r"stroke: ([^;\"]*)", panels[0])  # nothing to compare it with
    assert "var(--muted)" in re.findall(r"stroke: ([^;\"]*)", panels[1])
    assert plots.at_threshold(EVALUATION["precision_recall"], 2.5)["threshold"] == 2.6
    assert plots.at_threshold(EVALUATION["precision_recall"], 4.9)["threshold"] == 4.0
    assert plots.precision_recall({}, 2.5) == []
    ids = re.findall(r'id="([^"]*)"', "".join(panels))
    assert len(ids) == len(set(ids))


def test_kept_shares_begin_with_the_source_that_loses_most():
    def points(*shares):
        return [
            {"threshold": at, "documents": share, "characters": share}
            for at, share in zip((1, 2, 3), shares, strict=True)
        ]

    by_source = {"a": points(1, 0.9, 0), "b": points(1, 0.4, 0)}
    panels = plots.kept_shares(by_source, 2.0, {"a": 0.9, "b": 0.4, "unscored": 0.1})
    assert [re.search("<figcaption>(.*?)</figcaption>", panel)[1] for panel in panels] == ["b, 40.0%", "a, 90.0%"]
    assert plots.kept_shares({}, 2.0, {}) == []


def test_a_filter_no_better_than_length_is_called_that():
    judged = {"labels": "annotations", "evaluation": {"examples": 9, "auc": 0.6, "auc_of_length": 0.7}}
    assert receipts.filter_verdict(judged) == [
        "On 9 held-out examples a good one outscores a bad one with probability 0.600; the length of the text alone: 0.700; "
        "guessing: 0.5.",
        "So it tells no more than the length does.",
    ]
    judged["evaluation"]["auc"] = 0.8
    assert len(receipts.filter_verdict(judged)) == 1


def test_fertility_by_source_names_the_target_first():
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


def test_units():
    assert [page.duration(value) for value in (4.2, 185, 4320)] == ["4.2 s", "3 min 5 s", "1 h 12 min"]
    assert [page.memory(value) for value in (0.003, 546, 2100)] == ["3 kB", "546 MB", "2.1 GB"]
    assert cards.fence("a ```` b") == "`````"
    assert page.setting({"a": [1, 2], "b": None, "c": True}) == "a: 1, 2, b: none, c: true"
    assert receipts.cut("x" * 701) == "x" * 700 + " … (701 characters in all)"
    assert receipts.cut("а\n" * 16) == "а\n" * 14 + "а … (32 characters in all)"
    assert receipts.cut("а\n" * 15) == "а\n" * 15
    assert page.readable("ĠÐłÐ¾ÑģÑģÐ¸Ñı") == " Россия"
    assert [page.readable(token) for token in ("▁мир", "é", "Ð")] == ["▁мир", "é", "Ð"]


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
