"""Student models. A leaf: imports torch, transformers and xlstm alone."""
