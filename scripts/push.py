"""Copy a stage's finished folder to object storage, its manifest last.

    python scripts/push.py --folder=checkpoints/demo/sft --to=s3://bucket/vikhr/checkpoints/demo/sft

Each object is compared with its file, by size and content. A copy that broke off has no manifest.json there; the same command
goes on with it. What an earlier output of a stage left at the address is replaced; anything else there is an error.

Reads:  a folder with manifest.json; credentials from the environment (lib/storage.py).
Writes: the files that the manifest lists, below the address, then the manifest.
"""

from pathlib import Path

from lib import cli, storage
from lib.errors import UserError


def main(*, folder: Path, to: storage.Place) -> None:
    """Copy a finished folder.

    Args:
        folder: what a stage has written.
        to: the address that gets its content (s3://bucket/folder).
    """
    if not storage.is_remote(to):
        raise UserError(f"--to={to}: an address like s3://bucket/folder; a path of this machine is `cp -r`'s business")
    done = storage.push(folder, to)
    print(
        f"push: {to} has {folder}: sent {done['sent']:,} files, {done['bytes'] / 1e6:,.1f} MB | there before {done['kept']:,}"
    )


if __name__ == "__main__":
    cli.run(main)
