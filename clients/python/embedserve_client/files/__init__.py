"""Files of texts into files of vectors: `source.py`, `sink.py`, and `job.py` between them."""
