"""Inference copies of models, their linear layers, and CUDA graphs of search steps."""
