"""Totals of numbers that nobody but their owner sees.

Every party packs its numbers into a few large integers, encrypts them under one Paillier key
and hands them to somebody who multiplies the ciphertexts and learns nothing. Whoever holds the
private key opens the product once and sees the total, never a party's own numbers.

    keys        make, keep and check Paillier keys
    packing     many fixed-point numbers in one plaintext, with room for every party's share
    paillier    encrypt, add and decrypt whole batches
    identity    who is who: signing, sealing, the roster of all parties
    transcript  what a key holder checks before it opens anything
    shares      a key that nobody holds alone; the threat model of encrypted sums
    masks       another way: pairwise masks for long vectors; their threat model
    triples     shares of a product of two matrices, each at one side, by dealt randomness
    encrypted_product   the same without a dealer, by Paillier
    encrypted_sums      of few columns over rows in groups, the same way
    wire        how small messages travel
    arithmetic  powers, random factors of ciphertexts, vectors and matrices modulo powers of two

This package knows nothing of insurance, of networks or of files other than key files, and
importing it imports nothing else.
"""
