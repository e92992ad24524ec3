"""The embedded demo corpus: an English-German grammar that generates sentence pairs.

nouns, verbs and words hold the lexicon; english and german the morphology; phrases and clauses the syntax of both
languages; sampling, structures, complex_structures and relative_sentences choose content; corpus draws the splits.
"""
