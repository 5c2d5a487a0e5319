"""Indexes → the same rows with vectors of another space: an interrupted run resumes.

`migration` embeds and compares, one `…_store` for each kind of index reads its texts and replaces
its vectors.
"""
