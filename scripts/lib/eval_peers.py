"""What `make bench-eval` times this project's scoring beside: the harness's own Hugging Face model on the same requests.

Where the harness has a task of its own for the same data (XNLI, Okapi's MMLU, MMLU), the peer scores that one, from the
harness's task file word for word, with the items put in the place of its data set: so equal answers also prove the prompts.
A timed function runs in a process of its own; what it times is requests (text) to log-probabilities, tokenising included.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import lm_eval
import numpy as np
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from lib import harness, models, training_peers

TASKS = Path(lm_eval.__file__).parent / "tasks"


class Item(NamedTuple):
    """A question as a model gets it, and the number of the right choice."""

    requests: list
    choices: list[str]
    target: int


class Work(NamedTuple):
    """What is scored: task files, local files in the place of their data, how many items of each and the examples before them."""

    tasks: list[Path]
    data: dict[str, Path]
    items: int
    num_fewshot: int
    seed: int


def ours(model: Path, work: Work, folder: Path, batch_tokens: int, threads: int) -> dict:
    """Our task files by our scorer."""
    return _timed(
        model, {name: _items(task) for name, task in chosen(work).items()}, threads, batch_tokens=batch_tokens
    )


def theirs(model: Path, work: Work, folder: Path, batch_size: int, threads: int) -> dict:
    """The harness's own tasks where it has them, by its own model, padded batches of `batch_size` requests."""
    questions = {}
    for name, task in chosen(work).items():
        own = own_tasks(task, folder / name, work)
        questions[name] = [item for each in own for item in _items(each)] if own else _items(task)
    return _timed(model, questions, threads, batch_size=batch_size)


def chosen(work: Work) -> dict[str, ConfigurableTask]:
    """The tasks with so many items, drawn by the seed; those of MMLU by subject, as the harness's own have them."""
    tasks = harness.load(work.tasks, num_fewshot=work.num_fewshot, seed=work.seed, data=work.data)
    for task in tasks.values():
        split = task.config.test_split or task.config.validation_split
        drawn = harness.draw(len(task.eval_docs), work.items, work.seed)
        if _by_subject(task):
            drawn.sort(key=task.dataset[split]["subject"].__getitem__)
        task.dataset[split] = task.dataset[split].select(drawn)
    return tasks


def own_tasks(task: ConfigurableTask, folder: Path, work: Work) -> list[ConfigurableTask]:
    """The harness's tasks for the data set of ours, on the same items, in their order; none if it has none that compares.

    MMLU-Pro is none: the harness lets the model write a chain of thought there.
    """
    config = task.config
    if _by_subject(task):
        split = config.test_split
        files = {s: TASKS / "mmlu" / "default" / f"mmlu_{s}.yaml" for s in sorted(set(task.dataset[split]["subject"]))}
    elif config.dataset_path == "facebook/xnli":
        files = {None: TASKS / "xnli" / f"xnli_{config.dataset_name}.yaml"}
    elif config.dataset_path == "alexandrainst/m_mmlu":
        files = {None: TASKS / "okapi" / "mmlu_multilingual" / f"m_mmlu_{config.dataset_name}.yaml"}
    else:
        return []
    data = {}
    for subject, file in files.items():
        name = file.stem
        for split, rows in task.dataset.items():
            of_subject = (
                rows if subject is None else rows.filter(lambda row, subject=subject: row["subject"] == subject)
            )
            data[f"{name}.{split}"] = folder / name / f"{split}.parquet"
            data[f"{name}.{split}"].parent.mkdir(parents=True, exist_ok=True)
            of_subject.to_parquet(data[f"{name}.{split}"])
    return list(harness.load(list(files.values()), num_fewshot=work.num_fewshot, seed=work.seed, data=data).values())


def _by_subject(task: ConfigurableTask) -> bool:
    return task.config.dataset_path == "cais/mmlu"


def _items(task: ConfigurableTask) -> list[Item]:
    task.build_all_requests()
    found: dict[int, list] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    made = []
    for requests in found.values():
        choices, target = task.doc_to_choice(requests[0].doc), task.doc_to_target(requests[0].doc)
        made.append(Item(requests, choices, choices.index(target) if isinstance(target, str) else target))
    return made


def _timed(model: Path, questions: Mapping[str, Sequence[Item]], threads: int, **how: int) -> dict:
    """Times, memory, and by task what was asked and answered."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    scored, tokenizer = models.load(model)
    if "batch_tokens" in how:
        scorer = harness.Scorer(scored, tokenizer, **how)
    else:
        scorer = HFLM(pretrained=scored, tokenizer=tokenizer, backend="causal", **how)
    scorer.loglikelihood(next(iter(questions.values()))[0].requests, disable_tqdm=True)  # warms up
    requests = [request for items in questions.values() for item in items for request in item.requests]
    begun, cpu = time.perf_counter(), time.process_time()
    answers = iter(scorer.loglikelihood(requests, disable_tqdm=True))
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    told = {
        name: [_told(item, [next(answers)[0] for _ in item.requests]) for item in items]
        for name, items in questions.items()
    }
    return {
        "requests_per_second": len(requests) / seconds,
        "items_per_second": sum(map(len, questions.values())) / seconds,
        "requests_per_cpu_second": len(requests) / cpu_seconds,
        "peak_mb": training_peers.peak_mb(),
        "told": told,
    }


def _told(item: Item, values: list[float]) -> dict:
    """An item's prompts, log-probabilities, answers by their sum and by bytes, and the right one."""
    sizes = np.array([len(choice.encode()) for choice in item.choices])
    return {
        "prompts": [request.args for request in item.requests],
        "log_probabilities": values,
        "prediction": int(np.argmax(values)),
        "prediction_bytes": int(np.argmax(np.array(values) / sizes)),
        "target": item.target,
    }
