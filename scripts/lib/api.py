"""Questions to a language model behind an OpenAI-compatible server: in parallel, under rate limits, none paid for twice.

Server, model and key come from the environment (OPENAI_BASE_URL, OPENAI_MODEL, OPENAI_API_KEY) and from nowhere else; the
key is never printed or written. Each reply is appended to a journal, and flushed to disk, before it counts. What a question
came to is worked out from its replies in the journal, so a run that was killed goes on where it stopped.
"""

import asyncio
import dataclasses
import email.utils
import fcntl
import hashlib
import json
import os
import random
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import openai
import pydantic
from tqdm import tqdm

from lib import progress
from lib.errors import UserError

VARIABLES = ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY")
# Characters a token, ASCII and others: estimates were within 8 % of what Mistral's tokenizer of 131,000 tokens makes of
# Russian and English articles, Russian novels and a Russian manual (98 of 100 single pages: within 35 %).
ASCII_PER_TOKEN, OTHERS_PER_TOKEN = 3.5, 2.7
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a question is sent again; doubled each time
LONGEST_RETRY_AFTER = 600.0  # a server that asks for more patience has had enough for today
LOST_IN_A_ROW = 30  # questions that came to nothing, one after another: something is wrong with all of them
# Parameters that can be done without, by what a server's complaint about them says.
OPTIONAL = {"response_format": "response_format|json_schema", "max_completion_tokens": "max_completion_tokens"}
ADVICE = {401: "; check OPENAI_API_KEY", 404: "; check OPENAI_MODEL and OPENAI_BASE_URL"}
SHORTEST_KEY = 8  # characters; shorter ones are the words that servers without keys are given
NOTHING_SPENT = {"prompt_tokens": 0, "completion_tokens": 0}
AGAIN = "That answer can't be used: {problem}. Answer again as you were asked to, with nothing before or after it."
_OBJECT = re.compile(r'\{(?=\s*["}])')
_TOO_LONG = re.compile(r"context.length|maximum context|context window|too long|too large", re.IGNORECASE)
_FILTERED = re.compile(r"content.?(filter|policy)|moderation|flagged", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Server:
    """Where questions go."""

    url: str
    model: str
    key: str = dataclasses.field(repr=False)

    @property
    def place(self) -> str:
        """The address without anything secret that it may carry."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How to ask; nothing here changes an answer, so a resumed run may have other limits.

    Attributes:
        parallel: questions under way at the same time.
        requests_per_minute: sent, evenly spaced; 0 is no limit.
        tokens_per_minute: of prompts and answers together; 0 is no limit.
        retries: how often a question is sent again when the server is busy, broken or silent.
        attempts: how many replies a question is given to bring a valid answer.
        timeout: seconds until a reply has to be complete.
        input_price: US dollars for a million tokens of prompts; None where the price is not known.
        output_price: US dollars for a million tokens of answers.
        max_cost: US dollars at which to stop, what earlier interrupted runs spent included.
    """

    parallel: int = 8
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    retries: int = 6
    attempts: int = 3
    timeout: float = 120.0
    input_price: float | None = None
    output_price: float | None = None
    max_cost: float | None = None

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """US dollars for so many tokens; None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6


LIMITS = tuple(field.name for field in dataclasses.fields(Limits))


@dataclasses.dataclass(frozen=True)
class Question:
    """A chat that waits for its answer.

    Attributes:
        id: a name, unique among the questions of a run.
        messages: `role` and `content` each.
        schema: the JSON schema of the answer (`title` names it); None for free text.
        answer_tokens: where the server cuts the answer off.
        temperature: None for models that take none.
    """

    id: str
    messages: Sequence[Mapping[str, str]]
    answer_tokens: int
    schema: Mapping[str, object] | None = None
    temperature: float | None = None

    def digest(self, model: str) -> str:
        """Changes with anything that could change the answer."""
        asked = [model, *(getattr(self, field.name) for field in dataclasses.fields(self))]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def prompt_tokens(self) -> int:
        """An estimate."""
        schema = json.dumps(self.schema) if self.schema else ""
        return estimate_tokens("".join(message["content"] for message in self.messages) + schema)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a question came to: a `value`, or the `reason` why there is none, the last thing said and what is wrong with it."""

    value: object = None
    reason: str | None = None
    said: str = ""
    problem: str = ""


class Unusable(ValueError):
    """An answer that `read` turns down for a reason with a name; `final` if asking again would be of no use."""

    def __init__(self, reason: str, problem: str, *, final: bool = False):
        super().__init__(problem)
        self.reason, self.final = reason, final


Read = Callable[[Question, str], object]


def server() -> Server:
    """The server that the environment names.

    Raises:
        UserError: a variable is not set, or the address is none.
    """
    if missing := [name for name in VARIABLES if not os.environ.get(name, "").strip()]:
        raise UserError(
            f"set {', '.join(missing)} in the environment: {', '.join(VARIABLES)} name the server (http://host/v1), the "
            "model and the key (any word for a server that wants none)"
        )
    url, model, key = (os.environ[name].strip() for name in VARIABLES)
    if not re.match(r"https?://[^/]", url):
        raise UserError("OPENAI_BASE_URL is not an address like https://host/v1")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError("OPENAI_API_KEY holds characters that no key has (a space, a line break?)")
    return Server(url, model, key)


def limits(settings: Mapping[str, object]) -> Limits:
    """The limits among a script's settings.

    Raises:
        UserError: a number is out of its range, or there is a `max_cost` without prices.
    """
    given = Limits(**{name: settings[name] for name in LIMITS})
    for name, least in (("parallel", 1), ("attempts", 1), ("retries", 0), ("timeout", 0.01)):
        if getattr(given, name) < least:
            raise UserError(f"--{name}={getattr(given, name)}: at least {least}")
    if given.parallel > 1000:
        raise UserError(f"--parallel={given.parallel}: at most 1000")
    for name in ("requests_per_minute", "tokens_per_minute", "input_price", "output_price", "max_cost"):
        if (getattr(given, name) or 0) < 0:
            raise UserError(f"--{name}={getattr(given, name)}: not negative")
    if given.max_cost is not None and given.cost(0, 0) is None:
        raise UserError("--max_cost needs --input_price and --output_price (US dollars for a million tokens)")
    return given


def identity(settings: Mapping[str, object], server: Server) -> dict[str, object]:
    """What a resumed run has to share: the settings but for the limits, which change no answer, and the model."""
    kept = {name: value for name, value in settings.items() if name not in (*LIMITS, "dry_run")}
    return kept | {"model": server.model}


def fence(text: str, what: str) -> str:
    """A text between two marker lines; it can't hold a hash of itself, so that it can't pretend to have ended."""
    code = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"----- {what} {code} begins -----\n{text}\n----- {what} {code} ends -----"


def estimate(questions: Sequence[Question], limits: Limits) -> dict[str, float | None]:
    """Requests, tokens of prompts, tokens of answers if all are as long as allowed, and the cost of these (None without prices)."""
    prompts = sum(question.prompt_tokens for question in questions)
    answers = sum(question.answer_tokens for question in questions)
    cost = limits.cost(prompts, answers)
    return {"requests": len(questions), "prompt_tokens": prompts, "answer_tokens": answers, "cost": _cents(cost)}


def estimate_tokens(text: str) -> int:
    """About how many tokens a large multilingual vocabulary needs for a text."""
    ascii_only = len(text.encode("ascii", "ignore"))
    return round(ascii_only / ASCII_PER_TOKEN + (len(text) - ascii_only) / OTHERS_PER_TOKEN)


def spell_estimate(expected: Mapping[str, float | None]) -> str:
    """An estimate in one line."""
    return (
        f"{expected['requests']:,} requests, about {expected['prompt_tokens']:,} tokens of prompts and up to "
        f"{expected['answer_tokens']:,} of answers: {spell_cost(expected['cost'])}"
    )


def spell_cost(cost: float | None) -> str:
    """`$1.2345`, or that no prices are known."""
    return "no prices given" if cost is None else f"${cost:,.4f}"


def spell_usage(usage: Mapping[str, object]) -> str:
    """What was used and paid, in one line."""
    return (
        f"{usage['replies']:,} replies, {usage['prompt_tokens']:,} tokens of prompts and "
        f"{usage['completion_tokens']:,} of answers: {spell_cost(usage['cost'])}"
    )


def json_objects(text: str) -> Iterator[dict]:
    """JSON objects in a text, outermost ones, in their order: alone, fenced, or in the middle of talk."""
    decoder = json.JSONDecoder()
    end = 0
    while start := _OBJECT.search(text, end):
        try:
            found, end = decoder.raw_decode(text, start.start())
            yield found
        except (ValueError, RecursionError):  # JSONDecodeError, or a number of thousands of digits
            end = start.start() + 1


def ask(
    questions: Sequence[Question],
    *,
    server: Server,
    limits: Limits,
    journal: Path,
    read: Read,
    to_come: Sequence[Question] = (),
) -> tuple[list[Answer], dict[str, object]]:
    """(each question's answer, in the order of the questions; figures for the manifest).

    Args:
        questions: what to ask; those answered in the journal are not asked again.
        server: whom.
        limits: how fast, how often and how dear.
        journal: a JSON Lines file of replies, made or gone on with.
        read: an answer's value from its question and text; raises ValueError saying what is wrong with it. It is then
            asked for again, unless that is an `Unusable` which is final.
        to_come: questions that will follow in another call; the estimate counts them.

    A question without an answer has one of these reasons: that of the last `Unusable`, or else `invalid_answer` (both
    after all attempts); `refused`, `cut_off` (longer than
    allowed), `too_long` (the prompt, for this model); and, after all retries and another round of them at the end,
    `rejected`, `rate_limited`, `server_error`, `timeout`, `connection_lost` or `malformed_reply` (these are not in the
    journal, so that a resumed run asks again).

    Raises:
        UserError: the server does not take the key or the model, the money is spent, or nothing works any more. The same
            call with the same journal goes on.
    """
    if len({question.id for question in questions}) != len(questions):
        raise ValueError("questions with the same id")
    with Journal(journal) as kept:
        run = _Run(server, limits, kept, read)
        waiting = [question for question in questions if run.outcome(question) is None]
        if len(waiting) < len(questions):
            progress.say(f"{len(questions) - len(waiting):,} of {len(questions):,} questions are answered in {journal}")
        expected = estimate([*waiting, *to_come], limits)
        spent = f"; spent so far: {spell_cost(run.cost)}" if run.cost else ""
        if waiting or not to_come:
            progress.say(f"to ask: {spell_estimate(expected)}{spent}")
        if waiting and limits.max_cost is not None and run.cost + expected["cost"] > limits.max_cost:
            raise UserError(
                f"--max_cost={limits.max_cost}: ${run.cost:,.4f} spent and an estimated ${expected['cost']:,.4f} to spend; "
                "nothing was asked; raise it, or ask about less"
            )
        if waiting:
            asyncio.run(run.ask(waiting))
        answers = [run.outcome(question) or run.lost[question.id] for question in questions]
        return answers, run.figures()


class Journal:
    """Replies on disk, one JSON object a line, and in memory by question; for one process at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[tuple[str, str], list[dict]] = {}
        self.totals: Counter[str] = Counter(replies=0, prompt_tokens=0, completion_tokens=0, replies_without_usage=0)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{path}: another run is writing it; wait for it, or end it") from None
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, reply: dict) -> None:
        """Add a reply; on disk when this returns."""
        self._file.write(json.dumps(reply, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._add(reply)

    def _add(self, reply: dict) -> None:
        self.replies.setdefault((reply["id"], reply["digest"]), []).append(reply)
        self.totals["replies"] += 1
        self.totals["replies_without_usage"] += bool(reply.get("estimated"))
        for name in ("prompt_tokens", "completion_tokens"):
            self.totals[name] += reply[name]

    def _load(self) -> None:
        """Read what is there; a last line that a kill tore is cut off, lest the next reply be written onto it."""
        self._file.seek(0)
        good = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._add(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{self.path}:{number}: not a reply; remove the line to ask that question anew"
                ) from None
            good += len(line)
        self._file.truncate(good)


class _Message(pydantic.BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(pydantic.BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(pydantic.BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class _Completion(pydantic.BaseModel):
    """What is needed of a chat completion; other servers than OpenAI's leave out much of the rest."""

    choices: list[_Choice] = pydantic.Field(min_length=1)
    usage: _Usage | None = None


class _Pace:
    """When the next request may go: evenly spaced, and not before the server said."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float):
        self.request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self.token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.request_at = self.tokens_at = self.held_until = 0.0

    def reserve(self, tokens: float) -> float:
        """Take the next turn, for so many tokens; the seconds until it comes."""
        now = time.monotonic()
        start = max(now, self.request_at, self.tokens_at, self.held_until)
        self.request_at = start + self.request_seconds
        self.tokens_at = start + self.token_seconds * tokens
        return start - now

    def correct(self, tokens: float) -> None:
        """Account for so many tokens more (or, below 0, fewer) than were reserved."""
        self.tokens_at += self.token_seconds * tokens

    def hold(self, seconds: float) -> None:
        """Nothing goes for so long."""
        self.held_until = max(self.held_until, time.monotonic() + seconds)

    def held(self) -> float:
        """The seconds for which nothing may go, from now."""
        return max(0.0, self.held_until - time.monotonic())


class _Run:
    """The asking: how much was spent, what went wrong, and why to stop, if there is a reason."""

    def __init__(self, server: Server, limits: Limits, journal: Journal, read: Read):
        self.server, self.limits, self.journal, self.read = server, limits, journal, read
        self.pace = _Pace(limits.requests_per_minute, limits.tokens_per_minute)
        self.lost: dict[str, Answer] = {}
        self.troubles: Counter[str] = Counter()
        self.unsupported: set[str] = set()  # parameters that this server does not take
        self.barren = 0  # questions without an answer since the last one with
        self.stop: str | None = None
        self.stopping = asyncio.Event()

    @property
    def cost(self) -> float | None:
        """US dollars for all replies in the journal."""
        return self.limits.cost(self.journal.totals["prompt_tokens"], self.journal.totals["completion_tokens"])

    def figures(self) -> dict[str, object]:
        """For the manifest; `retried` counts since the last start, the others everything in the journal."""
        return {
            "server": self.server.place,
            "model": self.server.model,
            **self.journal.totals,
            "cost": _cents(self.cost),
            "retried": dict(self.troubles),
        }

    def outcome(self, question: Question) -> Answer | None:
        """What the question came to by its replies; None while it may still come to something."""
        replies = self.journal.replies.get((question.id, question.digest(self.server.model)), [])
        for reply in replies:
            if reply.get("reason"):
                return Answer(reason=reply["reason"], said=reply["content"])
            try:
                return Answer(value=self.read(question, reply["content"]))
            except ValueError as error:
                failed = Answer(None, getattr(error, "reason", "invalid_answer"), reply["content"], str(error))
                if getattr(error, "final", False):
                    return failed
        return failed if len(replies) >= self.limits.attempts else None

    async def ask(self, questions: Sequence[Question]) -> None:
        """Ask until each question has come to something, or there is a reason to stop."""
        # Retries are ours: they have to hold back the other requests too, and be counted.
        async with openai.AsyncOpenAI(
            base_url=self.server.url, api_key=self.server.key, max_retries=0, timeout=self.limits.timeout
        ) as client:
            await self._round(client, questions, "ask")
            # What was lost while the server was in trouble has a second chance when everything else is done.
            if self.lost and not self.stop:
                again = [question for question in questions if question.id in self.lost]
                self.lost.clear()
                await self._round(client, again, "ask again")
        if self.stop:
            raise UserError(f"{self.stop}; {self.journal.path} keeps what was answered, the same command goes on")

    async def _round(self, client: openai.AsyncOpenAI, questions: Sequence[Question], title: str) -> None:
        waiting = iter(questions)
        with progress.bar(total=len(questions), title=title, unit="questions") as bar:
            workers = min(self.limits.parallel, len(questions))
            await asyncio.gather(*(self._work(client, waiting, bar) for _ in range(workers)))

    async def _work(self, client: openai.AsyncOpenAI, waiting: Iterator[Question], bar: tqdm) -> None:
        for question in waiting:
            while (answer := self.outcome(question) or self.lost.get(question.id)) is None:
                if self.limits.max_cost is not None and self.cost >= self.limits.max_cost:
                    self._stop(f"--max_cost={self.limits.max_cost} is spent ({spell_cost(self.cost)})")
                if self.stop:
                    return
                await self._send(client, question)
            self.barren = 0 if answer.reason is None else self.barren + 1
            bar.update()
            if self.cost is not None:
                bar.set_postfix_str(spell_cost(self.cost), refresh=False)
            if self.barren >= LOST_IN_A_ROW:
                said = f": {self._plain(answer.said)}" if answer.said else ""
                self._stop(f"{self.barren} questions in a row without an answer, the last one {answer.reason}{said}")

    async def _send(self, client: openai.AsyncOpenAI, question: Question) -> None:
        """Get one reply into the journal, or the question among the lost, or `stop` set."""
        messages = self._messages(question)
        expected = question.prompt_tokens + question.answer_tokens
        trial = 0
        while await self._turn(expected):
            body = self._body(question, messages)
            retry_after = None
            try:
                async with asyncio.timeout(self.limits.timeout):
                    raw = await client.chat.completions.with_raw_response.create(**body)
                reply = _received(raw.http_response.content, question)
                self.pace.correct(reply["prompt_tokens"] + reply["completion_tokens"] - expected)
                return self._keep(question, reply)
            except (TimeoutError, openai.APITimeoutError):
                trouble, said = "timeout", f"no reply in {self.limits.timeout:g} s"
            except openai.APIConnectionError as error:
                trouble, said = "connection_lost", repr(error.__cause__ or error)
            except openai.APIStatusError as error:
                said = error.message
                if parameter := self._unsupported(error, body):
                    progress.say(f"{self.server.place} takes no {parameter}: going on without it")
                    continue
                if (verdict := _verdict(error)) is None:
                    advice = ADVICE.get(error.status_code, "")
                    return self._stop(f"{self.server.place} says {error.status_code}: {self._plain(said)}{advice}")
                trouble, again = verdict
                if trouble == "rejected":  # for a reason not known, so that a later run may try again
                    self.lost[question.id] = Answer(reason=trouble, said=self._plain(said))
                    return None
                if not again:
                    return self._keep(question, {"content": self._plain(said), "reason": trouble} | NOTHING_SPENT)
                retry_after = _retry_after(error.response.headers)
            except pydantic.ValidationError:
                trouble, said = "malformed_reply", "a reply that is no chat completion"
            if (retry_after or 0) > LONGEST_RETRY_AFTER:
                return self._stop(f"{self.server.place} wants {retry_after:,.0f} s of rest: {self._plain(said)}")
            if trial >= self.limits.retries:
                self.lost[question.id] = Answer(reason=trouble, said=self._plain(said))
                return None
            self.troubles[trouble] += 1
            await self._back_off(trouble, trial, retry_after)
            trial += 1

    async def _turn(self, tokens: int) -> bool:
        """Wait for the next turn; False if the run stops meanwhile."""
        await self._rest(self.pace.reserve(tokens))
        while not self.stop and (wait := self.pace.held()):
            await self._rest(wait + random.uniform(0, 0.1))
        return not self.stop

    async def _back_off(self, trouble: str, trial: int, retry_after: float | None) -> None:
        """Wait before a question is sent again: as long as the server says, else twice as long each time, with jitter."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**trial) * random.uniform(0.75, 1.25)
        wait = wait if retry_after is None else retry_after * random.uniform(1, 1.1)
        if trouble == "rate_limited" or retry_after:
            self.pace.hold(wait)  # the limit is everybody's
        await self._rest(wait)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but wake when the run stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self.stopping.wait(), seconds)
            except TimeoutError:
                return

    def _stop(self, why: str) -> None:
        """Send nothing more; what is under way is waited for, since it is paid for."""
        self.stop = self.stop or why
        self.stopping.set()

    def _keep(self, question: Question, reply: dict) -> None:
        self.journal.append({"id": question.id, "digest": question.digest(self.server.model), **reply})

    def _messages(self, question: Question) -> list[Mapping[str, str]]:
        """The question's, and after a reply that was no answer, that reply and what is wrong with it."""
        messages = list(question.messages)
        replies = self.journal.replies.get((question.id, question.digest(self.server.model)))
        if replies and (said := replies[-1]["content"]):
            try:
                self.read(question, said)
            except ValueError as error:
                messages.append({"role": "assistant", "content": said[:2000]})
                messages.append({"role": "user", "content": AGAIN.format(problem=str(error)[:500])})
        return messages

    def _body(self, question: Question, messages: list[Mapping[str, str]]) -> dict[str, object]:
        limit = "max_tokens" if "max_completion_tokens" in self.unsupported else "max_completion_tokens"
        body = {"model": self.server.model, "messages": messages, limit: question.answer_tokens}
        if question.temperature is not None:
            body["temperature"] = question.temperature
        if question.schema and "response_format" not in self.unsupported:
            name = question.schema.get("title", "answer")
            schema = {"name": name, "schema": question.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _unsupported(self, error: openai.APIStatusError, body: Mapping[str, object]) -> str | None:
        """The parameter that the server does not know, if one can be done without."""
        if error.status_code not in (400, 422):
            return None
        for parameter, words in OPTIONAL.items():
            if parameter in body and re.search(words, f"{error.param} {error.message}"):
                self.unsupported.add(parameter)
                return parameter
        return None

    def _plain(self, text: str) -> str:
        """A server's message on one line, without the key that some quote."""
        hidden = text.replace(self.server.key, "(key)") if len(self.server.key) >= SHORTEST_KEY else text
        whole = hidden.encode(errors="replace").decode()  # JSON can spell what UTF-8 can't
        return " ".join(re.sub(r"^Error code: \d+ - ", "", whole).split())[:300]


def _received(content: bytes, question: Question) -> dict:
    """A completion's text, tokens and, if it is no answer, the reason; ValueError if it is no completion."""
    completion = _Completion.model_validate_json(content)
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.refusal or choice.message.content or ""
    reply = {"content": text}
    if choice.message.refusal or choice.finish_reason == "content_filter":
        reply["reason"] = "refused"
    elif choice.finish_reason == "length":
        reply["reason"] = "cut_off"
    if usage is None:
        tokens = {"prompt_tokens": question.prompt_tokens, "completion_tokens": estimate_tokens(text)}
        return reply | tokens | {"estimated": True}
    return reply | usage.model_dump()


def _verdict(error: openai.APIStatusError) -> tuple[str, bool] | None:
    """(reason, whether to send the question again) for a status; None if it would be the same for every question."""
    status, text = error.status_code, f"{error.code} {error.message}"
    if status == 429:
        return None if error.code == "insufficient_quota" else ("rate_limited", True)
    if status >= 500 or status in (408, 409, 425):
        return "server_error", True
    if status in (400, 403) and _FILTERED.search(text):
        return "refused", False
    if status not in (400, 413, 422) or error.param in ("model", "temperature") or error.code == "model_not_found":
        return None
    return ("too_long" if status == 413 or _TOO_LONG.search(text) else "rejected"), False


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait for, however it says so (a number or a date)."""
    value = headers.get("retry-after", "")
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _cents(cost: float | None) -> float | None:
    return None if cost is None else round(cost, 6)
