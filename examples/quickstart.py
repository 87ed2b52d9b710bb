"""Embed a few texts and find the one that answers a question."""

from millpond import Engine

TEXTS = [
    "The mill stands beside a pond that gathers the water of three streams.",
    "Flour is ground between two stones, one of which is turned by the wheel.",
    "The bakery in the village opens at six and sells out by nine.",
]


def main() -> None:
    with Engine("sentence-transformers/all-MiniLM-L6-v2") as engine:
        vectors = engine.embed(TEXTS, task="document")  # float32 [3, 384]
        query = engine.embed("when can I buy bread?", task="query")  # float32 [384]

    scores = vectors @ query
    for score, text in sorted(zip(scores, TEXTS, strict=True), reverse=True):
        print(f"{score:.2f}  {text}")


if __name__ == "__main__":
    main()
