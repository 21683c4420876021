"""Training of Wan's transformers on a mesh: LoRA, all weights, or embeddings of new words."""
