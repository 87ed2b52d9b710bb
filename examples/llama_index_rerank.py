"""A LlamaIndex query engine over the standard library's documentation, with a reranker.

    python examples/llama_index_rerank.py [RERANKER]

Needs `pip install llama-index-embeddings-millpond llama-index-postprocessor-millpond-rerank`.
Without the name of a reranker it trains a small one. No language model and no key: the answers are
the nodes that one would read.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.millpond import MillpondEmbedding
from llama_index.postprocessor.millpond_rerank import MillpondRerank
from llama_index_query import QUESTIONS, documentation


def trained(folder: Path) -> str:
    from train_reranker import gather_examples, train

    return str(train(folder, gather_examples()))


def main(reranker: str | None = None) -> None:
    embed_model = MillpondEmbedding(model_name="sentence-transformers/all-MiniLM-L6-v2")
    splitter = SentenceSplitter(chunk_size=150, chunk_overlap=0)
    index = VectorStoreIndex.from_documents(
        documentation(), transformations=[splitter], embed_model=embed_model
    )
    with TemporaryDirectory() as folder:
        rerank = MillpondRerank(
            reranker or trained(Path(folder)), top_n=3, keep_retrieval_score=True
        )
        query_engine = index.as_query_engine(
            llm=MockLLM(),
            response_mode="no_text",
            similarity_top_k=15,
            node_postprocessors=[rerank],
        )
        for question in QUESTIONS:
            print(question)
            for hit in query_engine.query(question).source_nodes:
                print(f"  {hit.score:.3f}  {hit.metadata['module']}: {hit.text.split(chr(10))[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
