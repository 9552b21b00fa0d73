"""Multiple-choice tasks through lm-evaluation-harness: its task files, few-shot prompts and scoring rules.

The harness builds the prompts and compares the choices; the log-probabilities come from `lib.metrics`, which batches by
length and computes logits only where they are needed (the harness makes all of them). Both agree to rounding.
"""

import functools
import logging
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import jinja2
import lm_eval.api.task
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import items, metrics
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# By the sum of log p, and by that over the bytes of the choice, which takes the longer choice's handicap away.
METRICS = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_bytes")]
for chatty in ("lm_eval", "datasets", "huggingface_hub"):
    logging.getLogger(chatty).setLevel(logging.ERROR)
datasets.disable_progress_bars()
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)  # building prompts takes no time worth a bar


class Scorer(HFLM):
    """The harness's Hugging Face model with `lib.metrics` computing the log-probabilities."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_tokens: int):
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal")
        self.batch_tokens = batch_tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each request's continuation; the tokenizing goes without a bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[tuple], **_: Any) -> list[tuple[float, bool]]:
        pairs = [(self._last(context, continuation), continuation) for _, context, continuation in requests]
        return list(metrics.log_probabilities(self.model, pairs, batch_tokens=self.batch_tokens, title="tasks"))

    def _last(self, context: list[int], continuation: list[int]) -> list[int]:
        """What of the context fits before the continuation: its end, as in the harness."""
        return context[-max(self.max_length + 1 - len(continuation), 1) :]


def load(
    files: Sequence[Path], *, num_fewshot: int, seed: int, data: Mapping[str, Path] | None = None
) -> dict[str, ConfigurableTask]:
    """The tasks of the given files, by name; those with a pool of examples get `num_fewshot` of them.

    Args:
        files: task files.
        num_fewshot: examples before each item.
        seed: draws them, where a task says so.
        data: local files in the place of a task's data set, see `items.place`.

    Raises:
        UserError: a file is missing or no task, its data does not load or lacks something, or its pool is too small.
    """
    tasks = {}
    with tempfile.TemporaryDirectory() as cache:
        configs: dict[str, dict[str, Any]] = {}
        for file in files:
            config = read_config(file, Path(cache))
            if config["task"] in configs:
                raise UserError(f"{file}: a second task named '{config['task']}'; rename one")
            configs[config["task"]] = config
        placed = items.place(data or {}, configs, num_fewshot)
        for file, (name, config) in zip(files, configs.items(), strict=True):
            if name in placed:
                read = {split: items.read_items(*given, Path(cache)) for split, given in placed[name].items()}
                config = items.with_items(config, read, placed[name])
            try:
                task = TaskManager(include_defaults=False).load([{**config, "metric_list": METRICS}])["tasks"][name]
            except items.LOADING as error:
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"{file}: the harness can't load this task ({type(error).__name__}: {why})") from None
            for split, (key, _) in placed.get(name, {}).items():
                check_answers(task, split, key)
            has_pool = task.config.fewshot_split is not None or task.config.training_split is not None
            shots = num_fewshot if has_pool else 0
            if shots and len(task.sampler.df) < shots:
                raise UserError(f"{file}: {len(task.sampler.df)} examples for --num_fewshot={num_fewshot}; lower it")
            task.set_config("num_fewshot", shots)
            task.set_fewshot_seed(seed)
            if shots and isinstance(task.sampler, SameSubject):
                task.sampler.follow(task)
            tasks[name] = task
    return tasks


def read_config(file: Path, cache: Path) -> dict[str, Any]:
    """A task file as a dict, its includes resolved and its local data files made independent of the working folder.

    Raises:
        UserError: the file or a local data file is missing, or it names no task.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such task file; the project's own are in configs/eval/")
    try:
        config = load_yaml(file)
    except (yaml.YAMLError, OSError, ValueError, ImportError, AttributeError) as error:
        raise UserError(f"{file}: not a task file ({' '.join(str(error).split())})") from None
    if not isinstance(config.get("task"), str):
        raise UserError(f"{file}: no 'task: <name>', so not a task file")
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(named, dict) and not any("://" in path for path in named.values()):
        found = {split: ROOT / path for split, path in named.items()}
        for path in found.values():
            if not path.is_file():
                raise UserError(f"{file}: its data file {path.relative_to(ROOT)} does not exist")
        local = {split: str(path) for split, path in found.items()}
        config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": local, "cache_dir": str(cache)}
    return config


