"""Parameters of CKKS, and how secure they are by the homomorphic encryption standard's table.

Cheon, Kim, Kim and Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers", ASIACRYPT
2017. The table is table 1 of Albrecht et al., "Homomorphic Encryption Security Standard",
HomomorphicEncryption.org, November 2018: ternary secrets, classical attacks. The paper on reverse
homomorphic encryption (Allison et al. 2025, arXiv 2505.14323) names no parameters; those here are
this project's.
"""

from dataclasses import dataclass

from fl_sim.errors import FlSimError

SECURITY = 128
"""The least security in bits that anything is sealed with."""

STANDARD: dict[int, dict[int, int]] = {
    1024: {128: 27, 192: 19, 256: 14},
    2048: {128: 54, 192: 37, 256: 29},
    4096: {128: 109, 192: 75, 256: 58},
    8192: {128: 218, 192: 152, 256: 118},
    16384: {128: 438, 192: 305, 256: 237},
    32768: {128: 881, 192: 611, 256: 476},
}
"""Most bits of the whole modulus, by degree and by security in bits."""

_PRIMES = (20, 60)


@dataclass(frozen=True)
class CkksParameters:
    """What encrypted weights and answers are made with.

    Args:
        degree: of the ring, a power of two; a ciphertext has half as many slots.
        moduli: bits of each prime of the modulus. Every multiplication of a form uses one up, from
            the last but one; the very last is for key switching.
        scale_bits: numbers are multiplied by 2 to this power and rounded. What the first prime has
            more than this bounds the values that can be decrypted.
    """

    degree: int
    moduli: tuple[int, ...]
    scale_bits: int

    @property
    def slots(self) -> int:
        """Numbers in a ciphertext."""
        return self.degree // 2

    @property
    def largest(self) -> float:
        """Size that a decrypted number must stay below, or it wraps around."""
        return 2.0 ** (self.moduli[0] - self.scale_bits - 1)


ONE_LAYER = CkksParameters(8192, (60, 40, 60), 40)
"""For one multiplication: 160 bits."""

TWO_LAYERS = CkksParameters(8192, (48, 38, 38, 38, 56), 38)
"""For a layer, a square and a layer: 218 bits."""


def security_bits(parameters: CkksParameters) -> int:
    """Return the security of parameters by the standard's table: 256, 192, 128, or 0 for less.

    Raises:
        FlSimError: if the table has no such degree.
    """
    allowed = STANDARD.get(parameters.degree)
    if allowed is None:
        raise FlSimError(
            f"The degree {parameters.degree} is not in the homomorphic encryption standard's "
            f"table; choose one of {', '.join(map(str, STANDARD))}."
        )
    bits = sum(parameters.moduli)
    return max((level for level, most in allowed.items() if bits <= most), default=0)


def require_secure(parameters: CkksParameters, multiplications: int) -> int:
    """Refuse parameters that are weak, or too short for what is computed.

    Args:
        parameters: to be sealed with.
        multiplications: one after the other, 1 or more.

    Returns:
        Their security in bits.

    Raises:
        FlSimError: naming the key.
    """
    low, high = _PRIMES
    if not all(low <= bits <= high for bits in parameters.moduli):
        raise FlSimError(f"moduli are primes of {low} to {high} bits each.")
    if len(parameters.moduli) != multiplications + 2:
        raise FlSimError(
            f"moduli has {len(parameters.moduli)} primes, and this form takes "
            f"{multiplications + 2}: one for each of {multiplications} multiplications, the first "
            f"for the answer, the last for key switching."
        )
    if not 1 <= parameters.scale_bits < parameters.moduli[0]:
        raise FlSimError(
            f"scale_bits is {parameters.scale_bits}, and the first of moduli, which holds the "
            f"answer, has {parameters.moduli[0]} bits; lower scale_bits."
        )
    security = security_bits(parameters)
    if security < SECURITY:
        most = STANDARD[parameters.degree][SECURITY]
        raise FlSimError(
            f"moduli of {sum(parameters.moduli)} bits at degree {parameters.degree} are below "
            f"{SECURITY} bits of security by the homomorphic encryption standard, which allows "
            f"{most}; lower moduli, or raise degree."
        )
    return security
