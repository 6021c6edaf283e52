"""Terms that compare hidden states of student and teacher."""
