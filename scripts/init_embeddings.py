"""Give the base model the new vocabulary: shared tokens keep their rows, new ones are the mean of their old pieces.

    python scripts/init_embeddings.py --base=checkpoints/models/smollm2-135m \
        --tokenizer=checkpoints/demo/tokenizer --out=checkpoints/demo/init

Reads:  the base model, the new tokenizer.
Writes: a Hugging Face model folder with the new tokenizer; the manifest counts the rows by how they were made.
"""

from pathlib import Path
from typing import Literal

import torch

from lib import cli, models, stage, vocabulary

# How many of the strangest new tokens (those from the most old pieces) the manifest names.
STRANGEST = 10


def main(
    *,
    base: Path,
    tokenizer: Path,
    out: Path,
    pad_to_multiple: int = 64,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Initialise the input embedding and, where it is untied, the LM head (the paper's section 3.2; Hewitt 2021).

    Args:
        base: folder of the base model.
        tokenizer: folder of the new tokenizer.
        out: folder to write.
        pad_to_multiple: matrix rows are padded with zeros to a multiple of this; padded rows never enter a softmax.
        dtype: the weights are saved in it; the means are taken in float32.
    """
    settings = dict(locals())
    with stage.output(out, inputs={"base": base, "tokenizer": tokenizer}, settings=settings) as building:
        new = models.load_tokenizer(tokenizer)
        model, old = models.load(base, dtype=getattr(torch, dtype))
        pieces, rules = vocabulary.old_pieces(new, old)
        rows = -(-len(new) // pad_to_multiple) * pad_to_multiple
        tied = model.get_input_embeddings().weight is models.head_weight(model)
        _replace_rows(model.get_input_embeddings(), pieces, rows)
        if not tied:
            _replace_rows(model.get_output_embeddings(), pieces, rows)
        model.config.vocab_size = rows
        model.vocab_size = rows
        for role in ("bos", "eos", "pad"):
            setattr(model.config, f"{role}_token_id", getattr(new, f"{role}_token_id"))
            setattr(model.generation_config, f"{role}_token_id", getattr(new, f"{role}_token_id"))
        if tied:
            model.tie_weights()
        models.save(model, new, building.folder)
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


def _replace_rows(layer: torch.nn.Module, pieces: list[list[int]], rows: int) -> None:
    old = layer.weight.data
    new = vocabulary.mean_rows(old.float().numpy(), pieces, rows)
    layer.weight = torch.nn.Parameter(torch.from_numpy(new).to(old.dtype))
    size = "num_embeddings" if isinstance(layer, torch.nn.Embedding) else "out_features"
    setattr(layer, size, rows)


def _histogram(values: list[int]) -> dict[str, int]:
    return {str(value): values.count(value) for value in sorted(set(values))}


if __name__ == "__main__":
    cli.run(main)
