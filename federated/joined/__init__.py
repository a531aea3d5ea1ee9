"""Parties that know the same persons in other columns, joined without showing who is common or what is known."""
