"""One tiny model of each kind, with fixed random weights, as sentence-transformers saves it.

Nothing is downloaded: the vocabularies are those of the default model or a few words.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from serve_app.config import MINILM, ModelConfig
from serve_app.models import model_dir

_SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
#: The spread of random weights. With transformers' own, all outputs are nearly equal.
_WEIGHT_STD = 0.4
#: The width of the vectors of texts and images.
IMAGE_DIM = 24
#: The side of the images that the image model takes, in pixels.
IMAGE_SIZE = 24


def dense(folder: Path) -> ModelConfig:
    """Saves an XLM-R with mean pooling, as `paraphrase-multilingual-mpnet-base-v2` is."""
    backbone = _random(XLMRobertaModel, _xlmr_config(), folder / "parts", _xlmr_tokenizer())
    modules = [Transformer(backbone, max_seq_length=48), Pooling(32, pooling_mode="mean")]
    return _save(SentenceTransformer(modules=modules, device="cpu"), folder, "dense")


def cross_encoder(folder: Path, *labels: str, xlmr: bool = False) -> ModelConfig:
    """Saves a cross-encoder: a reranker, or with several labels a classifier of pairs."""
    options: dict[str, Any] = {"num_labels": 1}
    if labels:
        options = _labels(*labels)
    if xlmr:
        backbone = _random(
            XLMRobertaForSequenceClassification,
            _xlmr_config(**options),
            folder / "parts",
            _xlmr_tokenizer(),
        )
    else:
        backbone = _random(
            BertForSequenceClassification, _bert_config(**options), folder / "parts", _tokenizer()
        )
    return _save(CrossEncoder(backbone, device="cpu", max_length=64), folder, "cross-encoder")


def classifier(folder: Path) -> ModelConfig:
    """Saves a transformers folder without sentence-transformers' files: two labels."""
    config = _bert_config(**_labels("bad", "good"))
    _random(BertForSequenceClassification, config, folder / "model", _tokenizer())
    return ModelConfig(name="tiny/classifier", source=f"path:{folder / 'model'}")


def sparse(folder: Path, pooling: Literal["max", "sum"] = "max", **options: Any) -> ModelConfig:
    """Saves a SPLADE."""
    backbone = _random(BertForMaskedLM, _bert_config(), folder / "parts", _tokenizer())
    modules = [
        Transformer(backbone, transformer_task="fill-mask", max_seq_length=64),
        SpladePooling(pooling),
    ]
    return _save(SparseEncoder(modules=modules, device="cpu", **options), folder, "sparse")


def sparse_auto_encoder(folder: Path, **options: Any) -> ModelConfig:
    """Saves a model whose dense vectors an autoencoder makes sparse."""
    backbone = _random(BertModel, _bert_config(), folder / "parts", _tokenizer())
    autoencoder = SparseAutoEncoder(32, hidden_dim=128, k=8, k_aux=16)
    _randomize(autoencoder)
    modules = [Transformer(backbone, max_seq_length=64), Pooling(32), autoencoder]
    return _save(SparseEncoder(modules=modules, device="cpu", **options), folder, "sparse")


def multi_vector(folder: Path, **options: Any) -> ModelConfig:
    """Saves a ColBERT with prefixes, query expansion, and a list of skipped punctuation."""
    options = {
        "query_expansion": {"strategy": "fixed", "attend": False, "length": 16},
        "document_length": 40,
    } | options
    backbone = _random(BertModel, _bert_config(), folder / "parts", _tokenizer())
    modules = [
        Transformer(backbone, **options),
        Dense(32, 16, bias=False, activation_function=None, module_input_name="token_embeddings"),
        MultiVectorMask(list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    ]
    prompts = {"query": "[Q] ", "document": "[D] "}
    model = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
    return _save(model, folder, "multi-vector")


def image(folder: Path) -> ModelConfig:
    """Saves a CLIP, which embeds texts and images."""
    torch.manual_seed(7)
    tokenizer = _clip_tokenizer()
    text = _SIZE | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    vision = _SIZE | {"image_size": IMAGE_SIZE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=IMAGE_DIM)
    model = CLIPModel(config)
    _randomize(model)
    model.save_pretrained(folder / "parts")
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPProcessor(  # type: ignore[no-untyped-call]
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side), tokenizer
    ).save_pretrained(folder / "parts")
    modules = [Transformer(str(folder / "parts")), Normalize()]
    return _save(SentenceTransformer(modules=modules, device="cpu"), folder, "image")


#: A builder of each kind, by name.
BUILDERS: dict[str, Callable[[Path], ModelConfig]] = {
    "dense": dense,
    "reranker": cross_encoder,
    "classifier": classifier,
    "sparse": sparse,
    "multi-vector": multi_vector,
    "image": image,
}


def _save(model: Any, folder: Path, name: str) -> ModelConfig:
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return ModelConfig(name=f"tiny/{name}", source=f"path:{folder / 'model'}")


def _random(architecture: Any, config: Any, folder: Path, tokenizer: Any) -> str:
    """Writes a transformers model with fixed random weights; returns its folder."""
    torch.manual_seed(7)
    model = architecture(config)
    _randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _randomize(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower():
            torch.nn.init.normal_(parameter, std=_WEIGHT_STD)


def _labels(*names: str) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(model_dir(MINILM)))


def _bert_config(**options: Any) -> BertConfig:
    return BertConfig(vocab_size=len(_tokenizer()), **_SIZE, **options)


def _xlmr_config(**options: Any) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=len(_xlmr_tokenizer()),
        max_position_embeddings=66,
        pad_token_id=1,
        **_SIZE,
        **options,
    )


def _xlmr_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer like XLM-R's, which spells texts in letters."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = "▁abcdefghijklmnopqrstuvwxyzäöüß,.!?0123456789поискземанглубр搜索語"
    pieces = [(piece, 0.0) for piece in special]
    pieces += [(letter, -1.0 - i / 100) for i, letter in enumerate(dict.fromkeys(letters))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _clip_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer like CLIP's, with byte-level letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *special])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start, end = (vocabulary[token] for token in special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )
