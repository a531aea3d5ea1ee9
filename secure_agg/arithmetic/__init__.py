"""Large numbers, fast: powers, the random factors of ciphertexts, a curve, vectors and matrices modulo powers of two."""
