"""The order of training: by hand where it can be, else by what it promises, at any size and from any index."""

import collections
import math
import os
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import ROOT

from lib import mixing, packing, stage
from lib.errors import UserError

LENGTH = 4
SOURCES = {"wiki": ("ru", 30), "news": ("ru", 10), "law": ("ru", 1), "pages": ("en", 7), "help": ("en", 3)}


def write_pack(folder, sources=SOURCES, length=LENGTH):
    """Each row of a source is filled with its number, plus a thousand for each source before it."""
    with stage.output(folder, inputs={}, settings={}) as building:
        facts = {}
        for number, (name, (language, rows)) in enumerate(sources.items()):
            writer = packing.ShardWriter(building.folder / "train" / name, length, 10_000)
            for row in range(rows):
                writer.add([1000 * number + row] * length)
            facts[name] = {"folder": name, "language": language, "rows": rows}
        building.record(sources=facts, sequence_length=length, vocabulary=10_000)
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("mixing") / "pack")


def places(mixture, rows=None):
    return [mixture.place(index) for index in range(len(mixture))[slice(rows)]]


def test_places_are_dealt_out_by_hand():
    half = mixing.Fork(Fraction(1, 4), "en", mixing.Fork(Fraction(2, 3), "a", "b"))
    dealt = [mixing.leaf(half, index) for index in range(8)]
    assert dealt == [("b", 0), ("a", 0), ("a", 1), ("en", 0), ("b", 1), ("a", 2), ("a", 3), ("en", 1)]
    assert mixing.counts(half, 8) == {"en": 2, "a": 4, "b": 2}
    assert mixing.counts(half, 4) == {"en": 1, "a": 2, "b": 1}


def test_a_place_far_out_follows_from_the_counts():
    shares = {"a": 9, "b": 1, "c": 4, "d": 1, "e": 2}
    tree = mixing.Fork(Fraction("0.1"), "en", mixing.fork({name: Fraction(n) for name, n in shares.items()}))
    for index in (0, 7, 10**6 + 3, 10**12 + 1):
        before, after = mixing.counts(tree, index), mixing.counts(tree, index + 1)
        source, number = mixing.leaf(tree, index)
        assert number == before[source]
        assert after == before | {source: number + 1}


def test_every_stretch_has_nearly_the_shares(pack):
    mixture = mixing.Mixture(pack, weights={"wiki": 5, "news": 3, "law": 2}, replay_share=0.2, rows=5000)
    sources = [source for source, _ in places(mixture)]
    for begin, end in ((0, 100), (1234, 1434), (0, 5000)):
        counted = collections.Counter(sources[begin:end])
        for name, share in mixture.shares.items():
            assert abs(counted[name] - share * (end - begin)) <= 4, name
    assert mixture.shares == {"wiki": Fraction(2, 5), "news": Fraction(6, 25), "law": Fraction(4, 25),
                              "pages": Fraction(7, 50), "help": Fraction(3, 50)}  # fmt: skip


def test_an_epoch_by_size_reads_every_row_once_and_the_next_in_another_order(pack):
    mixture = mixing.Mixture(pack, epochs=2)
    assert (len(mixture), mixture.epoch_rows) == (82, 41)
    everything = sorted(
        (name, row) for name, (language, rows) in SOURCES.items() if language == "ru" for row in range(rows)
    )
    first, second = places(mixture)[:41], places(mixture)[41:]
    assert sorted(first) == sorted(second) == everything
    assert [row for name, row in first if name == "wiki"] != [row for name, row in second if name == "wiki"]
    assert [row for name, row in first if name == "wiki"] != list(range(30))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.75, 1 / 3])
def test_an_epoch_with_replay_still_has_every_target_row_once(pack, share):
    mixture = mixing.Mixture(pack, replay_share=share, epochs=3)
    for begin in (0, 41, 82):
        target = [place for place in places(mixture) if SOURCES[place[0]][0] == "ru"][begin : begin + 41]
        assert len(set(target)) == 41
    replayed = sum(SOURCES[source][0] == "en" for source, _ in places(mixture))
    assert len(mixture) - replayed == 3 * 41
    assert replayed == math.floor(len(mixture) * Fraction(str(share)))


