"""Dialogues for instruction tuning: `messages` read and checked, rendered by the chat template, masked to the answers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lib import documents
from lib.errors import UserError
from lib.losses import IGNORED

ROLES = ("system", "user", "assistant")


def read(path: Path, *, on_error: documents.OnError = "stop", skipped: Counter[str] | None = None) -> Iterator[dict]:
    """Dialogues of a JSON Lines file, or of `instructions.jsonl` in a folder.

    Raises:
        UserError: a line that is no dialogue (file and line), unless it is skipped and counted.
    """
    skipped = Counter() if skipped is None else skipped
    file = path / "instructions.jsonl" if path.is_dir() else path
    for number, record in documents.read_json_lines(file, on_error=on_error, skipped=skipped):
        problem = fault(record.get("messages"))
        if problem is None:
            yield record
        elif on_error == "skip":
            skipped["broken_dialogue"] += 1
        else:
            raise UserError(f"{file}:{number}: {problem}; correct the line, or say --on_error=skip")


def fault(messages: object) -> str | None:
    """What is wrong with a list of messages: an optional system turn, then user and assistant in turn, none empty."""
    if not isinstance(messages, list) or not messages:
        return "no list 'messages'"
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"message {place} has no role of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f"message {place} is empty"
    turns = [message["role"] for message in messages]
    turns = turns[1:] if turns[0] == "system" else turns
    if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        return "the turns are not user, assistant, user, assistant, ..."
    return None


def encode(messages: list[dict], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """(ids, labels) of a dialogue under the tokenizer's chat template; labels are -100 outside the answers.

    An answer's end token counts (it is what stops generation), the white space that a template puts after it does not.
    The dialogue is encoded once as a whole, as generation would see it, and answers are found by character offsets.

    Raises:
        UserError: the template does not write dialogues turn after turn, so answers can't be told apart.
    """
    text = _render(tokenizer, messages)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            prefix = _render(tokenizer, messages[:place], add_generation_prompt=True)
            whole = _render(tokenizer, messages[: place + 1])
            if not (whole.startswith(prefix) and text.startswith(whole)):
                raise UserError("the chat template rewrites earlier turns, so the answers can't be told apart")
            spans.append((len(prefix), len(whole.rstrip())))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    inside = [
        any(begin < stop and end > start for start, stop in spans) and end > begin
        for begin, end in encoding["offset_mapping"]
    ]
    return ids, [token if counted else IGNORED for token, counted in zip(ids, inside, strict=True)]


def _render(tokenizer: PreTrainedTokenizerFast, messages: list[dict], **options: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)
