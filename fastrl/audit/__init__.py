"""Does a reward move with what must not matter: length, format, order, words?"""
