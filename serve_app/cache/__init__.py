"""The vector cache: keys, values, the tiers that store them, and the lookup through the tiers."""
