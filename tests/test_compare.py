"""scripts/compare.py: two evaluations side by side, and those that don't compare."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from test_report import Tags

from lib import contrast

SETTINGS = {"tasks": ["quiz.yaml"], "seed": 0, "max_new_tokens": 48}
NASTY = "<script>alert('x')</script> & <b>"
INTERVAL = {"low": 0.1, "high": 3.0}


def evaluation(folder, *, bits=20.0, right=10, flagged=0, settings=SETTINGS, checkpoint=None, stage="eval"):
    """A folder as eval.py leaves it: 20 documents, items and answers."""
    (folder / "samples").mkdir(parents=True)
    rate = {"value": flagged / 20, "low": 0.0, "high": 1.0, "items": 20}
    results = {"checkpoint": checkpoint or folder.name, "parameters": 9, "vocabulary": 100}
    results["bits_per_byte"] = {"ru": {"value": bits / 10, **INTERVAL, "documents": 20, "bytes": 200, "tokens": 60}}
    results["fertility"] = {"ru": {"tokens_per_word": 2.0}}
    results["tasks"] = {"quiz": {"value": right / 20, **INTERVAL, "items": 20, "chance": 0.25, "shots": 0}}
    results["flaws"] = {"english_words": rate}
    speed = {"characters_per_second": 5 * bits, "tokens_per_second": 7777.0}
    results["speed"] = {"languages": {"ru": {"prompt": speed, "generation": speed}}}
    answers = {"value": bits / 10, **INTERVAL, "documents": 20, "tokens": 60, "perplexity_per_token": 8888.0}
    results |= {
        "instructions": {"ru": answers},
        "kl_to_base": {"language": "en", "value": 0.25, **INTERVAL, "documents": 20},
    }
    manifest = {"stage": stage, "settings": settings, "inputs": {}, "results": results}
    manifest["finished"] = "2026-11-23T23:15:44+00:00"
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = {
        "documents.jsonl": [
            {"language": "ru", "id": f"d{n}", "bits": bits + n, "bytes": 10, "tokens": 3} for n in range(20)
        ],
        "dialogues.jsonl": [{"language": "ru", "id": f"t{n}", "bits": 20.0 + n, "bytes": 10, "tokens": 3} for n in range(20)],
        "samples/quiz.jsonl": [
            {"id": f"i{n}", "prediction": 0, "target": 0, "correct": n < right} for n in range(20)
        ],
        "generations.jsonl": [
            {"id": f"p{n}", "category": "talk", "prompt": f"Вопрос {n}? {NASTY}", "language": "ru", "tokens": 48, "finished": False}
            | {"completion": f"Ответ {n} от {folder.name}", "flags": ["english_words"] if n < flagged else []}
            for n in range(20)
        ],
    }  # fmt: skip
    for name, found in lines.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    return folder


def compare(first, second, out, *flags):
    command = [
        sys.executable,
        ROOT / "scripts/compare.py",
        f"--first={first}",
        f"--second={second}",
        f"--out={out}",
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_two_evaluations_side_by_side(tmp_path):
    first, second = evaluation(tmp_path / "base", flagged=1), evaluation(tmp_path / "cpt", bits=19, right=17, flagged=2)
    done = compare(first, second, tmp_path / "out", "--answers=2")
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in done.stdout.splitlines() if line}
    # Every text costs the second one bit in ten bytes less: no spread at all.
    assert rows["bits/byte ru"] == "bits/byte ru 2.000 1.900 -0.100 [-0.100, -0.100] better"
    assert rows["quiz"].startswith("quiz 50.0% 85.0% +35.0 points [+")
    assert rows["quiz"].endswith("; 7 only in the second, 0 only in the first, p = 0.016 better")
    assert rows["english words"].startswith("english words 5.0% 10.0% +5.0 points [+0.0, ")
    assert rows["english words"].endswith("p = 1.000 not shown to differ")
    assert (
        rows["bits/byte answers ru"] == "bits/byte answers ru 2.000 1.900 +0.000 [+0.000, +0.000] not shown to differ"
    )
    assert rows["KL to base en, nats"] == "KL to base en, nats 0.250 0.250"
    assert rows["reads ru, characters/s"] == "reads ru, characters/s 100 95 0.95 times"
    assert "7777" not in done.stdout  # tokens of different tokenizers
    assert "8888" not in done.stdout
    assert "by 4 paired comparisons; no correction" in done.stdout
    assert done.stdout.count("> Вопрос") == 2
    assert [" ".join(line.split()) for line in done.stdout.splitlines() if line.startswith("Ответ")] == [
        "Ответ 0 от base | Ответ 0 от cpt",
        "Ответ 1 от base | Ответ 1 от cpt",
    ]
    assert "[english_words]" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.html", "manifest.json"]
    text = (tmp_path / "out/compare.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in {tag for tag, _ in tags.seen}
    assert text.count("Ответ 19 от") == 2
    assert text.count(">english words</span>") == 3
    assert "▲ better" in text
    assert '<span class="better">▲ 85.0%</span>' in text
    assert '<span class="">10.0%</span>' in text
    assert "7777" not in text
    recorded = json.loads((tmp_path / "out/manifest.json").read_text())["results"]["rows"]
    assert {row["title"]: row["verdict"] for row in recorded}["quiz"] == "better"


def test_equal_names_become_folders(tmp_path):
    first, second = evaluation(tmp_path / "one/cpt"), evaluation(tmp_path / "two/cpt")
    assert [each.name for each in contrast.read(first, second)] == [str(first), str(second)]


def rewrite(folder, name, change):
    lines = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    (folder / name).write_text("".join(json.dumps(change(line)) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: rewrite(f, "documents.jsonl", lambda line: line | {"bytes": 11}), "measured on other held-out texts (ru)"),
        (lambda f: rewrite(f, "documents.jsonl", lambda line: line | {"language": "en"}), "other held-out texts (en)"),
        (lambda f: rewrite(f, "dialogues.jsonl", lambda line: line | {"id": "x"}), "measured on other dialogues (ru)"),
        (lambda f: rewrite(f, "samples/quiz.jsonl", lambda line: line | {"target": 1}), "measured on other items (quiz)"),
        (lambda f: rewrite(f, "generations.jsonl", lambda line: line | {"prompt": "!"}), "measured on other prompts;"),
        (lambda f: (f / "generations.jsonl").unlink(), "measured on other prompts;"),
        (lambda f: (f / "documents.jsonl").unlink(), "no documents.jsonl, so it was made before"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json, so no stage finished"),
    ],
)  # fmt: skip
def test_what_does_not_compare_is_refused_in_one_line(tmp_path, spoil, said):
    first, second = evaluation(tmp_path / "base"), evaluation(tmp_path / "cpt")
    spoil(second)
    with pytest.raises(contrast.UserError) as raised:
        contrast.read(first, second)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_settings_are_refused_and_named(tmp_path):
    first, second = evaluation(tmp_path / "base"), evaluation(tmp_path / "cpt", settings=SETTINGS | {"seed": 1})
    done = compare(first, second, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {first} and {second} were made with other settings (seed: 0 and 1); evaluate both with the same"
    )
    assert not (tmp_path / "out").exists()
    other = evaluation(tmp_path / "pack", stage="pack")
    with pytest.raises(contrast.UserError, match=r"written by pack\.py; name outputs of eval\.py"):
        contrast.read(first, other)


def test_make_names_evaluations_by_checkpoint_or_folder(tmp_path):
    def make(*given):
        command = ["make", "-n", "compare", "PROFILE=demo", "PYTHON=py", f"D={tmp_path}", *given]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert make("A=base", "B=some/eval/cpt").stdout.strip() == (
        f"py scripts/compare.py --language=ru --first={tmp_path}/eval/base --second=some/eval/cpt --out={tmp_path}/compare"
    )
    refused = make("A=base")
    assert refused.returncode != 0
    assert "say A= and B=" in refused.stderr
