#!/usr/bin/env python3
"""Makes tests/golden/bpe/cases.json: texts and the ids that Hugging Face's tokenizers gives them.

  FEWSTEP_GOLDEN_OUT=FOLDER build/bpe_test --gtest_filter=Bpe.WritesGoldenVocabulary
  tools/golden/bpe.py FOLDER > tests/golden/bpe/cases.json   (pip install tokenizers)
"""
import json
import random
import sys

import tokenizers

folder = sys.argv[1]
reference = tokenizers.ByteLevelBPETokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")
draw = random.Random(1)
texts = [
    "", " ", "   ", "\n\n x", "x\n\n", "  a  photo of\tan ankle boot \n", "a dark long dress",
    "trousers's don't they'll I'M we've 12345 a1b2c3", "\u65e5\u672c\u8a9e \u30c6\u30ad\u30b9\u30c8 \uff11\uff12\uff13 \u00bd \u00b2",
    "\u00e9t\u00e9 na\u00efve fa\u00e7ade \u00d1and\u00fa", "emoji \U0001f469\u200d\U0001f467 \U0001f389\U0001f389 \U0001f1e9\U0001f1ea",
    "a\u00a0b\u3000c \u2003d", "...!!! --- ??", "\u00abquotes\u00bb \u201ccurly\u201d \u2018it\u2019s\u2019",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\u200bzero\u200d width", "tab\t\tand  spaces   end   ", "<bos> is plain text <eos>", "A\u0301combining", "\x00\x01\x7f control",
]
signs = "abcdefghijklmnop qrstuvwxyz    \t\n'0123456789.,;:!?-\u00e9\u00df\u00f8\u65e5\u672c\u00bd\u00b2\u0663\u00a0\u2003\U0001f44d\u0301"
words = "dark bright mid long short wide narrow t-shirt trousers dress coat ankle boot photo of a an this is these are and".split()
texts += ["".join(draw.choice(signs) for _ in range(draw.randint(0, 40))) for _ in range(120)]
texts += ["".join(draw.choice([" ", "  ", "", ", ", "'s ", "\n"]) + draw.choice(words) for _ in range(draw.randint(1, 9))) for _ in range(120)]
rows = [json.dumps({"text": text, "ids": reference.encode(text).ids}) for text in texts]
print(f'{{"made_by": "tokenizers {tokenizers.__version__}, ByteLevelBPETokenizer", "cases": [\n' + ",\n".join(rows) + "\n]}")
