"""Training of the embedders (three losses) and of the reranker, on LoRA adapters of the language model."""
