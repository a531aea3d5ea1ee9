"""Large numbers, fast: powers, the random factors of ciphertexts, vectors and matrices modulo powers of two."""
