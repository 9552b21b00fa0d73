"""Have a language model score a sample of documents on the paper's five criteria, from 1 to 5.

    export OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_MODEL=... OPENAI_API_KEY=...
    python scripts/annotate.py --config=configs/demo/annotate.yaml --documents=data/demo/dedup/documents --dry_run=true
    python scripts/annotate.py --config=configs/demo/annotate.yaml --documents=data/demo/dedup/documents \
        --out=data/demo/annotations

Any server that speaks OpenAI's chat protocol will do. Address, model and key are taken from the environment only. The
sample has equal parts of all sources and lengths, without near duplicates (lib/sampling.py). An estimate of the cost comes first.
`--dry_run=true` ends there: it draws the sample, prints what it would ask and cost, and needs neither server nor `--out`.

Replies are journaled as they come. After a kill, a lost connection or a spent `max_cost` the same command goes on and asks
nothing that has been answered; the limits (`parallel` to `max_cost`) may change meanwhile, all else may not.
With `passes: 2` documents are asked about twice, the second time with the criteria in the opposite order: how the two agree
is an upper limit on what a filter can learn. A document's scores are the mean of its passes.

Reads:  documents; the environment variables OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY.
Writes: documents/*.parquet: annotated, with the five scores and `passes` (each pass's scores); for filter.py --annotations.
        failed/*.parquet: the others, with `reason` and what the server said.
        journal.jsonl: every reply as it came, by a hash of its document.
"""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lib import annotation, api, cli, progress, sampling, stage
from lib import documents as corpora
from lib.corruption import CRITERIA
from lib.errors import UserError

SCORED_FIELDS = [*((name, pa.float32()) for name in CRITERIA), ("passes", pa.list_(pa.list_(pa.int8())))]
FAILED_FIELDS = [("reason", pa.string()), ("said", pa.large_string())]


def main(
    *,
    documents: Path,
    out: Path | None = None,
    sample: int = 20_000,
    max_chars: int = 2_000,
    length_bins: int = 5,
    similarity: float = 0.8,
    passes: int = 1,
    agreement_documents: int = 0,
    answer_tokens: int = 200,
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
    language: str | None = None,
    seed: int = 0,
    dry_run: bool = False,
    on_error: corpora.OnError = "stop",
) -> None:
    """Annotate a sample of documents.

    Args:
        documents: a file or folder of documents.
        out: the folder to write; not needed for a dry run.
        sample: documents to annotate.
        max_chars: of a document's beginning are shown, up to the end of a word.
        length_bins: parts of equal size into which each source is divided by length.
        similarity: Jaccard similarity (0 to 1) from which a document is too much like another one of the sample.
        passes: 2 asks about documents twice, for the agreement report.
        agreement_documents: how many to ask about twice; 0 is all.
        answer_tokens: where an answer is cut off; models that reason need thousands.
        temperature: of the model; null for models that take none.
        parallel: requests under way at the same time.
        requests_per_minute: at most; 0 is no limit.
        tokens_per_minute: of prompts and answers, at most; 0 is no limit.
        retries: times a request is sent again when the server is busy, broken or silent.
        attempts: replies a document is given to bring valid scores.
        timeout: seconds for a reply to be complete.
        input_price: US dollars for a million tokens of prompts.
        output_price: US dollars for a million tokens of answers.
        max_cost: US dollars not to exceed: checked against the estimate, and against what is spent.
        language: given to documents that name none (ISO code).
        seed: of the sample.
        dry_run: draw the sample, print the estimate and stop.
        on_error: 'stop' at broken input, or 'skip' and count it.
    """
    settings = dict(locals())
    limits = api.limits(settings)
    for name in ("sample", "max_chars", "length_bins", "answer_tokens"):
        if settings[name] < 1:
            raise UserError(f"--{name}={settings[name]}: at least 1")
    if not 0 < similarity <= 1:
        raise UserError(f"--similarity={similarity}: above 0 and at most 1")
    if passes not in (1, 2):
        raise UserError(f"--passes={passes}: 1 or 2")
    if agreement_documents < 0 or (agreement_documents and passes == 1):
        raise UserError(f"--agreement_documents={agreement_documents}: not negative, and only with --passes=2")
    if out is None and not dry_run:
        raise UserError("missing --out (only a dry run does without)")

    if dry_run:
        chosen, figures = _sample(settings)
        questions = annotation.questions([c.text for c in chosen], [c.key for c in chosen], **_asking(settings))
        print(f"{sampling.spell(figures)} | {api.spell_estimate(api.estimate(questions, limits))}")
        return

    server = api.server()
    identity = api.identity(settings, server)
    with stage.output(out, inputs={"documents": documents}, settings=identity, resume=True) as building:
        chosen, figures = _sample(settings)
        progress.say(sampling.spell(figures))
        questions = annotation.questions([c.text for c in chosen], [c.key for c in chosen], **_asking(settings))
        journal = building.folder / "journal.jsonl"
        answers, usage = api.ask(
            questions, server=server, limits=limits, journal=journal, read=lambda _, said: annotation.read(said)
        )

        # Answers come in the order of the questions: all documents once, then the first of them again.
        first, second = answers[: len(chosen)], answers[len(chosen) :]
        tally = _write(building.folder, chosen, list(itertools.zip_longest(first, second)))
        failed = tally["failed"]
        assert len(chosen) == tally["annotated"] + sum(failed.values())
        if not tally["annotated"]:
            reasons = ", ".join(f"{name} {count}" for name, count in sorted(failed.items()))
            raise UserError(f"no document was annotated ({reasons}); what was said is in {building.folder / 'failed'}")
        building.record(**figures, **tally, limits=dataclasses.asdict(limits))
        building.record(estimate=api.estimate(questions, limits), usage=usage)
        if second:
            pairs = [(a.value, b.value) for a, b in zip(first, second, strict=False) if not (a.reason or b.reason)]
            building.record(agreement=annotation.agreement(pairs, seed))
    print(f"{progress.funnel(tally['annotated'], len(chosen), failed, 'documents')} | {api.spell_usage(usage)}")


