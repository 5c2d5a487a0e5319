"""The command `embedserve`: one file for each of its parts. Thin: each calls what does the work."""
