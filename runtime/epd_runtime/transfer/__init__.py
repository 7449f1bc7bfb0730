"""Moves bytes between registered memory of two engines, behind one interface for every fabric."""
