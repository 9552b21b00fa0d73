"""Give the base model the new vocabulary: shared tokens keep their rows, new ones start from the rows of old ones.

    python scripts/init_embeddings.py --base=checkpoints/models/smollm2-135m \
        --tokenizer=checkpoints/demo/tokenizer --out=checkpoints/demo/init

Reads:  the base model, the new tokenizer; the filtered documents for the methods that train vectors on them.
Writes: a Hugging Face model folder with the new tokenizer, and rows.json (which rows are new, the range of the base's norms;
        training audits by it); the manifest counts the rows by how they were made.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from lib import cli, documents, embeddings, models, stage, storage, vocabulary
from lib.errors import UserError

# How many of the strangest new tokens (those from the most old pieces) the manifest names.
STRANGEST = 10


def main(
    *,
    base: Path,
    tokenizer: Path,
    out: storage.Place,
    documents: Path | None = None,
    method: embeddings.Method = "mean",
    match_norms: bool = False,
    vector_characters: int = 10_000_000,
    pad_to_multiple: int = 64,
    dtype: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
) -> None:
    """Initialise the input embedding and, where it is untied, the LM head (the paper's section 3.2; Hewitt 2021).

    Args:
        base: folder of the base model.
        tokenizer: folder of the new tokenizer.
        out: folder or address to write.
        documents: output of the filter stage; methods focus and omp train vectors on it.
        method: what new tokens start from: 'mean' of their old pieces' rows, 'mean_weighted' by length, 'first_last' piece,
            'focus' or 'omp' (shared tokens that are used alike), or 'random'.
        match_norms: scale new rows to the mean norm of their pieces' rows.
        vector_characters: text to train vectors on, at most.
        pad_to_multiple: matrix rows are padded with zeros to a multiple of this; padded rows never enter a softmax.
        dtype: the weights are saved in it; sums are taken in float32.
        seed: of the vectors and of random rows.
    """
    settings = dict(locals())
    by_similarity = method in embeddings.BY_SIMILARITY
    if by_similarity and documents is None:
        raise UserError(f"method: {method} compares tokens by how they are used; give the text with --documents")
    inputs = {"base": base, "tokenizer": tokenizer, "documents": documents}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        new = models.load_tokenizer(tokenizer)
        model, old = models.load(base, dtype=getattr(torch, dtype))
        pieces, rules = vocabulary.old_pieces(new, old)
        tied = model.get_input_embeddings().weight is models.head_weight(model)
        vectors = None
        if by_similarity:
            texts = _texts(documents, vector_characters, seed)
            vectors = embeddings.token_vectors(new, texts, threads=os.cpu_count() or 1, seed=seed)
            building.record(without_vector=sum(token not in vectors for token in rules["averaged"]))
        weights = embeddings.combinations(
            method,
            pieces,
            rules["averaged"],
            vocabulary.surfaces(old),
            tied=tied,
            shared={token: pieces[token][0] for token in rules["copied"]},
            vectors=vectors,
        )
        rows = -(-len(new) // pad_to_multiple) * pad_to_multiple
        ordinary = [token for token, surface in enumerate(vocabulary.surfaces(old)) if surface is not None]
        norms = {}
        layers = {"input": model.get_input_embeddings()} | ({} if tied else {"head": model.get_output_embeddings()})
        for (name, layer), combination in zip(layers.items(), weights, strict=False):
            before = layer.weight.data
            after = embeddings.apply(combination, before, rows)
            if method == "random":
                embeddings.random_rows(after, rules["averaged"], before[ordinary], seed)
            if match_norms:
                embeddings.match_norms(after, rules["averaged"], pieces, before)
            length = embeddings.row_norms(before)[ordinary]
            norms[name] = [length.min().item(), length.max().item()]
            layer.weight = torch.nn.Parameter(after)
            setattr(layer, "num_embeddings" if name == "input" else "out_features", rows)
            del before, after
        model.config.vocab_size = model.vocab_size = rows
        for role in ("bos", "eos", "pad"):
            setattr(model.config, f"{role}_token_id", getattr(new, f"{role}_token_id"))
            setattr(model.generation_config, f"{role}_token_id", getattr(new, f"{role}_token_id"))
        if tied:
            model.tie_weights()
        models.save(model, new, building.folder)
        fresh = sorted(rules["averaged"] + rules["global_mean"])
        stage.write_json(building.folder / "rows.json", {"new": fresh, "norms": norms})
        counts = {rule: len(found) for rule, found in rules.items()} | {"padded": rows - len(new)}
        strangest = sorted(rules["averaged"], key=lambda token: -len(pieces[token]))[:STRANGEST]
        building.record(
            rows=rows,
            tied=tied,
            parameters=model.num_parameters(),
            rows_by_rule=counts,
            averaged_by_pieces=_histogram([len(pieces[token]) for token in rules["averaged"]]),
            strangest={new.convert_ids_to_tokens(token): len(pieces[token]) for token in strangest},
        )
    print(f"{rows:,} rows: " + " | ".join(f"{rule} {count:,}" for rule, count in counts.items() if count))


def _texts(folder: Path, limit: int, seed: int) -> Iterator[str]:
    taken = 0
    for document in documents.shuffled(folder / "documents", seed):
        if document["split"] == "train":
            yield document["text"]
            if (taken := taken + len(document["text"])) >= limit:
                return


def _histogram(values: list[int]) -> dict[str, int]:
    return {str(value): values.count(value) for value in sorted(set(values))}


if __name__ == "__main__":
    cli.run(main)
