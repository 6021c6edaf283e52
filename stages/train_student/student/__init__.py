"""The student: a Hugging Face model of xLSTM blocks, and how its cells are computed."""
