"""Ray Serve around the plain classes: nothing here decides what a vector is."""
