"""Learned embedding propagation: rows that a base model learned for a new vocabulary, carried to its instruct model without instructions.

Tikhomirov and Chernyshev 2024 (arXiv 2412.21140, section 2.2): the layers are the instruct model's; between the base's embedding and the
instruct model's lies about a linear map, which is fitted on rows both have and then applied to the rows the adapted base has learned.
They trained embeddings only (`embedding_steps` of cpt.py); what the adapted base's layers learned is not carried over.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import GenerationConfig

from lib import embeddings, merging, models, stage, vocabulary
from lib.errors import UserError

Method = Literal["swap", "overlap", "conversion"]
EMBEDDING = "model.embed_tokens.weight"
_ROWS = 8192  # in double precision at a time


class Fit(NamedTuple):
    """A linear map and how far apart the rows it was fitted on were before and after, as a share of the base rows' norm."""

    map: torch.Tensor
    before: float
    after: float


def fit(base: torch.Tensor, instruct: torch.Tensor) -> Fit:
    """The map D (hidden x hidden) for which base @ D is nearest to instruct, in least squares (equations 8 and 9 of the paper).

    Where the rows leave it open, being too few or dependent, D changes a row as little as can be: what is solved for is D - 1, whose
    solution of least norm is 0 on directions that no row has. (The pseudo-inverse itself would delete them.)

    Args:
        base: rows (tokens x hidden) of the base model; or those of an LM head, for which D is U transposed.
        instruct: the same tokens' rows of the instruct model.
    """
    hidden = base.shape[1]
    gram, moments = torch.zeros(2, hidden, hidden, dtype=torch.float64)
    squares = torch.zeros(2, dtype=torch.float64)
    for old, new in zip(base.split(_ROWS), instruct.split(_ROWS), strict=True):
        old, change = old.double(), new.double() - old.double()
        gram += old.T @ old
        moments += old.T @ change
        squares += torch.stack([old.square().sum(), change.square().sum()])
    # The normal equations' solution of least norm is the rows' own; in double precision squaring the condition number is affordable.
    step = torch.linalg.lstsq(gram, moments, driver="gelsd").solution
    left = squares[1] - 2 * (step * moments).sum() + (step * (gram @ step)).sum()
    before, after = (max(0.0, (part / squares[0]).item()) ** 0.5 for part in (squares[1], left))
    return Fit(step + torch.eye(hidden, dtype=torch.float64), before, after)


