"""A tiny classifier of the kind of FinBERT, with random weights and labels in an order of its own."""

from pathlib import Path

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bitcoin", "up", "down", "falls", "rallies")


def tiny_classifier(folder: Path) -> Path:
    """Write one to a folder, and return that; column 0 is neutral, 1 positive and 2 negative."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        id2label={0: "Neutral", 1: "Bullish", 2: "Bearish"},
        label2id={"Neutral": 0, "Bullish": 1, "Bearish": 2},
    )
    BertForSequenceClassification(config).save_pretrained(str(folder))
    return folder
