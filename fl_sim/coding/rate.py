"""Which rate a channel allows: from a rehearsed bit error rate to a code's rate."""

TOLERATED = {
    0.9: 0.005,
    0.83: 0.012,
    0.75: 0.023,
    0.67: 0.040,
    0.5: 0.075,
    0.33: 0.115,
    0.25: 0.145,
    0.1: 0.20,
}
"""Share of wrong bits, each wrong by itself and no more doubtful than the others, at which nearly
every LDPC block of a rate is decoded. Soft values that tell doubtful bits make more tolerable."""

FACTOR = 1.3
OFFSET = 0.002


def choose_rate(bit_error_rate: float) -> float:
    """Return the highest LDPC rate that stands ``1.3 * bit_error_rate + 0.002`` wrong bits.

    The margin is for a defence that does somewhat more than the one rehearsed. Beyond what any
    rate stands, the lowest is returned; then only repetition and copies help.

    Args:
        bit_error_rate: as rehearsed, 0 to 0.5.
    """
    expected = FACTOR * bit_error_rate + OFFSET
    return max((r for r, most in TOLERATED.items() if expected <= most), default=min(TOLERATED))