def apply(rows: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """Rows (tokens x hidden) times the map, in the rows' dtype."""
    return torch.cat([(part.double() @ fitted).to(rows.dtype) for part in rows.split(_ROWS)])


def propagate(
    adapted: torch.Tensor,
    base: torch.Tensor,
    instruct: torch.Tensor,
    pieces: list[list[int]],
    rules: dict[str, list[int]],
    old_size: int,
    method: Method,
) -> tuple[torch.Tensor, Fit | None]:
    """The adapted base's matrix (embedding, or head) as the instruct model's layers take it, and the fit.

    `swap` leaves rows as they are; `overlap` fits on the ordinary tokens of both vocabularies; `conversion` on what all new tokens are
    initialised with, the mean of their old pieces, by the base's rows and by the instruct model's. Special tokens get the instruct
    model's own rows under every method: it is where a chat's marks were learned, and in a base they may be noise.

    Args:
        adapted: rows (new tokens and padding x hidden) learned with the new vocabulary.
        base: the base model's rows under the old vocabulary.
        instruct: the instruct model's, under the same.
        pieces: old ids of each new token, from `vocabulary.old_pieces`.
        rules: new ids by rule, from there.
        old_size: tokens of the old vocabulary.
        method: one of Method.
    """
    fitted = None
    if method == "overlap":
        shared = [pieces[token][0] for token in rules["copied"] + rules["byte"]]
        fitted = fit(base[shared], instruct[shared])
    elif method == "conversion":
        special = {*rules["special"], *rules["global_mean"]}
        ordinary = [found for token, found in enumerate(pieces) if token not in special]
        weights, _ = embeddings.combinations("mean", ordinary, [], [None] * old_size, tied=False)
        converted = (embeddings.apply(weights, rows.float(), len(ordinary)) for rows in (base, instruct))
        fitted = fit(*converted)
    result = adapted.clone() if fitted is None else apply(adapted, fitted.map)
    for token in rules["special"]:
        result[token] = instruct[pieces[token][0]].to(result.dtype)
    return result, fitted


def check(model: Path, other: Path, base: Path) -> bool:
    """Refuse models that are not an adapted base, an instruct model and their base; returns whether embedding and head are tied.

    Raises:
        UserError: base and instruct model have different vocabularies, the three another shape, or the marks of the instruct model's chat
            template have no token in the new vocabulary.
    """
    new, instruct, old = (models.load_tokenizer(folder) for folder in (model, other, base))
    if models.fingerprint(instruct) != models.fingerprint(old):
        raise UserError(
            f"{other} and {base} have different vocabularies ({len(instruct):,} and {len(old):,} tokens): --base is the model that the "
            "instruct model was tuned from"
        )
    marks = [token.content for token in instruct.added_tokens_decoder.values() if token.special]
    spoken = str(instruct.chat_template or "")
    if lost := [mark for mark in marks if mark in spoken and mark not in new.get_vocab()]:
        raise UserError(f"{other}: its chat template needs the token {lost[0]!r}, which {model} does not have")
    adapted, *others = (merging.configuration(folder) for folder in (model, other, base))
    for folder, config in zip((other, base), others, strict=True):
        for key in ("model_type", "hidden_size", "num_hidden_layers", "tie_word_embeddings"):
            if adapted[key] != config[key]:
                raise UserError(f"{model} and {folder} do not go together: {key} is {adapted[key]} and {config[key]}")
    return adapted["tie_word_embeddings"]


def tensors(
    model: Path, other: Path, base: Path, method: Method, *, tied: bool
) -> tuple[dict[str, merging.Stored], dict[str, tuple[torch.Tensor, Fit | None]]]:
    """The tensors of the result: where each lies or will lie, and the propagated matrices with their fits.

    The layers are the instruct model's, in the adapted base's files.

    Raises:
        UserError: a tensor is missing on one side, or the layers have different shapes.
    """
    adapted, instruct, old = (
        {name: tensor for name, tensor in merging.stored(folder).items() if not merging.is_left_out(name, tied=tied)}
        for folder in (model, other, base)
    )
    names = [EMBEDDING] if tied else [EMBEDDING, merging.HEAD]
    for name in names:
        for folder, found in ((model, adapted), (other, instruct), (base, old)):
            if name not in found:
                raise UserError(f"{folder}: no {name}, as Llama and Mistral have it")
    if unlike := sorted(adapted.keys() ^ instruct.keys()):
        raise UserError(f"{unlike[0]}: in one of {model} and {other} only; they do not go together")
    tokenizers = [models.load_tokenizer(folder) for folder in (model, base)]
    pieces, rules = vocabulary.old_pieces(*tokenizers)
    layout, made = {}, {}
    for name, tensor in adapted.items():
        if name in names:
            rows = [merging.read(name, found[name]) for found in (adapted, instruct, old)]
            dtype = torch.promote_types(tensor.dtype, instruct[name].dtype)
            propagated, fitted = propagate(
                rows[0].to(dtype), rows[2], rows[1], pieces, rules, len(tokenizers[1]), method
            )
            made[name] = (propagated, fitted)
            layout[name] = merging.Stored(tensor.file, dtype, tensor.shape)
        elif tensor.shape != instruct[name].shape:
            raise UserError(f"{name}: {list(tensor.shape)} in {model}, {list(instruct[name].shape)} in {other}")
        else:
            layout[name] = merging.Stored(tensor.file, instruct[name].dtype, tensor.shape)
    return layout, made


def dress(model: Path, other: Path, folder: Path, dtype: torch.dtype) -> None:
    """The companions of the result: the adapted base's tokenizer, the instruct model's configuration, chat template and ends of an answer."""
    merging.copy_companions(model, folder, dtype)
    new, old = (models.load_tokenizer(path) for path in (model, other))
    if old.chat_template:
        new.chat_template = old.chat_template
        models.save_tokenizer(new, folder)
    of_rows = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"}
    adapted, instruct = (json.loads((path / merging.CONFIG).read_text(encoding="utf-8")) for path in (folder, other))
    config = {key: value for key, value in instruct.items() if key not in of_rows}
    config |= {key: value for key, value in adapted.items() if key in of_rows}
    stage.write_json(folder / merging.CONFIG, config)
    settings, theirs = (_generation_settings(path) for path in (folder, other))
    named = theirs.eos_token_id
    spelt = old.convert_ids_to_tokens(named if isinstance(named, list) else [] if named is None else [named])
    if ends := sorted(new.get_vocab()[piece] for piece in spelt if piece in new.get_vocab()):
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    settings.save_pretrained(folder)


def _generation_settings(folder: Path) -> GenerationConfig:
    there = (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder) if there else GenerationConfig()
