"""A reward model: an encoder that reads a prompt and its answer and says how good the answer is, one number.

Learnt from which of two answers was preferred (Bradley and Terry 1952): P(chosen over rejected) = sigmoid(r_chosen - r_rejected). Any
encoder that transformers classifies texts with will do; the paper's is multilingual-e5.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from lib import fine_tuning, preferences, processor, progress, scoring
from lib.errors import UserError
from lib.preferences import Pair

processor.multiply_by_onednn()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

FACTS = "reward.json"
PROMPT, ANSWER = "query: ", "passage: "  # what e5 was taught to read a question and a text by
GAP = "\n[…]\n"  # in place of the middle of an answer that is too long; how it ends is telling
HEAD_SHARE = 2 / 3  # of what is kept of it, from its beginning
PROMPT_SHARE = 1 / 3  # of the tokens, at most, unless the answer leaves more
SLACK = 8  # tokens; a text cut in the middle may have a few more than its parts
TRAINING_BATCH_TOKENS = 4096
SCORING_BATCH_TOKENS = 4096
HEAD_RATE = 8  # times the learning rate, for what starts from nothing
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def load(folder: Path, layers: int | None = None) -> tuple[PreTrainedModel, object]:
    """(an encoder with one number for a head, its tokenizer), to train or, if it is a reward model, to ask.

    Raises:
        UserError: the folder holds no encoder that classifies texts, or fewer layers.
    """
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no config.json and tokenizer.json, so not a model folder; run `make fetch`")
    try:
        config = AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=False)
        if layers is not None:
            if not 1 <= layers <= config.num_hidden_layers:
                raise UserError(f"--layers={layers}: {folder} has {config.num_hidden_layers} layers")
            config.num_hidden_layers = layers
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: not an encoder to classify texts with ({str(error).splitlines()[0]})") from None
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def facts(folder: Path) -> dict:
    """What a trained reward model says of itself.

    Raises:
        UserError: the folder holds none.
    """
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{folder}: no readable {FACTS}, so not a reward model; train one: scripts/reward.py") from None


def train(
    model: PreTrainedModel,
    tokenizer: object,
    pairs: Sequence[Pair],
    *,
    epochs: int,
    learning_rate: float,
    max_tokens: int,
    length_bonus: float,
    seed: int,
) -> list[float]:
    """Fine-tune all but the word embeddings by the Bradley-Terry loss; returns each epoch's mean loss in nats.

    Args:
        model: as `load` makes it.
        tokenizer: its.
        pairs: to learn from.
        epochs: over them.
        learning_rate: peak rate of the encoder.
        max_tokens: read of prompt and answer.
        length_bonus: what an e-fold longer answer gains by its length alone, in nats (preferences.length_bonus): it is added to the
            difference of rewards while training and left out of the rewards, so these learn what length does not explain. 0: not used.
        seed: of order and dropout.
    """
    torch.manual_seed(seed)
    model.base_model.embeddings.word_embeddings.weight.requires_grad_(False)
    _read_all_at_first(model)
    encoded = [
        _encode(tokenizer, [(p.prompt, getattr(p, side)) for p in pairs], max_tokens) for side in ("chosen", "rejected")
    ]
    lengths = [2 * max(len(one), len(other)) for one, other in zip(*encoded, strict=True)]
    bonus = torch.tensor(
        [length_bonus * preferences.longer(pair) for pair in pairs], dtype=torch.float32, device=model.device
    )

    def loss(batch: list[int]) -> torch.Tensor:
        both = _rewards(model, [side[place] for side in encoded for place in batch])
        chosen, rejected = both.chunk(2)
        return -functional.logsigmoid(chosen - rejected + bonus[batch]).mean()

    return fine_tuning.run(
        model,
        _optimizer(model, learning_rate),
        lengths,
        loss,
        epochs=epochs,
        batch_tokens=TRAINING_BATCH_TOKENS,
        max_grad_norm=MAX_GRAD_NORM,
        seed=seed,
    )


def cool(model: PreTrainedModel, temperature: float) -> None:
    """Divide all rewards by a temperature: the model is calibrated in itself."""
    head = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 1][-1]
    with torch.no_grad():
        head.weight /= temperature
        head.bias /= temperature


def save(model: PreTrainedModel, tokenizer: object, folder: Path, facts: Mapping[str, object]) -> None:
    """A Hugging Face folder with `reward.json`, which is written last."""
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def score(model: PreTrainedModel, tokenizer: object, asked: Sequence[tuple[str, str]], max_tokens: int) -> np.ndarray:
    """float32: the reward of each (prompt, answer), in nats against another answer to the same prompt."""
    found = np.empty(len(asked), dtype=np.float32)
    encoded = _encode(tokenizer, asked, max_tokens)
    lengths = [len(ids) for ids in encoded]
    with progress.bar(total=len(asked), title="reward", unit="answers") as bar:
        for batch in scoring.batches(lengths, SCORING_BATCH_TOKENS):
            found[batch] = _rewards(model, [encoded[place] for place in batch]).cpu().numpy()
            bar.update(len(batch))
    return found


def turns(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """(everything before it, the answer) for each answer of a conversation."""
    texts = [message["content"] for message in messages]
    return [
        ("\n\n".join(texts[:place]), texts[place])
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def _encode(tokenizer: object, asked: Sequence[tuple[str, str]], max_tokens: int) -> list[list[int]]:
    """Token ids of prompt and answer as a pair of texts, each of at most `max_tokens`."""
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=True) - SLACK
    prompts = _whole(tokenizer, [PROMPT + prompt for prompt, _ in asked])
    answers = _whole(tokenizer, [ANSWER + answer for _, answer in asked])
    texts = []
    for (prompt, ends), (answer, answer_ends) in zip(prompts, answers, strict=True):
        kept = max(int(PROMPT_SHARE * room), room - len(answer_ends))
        texts.append((_cut(prompt, ends, kept), _cut(answer, answer_ends, room - min(kept, len(ends)))))
    both = tokenizer([one for one, _ in texts], [two for _, two in texts], truncation=True, max_length=max_tokens)
    return both["input_ids"]


def _whole(tokenizer: object, texts: Sequence[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Each text with its tokens' places in it."""
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(zip(texts, found["offset_mapping"], strict=True))


def _cut(text: str, places: Sequence[tuple[int, int]], tokens: int) -> str:
    """A text of about so many tokens: beginning and end of a longer one."""
    if len(places) <= tokens:
        return text
    begin = int(HEAD_SHARE * tokens)
    return text[: places[begin][0]] + GAP + text[places[len(places) - (tokens - begin)][0] :]


def _rewards(model: PreTrainedModel, encoded: Sequence[Sequence[int]]) -> torch.Tensor:
    ids, mask = (torch.from_numpy(array).to(model.device) for array in scoring.pad(encoded))
    cuda = model.device.type == "cuda"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=cuda and torch.cuda.is_bf16_supported()):
        return model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float()


def _read_all_at_first(model: PreTrainedModel) -> None:
    """With no queries in the last layer the first position, which is what the head reads, begins as a mean over all, as e5's texts
    are read (lib/quality.py, where it was measured).
    """
    for parameter in model.base_model.encoder.layer[-1].attention.self.query.parameters():
        torch.nn.init.zeros_(parameter)


def _optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW with a higher rate for pooler and head."""
    body = {
        id(weight) for part in (model.base_model.encoder, model.base_model.embeddings) for weight in part.parameters()
    }
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if id(weight) in body]},
        {"params": [weight for weight in trained if id(weight) not in body], "lr": HEAD_RATE * learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=WEIGHT_DECAY)
