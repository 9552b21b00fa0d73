"""Translate instructions or benchmark items with a language model, and keep what passes the checks.

    export OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_MODEL=... OPENAI_API_KEY=...
    python scripts/translate.py --items=data/raw/english --out=data/demo/translated --dry_run=true
    python scripts/translate.py --items=data/raw/english --out=data/demo/translated
    python scripts/translate.py --items=mmlu/all --out=data/ru_mmlu

Any server that speaks OpenAI's chat protocol will do. Address, model and key are taken from the environment only. A record
is one question: all messages of a conversation, or a benchmark item's texts and options together. Columns with text are told
from the record (lib/records.py: SHAPES) or named by --columns; all others, answer keys among them, stay as they are.
Code, formulas, addresses, markup, names of options and numbers are masked and put back as they were. Records already in
the target language are kept, those with nothing to translate too; records with the same texts are asked about once.

`--answers=translate` translates a conversation's answers (as Veles was made). `--answers=generate` translates the prompts and
has the model answer anew in the target language (as ruFLAN was made); of several answers the last is made anew, since later
questions refer to the earlier ones. It may be missing from the input.

An answer that fails a check is asked for again with what is wrong, `attempts` times in all (a refusal is final); then the record
goes to removed/: `refusal`, `mask_lost`, `untranslated`, `wrong_language`, `length_ratio`, `same_options` (options that differed
became equal), `other_language` (the record names a third one), `invalid_answer` (no JSON of the texts), or what the server says.

Replies are journaled as they come: after a kill, a lost connection or a spent `max_cost` the same command goes on and asks
nothing that has been answered; limits and checks may change meanwhile. An estimate of the cost comes first; `--dry_run=true`
ends there and needs neither server nor `--out`.

Reads:  records with `messages`, or benchmark items: Parquet or JSON Lines, a file or a folder (a stage's or a data set's); the
        environment variables OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY; configs/languages/translate/<code>.yaml.
Writes: instructions.jsonl: the conversations that passed, for sft.py.
        items/...: other records that passed, in files named and laid out as those read (compressed JSON Lines unpacked).
        removed/rejects.jsonl: the others: `reason`, `problem`, `source` and `translation` (texts by name), the `record`, `file`.
        journal.jsonl: every reply as it came, by a hash of its texts.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib import api, cli, documents, phrases, progress, records, stage, translation
from lib.errors import UserError


def main(
    *,
    items: Path,
    out: Path | None = None,
    language: str = "ru",
    source_language: str = "en",
    answers: records.Answers = "translate",
    columns: list[str] | None = None,
    max_items: int | None = None,
    min_length_ratio: float = 0.5,
    max_length_ratio: float = 2.5,
    min_script_share: float = 0.5,
    min_probability: float = 0.5,
    answer_factor: float = 3.0,
    answer_tokens: int = 200,
    generated_tokens: int = 1500,
    temperature: float | None = 0.0,
    parallel: int = 8,
    requests_per_minute: float = 0,
    tokens_per_minute: float = 0,
    retries: int = 6,
    attempts: int = 3,
    timeout: float = 120.0,
    input_price: float | None = None,
    output_price: float | None = None,
    max_cost: float | None = None,
    dry_run: bool = False,
    on_error: documents.OnError = "stop",
) -> None:
    """Translate records.

    Args:
        items: a file or folder of instructions or benchmark items.
        out: the folder to write; not needed for a dry run.
        language: to translate into (ISO code).
        source_language: to translate from (ISO code).
        answers: 'translate' a conversation's answers, or 'generate' the last one anew.
        columns: with text to translate (`a.b` is b inside a), where they can't be told.
        max_items: at most so many records, for a trial.
        min_length_ratio: characters of a translation for each of its source, at least.
        max_length_ratio: the same, at most.
        min_script_share: share of a translation's letters that are of the language's script (0 to 1).
        min_probability: that a translation of some length is in the language (0 to 1).
        answer_factor: tokens of an answer for each of the texts, where it is cut off.
        answer_tokens: allowed besides; models that reason need thousands.
        generated_tokens: where an answer made anew is cut off.
        temperature: of the model; null for models that take none.
        parallel: requests under way at the same time.
        requests_per_minute: at most; 0 is no limit.
        tokens_per_minute: of prompts and answers, at most; 0 is no limit.
        retries: times a request is sent again when the server is busy, broken or silent.
        attempts: replies a record is given to pass the checks.
        timeout: seconds for a reply to be complete.
        input_price: US dollars for a million tokens of prompts.
        output_price: US dollars for a million tokens of answers.
        max_cost: US dollars not to exceed: checked against the estimate, and against what is spent.
        dry_run: print the estimate and stop.
        on_error: 'stop' at broken input or records of no known shape, or 'skip' and count them.
    """
    settings = dict(locals())
    limits = api.limits(settings)
    _check(settings)
    both = (phrases.load(code) for code in (source_language, language))
    rules = translation.Rules(*both, **{name: settings[name] for name in translation.RULES})
    if dry_run:
        found, skipped = _read(settings, rules)
        expected = api.estimate(translation.estimated(found, rules), limits)
        print(f"{_spell(found, skipped)} | {api.spell_estimate(expected)}")
        return

    server = api.server()
    identity = api.identity(settings, server)
    # Before the folder is begun, so that broken input leaves nothing behind that would hold on to its settings.
    found, skipped = _read(settings, rules)
    progress.say(_spell(found, skipped))
    given = {"settings": identity, "resume": True, "adjustable": translation.CHECKS}
    with stage.output(out, inputs={"items": items}, **given) as building:
        journal = building.folder / "journal.jsonl"
        outcomes, figures = translation.ask(found, rules, server=server, limits=limits, journal=journal)
        tally = _write(building.folder, items, found, outcomes, language)
        assert len(found) == tally["accepted"] + sum(tally["removed"].values())
        if not tally["accepted"]:
            reasons = ", ".join(f"{name} {count}" for name, count in sorted(tally["removed"].items()))
            raise UserError(f"nothing was translated ({reasons}); what was said is in {building.folder / 'removed'}")
        building.record(
            records=len(found), **tally, skipped=dict(skipped), limits=dataclasses.asdict(limits), **figures
        )
    kept = progress.funnel(tally["accepted"], len(found), tally["removed"], "records")
    print(f"{kept} | {api.spell_usage(figures['usage'])}")


def _check(settings: Mapping[str, Any]) -> None:
    for name in ("answer_tokens", "generated_tokens", "max_items"):
        if settings[name] is not None and settings[name] < 1:
            raise UserError(f"--{name}={settings[name]}: at least 1")
    if settings["answer_factor"] < 0:
        raise UserError(f"--answer_factor={settings['answer_factor']}: not negative")
    for name in ("min_script_share", "min_probability"):
        if not 0 <= settings[name] <= 1:
            raise UserError(f"--{name}={settings[name]}: from 0 to 1")
    least, most = settings["min_length_ratio"], settings["max_length_ratio"]
    if not 0 <= least < most:
        raise UserError(f"--min_length_ratio={least}, --max_length_ratio={most}: the first has to be the smaller one")
    if settings["language"] == settings["source_language"]:
        raise UserError(f"--language={settings['language']} is --source_language too: nothing to translate")
    if settings["out"] is None and not settings["dry_run"]:
        raise UserError("missing --out (only a dry run does without)")


def _read(settings: Mapping[str, Any], rules: translation.Rules) -> tuple[list[records.Item], Counter[str]]:
    """(the records, how many others were skipped for which reason)."""
    skipped: Counter[str] = Counter()
    told = {name: settings[name] for name in ("answers", "columns", "on_error")}
    stream = records.read(settings["items"], rules.source, rules.target, skipped=skipped, **told)
    found = list(itertools.islice(progress.bar(stream, title="read", unit="records"), settings["max_items"]))
    if not found:
        raise UserError(f"{settings['items']}: no records")
    return found, skipped


def _spell(found: Sequence[records.Item], skipped: Mapping[str, int]) -> str:
    asked, done = sum(item.to_ask for item in found), sum(item.done for item in found)
    left_out = "".join(f" | skipped: {name} {count:,}" for name, count in sorted(skipped.items()))
    return f"{len(found):,} records, {asked:,} to ask about, {done:,} in the language already{left_out}"


def _write(
    folder: Path,
    path: Path,
    found: Sequence[records.Item],
    outcomes: Sequence[translation.Outcome],
    code: str,
) -> dict[str, Any]:
    """Write what passed and what did not; return the tally for the manifest."""
    accepted, rejects = [], []
    tally: dict[str, Any] = {"translated": 0, "already_translated": 0, "nothing_to_translate": 0}
    masked: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for item, outcome in zip(found, outcomes, strict=True):
        if reason := item.reason or outcome.reason:
            removed[reason] += 1
            source = {part.name: part.text for part in item.parts}
            fields = {"reason": reason, "problem": outcome.problem, "source": source, "translation": outcome.texts}
            rejects.append(fields | {"said": outcome.said, "file": item.file.as_posix(), "record": item.record})
            continue
        kind = "already_translated" if item.done else "translated" if item.to_ask else "nothing_to_translate"
        tally[kind] += 1
        masked.update(kind for part in item.asked for kind in part.masked.kinds.elements())
        accepted.append((item, records.translated(item, outcome.texts, code, outcome.answer)))
    records.write(folder, path, accepted)
    (folder / "removed").mkdir(exist_ok=True)
    records.write_json_lines(folder / "removed" / "rejects.jsonl", rejects)
    return {"accepted": len(accepted), **tally, "removed": dict(removed), "masked": dict(masked)}


if __name__ == "__main__":
    cli.run(main)
