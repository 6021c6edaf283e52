"""Commands on whole students: they are made from a teacher, judged and merged."""
