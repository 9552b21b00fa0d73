"""Train a reward model on preferences: which of two answers to a prompt is the better one.

    python scripts/reward.py --preferences=data/builtin/demo/preferences.jsonl --encoder=checkpoints/models/e5-small \
        --out=checkpoints/demo/reward

Some prompts are held out with all their pairs; on these it is judged, language by language, beside "the longer answer wins", which
is right more often than one would like. instruct.py scores and filters instructions by it.

Reads:  pairs (`prompt`, `chosen`, `rejected`: texts or lists of messages; `language`) in Parquet or JSON Lines; an encoder
        that transformers classifies texts with (multilingual-e5, XLM-R, BERT); configs/languages/<code>.yaml.
Writes: a Hugging Face model folder with one label, the reward, and reward.json: settings and evaluation.
        held_out.jsonl: the pairs it was judged on, with their rewards.
"""

import json
from collections import Counter
from pathlib import Path

from lib import cli, documents, languages, machine, pairwise, progress, rewards, stage
from lib import preferences as pairs_of
from lib.errors import UserError

CALIBRATION_SHARE = 0.1  # of the training prompts, to fit the temperature on


def main(
    *,
    preferences: list[Path],
    encoder: Path,
    out: Path,
    held_out: Path | None = None,
    held_out_share: float = 0.2,
    layers: int | None = None,
    max_tokens: int = 512,
    epochs: int = 2,
    learning_rate: float = 5e-5,
    debias_length: bool = False,
    spoken: list[str] = ["ru", "en"],  # noqa: B006
    on_error: documents.OnError = "stop",
    seed: int = 0,
) -> None:
    """Train and judge a reward model.

    Args:
        preferences: files or folders of pairs.
        encoder: folder of the encoder to start from.
        out: the folder to write.
        held_out: pairs to judge by; training leaves their prompts out. If not given, held_out_share of the prompts are.
        held_out_share: see there; above 0.
        layers: take only so many of the encoder's layers; all if not given.
        max_tokens: read of prompt and answer together; of a longer answer beginning and end.
        epochs: over the training pairs.
        learning_rate: peak rate.
        debias_length: learn only what the answers' lengths do not explain.
        spoken: languages that may be meant where a pair names none: the likelier one is.
        on_error: 'stop' at broken input or a record that is no pair, or 'skip' and count it.
        seed: of everything random.
    """
    settings = dict(locals())
    if not 0 < held_out_share < 1:
        raise UserError(f"--held_out_share={held_out_share}: more than 0, less than 1")
    inputs = {"encoder": encoder, "held_out": held_out, **{f"preferences[{n}]": p for n, p in enumerate(preferences)}}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        skipped: Counter[str] = Counter()
        training, judged = _pairs(preferences, held_out, held_out_share, spoken, on_error, skipped, seed)
        training, calibration = pairs_of.divide(training, CALIBRATION_SHARE, seed + 1)
        if min(map(len, (training, calibration, judged))) < 2:
            raise UserError(
                f"{len(training)} pairs to train on, {len(calibration)} to calibrate, {len(judged)} to judge by: too few prompts"
            )
        model, tokenizer = rewards.load(encoder, layers)
        max_tokens = min(max_tokens, model.config.max_position_embeddings)
        model = model.to(machine.device())
        bonus = pairs_of.length_bonus(training) if debias_length else 0.0
        losses = rewards.train(
            model,
            tokenizer,
            training,
            epochs=epochs,
            learning_rate=learning_rate,
            max_tokens=max_tokens,
            length_bonus=bonus,
            seed=seed,
        )
        chosen, rejected = _both(model, tokenizer, calibration, max_tokens)
        temperature = pairwise.temperature(chosen - rejected)
        rewards.cool(model, temperature)
        chosen, rejected = _both(model, tokenizer, judged, max_tokens)
        facts = {
            "max_tokens": max_tokens,
            "length_bonus": round(bonus, 4),
            "temperature": round(temperature, 4),
            "losses": losses,
            "pairs": {"training": len(training), "calibration": len(calibration), "held_out": len(judged), **skipped},
            "evaluation": pairwise.evaluate(judged, chosen, rejected, seed),
        }
        rewards.save(model, tokenizer, building.folder, facts)
        with (building.folder / "held_out.jsonl").open("w", encoding="utf-8") as lines:
            for pair, one, other in zip(judged, chosen.tolist(), rejected.tolist(), strict=True):
                record = pair._asdict() | {"reward_chosen": round(one, 4), "reward_rejected": round(other, 4)}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        building.record(**facts, peak_memory_mb=stage.peak_memory_mb())
    for name, found in facts["evaluation"].items():
        print(
            f"{name}: {_told(found['accuracy'])} of {found['pairs']} held-out pairs right, the longer answer {_told(found['longer_wins'])}"
        )


def _pairs(
    preferences: list[Path],
    held_out: Path | None,
    share: float,
    spoken: list[str],
    on_error: documents.OnError,
    skipped: Counter[str],
    seed: int,
) -> tuple[list[pairs_of.Pair], list[pairs_of.Pair]]:
    """(to train on, to judge by)."""

    def tell(prompt: str) -> str:
        return max(spoken, key=lambda code: languages.probability(prompt, code))

    def read(path: Path) -> list[pairs_of.Pair]:
        found = pairs_of.read(path, tell=tell, on_error=on_error, skipped=skipped)
        return list(progress.bar(found, title=f"read {path.name}", unit="pairs"))

    pairs = [pair for path in preferences for pair in read(path)]
    if held_out is None:
        return pairs_of.divide(pairs, share, seed)
    judged = read(held_out)
    kept = pairs_of.without_prompts_of(pairs, judged)
    if len(kept) < len(pairs):
        skipped["prompt_held_out"] = len(pairs) - len(kept)
    return kept, judged


def _both(model: object, tokenizer: object, pairs: list[pairs_of.Pair], max_tokens: int) -> tuple:
    """Rewards of the chosen and of the rejected answers."""
    asked = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    found = rewards.score(model, tokenizer, asked, max_tokens)
    return found[::2], found[1::2]


def _told(interval: dict[str, float]) -> str:
    return f"{interval['value']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"


if __name__ == "__main__":
    cli.run(main)
