"""Scores of one person across an insurer and the fund: consented to, rationed, coarse, logged at both."""
