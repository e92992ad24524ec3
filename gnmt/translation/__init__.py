"""Translating and scoring files."""
