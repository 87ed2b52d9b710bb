"""A LangChain chain over the standard library's docstrings, whose results a reranker orders.

    python examples/langchain_rerank.py [RERANKER]

The embedding model finds fifteen passages in Chroma, and the reranker, a folder or a name on the
Hugging Face hub, keeps the best three. The last step prints what was found; in a program of yours,
a language model stands there.
"""

import sys
from tempfile import TemporaryDirectory

from chromadb.config import Settings
from docstrings import gather_passages
from langchain_chroma import Chroma
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from langchain_millpond import MillpondEmbeddings, MillpondRerank

RERANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"
PASSAGES = 300
QUESTIONS = [
    "how do I parse the options of a command line program?",
    "how do I print the calendar of a month?",
    "how do I find an element in a sorted list?",
]
PROMPT = ChatPromptTemplate.from_template("{question}\n{context}")


def shown(documents: list[Document]) -> str:
    facts = [document.metadata for document in documents]
    return "\n".join(f"  {one['relevance_score']:.3f}  {one['title']}" for one in facts)


def main(reranker: str = RERANKER) -> None:
    passages = gather_passages()[:PASSAGES]
    embeddings = MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = Settings(anonymized_telemetry=False, is_persistent=True)
        store = Chroma("docstrings", embeddings, folder, client_settings=settings)
        store.add_texts(
            [f"{title}: {text}" for title, text in passages],
            [{"title": title} for title, _ in passages],
        )
        retriever = ContextualCompressionRetriever(
            base_compressor=MillpondRerank(model=reranker, top_n=3),
            base_retriever=store.as_retriever(search_kwargs={"k": 15}),
        )
        context = retriever | RunnableLambda(shown)
        chain = {"context": context, "question": RunnablePassthrough()} | PROMPT
        for answer in chain.batch(QUESTIONS):
            print(answer.to_messages()[0].content, end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
