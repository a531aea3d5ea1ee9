"""Parties talking: messages, the node's gate, Flower apps, solvers, experiments and the command line."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read by Flower when it is first imported
