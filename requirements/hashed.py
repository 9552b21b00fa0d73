"""Print a requirements file with hashes, for `pip install --no-deps --require-hashes`.

    python3 requirements/hashed.py requirements/base.txt > hashed.txt

pip checks hashes of all that it installs or of nothing, and torch can't be among it: its wheel for CPUs comes from an index of
its own, or a disk, with other hashes than PyPI's, and PyPI's brings CUDA libraries that the other does without. So hashes lie
apart, in hashes.txt (`make hashes`), for every other package; what is printed is installed first, and then the file itself,
for which only torch and its libraries are left. What a source package is built with (setuptools) pip checks in no case.

Reads:  the file, those that it includes by -r, hashes.txt beside this script.
No imports from outside the standard library: it runs before anything is installed, an image's build included.
"""

import re
import sys
from pathlib import Path

WITHOUT = {"torch"}


def main() -> None:
    """Print the pins of the file that the command line names."""
    hashes = {}
    for block in re.findall(
        r"^\S.*(?:\n .*)*", (Path(__file__).parent / "hashes.txt").read_text(encoding="utf-8"), re.M
    ):
        if not block.startswith("#"):
            hashes[normal(block.partition(" ")[0])] = block
    wanted = pins(Path(sys.argv[1]))
    if missing := sorted(wanted - hashes.keys()):
        sys.exit(f"error: no hashes of {', '.join(missing)} in requirements/hashes.txt; run `make hashes`")
    print("\n".join(hashes[pin] for pin in sorted(wanted)))


def pins(file: Path) -> set[str]:
    """`name==version` of each package that a file names, and those that it includes."""
    found: set[str] = set()
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= pins(file.parent / line[3:].strip())
        elif re.match(r"\w", line) and normal(line).partition("==")[0] not in WITHOUT:
            found.add(normal(line))
    return found


def normal(pin: str) -> str:
    """A pin as two files that spell it differently both mean it."""
    name, _, version = pin.strip().partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"


if __name__ == "__main__":
    main()
