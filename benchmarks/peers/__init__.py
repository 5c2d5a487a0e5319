"""Who is measured: one file for each server or library, every one in a process of its own."""
