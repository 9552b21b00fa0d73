"""A small encoder that scores a text's beginning on the paper's five criteria and overall: its labels and training."""

import dataclasses
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import functional

from lib import corruption, documents, encoder, fine_tuning, scoring
from lib.corruption import CRITERIA
from lib.errors import UserError
from lib.languages import Language
from lib.scoring import HEADS

MIDDLE = 3.0  # of 1..5: an annotated text below it is called bad
HELD_OUT_SHARE = 0.2  # of the labelled documents, to measure on
CALIBRATION_SHARE = 0.15  # of them, to fit temperatures and the threshold on
SHORTEST = 150  # characters of a training text that is cut to a random length, so that length alone tells little
TRAINING_BATCH_TOKENS = 1024  # small: a thousand examples have to make enough steps
HEAD_RATE = 8  # times the learning rate, for the pooler and the heads, which start from nothing
# What the heads say is multiplied by it, so that they reach the outer cuts in few steps (held-out AUC 0.84 without).
LATENT_SCALE = 4.0
MAX_GRAD_NORM = 4.0
FIRST_CUTS = (-3.0, -1.0, 1.0, 3.0)  # between the scores 1 to 5
FIRST_LATENT = 2.0  # a score of about 4 to begin with
WEIGHT_DECAY = 0.01


@dataclasses.dataclass
class Example:
    """A labelled text: five scores in the order of `CRITERIA`; `good` by its origin or its overall label."""

    text: str
    scores: list[float]
    good: bool
    group: int  # examples made of one document; never divided between training, calibration and held-out
    kind: str = "real"
    source: str = "unknown"


def overall(scores: np.ndarray) -> np.ndarray:
    """[texts] from [texts, 5]: the mean of the five, but at most a point above safety, which nothing makes up for."""
    return np.minimum(scores.mean(axis=1), scores[:, CRITERIA.index("safety")] + 1)


def labels(examples: Sequence[Example]) -> np.ndarray:
    """[texts, heads]: the five criteria and the overall score."""
    scores = np.array([example.scores for example in examples], dtype=np.float32)
    return np.column_stack([scores, overall(scores)])


def steps_above(scores: np.ndarray) -> np.ndarray:
    """[texts, heads, 4] from [texts, heads]: how far a score is above 1, 2, 3 and 4, from 0 to 1.

    For a whole number the ordinal targets 'above k or not'; between two of them the probability that makes the expected
    score right.
    """
    return np.clip(scores[..., None] - np.arange(1, 5), 0, 1).astype(np.float32)


def load(folder: Path, layers: int) -> tuple[transformers.BertForSequenceClassification, object]:
    """(the encoder's first layers with six new heads, its tokenizer); word embeddings are frozen.

    A head is ordinal (CORAL, Cao et al. 2020): one number for a text, and four cuts between the five scores, the same for
    all texts (`config.cuts`). The probability of a score above the cut is the sigmoid of their difference.

    Raises:
        UserError: the folder holds no BERT encoder with a tokenizer, or fewer layers.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"--encoder={folder}: no config.json, so not a Hugging Face model folder; run `make fetch`")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise UserError(f"--encoder={folder}: {str(error).splitlines()[0]}") from None
    if config.model_type != "bert":
        raise UserError(f"--encoder={folder}: a '{config.model_type}' model, expected a BERT encoder (model_type bert)")
    if not 1 <= layers <= config.num_hidden_layers:
        raise UserError(f"--layers={layers}: {folder} has {config.num_hidden_layers} layers")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"--encoder={folder}: no tokenizer.json beside the model")
    config.num_hidden_layers = layers
    config.id2label = dict(enumerate(HEADS))
    config.label2id = {name: index for index, name in enumerate(HEADS)}
    config.cuts = [list(FIRST_CUTS) for _ in HEADS]
    try:
        model = transformers.BertForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"--encoder={folder}: {str(error).splitlines()[0]}") from None
    # The heads read the first position. With no queries in the last layer it starts as a mean over all positions, which
    # is what such encoders were trained to be read by, and learns from there (held-out AUC 0.86 instead of 0.7 to 0.8).
    for parameter in model.bert.encoder.layer[-1].attention.self.query.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(model.classifier.bias, FIRST_LATENT / LATENT_SCALE)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"--encoder={folder}: its tokenizer has {len(tokenizer)} tokens, its model {config.vocab_size}")
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
        kind = "good" if good else "bad"
        examples.append(Example(record["text"], scores, good, number, kind, record["source"]))
    if len(examples) < 5:
        raise UserError(f"{path}: {len(examples)} annotated texts; at least 5 are needed, some hundreds make sense")
    return examples


def weak_labels(
    texts: Sequence[tuple[str, str, str]], known: dict[str, Language], *, max_chars: int, seed: int
) -> list[Example]:
    """Two examples of each (text, language, source): as it is, and damaged; cut to a random length of up to `max_chars`.

    Examples that `divide` will not give to training are damaged with other menus and spam than those for training: what is measured
    is not whether the very phrases were learnt.
    """
    rng = random.Random(seed)
    training = divide_groups(range(len(texts)), seed)[0]
    phrases = {
        (code, held): dataclasses.replace(language, menu=_share(language.menu, held), spam=_share(language.spam, held))
        for code, language in known.items()
        for held in (False, True)
    }
    examples = []
    for group, (whole, code, origin) in enumerate(texts):
        foreign = [text for text, other, _ in rng.choices(texts, k=8) if other != code]
        other = foreign[0] if foreign else rng.choice(texts)[0]
        text, source = (_cut(whole, max_chars, rng) for _ in range(2))
        spoilt, kind, severity = corruption.spoil(source, other[:max_chars], phrases[code, group not in training], rng)
        examples.append(Example(text, corruption.scores(), True, group, source=origin))
        if spoilt.split() != source.split():
            scores = corruption.scores(kind, severity)
            examples.append(Example(spoilt[:max_chars], scores, False, group, kind, origin))
    return examples


def divide(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example], list[Example]]:
    """(training, calibration, held-out), divided by groups."""
    parts = divide_groups({example.group for example in examples}, seed)
    return tuple([example for example in examples if example.group in part] for part in parts)


def divide_groups(groups: Iterable[int], seed: int) -> tuple[set[int], set[int], set[int]]:
    """(training, calibration, held-out), each of the latter two at least one group."""
    shuffled = sorted(groups)
    random.Random(seed).shuffle(shuffled)
    held_out = max(1, round(HELD_OUT_SHARE * len(shuffled)))
    calibration = max(1, round(CALIBRATION_SHARE * len(shuffled)))
    first, second = held_out + calibration, held_out
    return set(shuffled[first:]), set(shuffled[second:first]), set(shuffled[:second])


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
    """Fine-tune all but the word embeddings by the ordinal loss; the cuts end up in `config.cuts`.

    Returns the mean loss of each epoch: nats per text, the mean over the heads.
    """
    device = model.device
    encoded = _encode(tokenizer, [example.text for example in examples], max_tokens)
    targets = torch.from_numpy(steps_above(labels(examples))).to(device)
    cuts = torch.nn.Parameter(torch.tensor(model.config.cuts, device=device))

    def loss(batch: list[int]) -> torch.Tensor:
        latent = LATENT_SCALE * _latent(model, [encoded[position] for position in batch])
        return ordinal_loss(latent, cuts, targets[batch])

    losses = fine_tuning.run(
        model,
        _optimizer(model, cuts, learning_rate),
        [len(ids) for ids in encoded],
        loss,
        epochs=epochs,
        batch_tokens=TRAINING_BATCH_TOKENS,
        max_grad_norm=MAX_GRAD_NORM,
        seed=seed,
    )
    _scale(model, torch.full((len(HEADS),), LATENT_SCALE), cuts.detach())
    return losses


def ordinal_loss(latent: torch.Tensor, cuts: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the four steps, summed, and averaged over texts and heads; latent [texts, heads]."""
    logits = latent[..., None] - cuts
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1).mean()


