"""Layers that students are made of: mLSTM, sLSTM, and the masks that separate documents."""
