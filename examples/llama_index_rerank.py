"""A LlamaIndex query engine over the standard library's documentation, with a reranker.

    python examples/llama_index_rerank.py [RERANKER]

The reranker is a folder, or a name on the Hugging Face hub. No language model and no key: the
answers are the nodes that one would read.
"""

import sys

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.millpond import MillpondEmbedding
from llama_index.postprocessor.millpond_rerank import MillpondRerank
from llama_index_query import QUESTIONS, documentation

RERANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"


def main(reranker: str = RERANKER) -> None:
    Settings.llm = MockLLM()  # a language model of yours; nothing is asked of this one
    embed_model = MillpondEmbedding(model_name="sentence-transformers/all-MiniLM-L6-v2")
    splitter = SentenceSplitter(chunk_size=150, chunk_overlap=0)
    index = VectorStoreIndex.from_documents(
        documentation(), transformations=[splitter], embed_model=embed_model
    )
    query_engine = index.as_query_engine(
        response_mode="no_text",
        similarity_top_k=15,
        node_postprocessors=[MillpondRerank(reranker, top_n=3, keep_retrieval_score=True)],
    )
    for question in QUESTIONS:
        print(question)
        for hit in query_engine.query(question).source_nodes:
            print(f"  {hit.score:.3f}  {hit.metadata['module']}: {hit.text.split(chr(10))[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
