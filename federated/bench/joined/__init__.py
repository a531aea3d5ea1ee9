"""How fast two sides are joined."""
