"""How often the flash errs: bit errors against the ECC, read retry, failed programs and erases, factory bad blocks.

Every draw is a hash of the seed and of what it is about (page, erases, reads so far): the same history gives the same
faults on any machine and in any order of calls, and nothing is stored.

Bit errors: a page's rate is ``base + per_erase x erases + per_read x reads + per_day x days``. A codeword is 1 KiB; the
draw is the worst of the page's codewords (Poisson), against ``ecc_bits``. Each retry step reads with better thresholds
and meets ``1 / RETRY_GAIN`` of the errors; the same draw is used again, so a retry never makes a page worse.
"""

from __future__ import annotations

import math

import numpy as np

from emucsd_wire.layout import F64, I64, State
from emucsd_wire.words import jit, jit_inline

CODEWORD_BITS = 8192
RETRY_GAIN = 2.0  # a model's choice: each step halves the errors
NS_PER_DAY = 86_400e9
NO_DRAW_EXCEEDS = 1 - 2.0**-53  # the largest uniform number that _uniform gives

READ_DRAW, READ_FAIL_DRAW, PROGRAM_DRAW, ERASE_DRAW, FACTORY_DRAW = 1, 2, 3, 4, 5


class Reliability(State):
    """Settings only; part of ``Nand``. ``reads_err`` is 0 when no read ever can."""

    reads_err: I64
    base: F64
    per_erase: F64
    per_read: F64
    per_day: F64
    safe_rate: F64  # below this bit error rate no draw exceeds the ECC
    codewords: I64  # of a page
    ecc_bits: I64
    max_retries: I64
    read_fail: F64  # probabilities
    program_fail: F64
    erase_fail: F64
    factory_bad: F64
    endurance: I64  # 0: any number of erases
    seed: I64


@jit
def _uniform(seed: int, what: int, place: int, wear: int, count: int) -> float:
    """In [0, 1), 53 bits: splitmix64's finaliser over the arguments, one after the other."""
    state = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
    for word in (np.uint64(what), np.uint64(place), np.uint64(wear), np.uint64(count)):
        state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return float(state >> np.uint64(11)) * 2.0**-53


@jit
def _errors_at_most(mean: float, bits: int) -> float:
    """Poisson: the probability of at most ``bits`` errors where ``mean`` are expected."""
    if mean > 700.0:  # exp(-mean) is no more a normal number; the ECC is far below anyway
        return 0.0
    term = math.exp(-mean)
    total = term
    for count in range(1, bits + 1):
        term *= mean / count
        total += term
    return total


@jit
def error_rate(rel: Reliability, erases: int, reads: int, age_ns: int) -> float:
    """Bit errors per bit of a page in a block with this history, programmed ``age_ns`` ago."""
    days = max(age_ns, 0) / NS_PER_DAY
    return rel.base + rel.per_erase * erases + rel.per_read * reads + rel.per_day * days


@jit
def _draw_read(rel: Reliability, ppn: int, erases: int, reads: int, age_ns: int) -> int:
    if rel.read_fail > 0.0 and _uniform(rel.seed, READ_FAIL_DRAW, ppn, erases, reads) < rel.read_fail:
        return -1
    rate = error_rate(rel, erases, reads, age_ns)
    if rate < rel.safe_rate:
        return 0
    draw = _uniform(rel.seed, READ_DRAW, ppn, erases, reads)
    mean = rate * CODEWORD_BITS
    for retry in range(rel.max_retries + 1):
        if draw < _errors_at_most(mean, rel.ecc_bits) ** rel.codewords:
            return retry
        mean /= RETRY_GAIN
    return -1


@jit_inline
def read_outcome(rel: Reliability, ppn: int, erases: int, reads: int, age_ns: int) -> int:
    """How many retry steps this read of a page takes; -1: the ECC can't recover it.

    :param reads: of the block since its erase, this one not counted: two reads with the same count draw the same
    """
    if rel.reads_err == 0:
        return 0
    return _draw_read(rel, ppn, erases, reads, age_ns)


@jit_inline
def program_fails(rel: Reliability, ppn: int, erases: int) -> int:
    """1: programming this page fails in this life of its block, and the block is to be retired."""
    if rel.program_fail <= 0.0:
        return 0
    return 1 if _uniform(rel.seed, PROGRAM_DRAW, ppn, erases, 0) < rel.program_fail else 0


@jit_inline
def erase_fails(rel: Reliability, block: int, erases: int) -> int:
    """1: erasing this global block once more after ``erases`` times fails, by chance or because it is worn out."""
    if rel.endurance > 0 and erases >= rel.endurance:
        return 1
    if rel.erase_fail <= 0.0:
        return 0
    return 1 if _uniform(rel.seed, ERASE_DRAW, block, erases, 0) < rel.erase_fail else 0


@jit_inline
def factory_bad(rel: Reliability, block: int) -> int:
    """1: this global block left the factory bad."""
    if rel.factory_bad <= 0.0:
        return 0
    return 1 if _uniform(rel.seed, FACTORY_DRAW, block, 0, 0) < rel.factory_bad else 0


@jit
def safe_rate(ecc_bits: int, codewords: int) -> float:
    """The bit error rate below which no draw can exceed the ECC: reads below it cost one comparison."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if _errors_at_most(middle * CODEWORD_BITS, ecc_bits) ** codewords > NO_DRAW_EXCEEDS:
            low = middle
        else:
            high = middle
    return low
