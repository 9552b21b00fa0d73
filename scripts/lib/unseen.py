"""What checkpoints are scored on and none was trained on: documents, dialogues; drawn so that all checkpoints get the same."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from lib import dialogues, documents
from lib.errors import UserError

Thing = TypeVar("Thing")


class Drawn(NamedTuple):
    """Documents' texts or dialogues' messages, and their ids, in one order."""

    ids: list[str]
    found: list


def texts(path: Path, number: int, max_chars: int, seed: int) -> dict[str, Drawn]:
    """Documents by language, at most `number` of each; longer texts are cut at `max_chars`, between words.

    Raises:
        UserError: there are no documents with text.
    """
    given = ((d["language"], d["id"], d["text"]) for d in documents.read(path) if d["text"].strip())
    drawn = _draw(given, number, seed)
    if not drawn:
        raise UserError(f"--held_out={path}: no documents with text there")
    return {
        language: Drawn(ids, [shorten(text, max_chars) for text in found]) for language, (ids, found) in drawn.items()
    }


def talks(path: Path, number: int, seed: int) -> dict[str, Drawn]:
    """Dialogues of a JSON Lines file by language ('unnamed' without one), at most `number` of each.

    One without an id is called by its place in the file.
    """
    given = (
        (documents.language_of(record, "unnamed"), str(record.get("id", place)), record["messages"])
        for place, record in enumerate(dialogues.read(path))
    )
    return _draw(given, number, seed)


def shorten(text: str, max_chars: int) -> str:
    """The text, or as much of its beginning as ends between words within `max_chars` characters."""
    if len(text) <= max_chars:
        return text
    kept = text[:max_chars]
    if not (text[max_chars].isspace() or kept[-1].isspace()) and len(kept.split()) > 1:
        kept = kept.rsplit(maxsplit=1)[0]
    return kept.rstrip()


def _draw(given: Iterable[tuple[str, str, Thing]], number: int, seed: int) -> dict[str, Drawn]:
    """Of (language, id, thing), `number` of each language, drawn from the sorted ids: file order does not matter."""
    by_language: Mapping[str, list[tuple[str, Thing]]] = defaultdict(list)
    for language, name, thing in given:
        by_language[language].append((name, thing))
    drawn = {}
    for language, pairs in sorted(by_language.items()):
        pairs.sort(key=lambda pair: pair[0])
        chosen = random.Random(seed).sample(pairs, min(number, len(pairs)))
        drawn[language] = Drawn([name for name, _ in chosen], [thing for _, thing in chosen])
    return drawn
