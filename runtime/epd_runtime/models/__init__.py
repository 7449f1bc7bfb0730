"""Model families: one file each for what is particular, shared layers beside them, weights read by one loader."""
