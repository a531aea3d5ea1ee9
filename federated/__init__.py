"""Parties talking: messages, the node's gate, Flower apps, solvers, experiments and the command line."""
