"""Lay tokenizers of several sizes side by side: what a vocabulary saves in tokens and costs in parameters.

    python scripts/vocab_sweep.py --tokenizers=checkpoints/demo/vocab-sweep/8000,checkpoints/demo/vocab-sweep/16000 \
        --base=checkpoints/models/smollm2-135m --out=data/demo/vocab-sweep

Reads:  fertility.json of the tokenizers, which train_spm.py measured on the same text; the base model's config.json.
Writes: vocab-sweep.json (the base and a row for each size) and vocab-sweep.svg. Bits per byte after equal training
        are not among the figures: they take a model trained for each size.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lib import cli, models, plots, scores, stage
from lib.errors import UserError


def main(*, tokenizers: list[Path], base: Path, out: Path, pad_to_multiple: int = 64) -> None:
    """Compare sizes of the vocabulary.

    Args:
        tokenizers: outputs of train_spm.py for the same base and text.
        base: folder of the base model (config.json is read, no weights).
        out: folder to write.
        pad_to_multiple: matrix rows are padded to a multiple of this, as the init stage does.
    """
    settings = dict(locals())
    if not tokenizers:
        raise UserError("--tokenizers: name at least one output of train_spm.py (make takes its sizes from SWEEP)")
    if pad_to_multiple < 1:
        raise UserError(f"--pad_to_multiple={pad_to_multiple}: has to be 1 or more")
    measured = {folder: _fertility(folder, base) for folder in tokenizers}
    first = tokenizers[0]
    for folder, found in measured.items():
        if found["text"] != measured[first]["text"]:
            raise UserError(f"{folder}: measured on other held-out text than {first}; train both anew on the same")
    inputs = {"base": base, **{f"tokenizers[{number}]": path for number, path in enumerate(tokenizers)}}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        old = measured[first]["tokenizers"][base.name]
        made = sorted((found["tokenizers"]["new"] for found in measured.values()), key=lambda row: row["vocabulary"])
        base_rows, row_parameters, tied, body = _shape(base)
        table = {
            "text": measured[first]["text"],
            "tied": tied,
            "body_parameters": body,
            "base": {"name": base.name, **_row(old, old, base_rows, row_parameters, body)},
            "sizes": [
                _row(new, old, _padded(new["vocabulary"], pad_to_multiple), row_parameters, body) for new in made
            ],
        }
        stage.write_json(building.folder / "vocab-sweep.json", table)
        (building.folder / "vocab-sweep.svg").write_text(_picture(table), encoding="utf-8")
        building.record(**{name: part for name, part in table.items() if name != "text"})
    print(_text(table))


def _fertility(folder: Path, base: Path) -> dict:
    """A tokenizer's fertility.json.

    Raises:
        UserError: the folder is no output of train_spm.py, or of one for another base.
    """
    stage.read_manifest(folder)
    path = folder / "fertility.json"
    if not path.is_file():
        raise UserError(f"{folder}: no fertility.json, so train_spm.py did not write this folder")
    found = json.loads(path.read_text(encoding="utf-8"))
    if base.name not in found["tokenizers"]:
        raise UserError(f"{folder}: not compared with {base.name}; train it with --base={base}")
    return found


def _shape(base: Path) -> tuple[int, int, bool, int]:
    """Rows of the base's vocabulary, parameters for each, whether input and head share them, and all other parameters."""
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: not a model that transformers can load ({str(error).splitlines()[0]})") from None
    with torch.device("meta"):  # shapes without weights
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    embedding = model.get_input_embeddings().weight
    tied = models.head_weight(model) is embedding
    rows, width = embedding.shape
    row_parameters = width if tied else 2 * width
    return rows, row_parameters, tied, model.num_parameters() - rows * row_parameters


def _padded(tokens: int, multiple: int) -> int:
    return -(-tokens // multiple) * multiple


def _row(new: dict, old: dict, rows: int, row_parameters: int, body: int) -> dict:
    return {
        "vocabulary": new["vocabulary"],
        "rows": rows,
        "embedding_parameters": rows * row_parameters,
        "embeddings_against_body": rows * row_parameters / body,
        "languages": {
            code: {
                "tokens_per_word": rates["tokens_per_word"],
                "words_whole": rates["words_whole"],
                "tokens_against_base": rates["tokens_per_word"] / old["languages"][code]["tokens_per_word"],
            }
            for code, rates in new["languages"].items()
        },
    }


def _picture(table: dict) -> str:
    spent, bases = {}, {}
    for code, rates in table["base"]["languages"].items():
        language = scores.name_of(code)
        bases[language] = rates["tokens_per_word"]
        spent[language] = {row["vocabulary"]: row["languages"][code]["tokens_per_word"] for row in table["sizes"]}
    return plots.vocabulary_sizes(
        spent, bases, {row["vocabulary"]: row["embedding_parameters"] for row in table["sizes"]}
    )


def _text(table: dict) -> str:
    """The table for a terminal, aligned, the base last."""
    lines = [["vocabulary"]]
    for code in table["text"]:
        lines[0] += [f"tokens/word {code}", f"whole {code}", f"of base's {code}"]
    lines[0] += ["embeddings, M", "of the body"]
    for row in [*table["sizes"], table["base"]]:
        cells = [f"{row['vocabulary']:,}"]
        for code in table["text"]:
            rates = row["languages"][code]
            cells += [
                f"{rates['tokens_per_word']:.2f}",
                f"{rates['words_whole']:.1%}",
                f"{rates['tokens_against_base']:.1%}",
            ]
        lines.append([*cells, f"{row['embedding_parameters'] / 1e6:,.1f}", f"{row['embeddings_against_body']:.1%}"])
    lines[-1][0] = f"{table['base']['name']} {lines[-1][0]}"
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    cli.run(main)
