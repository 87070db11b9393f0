"""Final answers of mathematics: found in a text, brought to normal form, read as a tree, compared by value.

Imports go from right to left: trees, units ← tokens, exact, notation ← latex, extraction, values ← sets ← equality.
"""
