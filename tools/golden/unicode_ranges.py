#!/usr/bin/env python3
"""Prints src/text/unicode_ranges.inc: the code point ranges of \\p{L} and \\p{N} of this Python's Unicode version."""
import unicodedata


def ranges(kind):
    first = None
    for c in range(0x110001):
        inside = c < 0x110000 and unicodedata.category(chr(c))[0] == kind
        if inside and first is None:
            first = c
        elif not inside and first is not None:
            yield first, c - 1
            first = None


print(f"// Unicode {unicodedata.unidata_version}, made by tools/golden/unicode_ranges.py. Sorted, closed ranges.")
for name, kind in (("kLetters", "L"), ("kNumbers", "N")):
    print(f"constexpr Range {name}[] = {{")
    row = ""
    for first, last in ranges(kind):
        item = f"{{0x{first:X}, 0x{last:X}}}, "
        if len(row) + len(item) > 117:
            print("    " + row.rstrip())
            row = ""
        row += item
    print("    " + row.rstrip())
    print("};")
