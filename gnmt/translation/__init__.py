"""Translation and scoring of files: the work of the commands translate.py and score.py."""
