"""What a token is: its surface bytes, for SentencePiece-like and byte-level vocabularies alike."""

import json
from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lib.errors import UserError

SPACE = "▁"


def is_byte_level(backend: Tokenizer) -> bool:
    """Whether pieces are spelt in GPT-2's byte alphabet (else in text with ▁ for a space and <0xNN> bytes)."""
    return '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])


def surfaces(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """Each token's bytes in running text, by id; None for special tokens.

    `▁x` is ` x`; a byte token `<0xNN>` is that one byte.
    """
    backend = tokenizer.backend_tokenizer
    byte_level = is_byte_level(backend)
    added = backend.get_added_tokens_decoder()
    # Ids can have gaps, so the largest counts, not their number.
    result: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values()) + 1)
    for piece, token in tokenizer.get_vocab().items():
        if token in added:
            result[token] = None if added[token].special else added[token].content.encode()
        elif byte_level:
            result[token] = bytes(_byte_of()[character] for character in piece)
        else:
            byte = byte_token(piece)
            result[token] = piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])
    return result


def lengths(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Bytes of each token's surface, by id; 0 for special tokens."""
    return [len(surface or b"") for surface in surfaces(tokenizer)]


def byte_token(piece: str) -> int | None:
    """The byte of a byte-fallback piece `<0xNN>`, else None."""
    return int(piece[3:5], 16) if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">") else None


def surface_encoder(backend: Tokenizer) -> Callable[[bytes], list[int]]:
    """A function from bytes to the ids spent on them in the middle of a text: no prefix space, no special tokens."""
    if not is_byte_level(backend):
        return lambda surface: [piece.id for piece in backend.model.tokenize(surface.decode().replace(" ", SPACE))]
    character_of = {byte: character for character, byte in _byte_of().items()}

    def encode(surface: bytes) -> list[int]:
        try:
            return backend.encode(surface.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:  # a token that cuts a character: the model itself, below the pre-tokenizer
            return [piece.id for piece in backend.model.tokenize("".join(character_of[byte] for byte in surface))]

    return encode


def unreachable(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ordinary tokens that no text is known to give: not even their own surface is encoded as them."""
    encode = surface_encoder(tokenizer.backend_tokenizer)
    spelling = {token: piece for piece, token in tokenizer.get_vocab().items()}
    return [
        token
        for token, surface in enumerate(surfaces(tokenizer))
        if surface and byte_token(spelling[token]) is None and encode(surface) != [token]
    ]


def old_pieces(
    new: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast
) -> tuple[list[list[int]], dict[str, list[int]]]:
    """For each new token, the old ids whose rows it starts from, and the new ids by the rule that chose them.

    `copied`: the same bytes (or the same special token) exist in the old vocabulary; `byte`: a byte token; `special`:
    a special token mapped by its role (bos, eos, unk, pad) or name; `averaged`: the mean of its old pieces
    (the paper's section 3.2; Hewitt 2021); `global_mean`: special or byte tokens that the old model has nothing for.

    Raises:
        UserError: an ordinary token has no old pieces at all.
    """
    new_surfaces, old_surfaces = surfaces(new), surfaces(old)
    old_vocabulary = old.get_vocab()
    spelling = {token: piece for piece, token in new.get_vocab().items()}
    old_by_surface: dict[bytes, int] = {}
    for token, surface in enumerate(old_surfaces):
        # An ordinary piece wins over the byte token <0x61> of the same byte.
        if surface is not None and (
            surface not in old_by_surface or byte_token(old.convert_ids_to_tokens(token)) is None
        ):
            old_by_surface[surface] = token
    old_roles = {role: getattr(old, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    new_roles = {getattr(new, f"{role}_token_id"): role for role in ("pad", "unk", "eos", "bos")}
    encode = surface_encoder(old.backend_tokenizer)
    everything = [token for token, surface in enumerate(old_surfaces) if surface is not None]
    single_bytes = [token for surface, token in old_by_surface.items() if len(surface) == 1]
    pieces: list[list[int]] = []
    rules: dict[str, list[int]] = {rule: [] for rule in ("copied", "byte", "special", "averaged", "global_mean")}
    for token, surface in enumerate(new_surfaces):
        name = spelling[token]
        if surface is None:
            same = old_vocabulary.get(name)
            same = old_roles.get(new_roles.get(token, "")) if same is None else same
            rule, found = ("special", [same]) if same is not None else ("global_mean", everything)
        elif byte_token(name) is not None:
            same = old_vocabulary.get(name, old_by_surface.get(surface))
            rule, found = ("byte", [same]) if same is not None else ("global_mean", single_bytes)
        elif surface in old_by_surface:
            rule, found = "copied", [old_by_surface[surface]]
        else:
            rule, found = "averaged", encode(surface)
        if not found:
            raise UserError(f"token {token} {name!r} has no pieces in the base's tokenizer; it can't be initialised")
        rules[rule].append(token)
        pieces.append(found)
    return pieces, rules


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: the byte each printable stand-in character means (Radford et al. 2019, encoder.py)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in plain}
    shifted = (byte for byte in range(256) if byte not in set(plain))
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(shifted)}