def check_answers(task: ConfigurableTask, split: str, key: str) -> None:
    """Every item's right answer is among its choices; the harness would count another one as wrong whatever is chosen.

    Raises:
        UserError: one is not, or an item can't be made a question.
    """
    for number, item in enumerate(task.dataset[split], 1):
        try:
            choices, target = task.doc_to_choice(item), task.doc_to_target(item)
        except (*items.LOADING, jinja2.TemplateError, IndexError) as error:
            raise UserError(f"data: {key}: item {number}: {type(error).__name__}: {error}") from None
        for one in target if isinstance(target, list) else [target]:
            if one not in choices and not (isinstance(one, int) and 0 <= one < len(choices)):
                where = f"data: {key}: item {number}"
                raise UserError(f"{where}: the right answer {one!r} is none of {len(choices)} choices")


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: dict[str, ConfigurableTask],
    *,
    limit: int | None,
    batch_tokens: int,
    seed: int = 0,
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """Accuracy by task, and by task one record an item: id, predictions and target (choice indices), correct.

    `prediction` is the likeliest choice (accuracy@1), `prediction_bytes` that of the highest log p over its UTF-8 bytes, the
    harness's `acc_bytes`: where choices are whole sentences, the shorter one is the likelier whatever it says.

    Args:
        model: the model to score.
        tokenizer: its tokenizer.
        tasks: as `load` gives them.
        limit: so many items of each task, drawn by the seed (files are often sorted by subject); all of them if None.
        batch_tokens: tokens, padding included, in one forward pass.
        seed: draws the items.
    """
    drawn = {name: draw(len(task.eval_docs), limit, seed) for name, task in tasks.items()}
    scorer = Scorer(model, tokenizer, batch_tokens)
    found = evaluate(scorer, {"tasks": tasks}, samples=drawn, bootstrap_iters=0, log_samples=True)
    results, samples = {}, {}
    for name, task in tasks.items():
        logged = found["samples"][name]
        samples[name] = [_record(sample, task.doc_to_choice(sample["doc"])) for sample in logged]
        chances = [1 / len(sample["filtered_resps"]) for sample in logged]
        correct, by_bytes = ([bool(sample[metric["metric"]]) for sample in logged] for metric in METRICS)
        results[name] = {
            **metrics.accuracy(correct, chances),
            "acc_bytes": metrics.share(by_bytes),
            "shots": task.config.num_fewshot,
        }
    return results, samples


def draw(items: int, limit: int | None, seed: int) -> list[int]:
    """The numbers of at most `limit` items, in order, the same for every model."""
    return list(range(items)) if limit is None else sorted(random.Random(seed).sample(range(items), min(limit, items)))


class SameSubject(ContextSampler):
    """The first examples of the item's own subject, as in MMLU (`subject`) and MMLU-Pro (`category`)."""

    item: dict | None = None

    def follow(self, task: ConfigurableTask) -> None:
        """Learn each item before its examples are asked for: the harness itself does not tell a sampler."""
        build = task.fewshot_context

        def fewshot_context(doc: dict, *args: Any, **named: Any) -> str:
            self.item = doc
            return build(doc, *args, **named)

        task.fewshot_context = fewshot_context

    def sample(self, n: int, eval_doc: dict | None = None, df: Sequence[dict] | None = None, **_: Any) -> list[dict]:
        """`n` examples for the item, fewer where its subject has fewer."""
        field = "subject" if "subject" in self.item else "category"
        return [example for example in df or self.df if example[field] == self.item[field]][:n]


def all_configurations(path: str, split: str, **_: Any) -> datasets.DatasetDict:
    """A dataset whose every configuration is a part of one test set, as `test` with the part's name in `part`."""
    parts = [
        datasets.load_dataset(path, name, split=split).add_column("part", [name] * rows)
        for name in datasets.get_dataset_config_names(path)
        if (rows := datasets.load_dataset(path, name, split=split).num_rows)
    ]
    return datasets.DatasetDict({"test": datasets.concatenate_datasets(parts)})


def prox_question(item: dict) -> str:
    """An item of MMLU-ProX (Russian) as MMLU's letters form: its options are ten columns, the unused ones empty."""
    lines = [f"{letter}. {item[f'option_{place}']}" for place, letter in enumerate(prox_letters(item))]
    return "\n".join([item["question"].strip(), *lines, "Ответ:"])


def prox_letters(item: dict) -> list[str]:
    """The letters of an MMLU-ProX item's options."""
    return [letter for place, letter in enumerate("ABCDEFGHIJ") if item[f"option_{place}"] is not None]


def _record(sample: dict, choices: list[str]) -> dict[str, object]:
    """One item's line; a data set without ids gets the item's number. Predictions and target are choices' indices."""
    likelihoods = [response[0] for response in sample["filtered_resps"]]
    by_bytes = [value / len(choice.encode()) for value, choice in zip(likelihoods, choices, strict=True)]
    document, target = sample["doc"], sample["target"]
    return {
        "id": document.get("id", document.get("question_id", sample["doc_id"])),
        "prediction": max(range(len(likelihoods)), key=likelihoods.__getitem__),
        "prediction_bytes": max(range(len(likelihoods)), key=by_bytes.__getitem__),
        "target": choices.index(target) if isinstance(target, str) else target,
        "correct": bool(sample["acc"]),
        "log_probabilities": [round(value, 4) for value in likelihoods],
    }
