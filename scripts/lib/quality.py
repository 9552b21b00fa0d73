"""A small encoder that scores a text's beginning on the paper's five criteria: its labels, training and evaluation."""

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from scipy.stats import mannwhitneyu, spearmanr
from sklearn.metrics import f1_score

from lib import corruption, documents, progress
from lib.corruption import CRITERIA
from lib.errors import UserError
from lib.languages import Language

MIDDLE = 3.0  # of 1..5: below it a text is called bad when F1 is computed
HELD_OUT_SHARE = 0.2
CHARACTERS_PER_TOKEN = 8  # more than any natural text has; texts are cut there before they are tokenised
SHORTEST = 150  # characters of a training text that is cut to a random length, so that length alone tells little
TRAINING_BATCH_TOKENS = 1024  # small: a thousand examples have to make enough steps
HEAD_RATE = 8  # times the learning rate, for the pooler and the heads, which start from nothing
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1


@dataclasses.dataclass
class Example:
    """A labelled text: five scores in the order of `CRITERIA`; `good` by its origin or its overall label."""

    text: str
    scores: list[float]
    good: bool
    group: int  # examples made of one document; never divided between training and held-out
    kind: str = "real"


def overall(scores: np.ndarray) -> np.ndarray:
    """[texts] from [texts, 5]: the mean of the five, but at most a point above safety, which nothing makes up for."""
    return np.minimum(scores.mean(axis=1), scores[:, CRITERIA.index("safety")] + 1)


def load(encoder: Path, layers: int) -> tuple[transformers.BertForSequenceClassification, object]:
    """(the encoder's first layers with five new heads, its tokenizer); word embeddings are frozen.

    Raises:
        UserError: the folder holds no BERT encoder with a tokenizer, or fewer layers.
    """
    if not (encoder / "config.json").is_file():
        raise UserError(f"--encoder={encoder}: no config.json, so not a Hugging Face model folder; run `make fetch`")
    try:
        config = transformers.AutoConfig.from_pretrained(encoder)
    except (ValueError, OSError) as error:
        raise UserError(f"--encoder={encoder}: {str(error).splitlines()[0]}") from None
    if config.model_type != "bert":
        raise UserError(
            f"--encoder={encoder}: a '{config.model_type}' model, expected a BERT encoder (model_type bert)"
        )
    if not 1 <= layers <= config.num_hidden_layers:
        raise UserError(f"--layers={layers}: {encoder} has {config.num_hidden_layers} layers")
    if not (encoder / "tokenizer.json").is_file():
        raise UserError(f"--encoder={encoder}: no tokenizer.json beside the model")
    config.num_hidden_layers = layers
    config.id2label = dict(enumerate(CRITERIA))
    config.label2id = {name: index for index, name in enumerate(CRITERIA)}
    config.problem_type = "regression"
    try:
        model = transformers.BertForSequenceClassification.from_pretrained(encoder, config=config, dtype=torch.float32)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--encoder={encoder}: {str(error).splitlines()[0]}") from None
    # The heads read the first position. With no queries in the last layer it starts as a mean over all positions, which
    # is what such encoders were trained to be read by, and learns from there (held-out AUC 0.86 instead of 0.7 to 0.8).
    for parameter in model.bert.encoder.layer[-1].attention.self.query.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(model.classifier.bias, (corruption.BEST + MIDDLE) / 2)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--encoder={encoder}: its tokenizer has {len(tokenizer)} tokens, its model {config.vocab_size}"
        )
    return model, tokenizer


