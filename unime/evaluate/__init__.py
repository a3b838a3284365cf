"""Precision@1 of embedders and of the reranker, task by task (paper, section 4; method.md's section 6)."""
