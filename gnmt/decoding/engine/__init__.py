"""Faster copies of models for search."""
