"""A script's command line: `main`'s signature is the flags, the YAML keys and the help.

Fire runs a function first and complains about a mistyped flag afterwards, and does not enforce annotations. So Fire
only *collects* the flags here (as text); they are laid over the YAML, checked against the annotations, and only then
does `main` run. Later wins: the signature's default, the YAML, the flag.
"""

import difflib
import errno
import functools
import inspect
import os
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path

import fire
import pydantic
import yaml

from lib import failures, progress, storage
from lib.errors import UserError

CONFIG = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Path | None)


def run(main: Callable[..., None]) -> None:
    """Run `main` from the command line; a user's mistake becomes one line and exit status 2.

    One of several processes leaves its line to the launcher (lib/failures.py).
    """
    os.environ.setdefault("PAGER", "cat")  # Fire pages its help, even in a pipe
    signal.signal(signal.SIGTERM, _interrupt)
    name = Path(sys.argv[0]).name
    try:
        flags = _collect(main, sys.argv[1:], name)
        settings = resolve(main, flags)
        show(settings)
        main(**settings)
    except UserError as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(
            _complain("interrupted; nothing was left under a final name, the same command goes on", 130, "interrupted")
        )
    except Exception as error:
        if what := failures.lost(error):
            sys.exit(_complain(what, 1, "lost"))
        if not _is_full_disk(error):
            about = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
            if failures.leave(about, traceback=traceback.format_exc(), kind="bug"):
                sys.exit(1)
            raise
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        sys.exit(_complain(f"the disk is full{where}; free some space, the same command goes on", 28))


def resolve(main: Callable[..., None], flags: dict[str, str]) -> dict[str, object]:
    """The validated keyword arguments of `main` from a `config` file and flags given as text.

    Raises:
        UserError: an unknown key, a wrong type or a missing setting, named with the closest right one.
    """
    flags = dict(flags)
    config = flags.pop("config", None)
    parameters = inspect.signature(main).parameters
    hints = typing.get_type_hints(main, include_extras=True)
    values = {}
    origin = {}
    if config is not None:
        for key, value in load_yaml(Path(config)).items():
            _check_known(key, parameters, str(config))
            values[key], origin[key] = value, str(config)
    for key, text in flags.items():
        values[key] = _parse(text, hints[key])
        origin[key] = f"--{key}"
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in values]
    if missing:
        raise UserError(f"missing {', '.join('--' + n for n in missing)} (as a flag or in --config's YAML); see --help")
    return {
        name: _convert(values[name], hints[name], name, origin[name]) if name in values else parameter.default
        for name, parameter in parameters.items()
    }


def load_yaml(path: Path) -> dict[str, object]:
    """A YAML mapping, or {} for an empty file.

    Raises:
        UserError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected 'setting: value' lines, found {type(loaded).__name__}")
    return loaded


def closest(word: str, known: typing.Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean '{near[0]}'?" if near else ""


def show(settings: dict[str, object]) -> None:
    """Print the resolved settings, one `name: value` a line; of several processes the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    width = max(map(len, settings), default=0)
    for name, value in settings.items():
        told = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"  {name:<{width}}  {told}", file=sys.stderr)


def _collect(main: Callable[..., None], argv: list[str], name: str) -> dict[str, str]:
    """The flags as text, by Fire; unknown ones refused before Fire runs anything."""
    parameters = inspect.signature(main).parameters
    if "--help" in argv or "-h" in argv:
        fire.Fire(_documented(main), command=["--help"], name=name)
    for argument in argv:
        if argument.startswith("--") and argument != "--":
            key = argument[2:].split("=")[0].replace("-", "_")
            negated = key.removeprefix("no")
            if key not in parameters and negated in parameters and parameters[negated].annotation is bool:
                key = negated
            _check_known(key, [*parameters, "config"], f"--{key}")
    flags: dict[str, str] = {}

    def collect(**given: str | None) -> None:
        flags.update({key: value for key, value in given.items() if value is not None})

    collect.__signature__ = inspect.Signature([p.replace(default=None) for p in [*parameters.values(), CONFIG]])
    fire.decorators.SetParseFns(**dict.fromkeys([*parameters, "config"], str))(collect)
    fire.Fire(collect, command=argv, name=name)
    return flags


def _documented(main: Callable[..., None]) -> Callable[..., None]:
    """`main` with `--config` among its flags and the script's docstring above them, for the help."""

    @functools.wraps(main)
    def script() -> None: ...

    signature, plain = inspect.signature(main), typing.get_type_hints(main)
    parameters = [p.replace(annotation=plain[name]) for name, p in signature.parameters.items()]
    script.__signature__ = signature.replace(parameters=[*parameters, CONFIG])
    about = sys.modules[main.__module__].__doc__ or ""
    script.__doc__ = f"{about}\n\n{inspect.getdoc(main)}\n    config: a YAML file of these settings; flags win over it"
    return script


def _check_known(key: object, known: typing.Iterable[str], where: str) -> None:
    if key not in known:
        raise UserError(f"{where}: unknown setting '{key}'{closest(str(key), known)}")


def _takes_text(hint: object) -> bool:
    """Whether a flag's text is the value itself rather than YAML to read."""
    hint = _bare(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_takes_text(part) for part in typing.get_args(hint))
    return hint in (str, Path) or typing.get_origin(hint) is typing.Literal


def _parse(text: str, hint: object) -> object:
    """A flag's text as YAML reads it; a list may also be written `a,b,c`."""
    if _takes_text(hint):
        return text
    if typing.get_origin(hint) is list and not text.startswith("["):
        return [part for part in text.split(",") if part]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _convert(value: object, hint: object, name: str, origin: str) -> object:
    """`value` as the annotated type; pydantic's lax rules, but no bool for a number or text."""
    where = origin if origin.startswith("--") else f"{origin}: {name}"
    if isinstance(value, bool) and not _allows_bool(hint):
        raise UserError(f"{where}: expected {_spell(hint)}, got {value!r} (YAML reads yes, no, on and off as booleans)")
    _refuse_address(value, hint, where)
    try:
        return pydantic.TypeAdapter(hint).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"] if not str(part).startswith(("list", "dict", "function")))
        raise UserError(
            f"{where}{place}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
        ) from None


def _bare(hint: object) -> object:
    """An annotation without what `Annotated` adds to it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _refuse_address(value: object, hint: object, where: str) -> None:
    """Stop at an address where a path is expected: pathlib would take one of its slashes and say that there is no such file."""
    kinds = [hint, *typing.get_args(hint)]
    if Path not in kinds or str in kinds or typing.get_origin(hint) is typing.Annotated:
        return
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, str) and storage.is_address(part):
            raise UserError(f"{where}: this has to be a path of this machine, not {part}; copy it here first")


def _allows_bool(hint: object) -> bool:
    return hint in (bool, object, typing.Any) or any(_allows_bool(part) for part in typing.get_args(hint))


def _spell(hint: object) -> str:
    hint = _bare(hint)
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)


def _is_full_disk(error: Exception) -> bool:
    """Whether that is what a library means; safetensors and torch do not raise OSError."""
    full = (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return getattr(error, "errno", None) in full or "No space left on device" in text or "PytorchStreamWriter" in text


def _complain(message: str, status: int, kind: str = "told") -> int:
    progress.close()
    if not failures.leave(message, kind=kind):
        print(f"error: {message}", file=sys.stderr)
    return status


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
