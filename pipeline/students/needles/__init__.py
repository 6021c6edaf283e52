"""A needle in a haystack: does a model find a number again that its prompt named once?"""
