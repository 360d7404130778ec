"""Training on plaintext images, with what keeps a network fit for small integers."""

from mcfhe.train.loop import PRECISIONS, Epoch, TrainResult, snap, train

__all__ = ["PRECISIONS", "Epoch", "TrainResult", "snap", "train"]
