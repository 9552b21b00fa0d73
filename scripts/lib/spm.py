"""SentencePiece: training, and the exact conversion of a model to a fast tokenizer."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lib.errors import UserError
from lib.vocabulary import SPACE

ModelType = Literal["bpe", "unigram"]
# Runs of spaces, tables and indented code, are a token each, as in Llama's and Mistral's vocabularies; SentencePiece, which
# learns within words, would leave a token for every space.
RUNS = tuple(SPACE * length for length in range(2, 17))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Lines on which conversions are known to go wrong; every trained tokenizer has to pass them.
HOSTILE = (
    "",
    " ",
    "  два пробела в начале",
    "пробел в конце ",
    "много     пробелов",
    "неразрывный\u00a0пробел и\u202fузкий",
    "строка\nс переводом\n\nи пустой",
    "\tтабуляция\t\tдважды",
    "возврат\r\nкаретки",
    "эмодзи 🙂 и семья 👨‍👩‍👧‍👦, флаг 🇷🇺",
    "е\u0301 ударе\u0301ние и й против и\u0306",
    "сМешанный mixed скрИпт Latin и кириллица",
    "12345 67,89 3.14 1e-4 №5",
    "中文 日本語 العربية עברית ไทย",
    "▁подчёркивание▁ и _обычное_",
    "<0x41> <unk> </s> <s> не служебные",
    "нуль\x00байт и \x7f",
    "кавычки «ёлочки» и „лапки“ — тире … многоточие",
    "https://example.org/путь?q=1&r=2#x",
    "def f(x):\n    return x ** 2  # код",
    "ЗАГЛАВНЫЕ БУКВЫ И ЁЖ",
    "длинноесловобезпробеловсовсем" * 20,
)


def count_words(counts: Counter[str], text: str) -> None:
    """Add a text's words, all that stands between spaces, to the counts that `train` takes."""
    counts.update(text.replace("\t", " ").split(" "))


