"""Recommended model, vocabulary, batch and number of updates for a number of training pairs.

`RECOMMENDATIONS` is the table in docs/choosing-a-size.md, which says where each row was measured.
`recommended_overrides` turns a row into overrides of train.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recommendation:
    """A row of the table.

    Args:
        fewest_pairs: The row is for this number of training pairs and more, up to the next row.
        model: Choice of the group model.
        embedding_size: The width of its embeddings, by which a config of another size is known.
        vocabulary_size: Number of subwords of the joint vocabulary.
        batch_tokens: Source and target tokens of an update.
        epochs: Passes over the training pairs.
        learning_rate: Highest learning rate of Adam.
    """

    fewest_pairs: int
    model: str
    embedding_size: int
    vocabulary_size: int
    batch_tokens: int
    epochs: float
    learning_rate: float


RECOMMENDATIONS = (
    Recommendation(0, "gnmt_readout", 256, 2_000, 1_024, 30, 0.005),
    Recommendation(10_000, "gnmt_readout", 256, 10_000, 2_048, 13, 0.007),
    Recommendation(100_000, "gnmt_readout", 256, 10_000, 4_096, 10, 0.007),
    Recommendation(1_000_000, "gnmt", 1_024, 32_000, 32_768, 6, 0.002),
)


def recommended_overrides(num_pairs: int, num_tokens: int, config: Mapping[str, Any]) -> list[str]:
    """Return the overrides of train.py that are recommended for a corpus, or none if the config follows them already.

    Args:
        num_pairs: Number of training pairs.
        num_tokens: Source and target tokens of all pairs, with EOS, in the config's vocabulary.
        config: The resolved config of train.py. It follows the recommendation if it has the same width of the model,
            vocabulary and batch, and between half and twice the learning rate and the updates.
    """
    row = max((row for row in RECOMMENDATIONS if row.fewest_pairs <= num_pairs), key=lambda row: row.fewest_pairs)
    num_updates = max(100, round(row.epochs * num_tokens / row.batch_tokens, -2))
    learning_rate = config["optimizer"].get("lr") or 0.0
    follows = (
        config["model"]["embedding_size"] == row.embedding_size
        and row.learning_rate / 2 <= learning_rate <= 2 * row.learning_rate
        and config["tokenizer"].get("vocab_size") == row.vocabulary_size
        and config["trainer"]["batch_tokens"] == row.batch_tokens
        and num_updates / 2 <= config["trainer"]["max_steps"] <= 2 * num_updates
    )
    if follows:
        return []
    return [
        "experiment=own_text",
        *([] if row.model == "gnmt_readout" else [f"model={row.model}"]),
        f"tokenizer.vocab_size={row.vocabulary_size}",
        f"trainer.batch_tokens={row.batch_tokens}",
        f"optimizer.lr={row.learning_rate}",
        f"schedule.total_steps={num_updates:.0f}",
    ]
