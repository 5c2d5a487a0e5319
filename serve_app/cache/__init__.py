"""The cache: what is known of a text already, and the look-up that computes only the rest."""
