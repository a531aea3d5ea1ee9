"""Powers with a secret exponent.

Done by the OpenSSL that Python itself is linked to, where its functions can be called: its
exponentiation takes the same steps whatever the exponent is, is faster than GMP's, and lets other
threads run meanwhile. Elsewhere GMP does it, whose time and memory access depend on the exponent.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import gmpy2
from gmpy2 import mpz

_SIGNATURES = {  # argument types, then the result's: p a pointer, b bytes, i an int, - nothing
    "BN_new": ("", "p"),
    "BN_CTX_new": ("", "p"),
    "BN_MONT_CTX_new": ("", "p"),
    "BN_bin2bn": ("bip", "p"),
    "BN_bn2binpad": ("pbi", "i"),
    "BN_MONT_CTX_set": ("ppp", "i"),
    "BN_mod_exp_mont_consttime": ("pppppp", "i"),
    "BN_clear_free": ("p", "-"),
    "BN_CTX_free": ("p", "-"),
    "BN_MONT_CTX_free": ("p", "-"),
}
_TYPES = {"p": ctypes.c_void_p, "b": ctypes.c_char_p, "i": ctypes.c_int, "-": None}


def secret_powers(bases: Sequence[mpz], exponent: mpz, modulus: mpz) -> list[mpz]:
    """base**exponent mod modulus for every base, in order.

    bases: 0 or more; exponent: 1 or more, kept secret as well as this machine allows;
    modulus: odd, above 1
    """
    library = _openssl()
    if library is None:
        residues = [base % modulus for base in bases]
        return list(gmpy2.powmod_base_list(residues, exponent, modulus))
    return _by_openssl(library, bases, exponent, modulus)


@functools.cache
def _openssl() -> ctypes.CDLL | None:
    """Python's own libcrypto, or None if it can't be reached or gives a wrong answer."""
    try:
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [_TYPES[argument] for argument in arguments]
            function.restype = _TYPES[result]
    except (ImportError, OSError, AttributeError):
        return None
    base, exponent, modulus = (mpz(3) ** power for power in (1000, 700, 1289))
    right = [gmpy2.powmod(base, exponent, modulus)]
    return library if _by_openssl(library, [base], exponent, modulus) == right else None


def _by_openssl(
    library: ctypes.CDLL, bases: Sequence[mpz], exponent: mpz, modulus: mpz
) -> list[mpz]:
    size = _bytes(modulus)
    buffer = ctypes.create_string_buffer(size)
    context, montgomery = library.BN_CTX_new(), library.BN_MONT_CTX_new()
    m = library.BN_bin2bn(modulus.to_bytes(size, "big"), size, None)
    e = library.BN_bin2bn(exponent.to_bytes(_bytes(exponent), "big"), _bytes(exponent), None)
    b, power = library.BN_new(), library.BN_new()
    powers = []
    try:
        success = all((context, montgomery, m, e, b, power))
        success = success and library.BN_MONT_CTX_set(montgomery, m, context)
        for base in bases:
            success = (
                success
                and library.BN_bin2bn((base % modulus).to_bytes(size, "big"), size, b)
                and library.BN_mod_exp_mont_consttime(power, b, e, m, context, montgomery)
                and library.BN_bn2binpad(power, buffer, size) == size
            )
            powers.append(mpz.from_bytes(buffer.raw, "big"))
        if not success:
            raise MemoryError("OpenSSL could not compute a power, most likely for want of memory")
    finally:
        for number in (m, e, b, power):
            library.BN_clear_free(number)
        library.BN_MONT_CTX_free(montgomery)
        library.BN_CTX_free(context)
    return powers


def _bytes(number: mpz) -> int:
    return -(-int(number.bit_length()) // 8)
