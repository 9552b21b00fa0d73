"""A tokenizer in llama.cpp's file format: what it takes for llama.cpp to give the ids of the fast tokenizer.

All of it comes from the folder's tokenizer.json: a tokenizer.model beside it may be older than the vocabulary. llama.cpp has
two kinds of byte-pair encoding (its src/llama-vocab.cpp). "llama" is SentencePiece's: two neighbours are merged whenever
their whole is a piece, best score first, so a whole's rank among the merges becomes its score, and it is checked that no
order of merges is lost by it. "gpt2" is the byte-level one: it has merges, and regular expressions that are compiled in and
known by name only. What llama.cpp can't express is refused.

Three differences are llama.cpp's own and no file can mend them (tests/peers/test_llama_cpp.py proves each): it does not
compose characters (NFC) before a byte-level encoding; its expressions for "tekken" and "gpt-4o" are approximations that go
wrong at combining marks and where capitals inside and outside of ASCII meet; and it takes some spellings, `</s>` among them, for special tokens where they are ordinary ones.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerFast

from lib import models, vocabulary
from lib.errors import UserError
from lib.vocabulary import SPACE

# Names are of pieces of pre-tokenizers, spelt as tokenizer.json does. GPT-2's is built into the ByteLevel step.
_GPT2 = "ByteLevel"
_DIGITS = "Digits"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

# llama.cpp's name by the steps that cut a text into words, and by whether a word that is a token needs no merges.
_PRE_TOKENIZERS = {
    (_GPT2,): {False: "gpt-2"},
    (_DIGITS, _GPT2): {False: "smollm"},
    (rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}",): {True: "llama-bpe", False: "smaug-bpe"},
    (rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}",): {False: "qwen2"},
    (rf"{_CASED}{_ENDINGS}?|{_UPPER}{_ENDINGS}?|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASHES}|{_SPACES}",): {False: "gpt-4o"},
    (rf"{_CASED}|{_UPPER}|\p{{N}}|{_SIGNS_AND_SLASHES}|{_SPACES}",): {True: "tekken"},
}
_TO_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def write(folder: Path, file: Path) -> None:
    """A GGUF file with the vocabulary of a tokenizer folder and nothing else.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    writer = gguf.GGUFWriter(file, "llama")
    try:
        add(writer, folder)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
    finally:
        writer.close()


def add(writer: gguf.GGUFWriter, folder: Path, rows: int | None = None) -> None:
    """Add a tokenizer folder's vocabulary, special tokens and chat template to a file that is being made.

    Args:
        writer: of the file; its tensors and hyperparameters are the caller's.
        folder: with tokenizer.json and tokenizer_config.json.
        rows: of the embedding matrix: ids from the vocabulary's end on become unused tokens, as llama.cpp wants the two equal.

    Raises:
        UserError: llama.cpp has no such tokenizer, or the matrix has fewer rows than that.
    """
    tokenizer = models.load_tokenizer(folder)
    try:
        _add(writer, tokenizer, rows)
    except UserError as error:
        raise UserError(f"{folder}: llama.cpp can't encode as this tokenizer does: {error}") from None


def _add(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int | None) -> None:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE":
        raise UserError(
            f"it is {spec['model']['type']}, which llama.cpp has only without a byte fallback; BPE can be exported"
        )
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if spec["model"][setting]:
            raise UserError(f"its BPE has {setting}={spec['model'][setting]!r}")
    pieces, types = _pieces(tokenizer, spec, rows)
    merges = [(left, right) for left, right in spec["model"]["merges"]]
    if vocabulary.is_byte_level(tokenizer.backend_tokenizer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(spec))
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_prefix_space(spec, pieces, types))
        writer.add_token_scores(_scores(tokenizer, merges, pieces, types))
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    _add_roles(writer, tokenizer)
    template = tokenizer.chat_template
    if template:
        named = template if isinstance(template, str) else [{"name": n, "template": t} for n, t in template.items()]
        writer.add_chat_template(named)


def _pieces(tokenizer: PreTrainedTokenizerFast, spec: dict, rows: int | None) -> tuple[list[str], list[TokenType]]:
    """Spelling and type of every id; ids that no token has are unused ones."""
    spelling = {token: piece for piece, token in tokenizer.get_vocab().items()}
    if rows is not None and rows <= max(spelling):
        raise UserError(f"it has ids up to {max(spelling)}, the matrix {rows} rows")
    added = {token["id"]: token for token in spec["added_tokens"]}
    normalizer = tokenizer.backend_tokenizer.normalizer
    for token in added.values():
        changed = token["normalized"] and normalizer and normalizer.normalize_str(token["content"]) != token["content"]
        if token["lstrip"] or token["rstrip"] or token["single_word"] or changed:
            raise UserError(
                f"the added token {token['content']!r} is more than its spelling (lstrip, rstrip, single_word, normalized)"
            )
    unknown, byte_fallback = spec["model"]["unk_token"], spec["model"]["byte_fallback"]

    def kind(token: int) -> TokenType:
        if token not in spelling:
            return TokenType.UNUSED
        if token not in added:
            return (
                TokenType.BYTE
                if byte_fallback and vocabulary.byte_token(spelling[token]) is not None
                else TokenType.NORMAL
            )
        if spelling[token] == unknown:
            return TokenType.UNKNOWN
        return TokenType.CONTROL if added[token]["special"] else TokenType.USER_DEFINED

    ids = range(max(spelling) + 1 if rows is None else rows)
    return [spelling.get(token, f"[PAD{token}]") for token in ids], [kind(token) for token in ids]


