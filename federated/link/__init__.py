"""What payers may tell each other: paid twice, and known before."""
