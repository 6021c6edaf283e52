"""What each kind of target keeps of a teacher, measured before a cache is made."""
