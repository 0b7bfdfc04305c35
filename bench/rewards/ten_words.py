"""A reward program: 1 for an answer of ten words, a tenth less for each word more or fewer."""

import json
import sys

for line in sys.stdin:
    words = len(json.loads(line)["answer"].split())
    print(json.dumps({"score": max(0.0, 1.0 - abs(words - 10) / 10)}), flush=True)