def _pre_tokenizer(spec: dict) -> str:
    """llama.cpp's name for the way a byte-level tokenizer cuts a text into words."""
    if spec["normalizer"] not in (None, {"type": "NFC"}):
        raise UserError(f"its normalizer is {spec['normalizer']['type']}")
    steps = tuple(_steps(spec["pre_tokenizer"]))
    ignore_merges = spec["model"]["ignore_merges"]
    name = _PRE_TOKENIZERS.get(steps, {}).get(ignore_merges)
    if name is None:
        raise UserError(
            f"no pre-tokenizer of it is known to be {' then '.join(steps)!r} with ignore_merges={ignore_merges}"
        )
    return name


def _steps(pre_tokenizer: dict | None) -> Iterator[str]:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": parts}:
            for part in parts:
                yield from _steps(part)
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            yield regex
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}:
            yield regex  # the expressions of the table leave no character out, so nothing is removed
        case {"type": "Digits", "individual_digits": True}:
            yield _DIGITS
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts}:
            if cuts:
                yield _GPT2
        case _:
            yield str(pre_tokenizer)


def _prefix_space(spec: dict, pieces: list[str], types: list[TokenType]) -> bool:
    """Whether a SentencePiece-like tokenizer puts a space before a text."""
    normalizer = spec["normalizer"] or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    prefix = steps[:1] == [{"type": "Prepend", "prepend": SPACE}]
    if steps[prefix:] != [_TO_SPACE]:
        raise UserError("its normalizer does more than spell spaces as ▁ and put one before the text")
    # Cuts for speed, before every space or before a run of them, change nothing unless a token crosses them.
    match spec["pre_tokenizer"]:
        case None | {"type": "Split", "pattern": {"String": " "}}:  # no space is left there to cut at
            crossing = None
        case {"type": "Split", "pattern": {"String": "▁"}, "behavior": "MergedWithNext", "invert": False}:
            crossing = re.compile(f".{SPACE}", re.DOTALL)
        case {"type": "Split", "pattern": {"Regex": "▁*[^▁]+|▁+"}, "behavior": "Isolated", "invert": False}:
            crossing = re.compile(f"[^{SPACE}]{SPACE}")
        case other:
            raise UserError(f"its pre-tokenizer is {other['type']}, which is not one of SentencePiece's")
    for piece, kind in zip(pieces, types, strict=True):
        if crossing and kind == TokenType.NORMAL and crossing.search(piece):
            raise UserError(f"it cuts texts before spaces but has tokens across them, such as {piece!r}")
    return prefix


def _scores(
    tokenizer: PreTrainedTokenizerFast, merges: list[tuple[str, str]], pieces: list[str], types: list[TokenType]
) -> list[float]:
    """A score for each id: pieces whose merges come earlier have the higher ones.

    llama.cpp merges any two neighbours whose whole is a piece. That is the same as the merges if each piece has all its splits
    among them, or is what its own spelling encodes to: neighbours that cover the piece's characters exactly are then the pair
    of the last merge on the way to it, since that way does not depend on what is around.
    """
    model = tokenizer.backend_tokenizer.model
    normal = {piece for piece, kind in zip(pieces, types, strict=True) if kind == TokenType.NORMAL}
    if types.count(TokenType.BYTE) < 256:
        raise UserError(
            f"it has {types.count(TokenType.BYTE)} of the 256 byte tokens, so some characters would be unknown ones"
        )
    if model.ignore_merges:
        raise UserError("its words that are tokens need no merges (ignore_merges)")
    wholes = [whole for whole, _ in groupby(left + right for left, right in merges)]
    if len(set(wholes)) < len(wholes):
        raise UserError("merges that make the same token are not next to each other")
    listed = set(merges)

    def splits(piece: str) -> Iterator[tuple[str, str]]:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if (left in normal or cut == 1) and (right in normal or len(right) == 1):
                yield left, right

    for piece in normal:
        if not all(split in listed for split in splits(piece)) and [p.value for p in model.tokenize(piece)] != [piece]:
            raise UserError(f"the token {piece!r} can be put together in ways that are not among the merges")
    for piece, kind in zip(pieces, types, strict=True):
        if kind in (TokenType.BYTE, TokenType.UNUSED) and any(splits(piece)):
            raise UserError(f"text that spells the token {piece!r} would become it")
    rank = {whole: place for place, whole in enumerate(wholes)}
    return [
        -float(rank.get(piece, len(wholes))) if kind == TokenType.NORMAL else 0.0
        for piece, kind in zip(pieces, types, strict=True)
    ]


def _add_roles(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ids of the special tokens, and which of them a text gets put around it."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise UserError("it has no eos token")
    whole, bare = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (True, False))
    around = {
        tuple([bos] * before + bare + [eos] * after): (bool(before), bool(after))
        for before in (0, 1)
        for after in (0, 1)
    }
    if tuple(whole) not in around:
        raise UserError("it puts more around a text than bos and eos")
    add_bos, add_eos = around[tuple(whole)]
    # Without a bos, llama.cpp would take id 1 or 11 for it.
    writer.add_bos_token_id(eos if bos is None else bos)
    writer.add_eos_token_id(eos)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
