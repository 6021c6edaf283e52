"""Student models. Imports torch, transformers and xlstm alone."""
