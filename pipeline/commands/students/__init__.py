"""Commands on whole students, beside those of the two stages."""
