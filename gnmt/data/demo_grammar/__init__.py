"""The embedded demo corpus: a grammar that generates English-German sentence pairs.

The modules, from words to splits of the corpus:

- `morphology`: inflection of English and German words (declension, conjugation, articles, pronouns).
- `nouns`, `verbs`, `words`: the lexicon, with the semantic kinds that determine which words combine.
- `clauses`: noun phrases, prepositional phrases, clauses and relative clauses, and their word order in both languages.
- `sampling`: random noun phrases and clauses that make sense.
- `structures`: one function for each sentence structure, such as questions, negation and subordinate clauses.
- `corpus`: the training, dev and test split.
"""