@torch.inference_mode()
def latents(
    model: transformers.BertForSequenceClassification, tokenizer: object, texts: Sequence[str], max_tokens: int
) -> np.ndarray:
    """float32 [texts, heads]: what the heads say, in fp32."""
    found = np.empty((len(texts), len(HEADS)), dtype=np.float32)
    encoded = _encode(tokenizer, texts, max_tokens)
    for batch in scoring.batches([len(ids) for ids in encoded], scoring.BATCH_TOKENS):
        found[batch] = _latent(model, [encoded[position] for position in batch]).cpu().numpy()
    return found


def expected(latent: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Scores [texts, heads] from what the heads say and their cuts [heads, 4]."""
    return encoder.expected(torch.from_numpy(latent), torch.from_numpy(cuts)).numpy()


def cool(model: transformers.BertForSequenceClassification, temperatures: Sequence[float]) -> None:
    """Divide what each head says, and its cuts, by the head's temperature: the model is calibrated in itself."""
    factors = 1 / torch.tensor(temperatures, dtype=torch.float32)
    _scale(model, factors, torch.tensor(model.config.cuts) * factors[:, None])


def save(
    model: transformers.BertForSequenceClassification, tokenizer: object, folder: Path, facts: dict[str, object]
) -> None:
    """A Hugging Face folder with `filter.json`, and the graph for onnxruntime; `filter.json` last."""
    model = model.cpu()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder.export(model, folder / scoring.GRAPH)
    (folder / scoring.FACTS).write_text(json.dumps({"heads": HEADS, **facts}, indent=1) + "\n", encoding="utf-8")


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


def _share(phrases: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    """A third of the phrases for held-out examples, the others for training."""
    return tuple(phrase for index, phrase in enumerate(phrases) if (index % 3 == 0) is held_out)


def _optimizer(
    model: transformers.BertForSequenceClassification, cuts: torch.nn.Parameter, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW with a higher rate for pooler and heads."""
    heads = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    known = {id(weight) for weight in heads}
    body = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in known]
    fast = HEAD_RATE * learning_rate
    groups = [{"params": body}, {"params": heads, "lr": fast}, {"params": [cuts], "lr": fast, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=WEIGHT_DECAY)


def _latent(model: transformers.BertForSequenceClassification, encoded: Sequence[list[int]]) -> torch.Tensor:
    ids, mask = (torch.from_numpy(array).to(model.device) for array in scoring.pad(encoded))
    return model(input_ids=ids, attention_mask=mask.long()).logits


def _scale(model: transformers.BertForSequenceClassification, factors: torch.Tensor, cuts: torch.Tensor) -> None:
    factors = factors.to(model.device)
    with torch.no_grad():
        model.classifier.weight *= factors[:, None]
        model.classifier.bias *= factors
    model.config.cuts = cuts.tolist()


def _encode(tokenizer: object, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    cut = [text[: max_tokens * scoring.CHARACTERS_PER_TOKEN] for text in texts]
    return tokenizer(cut, truncation=True, max_length=max_tokens)["input_ids"]


def _cut(text: str, max_chars: int, rng: random.Random) -> str:
    """The text's beginning, every second time of a random length, ending with a word."""
    limit = max_chars if rng.random() < 0.5 else rng.randint(min(SHORTEST, max_chars), max_chars)
    return text if len(text) <= limit else text[:limit].rsplit(None, 1)[0]
