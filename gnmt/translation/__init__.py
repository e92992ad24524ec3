"""Translation and scoring of files: what the commands translate.py and score.py do."""
