"""A static model (StaticEmbedding) with fixed random weights, as sentence-transformers saves it."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from serve_app.config import MINILM
from serve_app.models import model_dir

DIM = 24


def save_static_model(folder: Path) -> Path:
    """Saves a model with the default model's vocabulary; returns its folder."""
    tokenizer = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    tokenizer.no_truncation()
    shape = (tokenizer.get_vocab_size(), DIM)
    table = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, table), Normalize()]).save(str(folder))
    return folder