def read_annotations(path: Path) -> list[Example]:
    """Annotated texts (id, text and the five scores, 1 to 5) from Parquet or JSON Lines.

    Raises:
        UserError: a column is missing, a score is not a number from 1 to 5, there are too few.
    """
    examples = []
    for number, record in enumerate(documents.read(path, language="-"), start=1):
        if missing := [name for name in CRITERIA if record.get(name) is None]:
            raise UserError(
                f"{path}:{number}: missing {', '.join(missing)} (an annotation has id, text and five scores)"
            )
        for name in CRITERIA:
            value = record[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 5:
                raise UserError(f"{path}:{number}: {name} is {value!r}, expected a number from 1 to 5")
        scores = [float(record[name]) for name in CRITERIA]
        good = bool(overall(np.array([scores]))[0] >= MIDDLE)
        examples.append(Example(record["text"], scores, good, group=number, kind="good" if good else "bad"))
    if len(examples) < 5:
        raise UserError(f"{path}: {len(examples)} annotated texts; at least 5 are needed, some hundreds make sense")
    return examples


def weak_labels(
    texts: Sequence[tuple[str, str]], known: dict[str, Language], *, max_chars: int, seed: int
) -> list[Example]:
    """Two examples of each (text, language): as it is, and damaged; cut to a random length of up to `max_chars`.

    Examples that `divide` will hold out are damaged with other menus and spam than those for training: what is measured
    is not whether the very phrases were learnt.
    """
    rng = random.Random(seed)
    held_out = _held_out(range(len(texts)), seed)
    phrases = {
        (code, held): dataclasses.replace(language, menu=_share(language.menu, held), spam=_share(language.spam, held))
        for code, language in known.items()
        for held in (False, True)
    }
    examples = []
    for group, (whole, code) in enumerate(texts):
        foreign = [text for text, other in rng.choices(texts, k=8) if other != code]
        other = foreign[0] if foreign else rng.choice(texts)[0]
        text, source = (_cut(whole, max_chars, rng) for _ in range(2))
        spoilt, kind, severity = corruption.spoil(source, other[:max_chars], phrases[code, group in held_out], rng)
        examples.append(Example(text, corruption.scores(), True, group))
        if spoilt.split() != source.split():
            scores = corruption.scores(kind, severity)
            examples.append(Example(spoilt[:max_chars], scores, False, group, kind))
    return examples


def divide(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(training, held-out) by groups, a fifth of them held out."""
    held_out = _held_out({example.group for example in examples}, seed)
    return [e for e in examples if e.group not in held_out], [e for e in examples if e.group in held_out]


def train(
    model: transformers.BertForSequenceClassification,
    tokenizer: object,
    examples: Sequence[Example],
    *,
    epochs: int,
    learning_rate: float,
    max_tokens: int,
    seed: int,
) -> list[float]:
    """Fine-tune all but the word embeddings on squared error, linear warm-up and decay; the mean loss of each epoch."""
    rng = random.Random(seed)
    encoded = _encode(tokenizer, [example.text for example in examples], max_tokens)
    labels = torch.tensor([example.scores for example in examples])
    heads = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    body = [weight for weight in weights if all(weight is not head for head in heads)]
    groups = [{"params": body}, {"params": heads, "lr": HEAD_RATE * learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    batches = list(_batches(encoded, TRAINING_BATCH_TOKENS))
    steps = epochs * len(batches)
    warmup = max(1, round(WARMUP_SHARE * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    model.train()
    losses = []
    with progress.bar(total=steps, title="train", unit="steps") as bar:
        for _ in range(epochs):
            total = 0.0
            order = list(range(len(encoded)))
            rng.shuffle(order)  # equally long texts fall into other batches in each epoch
            batches = list(_batches(encoded, TRAINING_BATCH_TOKENS, order))
            rng.shuffle(batches)
            for batch in batches:
                predicted = model(**_pad(encoded, batch, tokenizer.pad_token_id)).logits
                loss = torch.nn.functional.mse_loss(predicted, labels[batch])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if bar.n < steps - 1:
                    schedule.step()
                total += loss.item() * len(batch)
                bar.update()
            losses.append(round(total / len(encoded), 4))
    model.eval()
    return losses


@torch.inference_mode()
def predict(
    model: transformers.BertForSequenceClassification,
    tokenizer: object,
    texts: Sequence[str],
    *,
    max_tokens: int,
    batch_tokens: int,
) -> np.ndarray:
    """float32 [texts, 5]: the five scores of each text's first `max_tokens` tokens, clipped to 1..5."""
    model.eval()
    found = np.empty((len(texts), len(CRITERIA)), dtype=np.float32)
    encoded = _encode(tokenizer, texts, max_tokens)
    with progress.bar(total=len(texts), title="score", unit="documents") as bar:
        for batch in _batches(encoded, batch_tokens):
            found[batch] = model(**_pad(encoded, batch, tokenizer.pad_token_id)).logits.float().numpy()
            bar.update(len(batch))
    return found.clip(corruption.WORST, corruption.BEST)


def evaluate(examples: Sequence[Example], predicted: np.ndarray) -> dict[str, object]:
    """Agreement with held-out labels: each criterion, good against bad overall, and what each threshold would do."""
    labels = np.array([example.scores for example in examples])
    good = np.array([example.good for example in examples])
    score = overall(predicted)
    lengths = np.array([len(example.text) for example in examples])
    kinds = sorted({example.kind for example in examples if not example.good})
    of_kind = {kind: np.array([example.kind == kind for example in examples]) for kind in kinds}
    return {
        "examples": len(examples),
        "good": int(good.sum()),
        "criteria": {
            name: {
                "spearman": _rounded(_spearman(labels[:, index], predicted[:, index])),
                "f1": _rounded(_f1(labels[:, index] < MIDDLE, predicted[:, index] < MIDDLE)),
            }
            for index, name in enumerate(CRITERIA)
        },
        "auc": _rounded(auc(score[good], score[~good])),
        "auc_by_kind": {kind: _rounded(auc(score[good], score[of_kind[kind]])) for kind in kinds},
        "auc_of_length": _rounded(auc(lengths[good], lengths[~good])),
        "thresholds": [
            {
                "threshold": round(float(threshold), 2),
                "good_lost": _rounded((score[good] < threshold).mean() if good.any() else math.nan),
                "bad_found": _rounded((score[~good] < threshold).mean() if (~good).any() else math.nan),
            }
            for threshold in np.arange(1.5, 4.51, 0.25)
        ],
    }


def auc(higher: np.ndarray, lower: np.ndarray) -> float:
    """The probability that a member of `higher` exceeds one of `lower` (ties count half); nan if either is empty."""
    if not len(higher) or not len(lower):
        return math.nan
    return float(mannwhitneyu(higher, lower).statistic / (len(higher) * len(lower)))


def balanced_sample(keys: Sequence[object], count: int, seed: int) -> list[int]:
    """Up to `count` positions drawn in turn from each group of equal keys, so that small groups are heard too."""
    groups: dict[object, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    rng = random.Random(seed)
    for members in groups.values():
        rng.shuffle(members)
    queues = list(groups.values())
    chosen: list[int] = []
    while queues and len(chosen) < count:
        chosen += [queue.pop() for queue in queues]
        queues = [queue for queue in queues if queue]
    return chosen[:count]


def _held_out(groups: Iterable[int], seed: int) -> set[int]:
    shuffled = sorted(groups)
    random.Random(seed).shuffle(shuffled)
    return set(shuffled[: max(1, round(HELD_OUT_SHARE * len(shuffled)))])


def _share(phrases: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    """A third of the phrases for held-out examples, the others for training."""
    return tuple(phrase for index, phrase in enumerate(phrases) if (index % 3 == 0) is held_out)


def _encode(tokenizer: object, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    cut = [text[: max_tokens * CHARACTERS_PER_TOKEN] for text in texts]
    found: list[list[int]] = []
    for start in range(0, len(cut), 1000):
        found += tokenizer(cut[start : start + 1000], truncation=True, max_length=max_tokens)["input_ids"]
    return found


def _batches(
    encoded: Sequence[list[int]], batch_tokens: int, order: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Positions by length, each batch as many as fit `batch_tokens` once padded to its longest."""
    batch: list[int] = []
    for position in sorted(range(len(encoded)) if order is None else order, key=lambda p: len(encoded[p])):
        if batch and (len(batch) + 1) * len(encoded[position]) > batch_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _pad(encoded: Sequence[list[int]], batch: Sequence[int], pad: int) -> dict[str, torch.Tensor]:
    longest = max(len(encoded[position]) for position in batch)
    ids = torch.full((len(batch), longest), pad)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, position in enumerate(batch):
        ids[row, : len(encoded[position])] = torch.tensor(encoded[position])
        mask[row, : len(encoded[position])] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _cut(text: str, max_chars: int, rng: random.Random) -> str:
    """The text's beginning, every second time of a random length, ending with a word."""
    limit = max_chars if rng.random() < 0.5 else rng.randint(min(SHORTEST, max_chars), max_chars)
    return text if len(text) <= limit else text[:limit].rsplit(None, 1)[0]


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(spearmanr(left, right).statistic)


def _f1(actual: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(actual, predicted, zero_division=math.nan))


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
