"""Embed a file with `millpond embed`, then search the file it wrote."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from millpond import Engine

NOTES = [
    {"page": 3, "text": "The mill stands beside a pond that gathers the water of three streams."},
    {"page": 8, "text": "Flour is ground between two stones, one of which the wheel turns."},
    {"page": 21, "text": "The bakery in the village opens at six and sells out by nine."},
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notes, vectors = Path(folder, "notes.jsonl"), Path(folder, "notes.parquet")
        notes.write_text("\n".join(map(json.dumps, NOTES)), encoding="utf-8")
        command = ["embed", str(notes), "-o", str(vectors), "--task", "document"]
        subprocess.run([sys.executable, "-m", "millpond", *command], check=True)
        table = pq.read_table(vectors)  # page, text and embedding

    with Engine("sentence-transformers/all-MiniLM-L6-v2") as engine:
        query = engine.embed("when can I buy bread?", task="query")  # float32 [384]
    scores = np.stack(table["embedding"].to_numpy()) @ query
    best = int(scores.argmax())
    print(f"page {table['page'][best]}: {table['text'][best]}")


if __name__ == "__main__":
    main()
