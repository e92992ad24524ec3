"""Small GNMT models and batches, in fp64 and evaluation mode unless a test changes that."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gnmt.batch import PAD_ID, Tokens
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

SOURCE = [[7, 4, 8, 5, 3], [6, 3], [5, 5, 8, 4, 7, 6, 3], [3]]
TARGET = [[2, 9, 5], [2, 4, 6, 8, 10, 7], [2], [2, 6, 6, 6]]


def tiny_gnmt(
    *,
    layers: tuple[int, int] = (3, 3),
    query: str = "current",
    tie: str = "none",
    normalize: bool = True,
    dropout: float = 0.0,
    num_bidirectional_layers: int = 1,
    shortcut: bool = False,
    seed: int = 3,
) -> Seq2Seq:
    """Return a GNMT whose widths all differ where tying allows it, so that a wrong width causes an error."""
    torch.manual_seed(seed)
    embedding, source_size, target_size = (5, 9, 11) if tie == "none" else (6, 11, 11)
    encoder = LSTMEncoder(
        embedding,
        4,
        layers[0],
        num_bidirectional_layers=num_bidirectional_layers,
        dropout=dropout,
        attend_to_embeddings=shortcut,
    )
    attention = AdditiveAttention(6, encoder.output_size, 3, normalize=normalize)
    decoder = GNMTDecoder(embedding, 6, layers[1], attention, query=query, dropout=dropout)  # type: ignore[arg-type]
    model = Seq2Seq(
        encoder,
        decoder,
        source_size,
        target_size,
        embedding,
        tie_embeddings=tie,  # type: ignore[arg-type]
        init_range=0.8,  # large, so that gates are not nearly linear
        output_dropout=dropout,
    )
    return model.double().eval()


def padded(rows: Sequence[Sequence[int]], extra: int = 0, padding: int = PAD_ID) -> Tokens:
    """Return the rows as a batch, `extra` columns wider than the longest row, with `padding` behind each row's end."""
    ids_BT = torch.full((len(rows), max(map(len, rows)) + extra), padding)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: len(row)] = torch.tensor(row)
    return Tokens(ids_BT, torch.tensor([len(row) for row in rows]))
