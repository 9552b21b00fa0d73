"""Loops compiled by numba for lib/minhash.py and lib/duplicates.py; the GIL is released in them.

Arrays are C-contiguous; their shapes are those of the callers' docstrings. uint64 and int64 do not mix in numba (their sum is a
float), hence the many casts.
"""

import functools

import numba
import numpy as np

# What the folding table says of a code point that does not simply become another one.
SPACE, DROPPED, STRESS, HARD = 32, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF
EXPANDS = 0x80000000  # or'ed with 32 times the place in the table of expansions and their length

SKETCH_BITS = 256
EMPTY = np.uint32(0xFFFFFFFF)
# All pairs of a bucket up to this size; in a larger one each member with the first and with its neighbours.
FULL_BUCKET = 200

BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial over code points
WORD_BASE = np.uint64(0xD6E8FEB86659FD93)  # of the one over words

kernel = functools.partial(numba.njit, nogil=True, cache=True)


@kernel(inline="always")
def code_point(data, place):
    """(code point, bytes it takes) of UTF-8."""
    first = np.uint32(data[place])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & np.uint32(0x1F)) << np.uint32(6) | np.uint32(data[place + 1]) & np.uint32(0x3F), 2
    if first < 0xF0:
        middle = (np.uint32(data[place + 1]) & np.uint32(0x3F)) << np.uint32(6)
        return (first & np.uint32(0xF)) << np.uint32(12) | middle | np.uint32(data[place + 2]) & np.uint32(0x3F), 3
    upper = (first & np.uint32(7)) << np.uint32(18) | (np.uint32(data[place + 1]) & np.uint32(0x3F)) << np.uint32(12)
    middle = (np.uint32(data[place + 2]) & np.uint32(0x3F)) << np.uint32(6)
    return upper | middle | np.uint32(data[place + 3]) & np.uint32(0x3F), 4


@kernel(inline="always")
def ones(word):
    """Bits of a uint64 that are set."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel()
def blank_text(data, start, end, table):
    place = start
    while place < end:
        code, width = code_point(data, place)
        if table[code] != SPACE:
            return False
        place += width
    return True


@kernel()
def split(data, text_starts, text_ends, table, document, paragraph, starts, ends):
    """Fill the last four, one for each paragraph; how many there are."""
    found = 0
    for row in range(len(text_starts)):
        start, end, number = text_starts[row], text_ends[row], 0
        while start < end:
            place = start
            while place < end and data[place] != 10:
                place += 1
            if place > start and not blank_text(data, start, place, table):
                document[found], paragraph[found], starts[found], ends[found] = row, number, start, place
                found += 1
                number += 1
            start = place + 1
    return found


@kernel()
def copy(data, starts, ends, found):
    place = 0
    for row in range(len(starts)):
        size = ends[row] - starts[row]
        found[place : place + size] = data[starts[row] : ends[row]]
        place += size


@kernel()
def hard(data, starts, ends, table):
    """Which paragraphs (bool [n]) have a normal form that takes more than the table."""
    found = np.zeros(len(starts), dtype=np.bool_)
    for row in range(len(starts)):
        previous = np.uint32(0)
        place = starts[row]
        while place < ends[row]:
            code, width = code_point(data, place)
            place += width
            folded = table[code]
            if folded == HARD or (folded == STRESS and not takes_stress(previous)):
                found[row] = True
                break
            if folded != SPACE and folded != DROPPED and folded != STRESS:
                previous = folded
    return found


@kernel(inline="always")
def takes_stress(letter):
    """Whether a stress mark after this letter of the normal form is dropped: Cyrillic, except what composes with one."""
    return 0x400 <= letter < 0x500 and letter != 0x433 and letter != 0x43A


@kernel()
def room_for(starts, ends):
    """Code points for which to make room: a byte of UTF-8 becomes two at most in normal form."""
    longest = 0
    for row in range(len(starts)):
        longest = max(longest, ends[row] - starts[row])
    return 2 * longest + 1


@kernel()
def fold(data, start, end, table, expansions, codes):
    """The paragraph's normal form as code points in `codes`; their number, or -1 if it takes more than the table."""
    count = 0
    gap = False
    previous = np.uint32(0)
    place = start
    while place < end:
        code, width = code_point(data, place)
        place += width
        folded = table[code]
        if folded == SPACE:
            gap = True
            continue
        if folded >= EXPANDS:
            if folded == DROPPED:
                continue
            if folded == HARD:
                return -1
            if folded == STRESS:
                if not takes_stress(previous):
                    return -1
                continue
        if gap:
            if count:
                codes[count] = SPACE
                count += 1
            gap = False
        if folded >= EXPANDS:
            first = (folded & np.uint32(0x7FFFFFFF)) >> np.uint32(5)
            for offset in range(folded & np.uint32(31)):
                codes[count] = expansions[first + offset]
                count += 1
        else:
            codes[count] = folded
            count += 1
        previous = codes[count - 1]
    return count