def train(
    words: Mapping[str, int],
    *,
    vocab_size: int,
    model_type: ModelType,
    unknown: str,
    controls: list[str],
    symbols: Sequence[str] = (),
    character_coverage: float,
    threads: int,
) -> bytes:
    """A SentencePiece model (serialised) for an LLM: text taken as it is, byte fallback, every digit a token.

    Words with their counts train the model that the running text would (BPE the very same one: its pieces never cross a
    space), in memory that grows with the vocabulary of the corpus and not with its length.

    Args:
        words: what stands between spaces, and how often it occurs (`count_words`).
        vocab_size: all pieces, with the 256 bytes, `unknown`, `controls` and `symbols`.
        model_type: 'bpe' or 'unigram'.
        unknown: spelling of the unknown token.
        controls: spellings of the control tokens, in the order of their ids after `unknown`.
        symbols: spellings that are always one token wherever they stand in a text, after `controls`.
        character_coverage: share of the text's characters that get a piece of their own (others are bytes).
        threads: for training.

    Raises:
        UserError: the text is too little for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words.items() if word),
            input_format="tsv",
            model_writer=model,
            vocab_size=vocab_size - len(RUNS),
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_piece=unknown,
            control_symbols=controls,
            user_defined_symbols=list(symbols),
            max_sentence_length=16384,
            num_threads=threads,
            train_extremely_large_corpus=model_type == "unigram",
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"SentencePiece can't train {vocab_size} pieces on this text: {_last_sentence(error)}"
        ) from None
    spec = proto.ModelProto.FromString(model.getvalue())
    if model_type == "unigram":
        _round_scores(spec)
        space = next(piece.score for piece in spec.pieces if piece.piece == SPACE)
        scores = [space] * len(
            RUNS
        )  # cheaper than its spaces one by one, dearer than a word that takes its space along
    else:
        scores = _lower_scores(spec, len(RUNS))
    for piece, score in zip(RUNS, scores, strict=True):
        spec.pieces.add(piece=piece, score=score, type=NORMAL)
    spec.trainer_spec.vocab_size = len(spec.pieces)
    return spec.SerializeToString()


def _round_scores(spec: proto.ModelProto) -> None:
    """Round a unigram model's scores so that sums of them are exact.

    SentencePiece adds scores in single precision, tokenizers in double; where two segmentations are nearly equal the two
    used to disagree, on some lines in ten thousand. Sums of multiples of 1/64 are exact in both, up to 262,144 in all.
    """
    for piece in spec.pieces:
        if piece.type == NORMAL:
            piece.score = round(piece.score * 64) / 64


def _lower_scores(spec: proto.ModelProto, count: int) -> list[float]:
    """Scores below all of a BPE model's, falling: each the next lower number in single precision.

    Some models have scores of -1e9, where subtracting 1 changes nothing.
    """
    scores = [np.float32(min(piece.score for piece in spec.pieces))]
    while len(scores) <= count:
        scores.append(np.nextafter(scores[-1], np.float32(-np.inf)))
    return scores[1:]


def extend(model: bytes, fast: Tokenizer) -> bytes | None:
    """A BPE model with the further tokens of `fast`, whose merges rank below all before them, in the order of their ids.

    None where that can't be: a unigram model, or one whose ids are not those of `fast`.
    """
    spec = proto.ModelProto.FromString(model)
    size = len(spec.pieces)
    spelling = {token: piece for piece, token in fast.get_vocab().items()}
    same = all(spelling.get(token) == piece.piece for token, piece in enumerate(spec.pieces))
    if spec.trainer_spec.model_type != proto.TrainerSpec.BPE or not same or max(spelling) + 1 != len(spelling):
        return None
    added = fast.get_added_tokens_decoder()
    for token, score in zip(range(size, len(spelling)), _lower_scores(spec, len(spelling) - size), strict=True):
        kind = NORMAL if token not in added else CONTROL if added[token].special else USER_DEFINED
        spec.pieces.add(piece=spelling[token], score=score, type=kind)
    spec.trainer_spec.vocab_size = len(spec.pieces)
    return spec.SerializeToString()


def to_fast(model: bytes) -> Tokenizer:
    """A fast tokenizer that encodes as the SentencePiece model does.

    Byte-pair merges are all splits of a normal piece into two normal pieces, by descending score of the whole, then by
    the ids of the parts. The prefix space is a normalizer (the Metaspace pre-tokenizer skips texts that begin with one).
    """
    spec = proto.ModelProto.FromString(model)
    pieces = list(spec.pieces)
    vocabulary = {piece.piece: place for place, piece in enumerate(pieces)}
    unknown = next(piece.piece for piece in pieces if piece.type == UNKNOWN)
    if spec.trainer_spec.model_type == proto.TrainerSpec.BPE:
        core = models.BPE(
            vocab=vocabulary,
            merges=list(_merges(pieces)),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=spec.trainer_spec.byte_fallback,
        )
    else:
        hopeless = min(piece.score for piece in pieces) - 1000.0
        scored = [(piece.piece, piece.score if piece.type == NORMAL else hopeless) for piece in pieces]
        core = models.Unigram(scored, vocabulary[unknown], spec.trainer_spec.byte_fallback)
    tokenizer = Tokenizer(core)
    steps = []
    if spec.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.normalizer_spec.precompiled_charsmap))
    if spec.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if spec.normalizer_spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    if not any(re.search(f"[^{SPACE}]{SPACE}", piece.piece) for piece in pieces if piece.type == NORMAL):
        # No piece goes on past a space, so a word with the spaces before it is independent of the others: the same ids, and
        # the cache makes it many times faster.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated")
    strip = [decoders.Strip(" ", 1, 0)] if spec.normalizer_spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [p.piece for p in pieces if p.type in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    symbols = [p.piece for p in pieces if p.type == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in symbols])
    return tokenizer


def spoil(line: str, place: int) -> str:
    """The line with one of the things conversions go wrong on worked into it, another at each place."""
    word = line.split(" ")[0]
    return (
        f" {line}",
        line.replace(" ", "  "),
        line.replace(" ", "\u00a0"),
        line.replace(" ", "\n", 3),
        line.replace(" ", "\t", 2),
        f"{line[: len(line) // 2]}🙂{line[len(line) // 2 :]}",
        re.sub("([аеиоуыэюяaeiou])", "\\1\u0301", line),
        f"{line} {word.upper()}{word.swapcase()}x{word}",
    )[place % 8]


def mismatches(model: bytes, fast: Tokenizer, lines: Iterable[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(line, SentencePiece's pieces, the fast tokenizer's) for each line the two encode differently.

    Spellings of special tokens are left out of the lines: SentencePiece reads them as text, a fast tokenizer as tokens.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    special = [token.content for token in fast.get_added_tokens_decoder().values()]
    lines = [line for line in lines if not any(token in line for token in special)]
    expected = processor.encode(lines)
    for line, ids, encoding in zip(lines, expected, fast.encode_batch(lines, add_special_tokens=False), strict=True):
        if ids != encoding.ids:
            yield line, [processor.id_to_piece(token) for token in ids], encoding.tokens


def check(model: bytes, fast: Tokenizer, lines: list[str]) -> None:
    """Refuse a fast tokenizer that encodes any of the lines otherwise than its SentencePiece model.

    Raises:
        UserError: it does.
    """
    wrong = list(mismatches(model, fast, lines))
    if wrong:
        line, expected, got = wrong[0]
        raise UserError(
            f"the fast tokenizer encodes {len(wrong)} of {len(lines)} lines otherwise than SentencePiece, "
            f"first {line[:80]!r}: {expected[:12]} against {got[:12]}"
        )


def read_model(path: Path) -> bytes:
    """A `.model` file's content, checked.

    Raises:
        UserError: not a SentencePiece model.
    """
    content = path.read_bytes()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise UserError(f"{path}: not a SentencePiece model") from None
    return content


def _merges(pieces: list) -> Iterator[tuple[str, str]]:
    place = {piece.piece: number for number, piece in enumerate(pieces) if piece.type == NORMAL}
    for whole in sorted(place, key=lambda text: (-pieces[place[text]].score, place[text])):
        splits = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        known = [(left, right) for left, right in splits if left in place and right in place]
        yield from sorted(known, key=lambda pair: (place[pair[0]], place[pair[1]]))


def _last_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].split("] ")[-1]
