"""What a language model behind an API will be asked, before there are documents to ask about: as many tokens as settings allow."""

from collections.abc import Mapping
from pathlib import Path

from lib import annotation, api, phrases, records, translation

LETTERS = "слово "  # a text of Cyrillic words, as long as is wanted
WORDS = "word "


def annotating(settings: Mapping, limits: api.Limits) -> dict[str, float | None]:
    """Of the annotate stage: every document as long as is shown (an upper bound), as `api.estimate` has it."""
    twice = 0 if settings["passes"] == 1 else settings["agreement_documents"] or settings["sample"]
    text = _text(LETTERS, settings["max_chars"])
    asked = {"twice": 0, "answer_tokens": settings["answer_tokens"], "temperature": settings["temperature"]}
    return _times(annotation.questions([text], ["1"], **asked)[0], settings["sample"] + twice, limits)


def translating(settings: Mapping, number: int, tokens: float, limits: api.Limits) -> dict[str, float | None]:
    """Of the translate stage: so many dialogues of so many tokens each, answers as long as is allowed."""
    both = (phrases.load(code) for code in (settings["source_language"], settings["language"]))
    rules = translation.Rules(*both, **{name: settings[name] for name in translation.RULES})
    half = _text(WORDS, round(tokens * api.ASCII_PER_TOKEN / 2))
    turns = [{"role": "user", "content": half}, {"role": "assistant", "content": half}]
    item = records.item_of({"messages": turns}, Path(), rules.source, rules.target, answers=settings["answers"])
    found = [_times(question, number, limits) for question in translation.estimated([item], rules)]
    return {name: None if found[0][name] is None else sum(each[name] for each in found) for name in found[0]}


def _times(question: api.Question, number: int, limits: api.Limits) -> dict[str, float | None]:
    one = api.estimate([question], limits)
    total = {name: one[name] * number for name in ("requests", "prompt_tokens", "answer_tokens")}
    return {**total, "cost": limits.cost(total["prompt_tokens"], total["answer_tokens"])}


def _text(word: str, characters: int) -> str:
    return (word * (characters // len(word) + 1))[: max(characters, 1)]