def test_a_source_that_runs_out_starts_another_pass_in_another_order(pack):
    mixture = mixing.Mixture(pack, weights={"news": 1}, epochs=20)
    order = [row for _, row in places(mixture)]
    passes = [tuple(order[begin : begin + 10]) for begin in range(0, 200, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len(set(passes)) == 20


def test_the_order_depends_on_the_seed_alone(pack):
    first, again, other = (places(mixing.Mixture(pack, replay_share=0.2, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    alone = [row for _, row in places(mixing.Mixture(pack, weights={"wiki": 1}, seed=1))]
    among = [row for name, row in first if name == "wiki"]
    assert among == alone[: len(among)], "a source's order does not depend on the others"


def test_items(pack):
    mixture = mixing.Mixture(pack, replay_share=0.2)
    for index in (0, 4, len(mixture) - 1, -1):
        item, (source, row) = mixture[index], mixture.place(index % len(mixture))
        token = 1000 * list(SOURCES).index(source) + row
        assert item["input_ids"].tolist() == [token] * LENGTH
        assert mixture.tokens(index % len(mixture)).tolist() == [token] * LENGTH
        assert item["position_ids"].tolist() == [0, 1, 2, 3]
        assert item["labels"].tolist() == [-100, *[token] * 3]
        assert item["replay"] is (source in ("pages", "help"))
        assert item["row"] == index % len(mixture)
        assert mixture.name(item["row"]) == f"{source}:{row}"
    assert mixture[4]["replay"] is True
    with pytest.raises(IndexError):
        mixture[len(mixture)]
    assert len(list(mixture)) == len(mixture)


def test_batches_carry_replay_and_row_by_row(pack):
    mixture = mixing.Mixture(pack, replay_share=0.2)
    items = [mixture[index] for index in (3, 4)]
    for flatten, shape in ((False, (2, LENGTH)), (True, (1, 2 * LENGTH))):
        batch = packing.collate(items, flatten=flatten)
        assert batch["replay"].tolist() == [False, True]
        assert batch["row"].tolist() == [3, 4]
        assert batch["input_ids"].shape == batch["position_ids"].shape == batch["labels"].shape == shape


def test_what_was_read_is_reported_in_passes(pack):
    mixture = mixing.Mixture(pack, replay_share=0.5, rows=100)
    assert mixture.reading() == {
        "law": {"rows": 1, "passes": 1.0},
        "news": {"rows": 12, "passes": 1.2},
        "wiki": {"rows": 37, "passes": 1.2333},
        "help": {"rows": 15, "passes": 5.0},
        "pages": {"rows": 35, "passes": 5.0},
    }
    assert mixture.reading(101) == mixture.reading(), "Trainer counts a last step as whole"
    counted = collections.Counter(source for source, _ in places(mixture, 33))
    assert {name: facts["rows"] for name, facts in mixture.reading(33).items()} == {
        name: counted[name] for name in SOURCES
    }


def test_worker_processes_read_the_same_and_get_no_copy_of_the_files(pack):
    mixture = mixing.Mixture(pack, replay_share=0.2)
    assert len(pickle.dumps(mixture)) < 5000
    loader = torch.utils.data.DataLoader(
        mixture, batch_size=4, num_workers=1, multiprocessing_context="spawn", collate_fn=collate
    )
    read = torch.cat([batch["row"] for batch in loader])
    assert read.tolist() == list(range(len(mixture)))


def collate(items):
    return packing.collate(items, flatten=False)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_a_permutation_is_one(size):
    assert sorted(mixing.permuted(index, size, 7) for index in range(size)) == list(range(size))


def test_permutations_are_as_good_as_random():
    """Neighbours in the order of training are no neighbours in the source, and no row has a favoured place."""
    size = 10_000
    order = np.array([mixing.permuted(index, size, mixing.pass_key(0, "s", 0)) for index in range(size)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
    assert 0 <= (np.diff(order) == 1).sum() <= 8  # one is expected
    seen = np.zeros((7, 7))
    for number in range(2000):
        for index in range(7):
            seen[index, mixing.permuted(index, 7, mixing.pass_key(0, "s", number))] += 1
    assert np.abs(seen - 2000 / 7).max() < 85  # 15.6 is the standard deviation


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"wikki": 1}}, "weights: unknown source 'wikki', did you mean 'wiki'"),
        ({"weights": {"wiki": 0}}, "weights: wiki: 0 is not above 0; leave a source out by not naming it"),
        ({"weights": {"wiki": -1.5}}, "weights: wiki: -1.5 is not above 0"),
        ({"weights": {"wiki": math.inf}}, "weights: wiki: inf is not above 0"),
        ({"weights": {"wiki": math.nan}}, "weights: wiki: nan is not above 0"),
        ({"weights": {"wiki": 1, "pages": 1}}, "pages is of the replay language .* replay_share 0.0 reads nothing"),
        ({"weights": {"pages": 1}, "replay_share": 0.5}, "all are of sources of the replay language .*law, news, wiki"),
        ({"replay_share": 1.0}, "replay_share: 1.0 is not a share from 0 to below 1"),
        ({"replay_share": math.nan}, "replay_share: nan is not a share"),
        ({"epochs": 0.01}, "epochs 0.01: less than one row of the epoch's 41"),
        ({"rows": 0}, "less than one row"),
    ],
)
def test_contradictions_are_refused(pack, settings, message):
    with pytest.raises(UserError, match=message):
        mixing.Mixture(pack, **settings)


def test_the_target_language_is_the_one_read_most(tmp_path):
    pack = write_pack(tmp_path / "pack", {"zbruch": ("uk", 3), "news": ("ru", 9), "pages": ("en", 50)})
    assert mixing.Mixture(pack, replay_share=0.9).target_language == "ru"
    assert mixing.Mixture(pack, weights={"zbruch": 2, "news": 1}).target_language == "uk"


def test_missing_languages_are_refused(tmp_path):
    one = write_pack(tmp_path / "ru", {"wiki": ("ru", 3)})
    with pytest.raises(
        UserError, match=r"no packed source is of the replay language \(en\), for a replay_share of 0.1"
    ):
        mixing.Mixture(one, replay_share=0.1)
    other = write_pack(tmp_path / "en", {"pages": ("en", 3)})
    with pytest.raises(UserError, match="no packed source is of a target language"):
        mixing.Mixture(other)


def test_a_shard_that_is_cut_or_missing_is_refused(tmp_path):
    shards = write_pack(tmp_path / "pack") / "train" / "wiki"
    whole = (shards / "tokens-00000.bin").read_bytes()
    for cut, message in ((1, "ends within a row of 4"), (2 * LENGTH, "do not match")):
        (shards / "tokens-00000.bin").write_bytes(whole[:-cut])
        with pytest.raises(UserError, match=message):
            mixing.Mixture(tmp_path / "pack")
    for shard in shards.iterdir():
        shard.unlink()
    with pytest.raises(UserError, match="source 'wiki' has 0 rows, not 30"):
        mixing.Mixture(tmp_path / "pack")


MEMORY = """
import pathlib, sys
sys.path.insert(0, "scripts")
from lib import mixing
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = anonymous()
mixture = mixing.Mixture(pathlib.Path(sys.argv[1]), replay_share=0.2, epochs=2)
for index in range(len(mixture)):
    mixture[index]
print(anonymous() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' account of the memory")  # noqa: PTH110
def test_reading_takes_no_memory_of_its_own(tmp_path):
    """Twice through 16 MB of rows: the pages of the files come and go, what the process has for itself stays."""
    pack = write_pack(tmp_path / "pack", {"wiki": ("ru", 3000), "pages": ("en", 1000)}, length=1024)
    done = subprocess.run([sys.executable, "-c", MEMORY, pack], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8000  # kB
