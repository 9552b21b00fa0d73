"""Instructions: `{"id", "messages": [{"role", "content"}], "language"}`, read from the shapes that datasets use."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from lib import documents, progress
from lib.errors import UserError

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "model": "assistant",
}  # fmt: skip
TURN = re.compile(r"(?:^|\n+)(Human|Assistant|User|System):[ \t]*")


def of_records(
    records: Iterable[tuple[str, dict]],
    columns: Mapping[str, str],
    *,
    source: str,
    language: str | None,
    on_error: documents.OnError,
    skipped: Counter[str],
) -> Iterator[dict]:
    """Instructions from a dataset's rows; see `normalise` for their shapes.

    Raises:
        UserError: a row that is no conversation, or names no language, unless `on_error` is 'skip'.
    """
    for number, (where, record) in enumerate(progress.bar(records, title=f"fetch {source}", unit="items"), start=1):
        messages = normalise(record, columns)
        spoken = documents.language_of(record, language)
        if isinstance(messages, list) and isinstance(spoken, str):
            yield {"id": str(record.get("id") or f"{source}-{number:05d}"), "messages": messages, "language": spoken}
        elif on_error == "skip":
            skipped["broken_record"] += 1
        else:
            problem = messages if isinstance(messages, str) else "no 'language', and none given by --language"
            raise UserError(f"{where}: {problem}; correct it, or say --on_error=skip")


def normalise(record: Mapping, columns: Mapping[str, str]) -> list[dict[str, str]] | str:
    """The messages of a record, or what is wrong with it.

    Args:
        record: a row of a dataset.
        columns: where things are: `messages` (a list of turns; role/content or from/value), or else `prompt` with
            optional `input` and `answer` (text, or a list of ranked answers, of which the best is taken).
    """
    if "messages" in columns or not columns:
        turns = record.get(columns.get("messages", "messages"))
        if not isinstance(turns, list):
            return f"no list in '{columns.get('messages', 'messages')}'"
        messages = []
        for turn in turns:
            if not isinstance(turn, Mapping):
                return "a message that is no mapping"
            role = ROLES.get(str(turn.get("role", turn.get("from", ""))).lower())
            content = turn.get("content", turn.get("value"))
            if role is None:
                return f"a message of unknown role {turn.get('role', turn.get('from'))!r}"
            messages.append({"role": role, "content": content})
    else:
        prompt, answer = record.get(columns["prompt"]), _best(record.get(columns["answer"]))
        extra = record.get(columns.get("input", ""))
        if not isinstance(prompt, str):
            return f"no text in '{columns['prompt']}'"
        messages = turns_of(f"{prompt}\n\n{extra}" if extra else prompt)
        messages.append({"role": "assistant", "content": answer})
    return _checked(messages)


def _checked(messages: list[dict]) -> list[dict[str, str]] | str:
    for message in messages:
        if not isinstance(message["content"], str) or not message["content"].strip():
            return "a message without text"
        message["content"] = message["content"].strip()
    if not messages or messages[-1]["role"] != "assistant":
        return "the last message is not the assistant's"
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if spoken != [("user", "assistant")[place % 2] for place in range(len(spoken))]:
        return "user and assistant do not take turns"
    return messages


def _best(answer: object) -> object:
    """The answer itself, or the first or best ranked of several."""
    if not isinstance(answer, list):
        return answer
    if answer and isinstance(answer[0], Mapping):
        best = min(answer, key=lambda one: one.get("rank") or 0)
        return best.get("answer", best.get("content"))
    return answer[0] if answer else None


def turns_of(prompt: str) -> list[dict]:
    """A prompt that is a conversation written as `Human: ... Assistant: ...`, else one message."""
    parts = TURN.split(prompt)
    if len(parts) < 3 or parts[0].strip():
        return [{"role": "user", "content": prompt}]
    turns = zip(parts[1::2], parts[2::2], strict=True)
    messages = [{"role": ROLES[name.lower()], "content": text} for name, text in turns]
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages.pop()
    return messages