def _sample(settings: Mapping[str, Any]) -> tuple[list[sampling.Candidate], dict[str, object]]:
    """(the documents to ask about, figures about them)."""
    path, skipped = settings["documents"], Counter()
    stream = corpora.read(path, on_error=settings["on_error"], skipped=skipped, language=settings["language"])
    stream = progress.bar(stream, total=corpora.count(path), title="sample", unit="documents")
    chosen, figures = sampling.sample(
        stream,
        settings["sample"],
        **{name: settings[name] for name in ("max_chars", "length_bins", "similarity", "seed")},
    )
    if not chosen:
        raise UserError(f"{path}: no document with text")
    return chosen, figures | {"skipped": dict(skipped)}


def _asking(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that questions are made by."""
    twice = 0 if settings["passes"] == 1 else settings["agreement_documents"] or settings["sample"]
    return {"twice": twice, "answer_tokens": settings["answer_tokens"], "temperature": settings["temperature"]}


def _write(
    folder: Path,
    chosen: Sequence[sampling.Candidate],
    answers: Sequence[tuple[api.Answer, api.Answer | None]],
) -> dict[str, Any]:
    """Write the annotated and the failed; return the tally for the manifest."""
    failed: Counter[str] = Counter()
    passes_failed: Counter[str] = Counter()  # of documents annotated by the other pass
    scored: dict[str, list[list[int]]] = defaultdict(list)
    with (
        corpora.writing(folder / "documents", extra=SCORED_FIELDS) as keep,
        corpora.writing(folder / "failed", extra=FAILED_FIELDS) as remove,
    ):
        for candidate, both in zip(chosen, answers, strict=True):
            fields = {name: getattr(candidate, name) for name in ("id", "text", "source", "language")}
            given = [answer for answer in both if answer]
            if passes := [answer.value for answer in given if not answer.reason]:
                means = np.mean(passes, axis=0).tolist()
                keep.write(fields | dict(zip(CRITERIA, means, strict=True)) | {"passes": passes})
                passes_failed.update(answer.reason for answer in given if answer.reason)
                scored[candidate.source].append(passes[0])
            else:
                remove.write(fields | {"reason": given[0].reason, "said": given[0].said})
                failed[given[0].reason] += 1
    return {
        "annotated": keep.rows,
        "failed": dict(failed),
        "passes_failed": dict(passes_failed),
        "histograms": {source: annotation.histogram(scores) for source, scores in sorted(scored.items())},
    }


if __name__ == "__main__":
    cli.run(main)
