"""Files of texts → files of vectors: `source` reads, `job` embeds, `sink` writes."""
