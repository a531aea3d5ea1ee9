"""What can go wrong with a protected sum, one type for each party at fault.

No message repeats a secret: neither a party's values, nor a plaintext, nor a part of a key.
"""


class SecureAggError(Exception):
    """Everything this package raises on purpose."""


class InvalidKey(SecureAggError):
    """Numbers that do not make a safe Paillier key."""


class WrongKey(SecureAggError):
    """A batch made under a different key from the one at hand."""


class KeyFileRefused(SecureAggError):
    """A key file that is readable by others, damaged, of an unknown version, or locked."""


class InvalidLayout(SecureAggError):
    """A layout that can't be honoured: a bound, a resolution, a size or a slot out of range."""


class LayoutMismatch(SecureAggError):
    """Arrays, a batch or a key that do not fit the layout agreed beforehand."""


class ValueOutOfBounds(SecureAggError):
    """A value that is not finite, exceeds its field's bound, or has no exact float64."""


class InvalidCiphertext(SecureAggError):
    """A number that no honest encryption yields, and that could hand over the private key."""


class MalformedBatch(SecureAggError):
    """Bytes that are not a serialised batch of this version and size."""


class TooManyContributions(SecureAggError):
    """More contributions than the layout has room for."""


class InvalidElement(SecureAggError):
    """Bytes that are no element of the group, or the neutral one.

    row: which of the rows that were handed over
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is no element of ristretto255, or the neutral one")
        self.row = row


class UnusableLibrary(SecureAggError):
    """A library that computes for this package is not there or can't be loaded."""


class WrongArithmetic(SecureAggError):
    """Two ways to compute the same thing gave different results."""


class InconsistentSum(SecureAggError):
    """An opened total that the stated contributions can't have produced."""


class MalformedMessage(SecureAggError):
    """Bytes that are not a message of this kind and version."""


class InvalidIdentity(SecureAggError):
    """An unacceptable name, card or roster: empty, duplicated or of the wrong size."""


class Blame(SecureAggError):
    """A peer broke the protocol; nothing was opened.

    culprits: names of who did it, or ("coordinator",)
    """

    def __init__(self, message: str, *culprits: str) -> None:
        super().__init__(message)
        self.culprits = culprits


class FaultyCoordinator(Blame):
    """What the coordinator passed on is not what an honest one would have passed on."""

    def __init__(self, message: str) -> None:
        super().__init__(f"coordinator: {message}", "coordinator")


class FaultyParty(Blame):
    """A contributor sent what an honest one never sends."""


class FaultyHolder(Blame):
    """A holder of a key share gave a false part, or somebody who holds none did."""


class MissingHolder(SecureAggError):
    """Not every holder gave its part, so nothing can be opened."""


class TooFewParties(SecureAggError):
    """Fewer parties than a sum needs to hide anybody, or than the protocol can go on with."""