@kernel(inline="always")
def mix(value):
    """MurmurHash3's 64-bit finaliser."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@kernel(inline="always")
def character_shingles(codes, count, size, hashes):
    """Hashes of the n-grams of `count` code points; the number of them (a shorter text is its own only one)."""
    leaving = np.uint64(1)
    for _ in range(size):
        leaving *= BASE
    value = np.uint64(0)
    found = 0
    for place in range(count):
        value = value * BASE + np.uint64(codes[place]) + np.uint64(1)
        if place >= size:
            value -= leaving * (np.uint64(codes[place - size]) + np.uint64(1))
        if place >= size - 1:
            hashes[found] = mix(value)
            found += 1
    if not found:
        hashes[0] = mix(value)
        found = 1
    return found


@kernel(inline="always")
def word_shingles(codes, count, size, hashes):
    """The same of words, the runs between spaces."""
    words = 0
    value = np.uint64(0)
    for place in range(count + 1):
        if place == count or codes[place] == SPACE:
            hashes[words] = mix(value)
            words += 1
            value = np.uint64(0)
        else:
            value = value * BASE + np.uint64(codes[place]) + np.uint64(1)
    for first in range(max(1, words - size + 1)):
        value = np.uint64(0)
        for offset in range(min(size, words)):
            value = value * WORD_BASE + hashes[first + offset]
        hashes[first] = mix(value)
    return max(1, words - size + 1)


@kernel(inline="always")
def shingles(codes, count, size, words, hashes):
    if words:
        return word_shingles(codes, count, size, hashes)
    return character_shingles(codes, count, size, hashes)


@kernel()
def fill(hashes, count, factors, addends, registers):
    """Throw every hash at two registers a round, until none is empty; the least value of the earliest round stays."""
    bits = 0
    while 1 << bits < len(registers):
        bits += 1
    upper, lower = np.uint64(64 - bits), np.uint64(32 - bits)
    half, low, value_mask = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64((1 << min(24, 32 - bits)) - 1)
    registers[:] = EMPTY
    for number in range(len(factors)):
        tag = np.uint32(number) << np.uint32(24)
        factor, addend = factors[number], addends[number]
        for place in range(count):
            thrown = hashes[place] * factor + addend
            thrown ^= thrown >> half
            target = thrown >> upper
            value = tag | np.uint32((thrown >> half) & value_mask)
            registers[target] = min(registers[target], value)
            target = (thrown & low) >> lower
            value = tag | np.uint32(thrown & value_mask)
            registers[target] = min(registers[target], value)
        empty = 0
        for register in registers:
            empty += register == EMPTY
        if not empty:
            return
    tag = np.uint32(len(factors)) << np.uint32(24)  # a text of a few shingles: plain MinHash for what is left
    for target in range(len(registers)):
        if registers[target] == EMPTY:
            for place in range(count):
                thrown = mix(hashes[place] + np.uint64(target) * WORD_BASE)
                registers[target] = min(registers[target], tag | np.uint32(thrown >> np.uint64(40)))


@kernel()
def sign(
    data,
    starts,
    ends,
    table,
    expansions,
    min_chars,
    size,
    words,
    rows,
    factors,
    addends,
    register_count,
    sketch_bits,
    lengths,
    keys,
    sketch,
    digest,
):
    """Fill `lengths` (-1: not to be normalised by the table alone), `keys`, `sketch` and `digest`."""
    registers = np.empty(register_count, dtype=np.uint32)
    codes = np.empty(room_for(starts, ends), dtype=np.uint32)
    hashes = np.empty(len(codes), dtype=np.uint64)
    sketch_mask = np.uint64((1 << sketch_bits) - 1)
    for row in range(len(starts)):
        count = fold(data, starts[row], ends[row], table, expansions, codes)
        lengths[row] = count
        if count < max(min_chars, 1):
            continue
        first, second = np.uint64(count), np.uint64(count)
        for place in range(0, count, 3):  # three code points of 21 bits at a time
            word = np.uint64(codes[place])
            if place + 1 < count:
                word |= np.uint64(codes[place + 1]) << np.uint64(21)
            if place + 2 < count:
                word |= np.uint64(codes[place + 2]) << np.uint64(42)
            first = (first ^ word) * BASE
            first ^= first >> np.uint64(32)
            second = (second + word) * WORD_BASE
            second ^= second >> np.uint64(29)
        digest[row, 0], digest[row, 1] = first, second
        found = shingles(codes, count, size, words, hashes)
        fill(hashes, found, factors, addends, registers)
        for band in range(keys.shape[0]):
            key = np.uint64(band + 1)
            for register in range(band * rows, (band + 1) * rows):
                key = (key ^ np.uint64(registers[register])) * BASE
                key ^= key >> np.uint64(29)
            keys[band, row] = key
        for word in range(SKETCH_BITS // 64):
            packed = np.uint64(0)
            for register in range(64 // sketch_bits):
                taken = np.uint64(registers[word * (64 // sketch_bits) + register]) & sketch_mask
                packed |= taken << np.uint64(register * sketch_bits)
            sketch[row, word] = packed


@kernel()
def jaccard(left, left_count, right, right_count, slots, stamps, epoch):
    """Jaccard similarity of two sets given as hashes with repetitions, through a table of which `stamps` < `epoch` is empty.

    Leaves stamps up to `epoch` + 2.
    """
    mask = np.uint64(len(slots) - 1)
    ours = shared = theirs = 0
    for place in range(left_count):
        slot = left[place] & mask
        while stamps[slot] >= epoch and slots[slot] != left[place]:
            slot = (slot + np.uint64(1)) & mask
        if stamps[slot] < epoch:
            slots[slot], stamps[slot] = left[place], epoch
            ours += 1
    for place in range(right_count):
        slot = right[place] & mask
        while stamps[slot] >= epoch and slots[slot] != right[place]:
            slot = (slot + np.uint64(1)) & mask
        if stamps[slot] < epoch:
            slots[slot], stamps[slot] = right[place], epoch + 2
            theirs += 1
        elif stamps[slot] == epoch:
            stamps[slot] = epoch + 1
            shared += 1
    return shared / (ours + theirs)


@kernel()
def similarities(data, starts, ends, normal, table, identity, expansions, size, words, left, right, found):
    """Fill `found`, the exact similarities of the pairs of paragraphs; quickest where `left` is sorted."""
    room = max(room_for(starts[left], ends[left]), room_for(starts[right], ends[right]))
    codes = np.empty(room, dtype=np.uint32)
    ours, theirs = np.empty(room, dtype=np.uint64), np.empty(room, dtype=np.uint64)
    slots, stamps = np.empty(1024, dtype=np.uint64), np.zeros(1024, dtype=np.int64)
    epoch, done, our_count = 1, -1, 0
    for pair in range(len(left)):
        if left[pair] != done:
            done = left[pair]
            rules = identity if normal[done] else table
            count = fold(data, starts[done], ends[done], rules, expansions, codes)
            our_count = shingles(codes, count, size, words, ours)
        other = right[pair]
        rules = identity if normal[other] else table
        count = fold(data, starts[other], ends[other], rules, expansions, codes)
        their_count = shingles(codes, count, size, words, theirs)
        while len(slots) < 2 * (our_count + their_count):
            slots, stamps = np.empty(2 * len(slots), np.uint64), np.zeros(2 * len(slots), np.int64)
        found[pair] = jaccard(ours, our_count, theirs, their_count, slots, stamps, epoch)
        epoch += 3


@kernel()
def choose(
    data,
    starts,
    ends,
    normal,
    table,
    identity,
    expansions,
    size,
    words,
    threshold,
    order,
    rank,
    first,
    neighbours,
    similarity,
    instead,
    alike,
):
    """Fill `instead` and `alike`; the number of spared texts."""
    spared = 0
    one, other, measured = np.empty(1, np.int64), np.empty(1, np.int64), np.empty(1, np.float32)
    for node in order:
        best, best_alike, earlier = -1, np.float32(0), False
        for place in range(first[node], first[node + 1]):
            near = neighbours[place]
            if rank[near] < rank[node]:
                earlier = True
                if instead[near] == -1 and (best == -1 or rank[near] < rank[best]):
                    best, best_alike = near, similarity[place]
        if best == -1 and earlier:
            seen = -1
            for place in range(first[node], first[node + 1]):
                near = neighbours[place]
                if rank[near] < rank[node] and instead[near] != seen:
                    seen = instead[near]
                    one[0], other[0] = node, seen
                    similarities(
                        data, starts, ends, normal, table, identity, expansions, size, words, one, other, measured
                    )
                    if measured[0] >= threshold and (best == -1 or rank[seen] < rank[best]):
                        best, best_alike = seen, measured[0]
        if best != -1:
            instead[node], alike[node] = best, best_alike
        elif earlier:
            spared += 1
    return spared


@kernel()
def adjacency(left, right, similarity, first, neighbours, alike):
    """Fill `first`, `neighbours` and `alike` (see `choose`) from pairs."""
    first[:] = 0
    for pair in range(len(left)):
        first[left[pair] + 1] += 1
        first[right[pair] + 1] += 1
    for node in range(1, len(first)):
        first[node] += first[node - 1]
    place = first[:-1].copy()
    for pair in range(len(left)):
        one, other = left[pair], right[pair]
        neighbours[place[one]], alike[place[one]] = other, similarity[pair]
        neighbours[place[other]], alike[place[other]] = one, similarity[pair]
        place[one] += 1
        place[other] += 1


@kernel()
def root(parents, member):
    while parents[member] != member:
        parents[member] = parents[parents[member]]
        member = parents[member]
    return member


@kernel()
def join(parents, left, right):
    for pair in range(len(left)):
        one, other = root(parents, left[pair]), root(parents, right[pair])
        parents[max(one, other)] = min(one, other)
    for member in range(len(parents)):
        parents[member] = root(parents, member)


@kernel(inline="always")
def is_set(bits, number):
    return len(bits) == 0 or (bits[number >> 3] >> np.uint8(number & 7)) & np.uint8(1)


@kernel()
def count_ranges(keys, alive, first, sizes):
    for row in range(len(keys)):
        if is_set(alive, first + row):
            sizes[keys[row] >> np.uint64(56)] += 1


@kernel()
def select_keys(keys, alive, first, low, high, chosen, numbers, filled):
    """Append the keys of ranges from `low` to `high` and their numbers; how many there are then."""
    for row in range(len(keys)):
        if low <= np.int64(keys[row] >> np.uint64(56)) < high and is_set(alive, first + row):
            chosen[filled], numbers[filled] = keys[row], first + row
            filled += 1
    return filled


@kernel()
def select_digests(digests, first, low, high, upper, lower, numbers, filled):
    for row in range(len(digests)):
        if low <= np.int64(digests[row, 0] >> np.uint64(56)) < high:
            upper[filled], lower[filled], numbers[filled] = digests[row, 0], digests[row, 1], first + row
            filled += 1
    return filled


@kernel()
def repeats(upper, lower, numbers, ranks):
    """(numbers that repeat another of the same digest, which one), given sorted `upper` halves."""
    count = 0
    for row in range(1, len(upper)):
        count += upper[row] == upper[row - 1]
    repeats, firsts = np.empty(count, np.int64), np.empty(count, np.int64)
    found = start = 0
    for end in range(1, len(upper) + 1):
        if end == len(upper) or upper[end] != upper[start]:
            best = numbers[start]
            for row in range(start, end):
                number = numbers[row]
                if lower[row] == lower[start] and (ranks[number], number) < (ranks[best], best):
                    best = number
            for row in range(start, end):
                if lower[row] == lower[start] and numbers[row] != best:
                    repeats[found], firsts[found] = numbers[row], best
                    found += 1
            start = end
    return repeats[:found], firsts[:found]


@kernel()
def scatter(keys, numbers, bits, ends, scattered_keys, scattered_numbers):
    """Put keys into 2 ** `bits` parts by their hash, in order within each; `ends` holds where the parts end."""
    shift = np.uint64(64 - bits)
    ends[:] = 0
    for row in range(len(keys)):
        ends[(keys[row] * BASE) >> shift] += 1
    total = 0
    for part in range(len(ends)):
        total += ends[part]
        ends[part] = total - ends[part]
    for row in range(len(keys)):
        part = (keys[row] * BASE) >> shift
        scattered_keys[ends[part]], scattered_numbers[ends[part]] = keys[row], numbers[row]
        ends[part] += 1


@kernel()
def pair_up(keys, numbers, ends, count, codes):
    """Codes of pairs of equal keys within each part, earlier number first; `codes` or what it had to grow into, how many.

    Of a bucket, FULL_BUCKET members are paired with each other; later ones with the first and the one before.
    """
    found = start = 0
    slots = np.empty(16, np.int64)  # the latest member of each key in this part
    # Of each member: the one before it with the same key, its place among these, the first of them.
    earlier, place, oldest = np.empty(16, np.int64), np.empty(16, np.int64), np.empty(16, np.int64)
    for end in ends:
        size = end - start
        if 2 * size > len(slots):
            while 2 * size > len(slots):
                slots = np.empty(2 * len(slots), np.int64)
            earlier, place = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
            oldest = np.empty(len(slots), np.int64)
        width = 1
        while width < 2 * size:
            width *= 2
        slots[:width] = -1
        for member in range(size):
            key = keys[start + member]
            slot = np.int64((key * WORD_BASE) >> np.uint64(40)) & (width - 1)
            while slots[slot] != -1 and keys[start + slots[slot]] != key:
                slot = (slot + 1) & (width - 1)
            before = slots[slot]
            slots[slot], earlier[member] = member, before
            if before == -1:
                place[member], oldest[member] = 0, member
                continue
            place[member], oldest[member] = place[before] + 1, oldest[before]
            if found + FULL_BUCKET > len(codes):
                grown = np.empty(2 * len(codes) + FULL_BUCKET, np.int64)
                grown[:found] = codes[:found]
                codes = grown
            sparse = place[member] >= FULL_BUCKET
            while before != -1:
                codes[found] = numbers[start + before] * count + numbers[start + member]
                found += 1
                if sparse and before != oldest[member]:  # noqa: SIM108
                    before = oldest[member]
                else:
                    before = earlier[before]
        start = end
    return codes, found


@kernel()
def agreement(sketches, left, right):
    """int64 [pairs]: equal bits."""
    agreed = np.full(len(left), 64 * sketches.shape[1], dtype=np.int64)
    for pair in range(len(left)):
        for word in range(sketches.shape[1]):
            agreed[pair] -= ones(sketches[left[pair], word] ^ sketches[right[pair], word])
    return agreed
