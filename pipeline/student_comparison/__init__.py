"""Two students on the same validation rows: is the difference between them real?"""
